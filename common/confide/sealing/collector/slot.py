"""Steps 3 to 6 at the coordinator: gather uploads, have the list signed, open the sum, tell everybody the end."""

from pathlib import Path

from confide.codec.digest import DigestedFile
from confide.errors import FailureName, ProtocolFailure, UpdateError
from confide.proto import fleet_pb2, sealing_pb2
from confide.runs.parameters import Parameters, too_few, words
from confide.sealing.collector import opening
from confide.sealing.collector.attendance import Attendance
from confide.sealing.collector.cohort import Cohort
from confide.sealing.collector.epoch import EpochMachine
from confide.sealing.collector.recorder import Recorder
from confide.sealing.collector.state import EpochRecord, SlotRecord
from confide.sealing.collector.uploads import UploadStore
from confide.sealing.crash_points import reached
from confide.sealing.differences import differences_kind
from confide.sealing.evidence import of_slot
from confide.sealing.primitives import wire
from confide.sealing.primitives.context import check_confirmation
from confide.sealing.roles import Abandoned, Exchange, Opened, SlotPlan, work_step


class SlotMachine:
    """The slots of one collector, one at a time: train -> confirm -> reveal -> decided."""

    def __init__(
        self, folder: Path, recorder: Recorder, cohort: Cohort, attendance: Attendance, epochs: EpochMachine
    ) -> None:
        """folder: for uploads. Goes on with those of an earlier process."""
        self.outcome: Opened | Abandoned | None = None
        self.uploads = UploadStore(folder)
        self._recorder, self._state = recorder, recorder.state
        self._cohort, self._attendance, self._epochs = cohort, attendance, epochs
        self._specification = cohort.specification
        self._checked: set[str] = set()
        """Whose upload this process has compared with its digest."""
        self._recheck_uploads()

    def _recheck_uploads(self) -> None:
        """After a restart: an upload that is not what its sender stated is asked for again, while it still can be.

        Those of a slot whose list is made are compared with their digests as they are summed.
        """
        slot = self._state.slot
        if slot is None or slot.phase != "train":
            return
        for node, digest in list(slot.uploads.items()):
            if self.uploads.intact(slot.plan.slot, node, digest):
                self._checked.add(node)
            else:
                self._recorder.record("upload_lost", node=node)

    # ------------------------------------------------------------------ begin

    def open(self, plan: SlotPlan) -> None:
        """Begin a slot, or go on with the one that a crash left open. Without an epoch it is abandoned at once."""
        state = self._state
        if state.slot is not None and state.slot.plan == plan and not state.slot.ended:
            self._resume(state.slot)
            return
        if plan.slot <= state.last_slot:
            raise ProtocolFailure(FailureName.SLOT_REUSED, f"slot {plan.slot} was opened before; slots only go up")
        self.outcome, self._checked = None, set()
        self._attendance.begin_slot()
        epoch = state.epoch
        stands = epoch is not None and epoch.phase == "stands"
        sealed = epoch is not None and stands and plan.slot < epoch.terms.first_slot + epoch.terms.slots
        self._recorder.record("slot", plan=wire.encode(plan.to_message()).hex(), sealed=sealed)
        reached("collector.slot_written")
        if not sealed:
            code, reason = epoch.failure if epoch is not None and epoch.failure[0] else (
                FailureName.COHORT_NOT_EPOCH.value,
                "no epoch stands that holds this slot; call begin_epoch and finish its exchanges first",
            )  # fmt: skip
            self.abandon(code, reason)

    def _resume(self, slot: SlotRecord) -> None:
        if slot.phase != "decided":
            return
        if slot.committed:
            self._open_sum()
        else:
            reasons = self._attendance.reasons()
            self.outcome = Abandoned(slot.failure, "abandoned before the coordinator restarted", reasons)

    # ------------------------------------------------------------------ ask

    def exchange(self, epoch: EpochRecord, slot: SlotRecord) -> Exchange:
        """TRAIN or SCORE, CONFIRM, REVEAL, of those whose answers are not held."""
        deadline_s = self._specification.federation.exchange_deadline_s
        if slot.phase == "train":
            waiting = self._attendance.waiting(epoch.members, slot.uploads)
            inbound = {} if set(waiting) <= epoch.delivered else self._epochs.inbound(epoch)
            bodies = {
                name: _train_body(epoch, slot, [] if name in epoch.delivered else inbound[name]) for name in waiting
            }
            limit_s = self._specification.federation.deadline_limit_s
            return Exchange(work_step(self._specification), bodies, limit_s, with_model=True)
        if slot.phase == "confirm":
            waiting = self._attendance.waiting(slot.survivors, slot.confirmations)
            return Exchange(fleet_pb2.CONFIRM, dict.fromkeys(waiting, _confirm_body(slot)), deadline_s)
        waiting = self._attendance.waiting(slot.quorum, slot.reveals)
        return Exchange(fleet_pb2.REVEAL, dict.fromkeys(waiting, _reveal_body(epoch, slot)), deadline_s)

    # ------------------------------------------------------------------ take

    def take(self, epoch: EpochRecord, slot: SlotRecord, node: str, body: bytes, payload: DigestedFile | None) -> None:
        """One answer to the exchange that is open; durable when this returns."""
        if slot.phase == "train":
            self._take_upload(epoch, slot, node, body, payload)
        elif payload is not None:
            raise ProtocolFailure(
                FailureName.LATE_UPLOAD,
                f"the upload of {node} came after the list of slot {slot.plan.slot} was made; it is dropped",
            )
        elif slot.phase == "confirm":
            self._take_confirmation(slot, node, body)
        else:
            self._take_reveal(epoch, slot, node, body)

    def _take_upload(
        self, epoch: EpochRecord, slot: SlotRecord, node: str, body: bytes, payload: DigestedFile | None
    ) -> None:
        upload = wire.decode(sealing_pb2.SealedUpload, body)
        if node not in epoch.signed:
            raise ProtocolFailure(FailureName.COHORT_NOT_EPOCH, f"{node} is not a member of this epoch")
        if upload.slot != slot.plan.slot:
            raise ProtocolFailure(
                FailureName.LATE_UPLOAD, f"{node} answered slot {upload.slot}; slot {slot.plan.slot} is open"
            )
        if upload.context != slot.context:
            raise ProtocolFailure(FailureName.CONTEXT_MISMATCH, f"{node} has another context in slot {upload.slot}")
        if node in slot.uploads:
            return
        if payload is None or slot.layout is None:
            raise UpdateError(f"the reply of {node} has no payload 'upload'")
        wire.require_length("upload_digest", upload.upload_digest, wire.DIGEST_BYTES)
        self.uploads.keep(upload.slot, node, payload, upload.upload_digest, slot.layout.wire_bytes)
        self._checked.add(node)
        self._recorder.record("upload", node=node, digest=upload.upload_digest.hex())
        reached("collector.upload_kept")

    def _take_confirmation(self, slot: SlotRecord, node: str, body: bytes) -> None:
        item = wire.decode(sealing_pb2.Confirmation, body)
        if item.node != node or node not in slot.survivors:
            raise ProtocolFailure(
                FailureName.COHORT_NOT_EPOCH, f"{node} answers for {item.node!r}, or is not in the list"
            )
        check_confirmation(item, slot.listed, slot.plan.slot, self._cohort.roster.member(node).identity_key)
        if node not in slot.confirmations:
            self._recorder.record("confirmation", node=node, body=body.hex(), parsed=item)
            reached("collector.confirmation_kept")

    def _take_reveal(self, epoch: EpochRecord, slot: SlotRecord, node: str, body: bytes) -> None:
        reveal = wire.decode(sealing_pb2.Reveal, body)
        if reveal.slot != slot.plan.slot or node not in slot.quorum:
            raise ProtocolFailure(
                FailureName.CONTEXT_MISMATCH, f"no reveal of {node} for slot {reveal.slot} is awaited"
            )
        opening.check_reveal(epoch, slot, node, reveal)
        if node not in slot.reveals:
            self._recorder.record("reveal", node=node, body=body.hex(), parsed=reveal)
            reached("collector.reveal_kept")

    # ------------------------------------------------------------------ decide

    def close(self, epoch: EpochRecord, slot: SlotRecord) -> None:
        """All answered or the deadline passed: the next step, or an outcome."""
        parameters = epoch.parameters
        assert parameters is not None  # noqa: S101 - the epoch stands
        self._attendance.begin_exchange()
        if slot.phase == "train":
            self._close_train(epoch, slot, parameters)
        elif slot.phase == "confirm":
            self._close_confirm(slot, parameters)
        else:
            self._close_reveal(epoch, slot, parameters)

    def _close_train(self, epoch: EpochRecord, slot: SlotRecord, parameters: Parameters) -> None:
        names, missing = self._cohort.summable(slot.uploads), sorted(set(epoch.members) - set(slot.uploads))
        for name in set(slot.uploads) - set(names):
            why = f"{FailureName.BLOCK_SPLIT}: {missing[0]} is missing, and blocks stay whole"
            self._attendance.explain(name, why)
        if len(names) < parameters.smallest_list:
            code = too_few(self._specification, slot.plan.evaluate_only)
            count = f"{len(slot.uploads)} of {parameters.members} uploaded"
            if self._cohort.guarded and missing:
                code, count = FailureName.BLOCK_SPLIT, f"{count}, {', '.join(missing)} did not, and blocks stay whole"
            self.abandon(code.value, f"{count}; at least {parameters.smallest_list} are needed")
            return
        self.uploads.settle(slot.plan.slot)
        self._recorder.record("list", nodes=names)
        reached("collector.list_written")

    def _close_confirm(self, slot: SlotRecord, parameters: Parameters) -> None:
        names = sorted(slot.confirmations)
        if len(names) < parameters.quorum:
            self._abandon_short(len(names), "confirmed", parameters.quorum, parameters)
            return
        self._recorder.record("quorum", nodes=names)
        reached("collector.quorum_written")

    def _close_reveal(self, epoch: EpochRecord, slot: SlotRecord, parameters: Parameters) -> None:
        reveals = None
        if len(slot.reveals) >= parameters.threshold:
            reveals = opening.Reveals(epoch, slot)
            if self._drop_bad_shares(reveals):
                reveals = None
        if len(slot.reveals) < parameters.threshold:
            self._abandon_short(len(slot.reveals), "revealed", parameters.threshold, parameters)
        else:
            self._open_sum(reveals)

    def _drop_bad_shares(self, reveals: opening.Reveals) -> bool:
        """Name the holders whose shares their dealers did not sign, and go on without what they revealed.

        Whether there were any.
        """
        found = reveals.unsigned(self._cohort.identity_key)
        for holder, dealers in found.items():
            self._recorder.record("bad_share", node=holder, dealers=dealers)
            reason = f"it revealed shares that {', '.join(dealers[:8])} did not sign"
            self._attendance.lost(holder, FailureName.BAD_SHARE.value, reason)
        return bool(found)

    def _abandon_short(self, came: int, did: str, needed: int, parameters: Parameters) -> None:
        reason = f"{came} of {parameters.members} {did}; at least {needed} are needed"
        self.abandon(FailureName.QUORUM_SHORT.value, reason)

    def _open_sum(self, reveals: opening.Reveals | None = None) -> None:
        """reveals: of all who revealed, when they were parsed already."""
        epoch, slot = self._state.epoch, self._state.slot
        assert epoch is not None and slot is not None and epoch.parameters is not None  # noqa: S101 - it is decided
        uploads = {
            name: (self.uploads.path(slot.plan.slot, name), None if name in self._checked else slot.uploads[name])
            for name in slot.survivors
        }
        try:
            update, weight, metrics = opening.open_sum(self._state, reveals or opening.Reveals(epoch, slot), uploads)
        except ProtocolFailure as error:
            if error.culprit is not None and error.name is FailureName.BAD_DEALING:
                proof = opening.evidence(epoch, slot, error.culprit)
                self._recorder.record("convicted", node=error.culprit, name=error.code, evidence=proof)
            self.abandon(error.code, error.detail)
            return
        self.outcome = Opened(
            update_sum=update,
            weight_sum=weight,
            metrics=metrics,
            contributors=slot.survivors,
            dropped={name: self._attendance.reason(name) for name in epoch.members if name not in slot.survivors},
            promise=self._promise(epoch.parameters, len(slot.survivors)),
            evidence=(of_slot(epoch, slot),),
        )
        self._decide(committed=True, failure="", contributors=slot.survivors)

    def _promise(self, parameters: Parameters, list_size: int) -> dict[str, object]:
        """What sealing promised and what held, for the manifest."""
        return {
            "kind": "sealed",
            "n": parameters.members,
            "c": parameters.colluding,
            "q": parameters.quorum,
            "t": parameters.threshold,
            "d": parameters.missing,
            "list_size": list_size,
            "differences": differences_kind(self._specification),
            "words": words(parameters),
        }

    def abandon(self, code: str, reason: str) -> None:
        """The open slot opens nothing."""
        epoch, slot = self._state.epoch, self._state.slot
        assert slot is not None  # noqa: S101 - callers have one
        members = () if epoch is None else epoch.members or epoch.asked
        reasons = self._attendance.reasons()
        dropped = {
            name: self._attendance.reason(name)
            for name in members
            if name in reasons or (slot.phase == "train" and name not in slot.uploads)
        }
        self.outcome = Abandoned(code, reason, dropped)
        self._decide(committed=False, failure=code, contributors=())

    def _decide(self, *, committed: bool, failure: str, contributors: tuple[str, ...]) -> None:
        slot = self._state.slot
        if slot is not None and slot.phase != "decided":
            self._recorder.record("decided", committed=committed, failure=failure, contributors=list(contributors))
            reached("collector.decided")

    # ------------------------------------------------------------------ end

    def end(self, next_model_sha256: bytes) -> fleet_pb2.End:
        """The slot's end, after its round is durable; erases its uploads. The same again after a restart."""
        slot = self._state.slot
        if slot is None or slot.phase != "decided":
            raise UpdateError("no slot has been decided; end_message comes after an outcome")
        if not slot.ended:
            self._recorder.record("ended", next_model=next_model_sha256.hex())
        self.uploads.erase(slot.plan.slot)
        reached("collector.ended")
        return fleet_pb2.End(
            slot=slot.plan.slot,
            committed=slot.committed,
            failure=slot.failure,
            next_model_sha256=next_model_sha256,
            contributors=slot.contributors,
        )


def _train_body(epoch: EpochRecord, slot: SlotRecord, dealings: list[sealing_pb2.Dealing]) -> bytes:
    plan = slot.plan
    return wire.encode(
        sealing_pb2.SealedOpen(
            version=wire.VERSION,
            run_id=epoch.terms.run_id,
            epoch=epoch.terms.epoch,
            slot=plan.slot,
            round=plan.round,
            attempt=plan.attempt,
            model_sha256=plan.model_sha256,
            parent_model_sha256=plan.parent_model_sha256,
            evaluate_only=plan.evaluate_only,
            cohort=epoch.members,
            dealings=dealings,
        )
    )


def _confirm_body(slot: SlotRecord) -> bytes:
    return wire.encode(
        sealing_pb2.ConfirmRequest(
            version=wire.VERSION, slot=slot.plan.slot, context=slot.context, survivors=slot.survivor_list()
        )
    )


def _reveal_body(epoch: EpochRecord, slot: SlotRecord) -> bytes:
    return wire.encode(
        sealing_pb2.RevealRequest(
            version=wire.VERSION,
            slot=slot.plan.slot,
            context=slot.context,
            survivors=slot.survivor_list(),
            confirmations=[slot.confirmations[name] for name in slot.quorum],
            self_masks=slot.survivors,
            mask_secrets=[name for name in epoch.members if name not in slot.survivors],
        )
    )
