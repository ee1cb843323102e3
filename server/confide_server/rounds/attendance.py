"""Who has to be there before a round begins, and how long the others are waited for. A run that waits says for whom.

- Sealed, where nothing bounds what two sums tell: whole blocks, however long that takes (docs/sealing.md).
- Else the smallest cohort, as long as for who prepares; then the run ends by name.
- Who had accepted and is away: federation.grace_s, then the round goes on without.

- Whose policy does not let it train now, out of its hours say: as one who is away; where too few are left REST_LIMIT_S.

While a run waits it holds no turn, so that others work with those who are there.
"""

import time
from collections.abc import Callable, Iterable, Mapping

from confide.identity.roster import utc
from confide.sealing.roles import Collector

from confide_server.rounds.cohort import PAUSE_S, Cohort, Patience
from confide_server.rounds.turns import Turn
from confide_server.state.events import MembersReturned, WaitingForMembers
from confide_server.state.runs.journal import OpenRun, RunJournal

LOOK_EVERY_S = 1.0
REST_LIMIT_S = 8 * 86400.0
"""The hours of a policy come again every week: they begin before this, also where clocks are put back."""


class Attendance:
    """Of one run."""

    def __init__(
        self,
        run: OpenRun,
        book: RunJournal,
        cohort: Cohort,
        collector: Collector,
        turn: Turn,
        pause: Callable[[float], None],
        refresh: Callable[[], None],
        *,
        grace_factor: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """refresh: takes a newer roster, if there is one."""
        self._run_id = run.run_id
        self._guarded = run.specification.refuses_differences  # then waiting has no deadline
        self._min_cohort = run.specification.federation.min_cohort
        self._grace_s = run.specification.federation.grace_s * grace_factor
        self._book = book
        self._cohort = cohort
        self._collector = collector
        self._turn = turn
        self._pause = pause
        self._refresh = refresh
        self._clock = clock
        self._gave_up: set[str] = set()
        """For whom the grace is over; they are waited for again once they were there."""

    def wait(self, number: int) -> tuple[str, ...]:
        """Who is present, once that is enough for round `number`, with the turn taken.

        Raises CohortTooSmall, or BLOCK_SPLIT when the run cannot go on without somebody who never comes.
        """
        split: tuple[str, ...] = ()
        patience, began, told = self._cohort.patience(), self._clock(), False
        rest: Patience | None = None
        ends = ""
        while True:
            present = self._cohort.present()
            short = not self._guarded and len(present) < self._min_cohort
            missing = () if short else self._collector.waits_for(present, self._cohort.refused())
            if missing != split:
                self._say_split(number, missing)
                split = missing
            away = () if missing or short else self._away(present, self._clock() - began)
            if not missing and not short and not away:
                if told:
                    self._book.waits(self._run_id, (), "")
                    told = False
                if not self._turn.take(self._cohort.accepted()):
                    return present
                began = self._clock()
                continue  # who is there may have changed while others had their turn
            resting = self._cohort.resting() if short else {}
            if resting:
                if rest is None:  # said once: two clocks drift, and each change of the words is an event
                    rest, ends = self._cohort.patience(REST_LIMIT_S), utc(self._book.clock() + REST_LIMIT_S)
                rest.check(present)
                reason = f"waits for {_said(sorted(resting), resting)}; the run ends {ends} if they are missing then"
                self._book.waits(self._run_id, tuple(sorted(resting)), reason)
                told, patience = True, self._cohort.patience()
            else:
                rest = None
            if short and not resting:
                patience.check(present)
            if away:
                self._book.waits(self._run_id, away, f"waits up to {self._grace_s:.0f} s for {', '.join(away)}")
                told = True
            self._turn.give_back()
            self._pause(LOOK_EVERY_S if missing else PAUSE_S)
            self._refresh()

    def _away(self, present: tuple[str, ...], waited_s: float) -> tuple[str, ...]:
        """Who accepted, is not there, and is still waited for."""
        self._gave_up -= set(present)
        away = tuple(name for name in self._cohort.accepted() if name not in present and name not in self._gave_up)
        if away and waited_s >= self._grace_s:
            self._gave_up |= set(away)
            return ()
        return away

    def _say_split(self, number: int, missing: tuple[str, ...]) -> None:
        missed = _said(missing, self._cohort.resting())
        waits = f"paused before round {number}: waits for {missed}; a sum without it would show its update"
        self._book.update(self._run_id, detail=waits if missing else "")
        self._book.waits(self._run_id, missing, waits if missing else "")
        event = WaitingForMembers(round=number, missing=list(missing)) if missing else MembersReturned(round=number)
        self._book.record(self._run_id, event)


def _said(names: Iterable[str], reasons: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({reasons[name]})" if name in reasons else name for name in names)
