"""What happens, from the coordinator's one event stream to every open page: a tick says "look again", nothing more.

One thread follows the stream whoever watches; a watcher costs a queue of one place. When the stream breaks, the thread
comes back by itself, and every page looks again, so that nothing is missed.
"""

import asyncio
import contextlib
import threading
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterator, Sequence

from confide.errors import ConfideError
from confide.proto import admin_pb2 as pb

from confide_server.console.federation.reading import SETTLED_S, Acting, Reader
from confide_server.console.roles import Role

HEARTBEAT_S = 15.0
BACKFILL_EVENTS = 2000
BACKFILL_PATIENCE_S = 1.5
KEPT_EVENTS = 300
KEPT_RUNS = 32
_BACK_OFF_S = (0.5, 1.0, 2.0, 4.0, 8.0)
CONSOLE = Acting("console", Role.ADMINISTRATOR)
"""The stream is the console's own; what of it a person gets is decided by that person's role."""


class Watcher:
    """One open page."""

    def __init__(self, loop: asyncio.AbstractEventLoop, run_ids: frozenset[str] | None) -> None:
        """run_ids: of which it hears; None: of all."""
        self._loop, self._run_ids = loop, run_ids
        self._ticks: asyncio.Queue[str] = asyncio.Queue(1)
        self._due = False

    def tell(self, run_id: str) -> None:
        """From any thread. The tick comes when answers are asked for anew, one for all that happens meanwhile."""
        if not self._due and (not run_id or self._run_ids is None or run_id in self._run_ids):
            self._due = True
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._loop.call_later, SETTLED_S, self._put)

    def _put(self) -> None:
        self._due = False
        if not self._ticks.full():
            self._ticks.put_nowait("tick")

    async def ticks(self) -> AsyncIterator[str]:
        """ "tick" when something happened, "beat" when nothing did for a while."""
        while True:
            try:
                yield await asyncio.wait_for(self._ticks.get(), HEARTBEAT_S)
            except TimeoutError:
                yield "beat"


class Live:
    """The thread, its watchers, and the newest events of runs that somebody looked at."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._watchers: set[Watcher] = set()
        self._events: OrderedDict[str, deque[pb.Event]] = OrderedDict()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="console-events", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """End; the thread leaves with the stream's next sign of life."""
        self._stop.set()

    @contextlib.contextmanager
    def watching(self, run_ids: frozenset[str] | None) -> Iterator[Watcher]:
        """A watcher for as long as the page is open."""
        watcher = Watcher(asyncio.get_running_loop(), run_ids)
        with self._lock:
            self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            with self._lock:
                self._watchers.discard(watcher)

    @property
    def watchers(self) -> int:
        """Open pages."""
        return len(self._watchers)

    def events(self, run: pb.RunLine, acting: Acting) -> Sequence[pb.Event]:
        """A run's newest events, oldest first.

        Guarantee: read as the visitor; what the console heard for others is never shown.
        """
        if acting.role is Role.ORGANIZATION:
            return self._backfill(run, acting)
        with self._lock:
            known = self._events.get(run.run_id)
        if known is None:
            filled = deque(self._backfill(run, acting), KEPT_EVENTS)
            with self._lock:
                known = self._events.setdefault(run.run_id, filled)
                while len(self._events) > KEPT_RUNS:
                    self._events.popitem(last=False)
        return list(known)

    def _backfill(self, run: pb.RunLine, acting: Acting) -> list[pb.Event]:
        """What came within the patience: of the end of what an organization may see nobody tells it."""
        found: list[pb.Event] = []
        if run.last_event:
            reading = threading.Thread(target=self._read, args=(run, acting, found), name="console-events", daemon=True)
            reading.start()
            reading.join(BACKFILL_PATIENCE_S)
        return found[-KEPT_EVENTS:]

    def _read(self, run: pb.RunLine, acting: Acting, found: list[pb.Event]) -> None:
        asked = pb.StreamEventsRequest(run_id=run.run_id, after=max(0, run.last_event - BACKFILL_EVENTS))
        begun = False
        with contextlib.suppress(ConfideError):
            for event in self._reader.events(asked, acting):
                kind = event.WhichOneof("what")
                if kind == "alive" and begun:
                    return  # nothing more has happened; the first one only says that the stream is open
                begun = True
                if kind not in {"alive", "progress"}:
                    found.append(event)
                if event.number >= run.last_event and kind != "alive":
                    return

    def _follow(self) -> None:
        failures = 0
        while not self._stop.is_set():
            try:
                for event in self._reader.events(pb.StreamEventsRequest(newest_only=True), CONSOLE):
                    if failures:  # whatever happened in between is looked at anew
                        failures = 0
                        self._forget()
                    if self._stop.is_set():
                        return
                    self._heard(event)
            except ConfideError:
                pass
            failures += 1
            self._stop.wait(_BACK_OFF_S[min(failures, len(_BACK_OFF_S)) - 1])

    def _heard(self, event: pb.Event) -> None:
        kind = event.WhichOneof("what")
        if kind == "alive":
            return
        with self._lock:
            known = self._events.get(event.run_id)
            if known is not None and kind != "progress" and (not known or event.number > known[-1].number):
                known.append(event)
            watchers = tuple(self._watchers)
        if kind != "progress":
            self._reader.heard()
        for watcher in watchers:
            watcher.tell(event.run_id)

    def _forget(self) -> None:
        with self._lock:
            self._events.clear()
            watchers = tuple(self._watchers)
        for watcher in watchers:
            watcher.tell("")
