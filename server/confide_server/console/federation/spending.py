"""What was spent over time, as receipts tell: steps that go up, one line for what is spent and one for what is claimed.

>>> lines = [pb.PrivacyLine(group="notes", run_at=2.0, epsilon_claimed=8.0, epsilon_spent_at_most=8.0),
...          pb.PrivacyLine(group="notes", run_at=1.0, epsilon_claimed=4.0)]
>>> over_time(lines, now=3.0)
Steps(times=(1.0, 2.0, 3.0), spent={'notes': (0.0, 8.0, 8.0)}, claimed={'notes': (4.0, 12.0, 12.0)})
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from confide.proto import admin_pb2 as pb

MOST_GROUPS = 6
"""Lines that can be told apart."""


@dataclass(frozen=True)
class Steps:
    """Unix seconds, and by group of data the epsilon of all runs up to then: at most spent, and claimed."""

    times: tuple[float, ...]
    spent: Mapping[str, tuple[float, ...]]
    claimed: Mapping[str, tuple[float, ...]]

    def columns(self, spent: str, claimed: str) -> dict[str, tuple[float, ...]]:
        """For drawing: {"time": ..., "notes (spent)": ...}. spent, claimed: how the two are called."""
        found: dict[str, tuple[float, ...]] = {"time": self.times}
        for group in self.spent:
            found[f"{group} ({spent})"] = self.spent[group]
            found[f"{group} ({claimed})"] = self.claimed[group]
        return found


def over_time(lines: Sequence[pb.PrivacyLine], *, now: float) -> Steps:
    """Of one organization: a step at the end of each run (at its submission while it goes on), up to now.

    Of more groups of data than can be told apart, those that claim most.
    """
    totals: dict[str, float] = {}
    for line in lines:
        totals[line.group] = totals.get(line.group, 0.0) + line.epsilon_claimed
    groups = sorted(totals, key=lambda group: -totals[group])[:MOST_GROUPS]
    times = sorted({line.run_at for line in lines if line.run_at > 0.0})
    if times and now > times[-1]:
        times.append(now)
    spent, claimed = {}, {}
    for group in groups:
        own = [line for line in lines if line.group == group]
        spent[group] = _sums(times, [(line.run_at, line.epsilon_spent_at_most) for line in own])
        claimed[group] = _sums(times, [(line.run_at, line.epsilon_claimed) for line in own])
    return Steps(tuple(times), spent, claimed)


def _sums(times: Sequence[float], steps: Sequence[tuple[float, float]]) -> tuple[float, ...]:
    at = dict.fromkeys(times, 0.0)
    for when, epsilon in steps:
        if when in at:
            at[when] += epsilon
    return tuple(round(total, 9) for total in accumulate(at.values()))
