"""Many open pages of one run: how soon each shows a new round, and what they cost while nothing happens.

The pages are a process of their own (`page`), whose CPU time is told apart. What is timed goes from before the
round's commit at the coordinator, its write to the disk included, to that part of the page with that round, whole, at
each of them.
"""

import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from confide.errors import TransportError
from confide.web.serving import configured, listening
from confide_server.bounded_http import BoundedServer
from confide_server.console.web.app import Console
from confide_server.quota import Quota

PATIENCE_S = 120.0
_PAGES = (sys.executable, "-m", "confide_simulations.benchmarks.console.page")


class Watchers:
    """The process and what it has seen."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
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
                self._seen.setdefault(found["round"], []).append(found["at"])
                self._said.notify_all()

    @property
    def cpu_s(self) -> float:
        """Its CPU time so far."""
        with open(f"/proc/{self._process.pid}/stat") as file:
            return sum(map(int, file.read().rpartition(")")[2].split()[11:13])) / os.sysconf("SC_CLK_TCK")

    def shown(self, number: int, count: int) -> list[float]:
        """When each of so many pages showed the round, Unix seconds. Raises TransportError."""
        with self._said:
            if not self._said.wait_for(lambda: len(self._seen.get(number, ())) >= count, PATIENCE_S):
                raise TransportError(f"waited {PATIENCE_S:g} s for round {number} on {count} pages")
            return list(self._seen[number])


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
    with listening("127.0.0.1", 0) as listener:
        console.port = listener.getsockname()[1]
        web = BoundedServer(configured(console.app()), Quota(most=1024, of_one_address=1024))
        thread = threading.Thread(target=lambda: web.run(sockets=[listener]), name="console", daemon=True)
        thread.start()
        try:
            yield console.address
        finally:
            web.should_exit = True
            thread.join(10.0)


@contextmanager
def _set_aside() -> Iterator[None]:
    """A full collection does not look through what is here already: a console's process has no coordinator in it."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def measured(
    console: Console, cookie: str, run_id: str, commit: Callable[[], int], *, begun: int, count: int, rounds: int,
    idle_s: float,
) -> dict[str, Any]:  # fmt: skip
    """commit: commits the run's next round and returns its number. begun: the round it has now.

    cookie: of somebody who may see the run.
    """
    late: list[list[float]] = []
    with ExitStack() as opened:
        opened.enter_context(_set_aside())
        opened.enter_context(_served(console))
        command = [*_PAGES, "127.0.0.1", str(console.port), run_id, str(count)]
        pages = opened.enter_context(_watching(command, cookie))
        opening = time.monotonic()
        pages.shown(begun, count)
        open_s = time.monotonic() - opening
        time.sleep(2.0)
        began, cpu_began = time.monotonic(), time.process_time()
        time.sleep(idle_s)
        idle = (time.process_time() - cpu_began) / (time.monotonic() - began)
        cpu_began, cpu_pages = time.process_time(), pages.cpu_s
        for number in range(rounds):
            time.sleep(2.0 if number else 0.0)
            at = time.time()
            late.append([seen - at for seen in pages.shown(commit(), count)])
        cpu, cpu_pages = time.process_time() - cpu_began, pages.cpu_s - cpu_pages
    return {
        "watchers": count, "opened_s": round(open_s, 2), "idle_core_percent": round(100.0 * idle, 2),
        "half_ms": [_ms(one, 50) for one in late], "all_ms": [_ms(one, 100) for one in late],
        "round_cpu_ms": round(1000.0 * cpu / rounds, 1), "pages_cpu_ms": round(1000.0 * cpu_pages / rounds, 1),
    }  # fmt: skip


def _ms(seconds: list[float], at: int) -> float:
    return round(1000.0 * float(np.percentile(seconds, at)), 1)
