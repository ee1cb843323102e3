"""What each organization spent, by its own ledger: verified by the product's command, and told in one row a group.

Of one run, which was fixed before any of its data was used, the tighter accountant counts, as the ledger itself does
(docs/privacy.md); of several the filter's epsilon stands.
"""

from dataclasses import dataclass

from confide.privacy import LEDGER_NAME
from confide.privacy.accounting import epsilon
from confide.privacy.ledger import balances, replay

from confide_simulations.local_federation import LocalFederation, run_command


@dataclass(frozen=True)
class Spent:
    """One group of one organization's data."""

    organization: str
    group: str
    protects: str
    runs: int
    epsilon: float
    delta: float
    lines: int
    head: str


def spent(federation: LocalFederation) -> list[Spent]:
    """By organization. Raises LedgerError when a ledger does not verify. The nodes must have ended."""
    from confide import journal

    rows = []
    for name in federation.nodes:
        folder = federation.node_folder(name)
        run_command("ledger", "verify", "--state", str(folder))
        bodies, head = journal.read(folder / LEDGER_NAME)
        state = replay(bodies)
        for one in balances(state):
            events = [event for run in state.group_runs(one.group) for event in run.spent()]
            exact = epsilon(events, delta=one.delta) if one.runs == 1 and events else one.spent_epsilon
            rows.append(Spent(name, one.group, one.protects, one.runs, exact, one.delta, len(bodies), head))
    return rows
