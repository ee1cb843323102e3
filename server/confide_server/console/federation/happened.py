"""A run's newest events as each role may see them: read on from where they were read last, once for all who look.

    happened = Happened(reader)
    happened.events(run, acting)        # oldest first

Guarantee: read as the visitor's role and organization; what was read for others is never shown.
"""

import contextlib
import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from confide.errors import ConfideError
from confide.proto import admin_pb2 as pb

from confide_server.console.federation.reading import Acting, Reader
from confide_server.console.roles import Role

BACKFILL_EVENTS = 2000
"""How far back from a run's newest event one that nobody looked at yet is read, in events of all runs."""
PATIENCE_S = 1.5
KEPT_EVENTS = 300
KEPT_RUNS = 64
"""For how many runs and roles."""


@dataclass
class _Told:
    """Of one run, to one role or organization."""

    events: deque[pb.Event] = field(default_factory=lambda: deque(maxlen=KEPT_EVENTS))
    upto: int = 0
    """The number of the last event that was read, or that was none of theirs."""
    reading: threading.Thread | None = None


class Happened:
    """Used from several threads."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._told: OrderedDict[tuple[str, Role, str], _Told] = OrderedDict()
        self._lock = threading.Lock()

    def events(self, run: pb.RunLine, acting: Acting) -> list[pb.Event]:
        """Up to the run's last event, or what came within the patience."""
        until = time.monotonic() + PATIENCE_S
        told = self._of(run.run_id, acting)
        for _ in range(2):  # who has just begun to read may have begun for an older look
            reading = self._reading(told, run, acting)
            if reading is not None:
                reading.join(max(0.0, until - time.monotonic()))
        with self._lock:
            return list(told.events)

    def forget(self) -> None:
        """Read everything anew."""
        with self._lock:
            self._told.clear()

    def _of(self, run_id: str, acting: Acting) -> _Told:
        key = (run_id, acting.role, acting.organization)
        with self._lock:
            told = self._told.setdefault(key, _Told())
            self._told.move_to_end(key)
            while len(self._told) > KEPT_RUNS:
                self._told.popitem(last=False)
        return told

    def _reading(self, told: _Told, run: pb.RunLine, acting: Acting) -> threading.Thread | None:
        with self._lock:
            if told.upto >= run.last_event:
                return None
            if told.reading is None:
                told.reading = threading.Thread(
                    target=self._read, args=(told, run, acting), name="console-events", daemon=True
                )
                told.reading.start()
            return told.reading

    def _read(self, told: _Told, run: pb.RunLine, acting: Acting) -> None:
        after = max(told.upto, run.last_event - BACKFILL_EVENTS)
        asked = pb.StreamEventsRequest(run_id=run.run_id, after=after, past_only=True)
        try:
            with contextlib.suppress(ConfideError):
                for event in self._reader.events(asked, acting):
                    if event.WhichOneof("what") not in {"alive", "progress"}:
                        with self._lock:
                            told.events.append(event)
                            told.upto = event.number
                told.upto = max(told.upto, run.last_event)
        finally:
            with self._lock:
                told.reading = None
