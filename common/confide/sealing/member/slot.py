"""One slot at a node: train and upload, confirm one list, reveal one kind of share a member, forget.

The checks stand in the order of docs/sealing.md. Whatever was answered once is answered again with the same bytes.
"""

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from confide.codec.layout import VectorLayout
from confide.codec.seal_vector import ToIntegers, encode_upload
from confide.errors import ConfideError, FailureName, IdentityError, ProtocolFailure
from confide.files import fsync_file, fsync_folder
from confide.identity.keys import verify
from confide.privacy.metrics import check_unaccounted
from confide.proto import fleet_pb2, sealing_pb2
from confide.runs.contribution import Contribution
from confide.runs.parameters import too_few
from confide.sealing.crash_points import reached
from confide.sealing.plain import clipped, travelling
from confide.sealing.primitives import context, dealing, keys, scalars, wire
from confide.sealing.roles import Answer, SlotPlan, Train

if TYPE_CHECKING:
    from confide.sealing.member.member import MemberEpoch, SealedMember


@dataclass(repr=False)
class SlotState:
    """The open slot, in memory."""

    plan: SlotPlan
    request: bytes
    context: bytes
    layout: VectorLayout
    index: int
    answer: Answer | None = None
    upload_digest: bytes = b""
    refused: ConfideError | None = None
    """Why training failed; the slot is used up all the same."""
    signed_list: bytes = b""
    confirmation: bytes = b""
    reveal: bytes = b""
    fed_back: bool = False
    feedback_before: NDArray[np.float32] | None = field(default=None)


def plan_of_open(message: sealing_pb2.SealedOpen) -> SlotPlan:
    """The plan in a TRAIN message. Raises MALFORMED for values out of range."""
    wire.require_length("model_sha256", message.model_sha256, wire.DIGEST_BYTES)
    if message.parent_model_sha256:
        wire.require_length("parent_model_sha256", message.parent_model_sha256, wire.DIGEST_BYTES)
    if not (message.slot >= 1 and message.round >= 1 and message.attempt >= 1):
        raise wire.malformed(f"slot {message.slot}, round {message.round}, attempt {message.attempt}; all count from 1")
    return SlotPlan(
        slot=message.slot,
        round=message.round,
        attempt=message.attempt,
        model_sha256=message.model_sha256,
        parent_model_sha256=message.parent_model_sha256,
        evaluate_only=message.evaluate_only,
    )


class MemberSlot:
    """The slots of one member, one at a time."""

    def __init__(self, member: "SealedMember") -> None:
        self._member = member
        self._open: SlotState | None = None
        self._feedback: NDArray[np.float32] | None = None
        for left in member.folder.glob("upload-*"):
            left.unlink()  # of an earlier process: its epoch is lost, so nobody will be told to wait for it

    def forget(self) -> None:
        """A new epoch begins: whatever was open is over."""
        self._close(contributed=False)

    # ------------------------------------------------------------------ TRAIN

    def train(self, body: bytes, train: Train, model: bytes | memoryview) -> Answer:
        """Check, reserve, train, mask, spend, answer."""
        member, state = self._member, self._open
        if state is not None and state.request == body:
            return self._same_answer(state)
        message = wire.decode(sealing_pb2.SealedOpen, body)
        if message.run_id != member.run_id:
            raise ProtocolFailure(FailureName.CONTEXT_MISMATCH, f"the slot is of another run, {message.run_id[:32]!r}")
        epoch = member.require_epoch(message.epoch)
        plan = plan_of_open(message)
        self._check_slot(epoch, plan, list(message.cohort))
        self._check_roster(epoch)
        member.open_dealings(epoch, list(message.dealings))
        member.memory.check_cohort(model=plan.model_sha256.hex(), members=message.cohort, fewest=member.fewest_together)
        member.chain.admit(plan, model)
        state = self._reserve(epoch, plan, body)
        try:
            contribution = train(_slot_open(plan))
            reached("member.trained")
            state.answer = self._upload(epoch, state, contribution)
        except ConfideError as error:
            state.refused = error
            raise
        finally:
            epoch.own.drop_slots(state.index + 1)
        return state.answer

    def _check_roster(self, epoch: "MemberEpoch") -> None:
        self._member.roster.check_fresh(self._member.clock())
        if epoch.terms.roster_sha256.hex() != self._member.roster.digest:
            raise ProtocolFailure(
                FailureName.ROSTER_STALE,
                f"epoch {epoch.terms.epoch} was made under version {epoch.terms.roster_version} of the roster; here it "
                f"is {self._member.roster.version}. Open a new epoch.",
            )

    def _same_answer(self, state: SlotState) -> Answer:
        if state.refused is not None:
            raise state.refused
        if state.answer is None:
            raise ProtocolFailure(FailureName.SLOT_REUSED, f"slot {state.plan.slot} was given up")
        return state.answer

    def _check_slot(self, epoch: "MemberEpoch", plan: SlotPlan, cohort: list[str]) -> None:
        first = epoch.terms.first_slot
        if plan.slot <= self._member.log.last_slot:
            raise ProtocolFailure(FailureName.SLOT_REUSED, f"slot {plan.slot} was used already; slots only go up")
        if not first <= plan.slot < first + epoch.terms.slots:
            raise ProtocolFailure(
                FailureName.SLOT_REUSED,
                f"slot {plan.slot} is not one of this epoch's, {first} to {first + epoch.terms.slots - 1}",
            )
        if epoch.key is None:
            raise ProtocolFailure(FailureName.EPOCH_REPLAYED, f"epoch {epoch.terms.epoch} has not been shared yet")
        if tuple(cohort) != epoch.key.members:
            raise ProtocolFailure(
                FailureName.COHORT_NOT_EPOCH,
                f"the slot is for {cohort}; it has to be the whole epoch, {list(epoch.key.members)}",
            )

    def _reserve(self, epoch: "MemberEpoch", plan: SlotPlan, body: bytes) -> SlotState:
        member, parameters, key = self._member, epoch.parameters, epoch.key
        assert parameters is not None and key is not None  # noqa: S101 - _check_slot has seen the key
        self._close(contributed=False)
        layout = context.slot_layout(member.specification, parameters, key.bundles, plan, member.travel)
        state = SlotState(
            plan=plan,
            request=bytes(body),
            context=context.slot_context(epoch.terms, parameters, key.bundles, plan, layout),
            layout=layout,
            index=plan.slot - epoch.terms.first_slot,
        )
        model = plan.model_sha256.hex()
        member.costs.reserve(
            run_id=member.run_id,
            slot=plan.slot,
            round=plan.round,
            model_sha256=model,
            evaluate_only=plan.evaluate_only,
        )
        member.log.write(
            "reserved",
            run=member.run_id,
            slot=plan.slot,
            round=plan.round,
            attempt=plan.attempt,
            model=model,
            evaluate_only=plan.evaluate_only,
            context=state.context.hex(),
            n=parameters.members,
            c=parameters.colluding,
            q=parameters.quorum,
            t=parameters.threshold,
            d=parameters.missing,
        )
        epoch.own.drop_slots(state.index)
        self._open = state
        reached("member.reserved")
        return state

    def _upload(self, epoch: "MemberEpoch", state: SlotState, contribution: Contribution) -> Answer:
        """Mask into a file, once; SPENT is durable before the answer exists."""
        member, slot = self._member, state.plan.slot
        path = member.folder / f"upload-{slot}"
        state.upload_digest = self._encode(epoch, state, contribution, path)
        fsync_file(path)
        fsync_folder(path.parent)
        reached("member.upload_written")
        member.costs.spend(run_id=member.run_id, slot=slot, upload_digest=state.upload_digest.hex())
        member.log.write(
            "spent",
            run=member.run_id,
            slot=slot,
            upload_digest=state.upload_digest.hex(),
            bytes=state.layout.wire_bytes,
        )
        reached("member.spent")
        reply = sealing_pb2.SealedUpload(
            version=wire.VERSION, slot=slot, context=state.context, upload_digest=state.upload_digest
        )
        return Answer(wire.encode(reply), path)

    def _encode(self, epoch: "MemberEpoch", state: SlotState, contribution: Contribution, path: Path) -> bytes:
        member = self._member
        check_unaccounted(member.specification, contribution)
        integers = scalars.encode(contribution)
        number = state.plan.round
        update = travelling(contribution.update, member.travel, number, state.plan.evaluate_only)
        if contribution.weight != 1.0:
            update = clipped(update, state.layout.clip) * np.float32(contribution.weight)
        feedback = None
        if member.specification.sealing.error_feedback and not state.plan.evaluate_only:
            state.feedback_before = self._feedback
            kept = np.zeros(member.travel.size, np.float32) if self._feedback is None else self._feedback.copy()
            feedback = np.ascontiguousarray(member.travel.gather(kept, number))
        digest = encode_upload(
            update,
            integers,
            state.layout,
            rounding_key=secrets.token_bytes(32),
            masks=self._masks(epoch, state),
            out=path,
            feedback=feedback,
            to_integers=self._noised(epoch, state),
        )
        if feedback is not None:
            member.travel.scatter(feedback, number, kept)
            self._feedback, state.fed_back = kept, True
        return digest

    def _noised(self, epoch: "MemberEpoch", state: SlotState) -> ToIntegers | None:
        """How the update becomes integers with this node's share of the noise, where all nodes add it together."""
        member, parameters = self._member, epoch.parameters
        assert parameters is not None  # noqa: S101 - the slot is open
        noise = context.slot_noise(member.specification, parameters, state.plan, member.travel)
        if noise is None:
            return None
        from confide.privacy.randomness import SecureRandom

        return noise.to_integers(SecureRandom())

    def _masks(self, epoch: "MemberEpoch", state: SlotState) -> list[tuple[bytes, int]]:
        node, own = self._member.node, epoch.own
        seed, secret = own.seeds[state.index], own.mask_secrets[state.index]
        if seed is None or secret is None:
            raise ProtocolFailure(FailureName.SLOT_REUSED, f"the keys of slot {state.plan.slot} were dropped")
        pairs = [
            keys.pairwise_mask(secret, bundle.mask_keys[state.index], state.context, node, peer)
            for peer, bundle in epoch.opened.items()
            if peer != node
        ]
        return [keys.self_mask(seed, state.context, node), *pairs]

    def require_closed(self) -> None:
        """Raise MODEL_CHAIN_BROKEN while a slot is open: what it says of its model's chain stands."""
        if self._open is not None:
            raise ProtocolFailure(
                FailureName.MODEL_CHAIN_BROKEN,
                f"slot {self._open.plan.slot} is open; the first model is taken before a slot, not within one",
            )

    # ------------------------------------------------------------------ CONFIRM

    def confirm(self, body: bytes) -> bytes:
        """Sign the slot's one list of survivors."""
        member = self._member
        request = wire.decode(sealing_pb2.ConfirmRequest, body)
        state, epoch = self._require(request.slot, request.context)
        survivors = list(request.survivors)
        listed = context.list_digest(state.context, state.plan.slot, survivors)
        if state.signed_list:
            if state.signed_list != listed:
                raise _two_lists(state.plan.slot)
            return state.confirmation
        self._check_list(epoch, state, survivors)
        names, anchored = [item.node for item in survivors], member.chain.anchored
        member.log.write(
            "signed",
            run=member.run_id,
            slot=state.plan.slot,
            survivors=names,
            list_sha256=listed.hex(),
            anchored=anchored,
        )
        state.signed_list = listed
        reached("member.list_written")
        signature = member.identity.sign(context.LIST_DOMAIN, context.list_statement(listed, member.node, anchored))
        state.confirmation = wire.encode(
            sealing_pb2.Confirmation(
                version=wire.VERSION,
                slot=state.plan.slot,
                node=member.node,
                anchored=anchored,
                signature=signature,
            )
        )
        return state.confirmation

    def _require(self, slot: int, stated: bytes) -> tuple[SlotState, "MemberEpoch"]:
        """The open slot, uploaded, with the context that the message names."""
        state, epoch = self._open, self._member.epoch
        if state is None or epoch is None or state.plan.slot != slot or state.answer is None:
            raise ProtocolFailure(
                FailureName.SLOT_REUSED, f"slot {slot} is not open here, or nothing was uploaded in it"
            )
        if stated != state.context:
            raise ProtocolFailure(
                FailureName.CONTEXT_MISMATCH,
                f"slot {slot} has another context here: the members were shown different models, rosters, bundles "
                "or specifications",
            )
        return state, epoch

    def _check_list(self, epoch: "MemberEpoch", state: SlotState, survivors: list[sealing_pb2.Survivor]) -> None:
        assert epoch.parameters is not None and epoch.key is not None  # noqa: S101 - the slot is open
        names = [item.node for item in survivors]
        wire.require_sorted("the survivors", names)
        if not set(names) <= set(epoch.key.members):
            raise ProtocolFailure(
                FailureName.COHORT_NOT_EPOCH, f"{sorted(set(names) - set(epoch.key.members))[0]!r} is not of the epoch"
            )
        for item in survivors:
            wire.require_length(f"digest of {item.node}", item.upload_digest, wire.DIGEST_BYTES)
        own = {item.node: item.upload_digest for item in survivors}.get(self._member.node)
        if own != state.upload_digest:
            raise ProtocolFailure(FailureName.OMITTED_SELF, "the list lacks this node's upload, or states another one")
        if len(names) < epoch.parameters.smallest_list:
            raise ProtocolFailure(
                too_few(self._member.specification, state.plan.evaluate_only),
                f"{len(names)} of {epoch.parameters.members} are listed; at least {epoch.parameters.smallest_list} are "
                "needed",
            )
        self._check_differences(state, names)

    def _check_differences(self, state: SlotState, names: list[str]) -> None:
        """What this list and those revealed before would tell together."""
        member, fewest = self._member, self._member.fewest_together
        if fewest is not None:
            member.check_blocks(names)
            member.memory.check(model=state.plan.model_sha256.hex(), names=names, fewest=fewest)

    # ------------------------------------------------------------------ REVEAL

    def reveal(self, body: bytes) -> bytes:
        """Give one share of each member, of the kind that the signed list says."""
        member = self._member
        request = wire.decode(sealing_pb2.RevealRequest, body)
        state, epoch = self._require(request.slot, request.context)
        survivors = list(request.survivors)
        listed = context.list_digest(state.context, state.plan.slot, survivors)
        if state.signed_list != listed:
            raise _two_lists(state.plan.slot)
        self._check_kinds(epoch, request)
        if state.reveal:
            return state.reveal
        self._check_quorum(epoch, listed, request)
        # Again, and remembered in the same step: another run may have revealed since this list was signed.
        member.memory.reveal(
            run=member.run_id,
            slot=state.plan.slot,
            model=state.plan.model_sha256.hex(),
            names=[item.node for item in survivors],
            fewest=member.fewest_together,
        )
        reached("member.memory_written")
        member.log.write(
            "revealed",
            run=member.run_id,
            slot=state.plan.slot,
            self_masks=list(request.self_masks),
            mask_secrets=list(request.mask_secrets),
        )
        reached("member.reveal_written")
        member.chain.anchor()
        reply = sealing_pb2.Reveal(version=wire.VERSION, slot=state.plan.slot)
        for name in epoch.received:
            kind = dealing.SELF_MASK if name in request.self_masks else dealing.MASK_SECRET
            share = dealing.share_of(epoch.received[name], kind, state.index)
            reply.shares.add(dealer=name, kind=kind, share=share.share, signature=share.signature)
        reply.shares.sort(key=lambda item: item.dealer)
        state.reveal = wire.encode(reply)
        _drop_shares(epoch, state.index + 1)
        return state.reveal

    def _check_kinds(self, epoch: "MemberEpoch", request: sealing_pb2.RevealRequest) -> None:
        """Exactly one kind for each member, the one that the list says, never this node's own mask secret."""
        assert epoch.key is not None  # noqa: S101 - the slot is open
        survivors = [item.node for item in request.survivors]
        if self._member.node in request.mask_secrets:
            raise ProtocolFailure(FailureName.OWN_SECRET_ASKED, "this node's own mask secret is asked for")
        others = [name for name in epoch.key.members if name not in survivors]
        if list(request.self_masks) != survivors or list(request.mask_secrets) != others:
            raise ProtocolFailure(
                FailureName.BOTH_KINDS,
                "the secrets asked for are not the self mask of every survivor and the mask secret of every other "
                "member, each once",
            )

    def _check_quorum(self, epoch: "MemberEpoch", listed: bytes, request: sealing_pb2.RevealRequest) -> None:
        member, parameters = self._member, epoch.parameters
        assert parameters is not None  # noqa: S101 - the slot is open
        signers = [item.node for item in request.confirmations]
        twice = [name for name in signers if signers.count(name) > 1]
        if twice:
            raise ProtocolFailure(FailureName.DUPLICATE_SIGNER, f"{twice[0]} stands twice among the signers")
        wire.require_sorted("the signers", signers)
        strangers = set(signers) - {item.node for item in request.survivors}
        if strangers:
            raise ProtocolFailure(
                FailureName.COHORT_NOT_EPOCH, f"the signer {sorted(strangers)[0]!r} is not in the list"
            )
        for item in request.confirmations:
            check_confirmation(item, listed, request.slot, member.roster.member(item.node).identity_key)
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

    # ------------------------------------------------------------------ END

    def ended(self, end: fleet_pb2.End) -> None:
        """Erase the slot, also one of an earlier process; keep error feedback only when this update is in the sum."""
        member, slot = self._member, self._member.log.unended
        if slot is None or end.slot not in (0, slot):
            return
        contributed = end.committed and member.node in end.contributors
        member.costs.ended(run_id=member.run_id, slot=slot, committed=end.committed, contributed=contributed)
        member.log.write(
            "ended",
            run=member.run_id,
            slot=slot,
            committed=end.committed,
            failure=end.failure[:64],
            contributed=contributed,
        )
        self._close(contributed=contributed)
        reached("member.ended")

    def _close(self, *, contributed: bool) -> None:
        state, epoch = self._open, self._member.epoch
        if state is None:
            return
        if state.fed_back and not contributed:
            self._feedback = state.feedback_before
        if state.answer is not None and state.answer.payload is not None:
            state.answer.payload.unlink(missing_ok=True)
        if epoch is not None:
            _drop_shares(epoch, state.index + 1)
            epoch.own.drop_slots(state.index + 1)
        self._open = None


def check_confirmation(item: sealing_pb2.Confirmation, listed: bytes, slot: int, identity_key: str) -> None:
    """Raise CONTEXT_MISMATCH unless `item` is its node's signature over this list, slot and context."""
    try:
        statement = context.list_statement(listed, item.node, item.anchored)
        if (item.version, item.slot) != (wire.VERSION, slot):
            raise IdentityError(f"it is of version {item.version}, slot {item.slot}")
        verify(bytes.fromhex(identity_key), context.LIST_DOMAIN, statement, item.signature)
    except IdentityError as error:
        raise ProtocolFailure(
            FailureName.CONTEXT_MISMATCH, f"the signature of {item.node} is not over this list and context"
        ) from error


def _two_lists(slot: int) -> ProtocolFailure:
    return ProtocolFailure(
        FailureName.TWO_LISTS, f"slot {slot} has another list than the one that this node signed, or signed none of"
    )


def _slot_open(plan: SlotPlan) -> fleet_pb2.SlotOpen:
    return plan.to_message()


def _drop_shares(epoch: "MemberEpoch", before: int) -> None:
    """Overwrite what others dealt for the slots with index below `before`."""
    for dealt in epoch.received.values():
        for index in range(before):
            dealt.self_mask[index].Clear()
            dealt.mask_secret[index].Clear()
