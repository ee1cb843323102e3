"""The node's privacy ledger as its runs use it: approve a cost, charge slots, release the rest, give receipts.

The noise of a run is fixed by how many units (records or users) the node has when it approves the run; the ledger
freezes it. Before each training the same approval is asked for again: other data would need other noise, and is
refused.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from confide.errors import PolicyRefusal, SpecificationError
from confide.files import private_folder, write_atomic
from confide.identity.keys import SigningKey
from confide.privacy import LEDGER_NAME
from confide.runs.specification import Specification

from confide_client.data.datasets import LocalData, Record
from confide_client.policy.policy import Policy

if TYPE_CHECKING:
    from confide.privacy.charging import LedgerCosts
    from confide.privacy.filter import Budget
    from confide.privacy.ledger import Ledger
    from confide.privacy.ledger_entries import RunCost


class Spending:
    """Opens the ledger when the first private run needs it; until then nothing of it is imported."""

    def __init__(self, folder: Path, policy: Callable[[], Policy], clock: Callable[[], float] = time.time) -> None:
        """folder: the node's state folder. policy: as it stands now. clock: Unix seconds."""
        self._folder = folder
        self._policy = policy
        self._clock = clock
        self._ledger: Ledger | None = None
        self._costs: LedgerCosts | None = None

    @property
    def exists(self) -> bool:
        """Whether a private run was ever approved here."""
        return (self._folder / LEDGER_NAME).exists()

    @property
    def ledger(self) -> "Ledger":
        """Held exclusively by this process. Raises LedgerError or StateError when damaged or in use."""
        from confide.privacy.ledger import Ledger

        if self._ledger is None:
            self._ledger = Ledger(self._folder / LEDGER_NAME, now=self._clock)
        return self._ledger

    @property
    def costs(self) -> "LedgerCosts":
        """What sealing charges."""
        from confide.privacy.charging import LedgerCosts

        if self._costs is None:
            self._costs = LedgerCosts(self.ledger, self._budget_of)
        return self._costs

    def approve(
        self, run_id: str, specification: Specification, *, group: str, data: LocalData, trained: Callable[[], int]
    ) -> None:
        """Set the run's whole cost aside, or see that it is set aside for the same data.

        trained: how many parameters the run trains; asked for where all nodes add the noise together only.
        Raises BUDGET_EXHAUSTED, LedgerError, DataError, SpecificationError, PARAMETERS_IMPOSSIBLE or PolicyRefusal;
        then nothing is spent.
        """
        unit = specification.privacy.unit
        if unit == "none":
            raise SpecificationError('privacy.unit is "none": there is nothing to charge')
        budget = self._budget_of(group)
        if budget is None:
            raise PolicyRefusal("the policy sets no budget for the run's data. Add one under [budgets] in policy.toml")
        self.ledger.approve(
            run=run_id,
            group=group,
            data=specification.federation.data,
            unit=unit,
            user_key=specification.privacy.user_key,
            specification=specification.digest,
            cost=_cost(specification, data, trained),
            budget=budget,
        )

    def release(self, run_id: str) -> None:
        """The run is over here: free what it did not draw."""
        if run_id in self.ledger.state.runs:
            self.ledger.release(run_id)

    def unspent_slot(self, run_id: str) -> int | None:
        """The slot that holds a draw and whose work never left, if there is one."""
        run = self.ledger.state.runs.get(run_id)
        return None if run is None else run.open_draw

    def write_receipt(self, folder: Path, run_id: str, slot: int, key: SigningKey) -> None:
        """Leave a receipt for a slot that was spent in the run's folder, from where it is sent."""
        from confide.privacy.receipts import make_receipt

        if self.ledger.state.run(run_id).draws.get(slot) is True:
            receipt, _ = make_receipt(self.ledger, run_id, slot, key)
            write_atomic(private_folder(folder / "receipts") / f"{slot}.json", receipt)

    def close(self) -> None:
        """Release the ledger's file."""
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = self._costs = None

    def _budget_of(self, group: str) -> "Budget | None":
        from confide.privacy.filter import Budget

        found = self._policy().budgets.get(group)
        return None if found is None else Budget(epsilon=found.epsilon, delta=found.delta)


def _cost(specification: Specification, data: LocalData, trained: Callable[[], int]) -> "RunCost":
    if specification.privacy.shared:
        from confide.privacy.shared import check_units, shared_cost

        if specification.privacy.unit != "organization":
            check_units(specification, units_in(specification, data))
        return shared_cost(specification, trained())
    from confide.privacy.counting import run_cost

    return run_cost(specification, units_in(specification, data))


def units_in(specification: Specification, data: LocalData) -> int:
    """N: what privacy protects, in the training split. A record that was left out (None) still counts.

    Raises DataError when records lack the user key: their users cannot be told apart, so nothing could be promised.
    """
    from confide.privacy.plan import check_user_key

    if specification.privacy.unit == "record":
        return len(data.train)
    key = str(specification.privacy.user_key)
    records: Sequence[Record | None] = data.train
    check_user_key((record for record in records if record is not None), specification)
    users = {record.get(key) for record in records if record is not None}
    return len(users) + sum(record is None for record in records)
