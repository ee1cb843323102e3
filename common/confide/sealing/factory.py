"""The two halves of update transport as a run's specification wants them. The set is closed.

collector = make_collector(specification, roster, folder, run_id, schema)
member = make_member(specification, roster, node, identity_key, folder, run_id, schema,
                     initial_model_sha256=offer.initial_model_sha256)
"""

import time
from collections.abc import Callable
from pathlib import Path

from confide.codec.tensors import TensorSchema
from confide.identity.keys import SigningKey
from confide.identity.roster import Roster
from confide.models.travel import Travel
from confide.runs.specification import Specification
from confide.sealing.collector.collector import SealedCollector
from confide.sealing.collector.grouped import GroupedCollector
from confide.sealing.member.heights import Heights
from confide.sealing.member.member import NodeRules, SealedMember
from confide.sealing.member.revealed import Memory
from confide.sealing.member.seal_log import Costs
from confide.sealing.plain import PlainCollector, PlainMember
from confide.sealing.roles import Collector, Member


def make_collector(
    specification: Specification, roster: Roster, folder: Path, run_id: str, schema: TensorSchema
) -> Collector:
    """The coordinator half for one run; goes on with what an earlier process left in `folder`, the run's own.

    schema: of the flat update, with names where confide.models.travel.needs_names says so.
    Raises PARAMETERS_IMPOSSIBLE for a promise that no noise keeps.
    """
    check_promise(specification, schema)
    if specification.sealing.kind == "none":
        return PlainCollector(specification=specification, roster=roster, folder=folder, schema=schema)
    kind = SealedCollector if set(roster.groups) <= {""} else GroupedCollector
    return kind(specification=specification, roster=roster, folder=folder, run_id=run_id, schema=schema)


def make_member(
    specification: Specification,
    roster: Roster,
    node: str,
    identity_key: SigningKey,
    folder: Path,
    run_id: str,
    schema: TensorSchema,
    *,
    initial_model_sha256: bytes,
    rules: NodeRules | None = None,
    costs: Costs | None = None,
    memory: Memory | None = None,
    heights: Heights | None = None,
    clock: Callable[[], float] = time.time,
) -> Member:
    """The node half for one run; `folder` is the run's own at this node and has to survive restarts.

    initial_model_sha256: as the administrator signed it. rules: the node's policy. costs: the privacy ledger.
    memory: what the node has revealed for on this data, over all its runs.
    heights: the node's, over all its runs.
    Raises PARAMETERS_IMPOSSIBLE for a promise that no noise keeps.
    """
    check_promise(specification, schema)
    if specification.sealing.kind == "none":
        return PlainMember(specification=specification, folder=folder, schema=schema)
    return SealedMember(
        specification=specification,
        roster=roster,
        node=node,
        identity_key=identity_key,
        folder=folder,
        run_id=run_id,
        schema=schema,
        initial_model_sha256=initial_model_sha256,
        rules=rules or NodeRules(),
        costs=costs,
        memory=memory,
        heights=heights,
        clock=clock,
    )


def check_promise(specification: Specification, schema: TensorSchema) -> None:
    """Raise PARAMETERS_IMPOSSIBLE for a promise that cannot be kept, whoever comes: asked when a run is submitted."""
    if specification.privacy.shared:
        from confide.privacy.shared import shared_cost

        shared_cost(specification, Travel(specification, schema).most)
