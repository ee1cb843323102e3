"""The newest events, read once for all who watch: a hundred open pages cost the database what one does."""

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence

from confide_server.state.database import Event
from confide_server.state.runs.journal import RunJournal
from confide_server.state.views import Views

KEPT = 4000
"""Events in memory; who asks for older ones is answered from the database."""
BATCH = 500


class EventTail:
    """Shared by all watchers."""

    def __init__(self, journal: RunJournal, views: Views) -> None:
        self._journal = journal
        self._views = views
        self._tail: deque[Event] = deque(maxlen=KEPT)
        self._from = views.last_event()
        """Every event with a larger number is in the tail, or was dropped from its beginning."""
        self._seen = -1

    @property
    def newest(self) -> int:
        """The number of the newest event."""
        return self._tail[-1].number if self._tail else self._from

    def after(self, number: int, run_id: str, timeout_s: float) -> Sequence[Event]:
        """Events with a larger number, of one run or of all, in order, at most a batch; waits for the first one."""
        return self._journal.wait(lambda: self._now(number, run_id), timeout_s)

    def _now(self, number: int, run_id: str) -> Sequence[Event]:
        # Called under the journal's lock: one watcher reads what is new, the others find it here.
        if self._seen != self._journal.changes:
            self._seen = self._journal.changes
            self._read()
        oldest = self._tail[0].number - 1 if self._tail else self._from
        if number < oldest:
            return self._views.events_after(number, run_id, BATCH)
        first = bisect_right([event.number for event in self._tail], number) if self._tail else 0
        newer = [self._tail[index] for index in range(first, len(self._tail))]
        return [event for event in newer if run_id in ("", event.run_id)][:BATCH]

    def _read(self) -> None:
        while found := self._views.events_after(self.newest, limit=BATCH):
            self._tail.extend(found)
