"""Steps 3 to 6 at a node: train and upload, confirm one list, reveal one kind of share a member, forget.

The checks stand in the order of docs/sealing.md. Whatever was answered once is answered again with the same bytes.
What is written durably stands before what it guards.
"""

from confide.errors import ConfideError, FailureName, ProtocolFailure, RetryableError
from confide.files import fsync_file, fsync_folder
from confide.proto import fleet_pb2, sealing_pb2
from confide.runs.contribution import Contribution
from confide.sealing.crash_points import reached
from confide.sealing.member import reveal as revealing
from confide.sealing.member.confirm import check_list, confirmation
from confide.sealing.member.context import MemberContext
from confide.sealing.member.epoch import MemberEpoch, MemberEpochs
from confide.sealing.member.roster import HeldRoster
from confide.sealing.member.slot_state import SlotState, plan_of_open
from confide.sealing.member.upload import Masking
from confide.sealing.primitives import context, wire
from confide.sealing.roles import Answer, SlotPlan, Train


class MemberSlots:
    """The slots of one member, one at a time."""

    def __init__(self, member: MemberContext, roster: HeldRoster, epochs: MemberEpochs) -> None:
        self._member, self._roster, self._epochs = member, roster, epochs
        self._masking = Masking(member)
        self._open: SlotState | None = None
        for left in member.folder.glob("upload-*"):
            left.unlink()  # of an earlier process: its epoch is lost, so nobody will be told to wait for it

    def forget(self) -> None:
        """A new epoch begins: whatever was open is over."""
        self._close(contributed=False)

    def require_closed(self) -> None:
        """Raise MODEL_CHAIN_BROKEN while a slot is open: what it says of its model's chain stands."""
        if self._open is not None:
            raise ProtocolFailure(
                FailureName.MODEL_CHAIN_BROKEN,
                f"slot {self._open.plan.slot} is open; the first model is taken before a slot, not within one",
            )

    # ------------------------------------------------------------------ TRAIN

    def train(self, body: bytes, train: Train, model: bytes | memoryview) -> Answer:
        """Check, reserve, train, mask, spend, answer."""
        member, state = self._member, self._open
        if state is not None and state.request == body:
            return state.same_answer()
        message = wire.decode(sealing_pb2.SealedOpen, body)
        if message.run_id != member.run_id:
            raise ProtocolFailure(FailureName.CONTEXT_MISMATCH, f"the slot is of another run, {message.run_id[:32]!r}")
        epoch = self._epochs.require(message.epoch)
        plan = plan_of_open(message)
        self._check_slot(epoch, plan, list(message.cohort))
        self._check_roster(epoch)
        self._epochs.open_dealings(epoch, list(message.dealings))
        member.memory.check_cohort(model=plan.model_sha256.hex(), members=message.cohort, fewest=member.fewest_together)
        member.chain.admit(plan, model)
        state = self._reserve(epoch, plan, body)
        try:
            contribution = train(plan.to_message())
            reached("member.trained")
            state.answer = self._upload(epoch, state, contribution)
        except ConfideError as error:
            state.refused = error
            raise
        finally:
            epoch.own.drop_slots(state.index + 1)
        return state.answer

    def _check_slot(self, epoch: MemberEpoch, plan: SlotPlan, cohort: list[str]) -> None:
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

    def _check_roster(self, epoch: MemberEpoch) -> None:
        self._roster.check_fresh()
        held = self._roster.current
        if epoch.terms.roster_sha256.hex() != held.digest:
            raise ProtocolFailure(
                FailureName.ROSTER_STALE,
                f"epoch {epoch.terms.epoch} was made under version {epoch.terms.roster_version} of the roster; here it "
                f"is {held.version}. Open a new epoch.",
            )

    def _reserve(self, epoch: MemberEpoch, plan: SlotPlan, body: bytes) -> SlotState:
        member, parameters, key = self._member, epoch.parameters, epoch.key
        assert parameters is not None and key is not None  # noqa: S101 - _check_slot has seen the key
        self._close(contributed=False)
        layout = context.slot_layout(member.specification, parameters, key.bundles, plan, member.coordinates)
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

    def _upload(self, epoch: MemberEpoch, state: SlotState, contribution: Contribution) -> Answer:
        """Mask into a file, once; SPENT is durable before the answer exists."""
        member, slot = self._member, state.plan.slot
        path = member.folder / f"upload-{slot}"
        try:
            state.upload_digest = self._masking.encode(epoch, state, contribution, path)
            fsync_file(path)
            fsync_folder(path.parent)
        except OSError as error:
            raise RetryableError(
                f"cannot write the upload of slot {slot}: {error.strerror}. Free space on the node's disk."
            ) from error
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
                raise state.two_lists()
            return state.confirmation
        check_list(member, self._roster, epoch, state, survivors)
        anchored = member.chain.anchored
        member.log.write(
            "signed",
            run=member.run_id,
            slot=state.plan.slot,
            survivors=[item.node for item in survivors],
            list_sha256=listed.hex(),
            anchored=anchored,
        )
        state.signed_list = listed
        reached("member.list_written")
        state.confirmation = confirmation(member, state, listed, anchored)
        return state.confirmation

    def _require(self, slot: int, stated: bytes) -> tuple[SlotState, MemberEpoch]:
        """The open slot, uploaded, with the context that the message names."""
        state, epoch = self._open, self._epochs.current
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

    # ------------------------------------------------------------------ REVEAL

    def reveal(self, body: bytes) -> bytes:
        """Give one share of each member, of the kind that the signed list says."""
        member = self._member
        request = wire.decode(sealing_pb2.RevealRequest, body)
        state, epoch = self._require(request.slot, request.context)
        listed = context.list_digest(state.context, state.plan.slot, list(request.survivors))
        if state.signed_list != listed:
            raise state.two_lists()
        revealing.check_kinds(member.node, epoch, request)
        if state.reveal:
            return state.reveal
        revealing.check_quorum(member, self._roster, epoch, listed, request)
        signers = [item.node for item in request.confirmations if item.node != member.node]
        member.heights.proved({name: epoch.opened[name].ledger_length for name in signers})
        # Again, and remembered in the same step: another run may have revealed since this list was signed.
        member.memory.reveal(
            run=member.run_id,
            slot=state.plan.slot,
            model=state.plan.model_sha256.hex(),
            names=[item.node for item in request.survivors],
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
        state.reveal = revealing.shares(epoch, state, request)
        epoch.drop_shares(state.index + 1)
        return state.reveal

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
        state, epoch = self._open, self._epochs.current
        if state is None:
            return
        if not contributed:
            self._masking.roll_back(state)
        if state.answer is not None and state.answer.payload is not None:
            state.answer.payload.unlink(missing_ok=True)
        if epoch is not None:
            epoch.drop_shares(state.index + 1)
            epoch.own.drop_slots(state.index + 1)
        self._open = None
