"""The privacy ledger as sealing sees it: confide.sealing.member.seal_log.Costs, kept in the node's ledger.

Sealing calls `reserve` before training, `spend` before the first byte leaves, `ended` when a slot is over. A run
without privacy is charged nowhere and keeps sealing's own NoCosts.
"""

from collections.abc import Callable

from confide.errors import PolicyRefusal
from confide.privacy.filter import Budget
from confide.privacy.ledger import Ledger

Budgets = Callable[[str], Budget | None]
"""The policy's budget of a group as it stands now; None when the policy has none (any more)."""


class LedgerCosts:
    """Charges slots of approved runs, whatever their number, to one ledger."""

    def __init__(self, ledger: Ledger, budgets: Budgets) -> None:
        self._ledger, self._budgets = ledger, budgets
        self._evaluations: set[tuple[str, int]] = set()

    def reserve(self, *, run_id: str, slot: int, round: int, model_sha256: str, evaluate_only: bool) -> None:
        """Draw the slot's cost. Raises BUDGET_EXHAUSTED, SLOT_REUSED, LedgerError or PolicyRefusal before any work.

        A slot that only evaluates costs nothing, because under privacy it may report nothing (metrics.allowed_metrics).
        """
        group = self._ledger.state.run(run_id).approved.group
        budget = self._budgets(group)
        if budget is None:
            raise PolicyRefusal("the policy holds no budget for the run's data any more; nothing is spent")
        if evaluate_only:
            self._evaluations.add((run_id, slot))
            return
        self._ledger.reserve(run_id, slot, budget)

    def spend(self, *, run_id: str, slot: int, upload_digest: str) -> None:
        """Use the slot's draw up. Raises LedgerError when it was not reserved."""
        if (run_id, slot) not in self._evaluations:
            self._ledger.spend(run_id, slot)

    def ended(self, *, run_id: str, slot: int, committed: bool, contributed: bool) -> None:
        """Nothing: a spent slot stays charged, opened or abandoned; an unspent draw serves a later slot."""
        self._evaluations.discard((run_id, slot))
