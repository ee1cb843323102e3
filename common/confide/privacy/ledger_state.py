"""What the lines of a ledger add up to, and which line may follow which. Pure: no files, no clock.

    approved -> (reserved -> [moved ->] spent)* -> released

The same rules judge a line before it is written and when a ledger is verified later.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from confide.errors import LedgerError
from confide.privacy.accounting import epsilon
from confide.privacy.events import Event
from confide.privacy.filter import Budget, filter_epsilon, fits
from confide.privacy.ledger_entries import Approved, Basis, Entry, Moved, Released, Reserved, RunCost, Spent


@dataclass
class RunState:
    """One run's part of the ledger. `draws`: slot to whether it was spent."""

    approved: Approved
    draws: dict[int, bool] = field(default_factory=dict)
    retired: set[int] = field(default_factory=set)
    """Slots whose draw moved on."""
    ended: bool = False

    @property
    def spent_slots(self) -> int:
        """Slots whose result left the node."""
        return sum(self.draws.values())

    @property
    def held_slots(self) -> int:
        """Slots that count against the budget now."""
        if self.ended and (self.spent_slots == 0 or self.approved.basis == "filter"):
            return self.spent_slots
        # A run that fitted only because it was alone is charged whole for ever: an early end may depend on the data.
        return self.approved.cost.slots

    @property
    def open_draw(self) -> int | None:
        """The slot that is reserved and not spent, if any: there is at most one."""
        return next((slot for slot, spent in self.draws.items() if not spent), None)

    @property
    def last_slot(self) -> int:
        """The highest slot that was ever drawn; 0 before the first."""
        return max((*self.draws, *self.retired), default=0)

    def held(self) -> tuple[Event, ...]:
        """The events that count against the budget now."""
        return self.approved.cost.of_slots(self.held_slots)

    def spent(self) -> tuple[Event, ...]:
        """The events whose results left the node."""
        return self.approved.cost.of_slots(self.spent_slots)


def charge(events: Sequence[Event], *, delta: float, tight: bool) -> float:
    """Epsilon of events. tight: of mechanisms that were all fixed beforehand; else the filter's."""
    return epsilon(events, delta=delta) if tight and events else filter_epsilon(events, delta=delta)


class LedgerState:
    """The sum of all lines."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self.runs: dict[str, RunState] = {}
        self.time_ms = 0
        for entry in entries:
            self.apply(entry)

    def run(self, run_id: str) -> RunState:
        """Raises LedgerError for a run that was never approved."""
        if run_id not in self.runs:
            raise LedgerError(f"run {run_id} was not approved in this ledger; nothing may be drawn for it")
        return self.runs[run_id]

    def group_runs(self, group: str) -> list[RunState]:
        """Runs that count against the group's budget."""
        return [run for run in self.runs.values() if run.approved.group == group and run.held_slots]

    def groups(self) -> list[str]:
        """All groups that ever had a run, sorted."""
        return sorted({run.approved.group for run in self.runs.values()})

    def basis(self, group: str, cost: RunCost | None, budget: Budget) -> Basis | None:
        """Why the group's runs, with `cost` of a new one, fit the budget; None if they do not.

        "filter": safe for runs chosen after seeing results. "alone": the group has one run, which was chosen before
        any of its data was used, so the tighter accountant for fixed mechanisms applies (docs/privacy.md).
        """
        runs = self.group_runs(group)
        events = [event for run in runs for event in run.held()] + list(cost.whole if cost else ())
        if fits(events, budget):
            return "filter"
        if len(runs) + (cost is not None) == 1 and epsilon(events, delta=budget.delta) <= budget.epsilon:
            return "alone"
        return None

    def is_alone(self, group: str) -> bool:
        """Whether what counts against the group's budget is one run, which was approved as "alone"."""
        runs = self.group_runs(group)
        return len(runs) == 1 and runs[0].approved.basis == "alone"

    def charged(self, group: str, *, delta: float) -> tuple[float, float]:
        """(epsilon of what the group has spent, with what is set aside), by the rule under which it was approved.

        An "alone" group takes up to seconds; the filter's epsilon may lie beyond a limit that it keeps.
        """
        runs = [run for run in self.runs.values() if run.approved.group == group]
        tight = self.is_alone(group)
        spent, held = [event for run in runs for event in run.spent()], [event for run in runs for event in run.held()]
        return charge(spent, delta=delta, tight=tight), charge(held, delta=delta, tight=tight)

    def apply(self, entry: Entry) -> None:
        """Take one more line. Raises LedgerError, changing nothing, if it may not follow."""
        if entry.time_ms < self.time_ms:
            raise LedgerError(
                f"a ledger line is dated {entry.time_ms} ms, before the line above it ({self.time_ms} ms)"
            )
        match entry:
            case Approved():
                self.check_approval(entry)
                self.runs[entry.run] = RunState(entry)
            case Reserved():
                run = self._open_run(entry.run)
                _check_new_slot(run, entry.slot)
                if run.open_draw is not None or len(run.draws) >= run.approved.cost.slots:
                    raise LedgerError(f"slot {entry.slot} of run {entry.run} draws more than was approved")
                run.draws[entry.slot] = False
            case Moved():
                run = self._open_run(entry.run)
                _check_new_slot(run, entry.slot)
                if run.open_draw != entry.from_slot:
                    raise LedgerError(f"slot {entry.from_slot} of run {entry.run} holds no draw that could be moved")
                del run.draws[entry.from_slot]
                run.retired.add(entry.from_slot)
                run.draws[entry.slot] = False
            case Spent():
                run = self._open_run(entry.run)
                if run.draws.get(entry.slot) is not False:
                    raise LedgerError(f"slot {entry.slot} of run {entry.run} is not reserved, so it cannot be spent")
                run.draws[entry.slot] = True
            case Released():
                run = self._open_run(entry.run)
                if entry.slots != run.approved.cost.slots - run.spent_slots:
                    raise LedgerError(
                        f"run {entry.run} releases {entry.slots} slots, which is not what it did not spend"
                    )
                run.ended = True
        self.time_ms = entry.time_ms

    def check_approval(self, entry: Approved) -> None:
        """Raise LedgerError for a run approved twice, a data set in a second group, or two kinds of unit in a group."""
        if entry.run in self.runs:
            raise LedgerError(f"run {entry.run} is approved twice")
        for other in self.runs.values():
            if not other.held_slots:
                continue
            if other.approved.data == entry.data and other.approved.group != entry.group:
                raise LedgerError(
                    f"data set {entry.data} was charged to group {other.approved.group} and would now be charged to "
                    f"{entry.group}: its history would be forgotten. Leave it in its group"
                )
            if other.approved.group == entry.group and other.approved.protects != entry.protects:
                raise LedgerError(
                    f"group {entry.group} protects each {other.approved.protects}; a run that protects each "
                    f"{entry.protects} cannot be added to the same balance. Ask for a run with the same unit, or put "
                    "its data into a group of their own"
                )

    def _open_run(self, run_id: str) -> RunState:
        run = self.run(run_id)
        if run.ended:
            raise LedgerError(f"run {run_id} has ended in this ledger; what it had left was released")
        return run

    def __iter__(self) -> Iterator[RunState]:
        return iter(self.runs.values())


def _check_new_slot(run: RunState, slot: int) -> None:
    if slot <= run.last_slot:
        raise LedgerError(f"slot {slot} of run {run.approved.run} comes after slot {run.last_slot}; slots only go up")
