"""What happens, from the coordinator's one event stream to every open page: a tick says "look again", nothing more.

One thread follows the stream whoever watches; a watcher costs a queue of one place. When the stream breaks, the thread
comes back by itself, and every page looks again, so that nothing is missed.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Iterator

from confide.errors import ConfideError
from confide.proto import admin_pb2 as pb

from confide_server.console.federation.happened import Happened
from confide_server.console.federation.reading import SETTLED_S, Acting, Reader
from confide_server.console.roles import Role

HEARTBEAT_S = 15.0
STEP_S = 0.05
"""A round's commit and the next one's start are one tick."""
_BACK_OFF_S = (0.5, 1.0, 2.0, 4.0, 8.0)
_OFTEN = frozenset({"progress", "offer_answered", "contributed", "dropped"})
"""What each node brings in each round. Anything else is a step of the whole run, and is shown at once."""
CONSOLE = Acting("console", Role.ADMINISTRATOR)
"""The stream is the console's own; what of it a person gets is decided by that person's role."""


class Watcher:
    """One open page."""

    def __init__(self, loop: asyncio.AbstractEventLoop, run_ids: frozenset[str] | None) -> None:
        """run_ids: of which it hears; None: of all."""
        self._loop, self._run_ids = loop, run_ids
        self._ticks: asyncio.Queue[bool] = asyncio.Queue(1)
        """Whether it is a step."""
        self._timer: asyncio.TimerHandle | None = None
        self._step = False

    def tell(self, run_id: str, *, step: bool = False) -> None:
        """From any thread. One tick for all that happens until then: soon after a step, else once answers settled."""
        concerned = not run_id or self._run_ids is None or run_id in self._run_ids
        if concerned and (step or self._timer is None):
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._due, step)

    def _due(self, step: bool) -> None:
        self._step = self._step or step
        at = self._loop.time() + (STEP_S if step else SETTLED_S)
        if self._timer is None or self._timer.when() > at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(at, self._put)

    def _put(self) -> None:
        step, self._step, self._timer = self._step, False, None
        if self._ticks.full():
            step = self._ticks.get_nowait() or step
        self._ticks.put_nowait(step)

    async def ticks(self) -> AsyncIterator[str]:
        """ "step" when the run has come further, "tick" when anything else happened, "beat" when nothing did.

        Everybody's beat comes at the same moment, so that a hundred pages that look then are answered as one.
        """
        while True:
            try:
                step = await asyncio.wait_for(self._ticks.get(), HEARTBEAT_S - time.monotonic() % HEARTBEAT_S)
                yield "step" if step else "tick"
            except TimeoutError:
                yield "beat"


class Live:
    """The thread and its watchers."""

    def __init__(self, reader: Reader) -> None:
        self._reader, self.happened = reader, Happened(reader)
        self._watchers: set[Watcher] = set()
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
        step = kind not in _OFTEN
        if kind != "progress":
            self._reader.heard(step=step)
        for watcher in self._all():
            watcher.tell(event.run_id, step=step)

    def _forget(self) -> None:
        self.happened.forget()
        for watcher in self._all():
            watcher.tell("", step=True)

    def _all(self) -> tuple[Watcher, ...]:
        with self._lock:
            return tuple(self._watchers)
