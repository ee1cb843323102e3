"""Who answers, who does not, and what follows from it for the next exchange, slot and epoch. In memory only."""

from collections.abc import Container, Iterable

from confide.errors import FailureName
from confide.sealing.collector.state import CollectorState

# After these the node needs an epoch of which it holds the secrets, under one roster.
_RENEWS = {
    FailureName.EPOCH_REPLAYED,
    FailureName.ROSTER_STALE,
    FailureName.CONTEXT_MISMATCH,
    FailureName.COHORT_NOT_EPOCH,
    FailureName.SLOT_REUSED,
    FailureName.BUNDLE_EQUIVOCATION,
}
# After these it cannot take part in this run any more until somebody has looked.
_EXCLUDES = {
    FailureName.ROLLBACK_DETECTED,
    FailureName.REVOKED,
    FailureName.BAD_DEALING,
    FailureName.BAD_SHARE,
    FailureName.SPEC_CHANGED,
    FailureName.LOW_ORDER_KEY,
    FailureName.BUDGET_EXHAUSTED,
    FailureName.BLOCK_SPLIT,
    FailureName.MODEL_REVEALED,
}
_NO_ANSWER = "TransportError: no answer before the deadline"


class Attendance:
    """Of one run's nodes at one collector."""

    def __init__(self, state: CollectorState) -> None:
        self._state = state
        self._silent: set[str] = set()
        """Who does not answer the exchange that is open."""
        self._reasons: dict[str, str] = {}
        """Of this slot, by node, why it dropped out."""
        self.excluded: dict[str, str] = {}
        """Who takes no part in this run any more, and why."""
        self.renew = False
        """Whether somebody lacks the epoch's secrets."""

    def begin_exchange(self) -> None:
        """Everybody may answer again."""
        self._silent = set()

    def begin_epoch(self) -> None:
        """Everybody gets new secrets."""
        self._silent, self.renew = set(), False

    def begin_slot(self) -> None:
        """Nobody has dropped out."""
        self._silent, self._reasons = set(), {}

    def waiting(self, members: Iterable[str], answered: Container[str]) -> list[str]:
        """Whose answer is still to come."""
        return [name for name in members if name not in answered and name not in self._silent]

    def lost(self, node: str, code: str, message: str) -> None:
        """The node does not answer this exchange."""
        slot = self._state.slot
        self._silent.add(node)
        detail = message.removeprefix(f"{code}: ")
        self.explain(node, f"{code}: {detail}")
        # Who falls out of an epoch that is being made is asked again after a slot of it: a node that is ill, or lies,
        # could else keep the others from ever having one.
        if code in _RENEWS and self._state.resumable is not None:
            self.renew = True
        if code in _EXCLUDES or (code == FailureName.MODEL_CHAIN_BROKEN and slot is not None and slot.phase == "train"):
            self.excluded.setdefault(node, f"{code}: {detail}")

    def explain(self, node: str, reason: str) -> None:
        """Why it drops out of this slot; the first reason stands."""
        self._reasons.setdefault(node, reason)

    def reasons(self) -> dict[str, str]:
        """By node, as far as there is one."""
        return dict(self._reasons)

    def reason(self, node: str) -> str:
        """Why it is not in the sum: what it said, else that it said nothing."""
        return self._reasons.get(node, _NO_ANSWER)
