"""Which lines are due on a channel now: what is new, has become urgent, stands for long, or is solved. Never twice.

    told = Told({})
    watch = Watch()
    watch.look([line], now=0.0)
    due(watch, told, settings, now=61.0)      # ([line], [])

Time is the caller's: seconds since 1970.
"""

import zoneinfo
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from confide_server.alerts.message import Line
from confide_server.alerts.settings import Alerts, Quiet


@dataclass
class Watch:
    """What needs somebody as of the last look, since when, and since when other matters are gone."""

    present: dict[str, Line] = field(default_factory=dict)
    since: dict[str, float] = field(default_factory=dict)
    gone_since: dict[str, float] = field(default_factory=dict)

    def look(self, lines: Sequence[Line], now: float) -> None:
        """Take what needs somebody now."""
        before, self.present = self.present, {one.same: one for one in lines}
        for gone in before.keys() - self.present.keys():
            self.gone_since[gone] = now
        self.since = {same: self.since.get(same, now) for same in self.present}
        for same in self.present:
            self.gone_since.pop(same, None)

    def keep(self, told: Iterable[str]) -> None:
        """Forget what is gone and was told nowhere, or was told as solved everywhere."""
        wanted = set(told)
        self.gone_since = {same: at for same, at in self.gone_since.items() if same in wanted}


@dataclass(frozen=True)
class Once:
    """What was told of a matter, and when."""

    line: Line
    at: float


def due(
    watch: Watch, told: Mapping[str, Once], settings: Alerts, *, now: float
) -> tuple[Sequence[Line], Sequence[Line]]:
    """(needs, solved) to tell over a channel that has told these."""
    quiet = settings.quiet is not None and is_quiet(settings.quiet, now)
    needs = [
        one
        for same, one in watch.present.items()
        if (not settings.kinds or one.kind in settings.kinds)
        and now - watch.since[same] >= settings.settle_s
        and _worth_telling(one, told.get(same), settings.repeat_s, now)
        and not (quiet and (one.level != "bad" or (settings.quiet is not None and not settings.quiet.urgent)))
    ]
    solved = [
        once.line
        for same, once in told.items()
        if same not in watch.present and now - watch.gone_since.setdefault(same, now) >= settings.settle_s
    ]
    return needs, solved if needs or not quiet else ()


def _worth_telling(one: Line, once: Once | None, repeat_s: float, now: float) -> bool:
    if once is None or now - once.at >= repeat_s:
        return True
    return one.level == "bad" and once.line.level != "bad"


def is_quiet(quiet: Quiet, now: float) -> bool:
    """Whether a moment is in the quiet hours, which may go over midnight.

    >>> from datetime import UTC
    >>> night = Quiet(begins="22:00", ends="07:00")
    >>> [is_quiet(night, datetime(2026, 1, 1, hour, tzinfo=UTC).timestamp()) for hour in (21, 23, 6, 7)]
    [False, True, True, False]
    """
    clock = datetime.fromtimestamp(now, zoneinfo.ZoneInfo(quiet.zone)).strftime("%H:%M")
    if quiet.begins <= quiet.ends:
        return quiet.begins <= clock < quiet.ends
    return clock >= quiet.begins or clock < quiet.ends
