"""What one node is and keeps in one run: fixed when the run begins, shared by all steps of the protocol."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from confide.identity.keys import SigningKey
from confide.models.sent_coordinates import SentCoordinates
from confide.runs.specification import Specification
from confide.sealing.member.chain import ModelChain
from confide.sealing.member.heights import Heights
from confide.sealing.member.revealed import Memory
from confide.sealing.member.seal_log import Costs, SealLog


@dataclass(frozen=True, kw_only=True)
class NodeRules:
    """What this node's own policy adds to the specification."""

    min_cohort: int = 0
    """Fewest organizations in a sum, when above the specification's."""
    waive_colluding: bool = False
    """Accept c = 0: sealing holds against the coordinator alone."""
    accept_differences: bool = False
    """Accept runs that say sealing.differences = "accepted"."""


@dataclass(frozen=True, kw_only=True, repr=False)
class MemberContext:
    """One node in one run. What it refers to may grow (log, memory, chain); which one it is never changes."""

    specification: Specification
    node: str
    identity: SigningKey
    run_id: str
    coordinates: SentCoordinates
    rules: NodeRules
    folder: Path
    log: SealLog
    costs: Costs
    heights: Heights
    """Of ledgers: this node's and its peers', over all its runs."""
    memory: Memory
    """What this node has revealed for on the run's data, over all its runs."""
    chain: ModelChain
    clock: Callable[[], float]
    """Unix seconds."""

    @property
    def guards_differences(self) -> bool:
        """Whether two sums must not take a block apart, by the specification, unless this node accepts it too."""
        asked = self.specification.sealing.differences == "accepted"
        return self.specification.refuses_differences or (asked and self._must_refuse)

    @property
    def _must_refuse(self) -> bool:
        return self.specification.privacy.unit != "organization" and not self.rules.accept_differences

    @property
    def fewest_together(self) -> int | None:
        """Fewest members that sums may set apart; None where any may be."""
        return self.specification.sealing.block_colluding + 2 if self.guards_differences else None
