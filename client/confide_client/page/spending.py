"""What this node's own ledger says was spent, now and step by step, against its limits.

    spending = Spending(state)
    spending.groups()       # (Spent(group="notes", ...),), or None while they are being worked out

Epsilon is that of the rule by which the group's runs were approved: the filter beside other runs, the tighter
accountant for mechanisms fixed beforehand where the group has one run, "alone" (docs/privacy.md, "Across runs"). The
latter takes up to seconds for a point, so it has few points and a thread of its own.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from confide import journal
from confide.errors import ConfideError
from confide.privacy.ledger import LEDGER_NAME, balances, replay
from confide.privacy.ledger_entries import Approved, Entry, Released, Spent, parse_entry
from confide.privacy.ledger_state import LedgerState

from confide_client.policy.policy import load_policy
from confide_client.state import StateFolder

MOST_STEPS, MOST_STEPS_ALONE = 400, 16
"""Of slots that were spent; approvals and ends are all there."""
PATIENCE_S = 0.5
"""How long a page waits for what is not worked out yet."""


@dataclass(frozen=True)
class Step:
    """After one line of the ledger. at: Unix seconds; what: the line's kind; slots: of the run, spent so far."""

    at: float
    what: str
    run: str
    slots: int
    spent: float
    held: float
    limit: float | None
    """The policy's when the newest run up to then was approved."""


@dataclass(frozen=True)
class GroupSpent:
    """Of one group of data sets."""

    group: str
    protects: str
    spent: float
    held: float
    delta: float
    alone: bool
    limit: float | None
    """The policy's now; None: it has none."""
    steps: tuple[Step, ...]
    """Oldest first."""
    left_out: int
    """Lines between them that are not steps here, because there are very many."""

    def columns(self, names: tuple[str, str, str], now: float) -> dict[str, list[float] | list[float | None]]:
        """For drawing: Unix seconds, then spent, spent with reserved, and limit under these names."""
        every = [*self.steps, replace(self.steps[-1], at=max(now, self.steps[-1].at), limit=self.limit)]
        spent, held, limit = names
        return {
            "time": [one.at for one in every], spent: [one.spent for one in every],
            held: [one.held for one in every], limit: [one.limit for one in every],
        }  # fmt: skip


class Spending:
    """Of one node. Read anew when the ledger has changed; used from several threads."""

    def __init__(self, state: StateFolder) -> None:
        self._state = state
        self._lock = threading.Lock()
        self._made: tuple[tuple[int, int], list[GroupSpent] | ConfideError] | None = None
        self._making: tuple[tuple[int, int], threading.Thread] | None = None

    @property
    def stamp(self) -> tuple[int, int]:
        """Another one: the ledger has changed."""
        path = self._state.root / LEDGER_NAME
        if not path.exists():
            return 0, 0
        found = path.stat()
        return found.st_size, found.st_mtime_ns

    def groups(self) -> list[GroupSpent] | None:
        """Every group against the policy's limits; None while they are worked out. Raises StateError, LedgerError."""
        stamp = self.stamp
        with self._lock:
            if self._making is None or self._making[0] != stamp:
                thread = threading.Thread(target=self._make, args=(stamp,), name="spending", daemon=True)
                self._making = stamp, thread
                thread.start()
            thread = self._making[1]
        thread.join(PATIENCE_S)
        with self._lock:
            made = self._made
        if made is None or made[0] != stamp:
            return None
        if isinstance(made[1], ConfideError):
            raise made[1]
        limits = self._limits()
        return [replace(one, limit=limits.get(one.group)) for one in made[1]]

    def _make(self, stamp: tuple[int, int]) -> None:
        found: list[GroupSpent] | ConfideError
        try:
            found = groups_of(journal.read(self._state.root / LEDGER_NAME)[0])
        except ConfideError as error:
            found = error
        with self._lock:
            self._made = stamp, found

    def _limits(self) -> dict[str, float]:
        try:
            return {name: one.epsilon for name, one in load_policy(self._state.policy).budgets.items()}
        except ConfideError:
            return {}


def groups_of(bodies: list[dict[str, object]]) -> list[GroupSpent]:
    """Of a ledger's lines; without the policy's limits. Raises LedgerError."""
    end, entries = replay(bodies), [parse_entry(body) for body in bodies]
    groups = {one.group: one for one in balances(end)}
    steps = _steps(entries, end, {group: one.delta for group, one in groups.items()})
    found = []
    for group, balance in groups.items():
        lines = sum(_changes(entry) and end.run(entry.run).approved.group == group for entry in entries)
        found.append(
            GroupSpent(
                group=group, protects=balance.protects, spent=balance.spent_epsilon, held=balance.held_epsilon,
                delta=balance.delta, alone=end.is_alone(group), limit=None,
                steps=tuple(steps[group]), left_out=lines - len(steps[group]),
            )
        )  # fmt: skip
    return found


def _steps(entries: Sequence[Entry], end: LedgerState, deltas: Mapping[str, float]) -> dict[str, list[Step]]:
    kept, state = _kept(entries, end), LedgerState()
    steps: dict[str, list[Step]] = {group: [] for group in deltas}
    limits: dict[str, float] = {}
    for number, entry in enumerate(entries):
        state.apply(entry)
        run = state.run(entry.run)
        group = run.approved.group
        if isinstance(entry, Approved):
            limits[group] = entry.budget_epsilon
        if number in kept:
            spent, held = state.charged(group, delta=deltas[group])
            made = Step(entry.time_ms / 1000, entry.kind, entry.run, run.spent_slots, spent, held, limits[group])
            steps[group].append(made)
    return steps


def _changes(entry: Entry) -> bool:
    return isinstance(entry, Approved | Spent | Released)


def _kept(entries: Sequence[Entry], end: LedgerState) -> set[int]:
    """Numbers of the lines that become steps."""
    kept = {number for number, entry in enumerate(entries) if isinstance(entry, Approved | Released)}
    for group in end.groups():
        spends = [
            number
            for number, entry in enumerate(entries)
            if isinstance(entry, Spent) and end.run(entry.run).approved.group == group
        ]
        each = -(-len(spends) // (MOST_STEPS_ALONE if end.is_alone(group) else MOST_STEPS)) or 1
        kept |= {*spends[::-each]}
    return kept
