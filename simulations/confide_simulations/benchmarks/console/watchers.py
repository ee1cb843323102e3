"""Many open pages of one run: how soon each shows a new round, and what they cost while nothing happens.

The watchers are a process of their own and do what a page does: one event stream each, and the part of the run's page
that changes again at each tick. What is timed goes from the round's commit at the coordinator to that part with that
round, whole, at a watcher.

    python -m confide_simulations.benchmarks.console.watchers ADDRESS RUN COUNT     (the cookie on standard input)
"""

import asyncio
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import numpy as np
from confide.errors import TransportError
from confide.web.serving import configured, listening
from confide_server.console.web.app import Console

PATIENCE_S = 120.0
_ROUND = re.compile(r'<progress max="\d+" value="(\d+)"')


async def _one(client: httpx.AsyncClient, run_id: str) -> None:
    seen = 0
    async with client.stream("GET", "/live", timeout=None) as stream:
        if stream.status_code != 200:
            raise SystemExit(f"/live was answered {stream.status_code}")
        async for line in stream.aiter_lines():
            if line == "event: beat" and not seen:
                seen = await _round(client, run_id)
                print(json.dumps({"ready": seen}), flush=True)
            elif line == "event: tick":
                shown = await _round(client, run_id)
                if shown > seen:
                    seen = shown
                    print(json.dumps({"round": shown, "at": time.time()}), flush=True)


async def _round(client: httpx.AsyncClient, run_id: str) -> int:
    answer = await client.get(f"/runs/{run_id}/live", timeout=PATIENCE_S)
    found = _ROUND.search(answer.text)
    return int(found.group(1)) if found is not None else 0


async def _watch(address: str, cookie: str, run_id: str, count: int) -> None:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, headers={"cookie": cookie}, limits=limits) as client:
        await asyncio.gather(*(_one(client, run_id) for _ in range(count)))


class Watchers:
    """The process and what it has seen."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._ready = 0
        self._seen: dict[int, list[float]] = {}
        self._said = threading.Condition()
        self._reading = threading.Thread(target=self._read, name="watchers", daemon=True)
        self._reading.start()

    def join(self) -> None:
        """Wait for the end of what the process says."""
        self._reading.join(10.0)

    def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - a pipe was asked for
        for line in self._process.stdout:
            found = json.loads(line)
            with self._said:
                if "ready" in found:
                    self._ready += 1
                else:
                    self._seen.setdefault(found["round"], []).append(found["at"])
                self._said.notify_all()

    def wait_ready(self, count: int) -> None:
        """Until so many pages are open. Raises TransportError."""
        self._wait(lambda: self._ready >= count, f"{count} pages to open")

    def shown(self, number: int, count: int) -> list[float]:
        """When each of so many pages showed the round, Unix seconds. Raises TransportError."""
        self._wait(lambda: len(self._seen.get(number, ())) >= count, f"round {number} on {count} pages")
        return self._seen[number]

    def _wait(self, there: Callable[[], bool], what: str) -> None:
        with self._said:
            if not self._said.wait_for(there, PATIENCE_S):
                raise TransportError(f"waited {PATIENCE_S:g} s for {what}")


@contextmanager
def _watching(command: list[str], cookie: str) -> Iterator[Watchers]:
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None  # noqa: S101 - a pipe was asked for
        process.stdin.write(cookie)
        process.stdin.close()
        watchers = Watchers(process)
        try:
            yield watchers
        finally:
            process.kill()
            watchers.join()


@contextmanager
def _served(console: Console) -> Iterator[str]:
    """The console on a port of loopback; its address."""
    import uvicorn

    with listening("127.0.0.1", 0) as listener:
        console.port = listener.getsockname()[1]
        web = uvicorn.Server(configured(console.app()))
        thread = threading.Thread(target=lambda: web.run(sockets=[listener]), name="console", daemon=True)
        thread.start()
        try:
            yield console.address
        finally:
            web.should_exit = True
            thread.join(10.0)


def measured(
    console: Console, cookie: str, run_id: str, commit: Callable[[], int], *, count: int, rounds: int, idle_s: float
) -> dict[str, float]:
    """commit: commits the run's next round and returns its number. cookie: of somebody who may see the run."""
    command = [sys.executable, "-m", "confide_simulations.benchmarks.console.watchers"]
    late: list[float] = []
    with _served(console) as address, _watching([*command, address, run_id, str(count)], cookie) as watchers:
        watchers.wait_ready(count)
        time.sleep(2.0)
        began, cpu_began = time.monotonic(), time.process_time()
        time.sleep(idle_s)
        idle = (time.process_time() - cpu_began) / (time.monotonic() - began)
        for _ in range(rounds):
            time.sleep(2.0)
            at = time.time()
            late += [seen - at for seen in watchers.shown(commit(), count)]
    return {
        "watchers": count, "idle_core_percent": round(100.0 * idle, 2), "round_p50_ms": _ms(late, 50),
        "round_p95_ms": _ms(late, 95), "round_last_ms": _ms(late, 100),
    }  # fmt: skip


def _ms(seconds: list[float], at: int) -> float:
    return round(1000.0 * float(np.percentile(seconds, at)), 1)


if __name__ == "__main__":
    asyncio.run(_watch(sys.argv[1], sys.stdin.read(), sys.argv[2], int(sys.argv[3])))
