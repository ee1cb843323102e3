"""The node's privacy ledger: what every run may cost, what each slot drew, and what was spent. Append-only and durable.

One journal holds all groups of the node, so that one length and one head stand for all of it (peers remember them,
docs/sealing.md "Rollback") and a data set cannot change groups without being noticed. The budgets themselves are
the policy's; the ledger is asked with the budget that holds now, so lowering it acts at once.

Guarantee: no result of a slot leaves the node (`spend`) unless its cost was set aside before the work began, within
the group's budget, over all runs that this node ever took part in. A crash at any moment neither forgets a spent
slot nor charges one twice. It holds against any coordinator; whoever can write the node's disk can only be detected.

>>> import tempfile; from confide.privacy.events import SampledGaussian
>>> ledger = Ledger(Path(tempfile.mkdtemp()) / LEDGER_NAME)
>>> cost = RunCost(slot=(SampledGaussian(noise_multiplier=1.0, sampling_rate=0.01, steps=10),), slots=2)
>>> budget, run = Budget(epsilon=3.0, delta=1e-5), "0" * 32
>>> _ = ledger.approve(run=run, group="notes", data="notes", unit="record", specification="0" * 64, cost=cost,
...     budget=budget)
>>> ledger.reserve(run, 1, budget); ledger.spend(run, 1); ledger.release(run); len(ledger)
4
"""

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from confide import journal
from confide.errors import FailureName, LedgerError, ProtocolFailure, StateError
from confide.privacy import LEDGER_NAME as LEDGER_NAME
from confide.privacy.filter import Budget
from confide.privacy.ledger_entries import (
    Approved,
    Entry,
    Moved,
    Released,
    Reserved,
    RunCost,
    Spent,
    Unit,
    parse_entry,
    to_body,
)
from confide.privacy.ledger_state import LedgerState, RunState

CLOCK_TOLERANCE_S = 5.0
"""Small steps back are what time synchronisation does; lines then carry the time of the line before."""


@dataclass(frozen=True, kw_only=True)
class Balance:
    """One group at one moment. Epsilons follow the rule of its approval: the filter's is the budget that would be just
    enough, that of a group which is one run "alone" the tighter accountant's."""

    group: str
    protects: str
    runs: int
    spent_epsilon: float
    """Of what has left the node."""
    held_epsilon: float
    """Of that and of what is set aside for runs that go on."""
    delta: float


class Ledger:
    """One node's ledger, held exclusively while open."""

    def __init__(self, path: Path, *, now: Callable[[], float] = time.time) -> None:
        """Open or create, verifying every line. Raises LedgerError or StateError: damaged, in use, clock moved back.

        now: Unix seconds.
        """
        self._now, self._lock = now, threading.RLock()
        self._journal = journal.Journal(path)
        try:
            self.state = replay(list(self._journal))
            self._time_ms()
        except LedgerError:
            self._journal.close()
            raise

    def __len__(self) -> int:
        return len(self._journal)

    @property
    def head(self) -> str:
        """Hash of the last line, and through it of all; hex."""
        return self._journal.head

    def head_at(self, length: int) -> str:
        """The head when the ledger had `length` lines."""
        return self._journal.head_at(length)

    def close(self) -> None:
        """Release the file."""
        self._journal.close()

    def _time_ms(self) -> int:
        now_ms, last_ms = int(self._now() * 1000), self.state.time_ms
        if now_ms < last_ms - CLOCK_TOLERANCE_S * 1000:
            raise LedgerError(
                f"the clock was moved back: it shows {(last_ms - now_ms) / 1000:.0f} s before the ledger's last line. "
                "Nothing is spent until the clock is right; if the disk was restored, restore the newest state"
            )
        return max(now_ms, last_ms)

    def _write(self, entry: Entry) -> None:
        self.state.apply(entry)  # the rules speak first: a line that may not follow is never written
        try:
            self._journal.append(to_body(entry))
        except StateError:
            self.state = replay(list(self._journal))  # what did not become durable did not happen
            raise

    def approve(
        self,
        *,
        run: str,
        group: str,
        data: str,
        unit: Unit,
        specification: str,
        cost: RunCost,
        budget: Budget,
        user_key: str | None = None,
    ) -> RunState:
        """Set the run's whole cost aside. The same approval again changes nothing; another one for the run is refused.

        run: 32 hex characters. specification: its digest. budget: the policy's for `group`, now. user_key: of unit
        "user", the field that names a record's user.
        Raises ProtocolFailure BUDGET_EXHAUSTED before anything is written, or LedgerError.
        """
        with self._lock:
            known = self.state.runs.get(run)
            if known is not None:
                return _same_or_refused(known, group, data, unit, specification, cost)
            time_ms = self._time_ms()
            basis = self.state.basis(group, cost, budget)
            entry = Approved(
                time_ms=time_ms, run=run, group=group, data=data, unit=unit, specification=specification, cost=cost,
                basis="filter" if basis is None else basis, budget_epsilon=budget.epsilon, budget_delta=budget.delta,
                salt=secrets.token_hex(16), user_key=user_key,
            )  # fmt: skip
            if basis is None:
                self.state.check_approval(entry)  # a wrong group or unit is the better message
                raise self._exhausted(group, budget, f"run {run} does not fit beside what was spent and set aside")
            self._write(entry)
            return self.state.run(run)

    def reserve(self, run: str, slot: int, budget: Budget) -> None:
        """Draw one slot's cost, durably, before any work on private data. Call again after a crash: drawn only once.

        If an earlier slot's work never left the node, its draw serves this slot, and that one can never be spent.
        Raises ProtocolFailure BUDGET_EXHAUSTED (also when the policy was lowered meanwhile), SLOT_REUSED, LedgerError.
        """
        with self._lock:
            state = self.state.run(run)
            time_ms = self._time_ms()
            group = state.approved.group
            basis = self.state.basis(group, None, budget)
            if basis is None or (basis == "alone" and state.approved.basis != "alone"):
                raise self._exhausted(group, budget, "the policy was lowered below what its runs were approved for")
            if state.draws.get(slot) is False and not state.ended:
                return
            if slot <= state.last_slot:
                raise ProtocolFailure(FailureName.SLOT_REUSED, f"slot {slot} of run {run} was drawn before")
            if state.open_draw is not None:
                self._write(Moved(time_ms=time_ms, run=run, from_slot=state.open_draw, slot=slot))
            elif len(state.draws) >= state.approved.cost.slots and not state.ended:
                raise self._exhausted(
                    group, budget, f"all {state.approved.cost.slots} slots that were approved for run {run} are spent"
                )
            else:
                self._write(Reserved(time_ms=time_ms, run=run, slot=slot))

    def spend(self, run: str, slot: int) -> None:
        """Use the slot's draw up, durably, before the first byte leaves. Again for the same slot: changes nothing.

        Raises LedgerError when the slot was not reserved, or its draw has moved to a later slot.
        """
        with self._lock:
            if self.state.run(run).draws.get(slot) is not True:
                self._write(Spent(time_ms=self._time_ms(), run=run, slot=slot))

    def release(self, run: str) -> None:
        """The run is over here: free what it did not spend. Again: changes nothing."""
        with self._lock:
            state = self.state.run(run)
            if not state.ended:
                left = state.approved.cost.slots - state.spent_slots
                self._write(Released(time_ms=self._time_ms(), run=run, slots=left))

    def check_position(self, length: int, head: str) -> None:
        """Raise ProtocolFailure ROLLBACK_DETECTED unless this ledger once had that length and head."""
        if length > len(self) or self.head_at(length) != head:
            raise ProtocolFailure(
                FailureName.ROLLBACK_DETECTED,
                f"this ledger was seen at length {length} with head {head[:16]}…; here it has {len(self)} lines"
                + ("" if length > len(self) else " and another head at that length")
                + ". The disk was restored from an older state, or the ledger replaced: restore the newest one",
            )

    def _exhausted(self, group: str, budget: Budget, why: str) -> ProtocolFailure:
        # For the node's operator: what the coordinator is told of it is fixed (confide_client.runs.replies).
        return ProtocolFailure(
            FailureName.BUDGET_EXHAUSTED,
            f"{why} (group {group}, policy: epsilon {budget.epsilon} at delta {budget.delta} over all runs). "
            "Nothing was spent. The organization may raise its budget in policy.toml, or leave out this run",
        )


def _same_or_refused(known: RunState, group: str, data: str, unit: str, specification: str, cost: RunCost) -> RunState:
    frozen = known.approved
    if (frozen.group, frozen.data, frozen.unit, frozen.specification) != (group, data, unit, specification):
        raise LedgerError(f"run {frozen.run} was approved for other data or another specification; start a new run")
    if frozen.cost != cost:
        raise LedgerError(
            f"the privacy parameters of run {frozen.run} were frozen when it was approved, and the data set or the "
            "method of calculation has changed since. Start a new run"
        )
    return known


def replay(bodies: list[dict[str, object]]) -> LedgerState:
    """The state after all lines. Raises LedgerError naming the line that may not follow."""
    state = LedgerState()
    for number, body in enumerate(bodies, start=1):
        try:
            state.apply(parse_entry(body))
        except LedgerError as error:
            raise LedgerError(f"privacy ledger, line {number}: {error}") from error
    return state


def balances(state: LedgerState) -> list[Balance]:
    """Every group's balance at the delta of its newest approval, for display."""
    result = []
    for group in state.groups():
        runs = [run for run in state if run.approved.group == group]
        delta = runs[-1].approved.budget_delta
        spent, held = state.charged(group, delta=delta)
        result.append(
            Balance(
                group=group,
                protects=runs[-1].approved.protects,
                runs=len(runs),
                spent_epsilon=spent,
                held_epsilon=held,
                delta=delta,
            )
        )
    return result
