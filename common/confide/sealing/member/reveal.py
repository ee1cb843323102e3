"""Step 5 at a node: to whom and for what it gives shares. Exactly one kind of each member, for the signed list only."""

from confide.errors import FailureName, ProtocolFailure
from confide.proto import sealing_pb2
from confide.sealing.member.context import MemberContext
from confide.sealing.member.epoch import MemberEpoch
from confide.sealing.member.roster import HeldRoster
from confide.sealing.member.slot_state import SlotState
from confide.sealing.primitives import dealing, wire
from confide.sealing.primitives.context import check_confirmation


def check_kinds(node: str, epoch: MemberEpoch, request: sealing_pb2.RevealRequest) -> None:
    """Exactly one kind for each member, the one that the list says, never this node's own mask secret."""
    assert epoch.key is not None  # noqa: S101 - the slot is open
    survivors = [item.node for item in request.survivors]
    if node in request.mask_secrets:
        raise ProtocolFailure(FailureName.OWN_SECRET_ASKED, "this node's own mask secret is asked for")
    others = [name for name in epoch.key.members if name not in survivors]
    if list(request.self_masks) != survivors or list(request.mask_secrets) != others:
        raise ProtocolFailure(
            FailureName.BOTH_KINDS,
            "the secrets asked for are not the self mask of every survivor and the mask secret of every other "
            "member, each once",
        )


def check_quorum(
    member: MemberContext, roster: HeldRoster, epoch: MemberEpoch, listed: bytes, request: sealing_pb2.RevealRequest
) -> None:
    """Raise by name unless enough distinct survivors signed this list, and enough of them followed the chain."""
    parameters = epoch.parameters
    assert parameters is not None  # noqa: S101 - the slot is open
    signers = [item.node for item in request.confirmations]
    twice = [name for name in signers if signers.count(name) > 1]
    if twice:
        raise ProtocolFailure(FailureName.DUPLICATE_SIGNER, f"{twice[0]} stands twice among the signers")
    wire.require_sorted("the signers", signers)
    strangers = set(signers) - {item.node for item in request.survivors}
    if strangers:
        raise ProtocolFailure(FailureName.COHORT_NOT_EPOCH, f"the signer {sorted(strangers)[0]!r} is not in the list")
    for item in request.confirmations:
        check_confirmation(item, listed, request.slot, roster.current.member(item.node).identity_key)
    if len(signers) < parameters.quorum:
        raise ProtocolFailure(
            FailureName.QUORUM_SHORT, f"{len(signers)} signed the list; {parameters.quorum} are needed"
        )
    anchored = sum(item.anchored for item in request.confirmations)
    if not member.chain.anchored and anchored < parameters.colluding + 1:
        raise ProtocolFailure(
            FailureName.MODEL_CHAIN_BROKEN,
            f"this node never saw the model before, and only {anchored} signers have followed it from the signed "
            f"first one; {parameters.colluding + 1} are needed",
        )


def shares(epoch: MemberEpoch, state: SlotState, request: sealing_pb2.RevealRequest) -> bytes:
    """One share of each member, of the kind that the signed list says."""
    reply = sealing_pb2.Reveal(version=wire.VERSION, slot=state.plan.slot)
    for name in epoch.received:
        kind = dealing.SELF_MASK if name in request.self_masks else dealing.MASK_SECRET
        share = dealing.share_of(epoch.received[name], kind, state.index)
        reply.shares.add(dealer=name, kind=kind, share=share.share, signature=share.signature)
    reply.shares.sort(key=lambda item: item.dealer)
    return wire.encode(reply)
