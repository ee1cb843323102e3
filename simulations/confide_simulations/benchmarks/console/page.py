"""Many open pages of one run, as far as the console can tell: the process that `watchers` starts.

Each has two connections of its own that stay open, as a browser's do: the event stream, and one on which it asks for
the part of the run's page that changes. It asks when a page does (static/confide.js): at a step at once, at a tick at
most once a second, at a beat. Written on sockets, so that what is measured is the console and not its readers.

    python -m confide_simulations.benchmarks.console.page HOST PORT RUN COUNT     (the cookie on standard input)
"""

import asyncio
import gzip
import json
import re
import sys
import time

LEAST_S = 1.0
"""Between two looks at what is no step."""
_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_ROUND = re.compile(rb'<progress max="\d+" value="(\d+)"')


class _Page:
    """One visitor's."""

    def __init__(self, host: str, port: int, cookie: str, run_id: str) -> None:
        self._at, self._run_id = (host, port), run_id
        self._headers = f"host: {host}:{port}\r\ncookie: {cookie}\r\naccept-encoding: gzip\r\n\r\n"
        self._kept: _Connection | None = None
        self._due, self._looked_at, self._shown = asyncio.Event(), 0.0, 0
        self._timer: asyncio.TimerHandle | None = None

    async def watch(self) -> None:
        """Until the process is ended. Raises SystemExit when the console refuses."""
        stream = await asyncio.open_connection(*self._at)
        reader, _ = await self._asked("/live", stream)
        self._hear(at_once=True)
        looking = asyncio.create_task(self._look())
        while not looking.done():
            size = int(await reader.readline(), 16)
            event = (await reader.readexactly(size + 2)).split(b"\n", 1)[0].removeprefix(b"event: ")
            if event in {b"step", b"tick", b"beat"}:
                self._hear(at_once=event == b"step")
        await looking

    def _hear(self, at_once: bool) -> None:
        if self._timer is not None:
            self._timer.cancel()
        left = 0.0 if at_once else self._looked_at + LEAST_S - time.monotonic()
        if left > 0:
            self._timer = asyncio.get_running_loop().call_later(left, self._hear, True)
        else:
            self._looked_at = time.monotonic()
            self._due.set()

    async def _look(self) -> None:
        while await self._due.wait():
            self._due.clear()
            number = await self._round()
            if number > self._shown:
                print(json.dumps({"round": number, "at": time.time()}), flush=True)
                self._shown = number

    async def _round(self) -> int:
        kept, self._kept = self._kept, None
        connection = kept or await asyncio.open_connection(*self._at)
        try:
            reader, headers = await self._asked(f"/runs/{self._run_id}/live", connection)
            body = await reader.readexactly(int(headers[b"content-length"]))
        except (OSError, asyncio.IncompleteReadError):
            if kept is None:
                raise
            return await self._round()  # the console had closed it while nothing was asked
        self._kept = connection
        found = _ROUND.search(gzip.decompress(body) if headers.get(b"content-encoding") == b"gzip" else body)
        return int(found.group(1)) if found is not None else 0

    async def _asked(self, path: str, connection: _Connection) -> tuple[asyncio.StreamReader, dict[bytes, bytes]]:
        reader, writer = connection
        writer.write(f"GET {path} HTTP/1.1\r\n{self._headers}".encode())
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        if b" 200 " not in status:
            raise SystemExit(f"{path} was answered {status.decode(errors='replace')}")
        named = (line.partition(b":") for line in lines if line)
        return reader, {name.lower(): value.strip() for name, _, value in named}


async def _watch(host: str, port: int, cookie: str, run_id: str, count: int) -> None:
    await asyncio.gather(*(_Page(host, port, cookie, run_id).watch() for _ in range(count)))


if __name__ == "__main__":
    asyncio.run(_watch(sys.argv[1], int(sys.argv[2]), sys.stdin.read(), sys.argv[3], int(sys.argv[4])))
