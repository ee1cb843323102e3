"""Step 4 at a node: which list of survivors it signs. One a slot; docs/sealing.md has the checks in this order."""

from confide.errors import FailureName, ProtocolFailure
from confide.proto import sealing_pb2
from confide.runs.parameters import too_few
from confide.sealing.member.context import MemberContext
from confide.sealing.member.epoch import MemberEpoch
from confide.sealing.member.roster import HeldRoster
from confide.sealing.member.slot_state import SlotState
from confide.sealing.primitives import context, wire


def check_list(
    member: MemberContext,
    roster: HeldRoster,
    epoch: MemberEpoch,
    state: SlotState,
    survivors: list[sealing_pb2.Survivor],
) -> None:
    """Raise by name unless the list is of the epoch, holds this node's own upload, and is large enough.

    And unless what it and the lists revealed for before tell together is a sum over enough of them.
    """
    assert epoch.parameters is not None and epoch.key is not None  # noqa: S101 - the slot is open
    names = [item.node for item in survivors]
    wire.require_sorted("the survivors", names)
    if not set(names) <= set(epoch.key.members):
        raise ProtocolFailure(
            FailureName.COHORT_NOT_EPOCH, f"{sorted(set(names) - set(epoch.key.members))[0]!r} is not of the epoch"
        )
    for item in survivors:
        wire.require_length(f"digest of {item.node}", item.upload_digest, wire.DIGEST_BYTES)
    own = {item.node: item.upload_digest for item in survivors}.get(member.node)
    if own != state.upload_digest:
        raise ProtocolFailure(FailureName.OMITTED_SELF, "the list lacks this node's upload, or states another one")
    if len(names) < epoch.parameters.smallest_list:
        raise ProtocolFailure(
            too_few(member.specification, state.plan.evaluate_only),
            f"{len(names)} of {epoch.parameters.members} are listed; at least {epoch.parameters.smallest_list} are "
            "needed",
        )
    fewest = member.fewest_together
    if fewest is not None:
        roster.check_blocks(names)
        member.memory.check(model=state.plan.model_sha256.hex(), names=names, fewest=fewest)


def confirmation(member: MemberContext, state: SlotState, listed: bytes, anchored: bool) -> bytes:
    """This node's signature over a list (its `list_digest`), and whether it has followed the model's chain."""
    signature = member.identity.sign(context.LIST_DOMAIN, context.list_statement(listed, member.node, anchored))
    return wire.encode(
        sealing_pb2.Confirmation(
            version=wire.VERSION, slot=state.plan.slot, node=member.node, anchored=anchored, signature=signature
        )
    )
