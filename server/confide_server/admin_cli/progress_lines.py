"""What nodes say they are doing, as people read it: a line for each node that works, and when to print one."""

import time
from collections.abc import Callable, Mapping
from typing import Any

LINE_EVERY_S = 30.0


def progress_words(data: Mapping[str, Any]) -> str:
    """One report (runs.service.RunEvent, "progress").

    >>> progress_words({"node": "a", "phase": "training", "step": 3, "steps": 30, "seconds_left": 200})
    'a: training, step 3 of 30, about 3 min left'
    """
    step = f", step {data['step']} of {data['steps']}" if data["steps"] else ""
    left = f", about {duration(data['seconds_left'])} left" if data["seconds_left"] else ""
    return f"{data['node']}: {data['phase']}{step}{left}"


def duration(seconds: float) -> str:
    """As short as people say it.

    >>> duration(89), duration(200), duration(9000)
    ('89 s', '3 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class ProgressLines:
    """The newest report of each node. Where lines scroll by, one is worth printing for every phase, and then every half
    minute.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._now: dict[str, str] = {}
        self._printed: dict[str, tuple[str, float]] = {}

    @property
    def lines(self) -> list[str]:
        """Of the nodes that work, by name."""
        return [words for _, words in sorted(self._now.items())]

    def feed(self, kind: str, data: Mapping[str, Any]) -> str:
        """Take any event of the run; returns the line to print, if there is one."""
        if kind in {"contributed", "dropped"}:
            self._now.pop(data["node"], None)
        elif kind == "progress":
            return self._heard(data)
        elif kind not in {"offer_answered", "epoch_started"}:
            self._now.clear()
        return ""

    def _heard(self, data: Mapping[str, Any]) -> str:
        node, now = data["node"], self._clock()
        self._now[node] = words = progress_words(data)
        phase, when = self._printed.get(node, ("", 0.0))
        if phase == data["phase"] and now - when < LINE_EVERY_S:
            return ""
        self._printed[node] = (data["phase"], now)
        return words
