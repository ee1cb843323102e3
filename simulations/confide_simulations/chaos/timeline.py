"""Virtual time: what happens when, in one order, however long it takes the machine.

>>> timeline = Timeline()
>>> timeline.after(2.0, lambda: print("at", timeline.now))
>>> timeline.step(until=1.0), timeline.now
(False, 1.0)
>>> timeline.step(until=9.0), timeline.now
at 2.0
(True, 2.0)
"""

import heapq
import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext


class TimeOver(BaseException):
    """More virtual time went by, or more happened, than anything here may take: something hangs."""


class Timeline:
    """Events in order of their times; of equal times the one that was planned first."""

    def __init__(
        self,
        *,
        end: float = float("inf"),
        most_events: int = 1 << 40,
        around: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """end, most_events: beyond them TimeOver is raised. around: each event happens within it."""
        self.now = 0.0
        self.happened = 0
        self._end, self._most, self._around = end, most_events, around
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []

    def after(self, seconds: float, happen: Callable[[], None]) -> None:
        """Plan an event."""
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), happen))

    def step(self, until: float) -> bool:
        """Let the next event happen, if it is due by `until`; else only time goes by. Whether one did."""
        if self.now > self._end or self.happened > self._most:
            raise TimeOver
        if not self._events or self._events[0][0] > until:
            self.now = max(self.now, until)
            return False
        when, _, happen = heapq.heappop(self._events)
        self.now = max(self.now, when)
        self.happened += 1
        with self._around():
            happen()
        return True

    def sleep(self, seconds: float) -> None:
        """Whatever is due meanwhile happens."""
        until = self.now + seconds
        while self.step(until):
            pass
