"""The coordinator half of sealing: asks, keeps every answer durably, decides, opens.

state.py holds what is known; this module decides what is asked next. What it asks after a crash has the
bytes that it had before. It cannot learn more than a sum, whatever it does: the members see to that.
"""

from collections.abc import Callable, Collection, Container, Mapping
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from confide.codec.digest import DigestedFile
from confide.codec.tensors import TensorSchema
from confide.errors import ConfideError, FailureName, IdentityError, ProtocolFailure, UpdateError
from confide.files import private_folder, write_atomic
from confide.identity.roster import Role, Roster
from confide.journal import Journal
from confide.models.travel import Travel
from confide.proto import fleet_pb2, sealing_pb2
from confide.runs.parameters import Parameters, eligible, for_epoch, too_few, words
from confide.runs.specification import Specification
from confide.sealing.collector import opening
from confide.sealing.collector.state import Books, EpochBook, SlotBook
from confide.sealing.collector.uploads import UploadStore
from confide.sealing.crash_points import reached
from confide.sealing.differences import Blocks, differences_kind, split, still_away
from confide.sealing.evidence import of_slot
from confide.sealing.member.slot import check_confirmation
from confide.sealing.primitives import bundles, wire
from confide.sealing.roles import Abandoned, Exchange, Opened, SlotPlan

# After these the node needs an epoch of which it holds the secrets, under one roster.
_RENEWS = {
    FailureName.EPOCH_REPLAYED,
    FailureName.ROSTER_STALE,
    FailureName.CONTEXT_MISMATCH,
    FailureName.COHORT_NOT_EPOCH,
    FailureName.SLOT_REUSED,
    FailureName.BUNDLE_EQUIVOCATION,
}
# After these it cannot take part in this run any more until somebody has looked.
_EXCLUDES = {
    FailureName.ROLLBACK_DETECTED,
    FailureName.REVOKED,
    FailureName.BAD_DEALING,
    FailureName.BAD_SHARE,
    FailureName.SPEC_CHANGED,
    FailureName.LOW_ORDER_KEY,
    FailureName.BUDGET_EXHAUSTED,
    FailureName.BLOCK_SPLIT,
    FailureName.MODEL_REVEALED,
}
# A later, durable entry says that they are complete; what a power cut takes of them before that is asked for again.
_GATHERED = {"bundle", "dealings", "upload", "confirmation", "reveal"}
_NO_ANSWER = "TransportError: no answer before the deadline"


class SealedCollector:
    """One run at the coordinator; goes on with what an earlier process left in its folder."""

    def __init__(
        self,
        *,
        specification: Specification,
        roster: Roster,
        folder: Path,
        run_id: str,
        schema: TensorSchema,
        group: str = "",
    ) -> None:
        """folder: this run's own; journal, dealings and uploads lie in it. schema: of the flat update. group: whose."""
        self._group = group
        self.outcome: Opened | Abandoned | None = None
        self._specification = specification
        self._federation = specification.federation
        self._roster = roster
        self._folder = private_folder(folder)
        self._uploads = UploadStore(folder / "uploads")
        self._dealings = private_folder(folder / "dealings")
        self._journal = Journal(folder / "collector.jsonl")
        self._reasons: dict[str, str] = {}
        self._silent: set[str] = set()
        self._excluded: dict[str, str] = {}
        """Who takes no part in this run any more, and why."""
        self._renew = False
        self._books = Books(specification, run_id, Travel(specification, schema))
        for event in self._journal:
            self._books.apply(event)
        self._checked: set[str] = set()
        self._recheck_uploads()

    def _record(self, event: str, *, parsed: Message | None = None, **fields: Any) -> None:
        """parsed: the message in `body`, when it is at hand."""
        body = {"event": event, **fields}
        self._journal.append(body, durable=event not in _GATHERED)
        self._books.apply(body, parsed)

    def _recheck_uploads(self) -> None:
        """After a restart: an upload that is not what its sender stated is asked for again, while it still can be.

        Those of a slot whose list is made are compared with their digests as they are summed.
        """
        slot = self._books.slot
        if slot is None or slot.phase != "train":
            return
        for node, digest in list(slot.uploads.items()):
            if self._uploads.intact(slot.plan.slot, node, digest):
                self._checked.add(node)
            else:
                self._record("upload_lost", node=node)

    def _dealing_path(self, epoch: int, node: str) -> Path:
        return self._dealings / f"{epoch}-{node}"

    def _inbound(self, epoch: EpochBook) -> dict[str, list[sealing_pb2.Dealing]]:
        """By receiver, what the others dealt to it, in order of the dealers' names; read once per exchange."""
        found: dict[str, list[sealing_pb2.Dealing]] = {name: [] for name in epoch.members}
        for dealer in epoch.members:
            data = self._dealing_path(epoch.terms.epoch, dealer).read_bytes()
            for item in wire.decode(sealing_pb2.ShareReply, data).dealings:
                found[item.receiver].append(item)
        return found

    @property
    def resumable(self) -> SlotPlan | None:
        """The slot that is open, or that was when the last process ended."""
        slot = self._books.slot
        return None if slot is None or slot.ended else slot.plan

    @property
    def last_slot(self) -> int:
        """The newest slot that was opened here; 0 for none."""
        return self._books.last_slot

    def update_roster(self, roster: Roster) -> None:
        """Use a newer roster. A revoked member ends the epoch; an open slot with it is abandoned."""
        if roster.version < self._roster.version:
            raise ProtocolFailure(
                FailureName.ROSTER_STALE,
                f"version {roster.version} of the roster came; version {self._roster.version} is in use",
            )
        self._roster = roster
        epoch, slot = self._books.epoch, self._books.slot
        gone = sorted(set(epoch.members if epoch else ()) - self._standing())
        if gone and slot is not None and slot.phase != "decided":
            self._abandon(FailureName.REVOKED.value, f"{gone[0]} was revoked; nothing was opened")

    def _standing(self) -> set[str]:
        return {member.name for member in self._roster.active(Role.NODE)}

    # ------------------------------------------------------------------ epoch

    def _eligible(self, present: tuple[str, ...]) -> tuple[str, ...]:
        """Who of those present makes an epoch; where differences are refused, whole blocks of them."""
        named = set(self._federation.nodes) or set(present)
        left_out = set(self._excluded) | self._books.convicted
        return self._summable((set(present) & named & self._standing()) - left_out)

    def _summable(self, names: Collection[str]) -> tuple[str, ...]:
        """Those of `names` that may be summed: all, or whole blocks, or after a failed opening the very same list."""
        if not self._guarded:
            return tuple(sorted(names))
        whole, bound = self._blocks.whole(names), self._books.bound
        return whole if not bound else bound if set(bound) <= set(whole) else ()

    @property
    def _guarded(self) -> bool:
        return self._specification.refuses_differences

    @property
    def _blocks(self) -> Blocks:
        return Blocks.of(self._specification, self._roster, self._group)

    def waits_for(self, present: tuple[str, ...], gone: Mapping[str, str]) -> tuple[str, ...]:
        """Without whom no sum can be made that takes no block apart; empty when there can be one.

        gone: who never comes, and why. Raises BLOCK_SPLIT when those who are needed are among them.
        """
        if not self._guarded or len(self._eligible(present)) >= self._federation.min_cohort:
            return ()
        out = dict(gone) | self._excluded | dict.fromkeys(self._books.convicted, "it was convicted")
        if named := set(self._federation.nodes):
            strangers = {name for them in self._blocks.members.values() for name in them} - named
            out |= dict.fromkeys(strangers, "the specification does not name it")
        return still_away(self._blocks, self._books.bound, present, out, self._federation.min_cohort)

    def returned(self, names: Collection[str]) -> None:
        """They connected anew. Who restarted holds no secrets, and where nobody may be missing, nobody goes without."""
        epoch = self._books.epoch
        if self._guarded and epoch is not None and set(names) & set(epoch.members) and self.resumable is None:
            self._renew = True

    def epoch_needed(self, present: tuple[str, ...]) -> bool:
        """Whether there is no epoch, it is used up, its members or roster changed, or one lost its secrets."""
        epoch = self._books.epoch
        if self.resumable is not None:
            return False
        if epoch is None or epoch.phase != "stands" or self._renew:
            return True
        if self._books.last_slot + 1 >= epoch.terms.first_slot + epoch.terms.slots:
            return True
        if epoch.terms.roster_sha256.hex() != self._roster.digest:
            return True
        slot = self._books.slot
        if self._guarded and slot is not None and slot.plan.slot >= epoch.terms.first_slot and not slot.committed:
            return True  # somebody was missing, and may have lost its secrets
        # Who failed to enter this epoch is asked again after a slot of it, not at once and for ever.
        eligible = self._eligible(present)
        tried = eligible == epoch.wanted and self._books.last_slot < epoch.terms.first_slot
        return eligible != epoch.members and not tried

    def begin_epoch(self, present: tuple[str, ...]) -> None:
        """Start an epoch with fresh keys; drops the one before."""
        self.outcome = None
        self._start_epoch(self._eligible(present), self._eligible(present))

    def _start_epoch(self, members: tuple[str, ...], wanted: tuple[str, ...]) -> None:
        self._silent, self._renew = set(), False
        self._record(
            "epoch",
            epoch=self._books.last_epoch + 1,
            first_slot=self._books.last_slot + 1,
            members=list(members),
            wanted=list(wanted),
            roster_version=self._roster.version,
            roster_sha256=self._roster.digest,
            eligible=eligible(self._specification, self._roster.groups.get(self._group, ())),
        )
        for path in self._dealings.iterdir():
            path.unlink()
        reached("collector.epoch_written")

    def _close_epoch(self, epoch: EpochBook) -> None:
        self._silent = set()
        answered = set(epoch.signed) if epoch.phase == "advertise" else epoch.dealt
        summable = self._summable(answered)
        if self._guarded and len(summable) < self._federation.min_cohort:
            missing = ", ".join(sorted(set(epoch.asked) - answered)) or "nobody"
            self._fail_epoch(split(f"no whole block made an epoch; missing: {missing}"))
        elif epoch.phase == "advertise" and summable == epoch.members:
            self._share_epoch(epoch)
        elif epoch.phase == "share" and summable == epoch.members:
            self._record("stands")
            reached("collector.epoch_stands")
        else:
            # Nobody holds shares of a member that did not deal: begin again without it, with fresh keys.
            self._start_epoch(summable, epoch.wanted)

    def _share_epoch(self, epoch: EpochBook) -> None:
        try:
            for_epoch(self._specification, len(epoch.signed), eligible=epoch.eligible, waive_colluding=True)
        except ProtocolFailure as error:
            self._fail_epoch(error)
        else:
            self._record("sharing")

    def _fail_epoch(self, error: ProtocolFailure) -> None:
        self._record("epoch_failed", code=error.code, reason=error.detail)

    def _epoch_exchange(self, epoch: EpochBook) -> Exchange:
        deadline_s = self._federation.exchange_deadline_s
        if epoch.phase == "advertise":
            body = wire.encode(epoch.terms.to_request())
            return Exchange(
                fleet_pb2.ADVERTISE, dict.fromkeys(self._waiting(epoch.asked, epoch.signed), body), deadline_s
            )
        request = sealing_pb2.ShareRequest(
            version=wire.VERSION,
            run_id=epoch.terms.run_id,
            epoch=epoch.terms.epoch,
            bundles=[epoch.signed[name] for name in epoch.members],
        )
        waiting = self._waiting(epoch.members, epoch.dealt)
        return Exchange(fleet_pb2.SHARE, dict.fromkeys(waiting, wire.encode(request)), deadline_s)

    def _take_bundle(self, epoch: EpochBook, node: str, body: bytes) -> None:
        signed = wire.decode(sealing_pb2.SignedBundle, body)
        bundle = bundles.open_bundle(signed, epoch.terms, self._roster)
        if bundle.node != node:
            raise IdentityError(f"{node} sent a bundle of {bundle.node}")
        if node in epoch.signed:
            if epoch.signed[node] != signed:
                error = bundles.equivocation(node, epoch.terms.epoch)
                both = [epoch.signed[node].bundle.hex(), signed.bundle.hex()]
                self._record("convicted", node=node, name=error.code, evidence=both)
                raise error
            return
        self._record("bundle", node=node, body=body.hex(), parsed=signed)
        reached("collector.bundle_kept")

    def _take_dealings(self, epoch: EpochBook, node: str, body: bytes) -> None:
        reply = wire.decode(sealing_pb2.ShareReply, body)
        receivers = [name for name in epoch.members if name != node]
        if reply.epoch != epoch.terms.epoch or [item.receiver for item in reply.dealings] != receivers:
            raise ProtocolFailure(FailureName.COHORT_NOT_EPOCH, f"{node} did not deal to every other member")
        if any(item.dealer != node for item in reply.dealings):
            raise IdentityError(f"{node} sent dealings in another's name")
        if node in epoch.dealt:
            return
        write_atomic(self._dealing_path(epoch.terms.epoch, node), body)
        self._record("dealings", node=node)
        reached("collector.dealing_kept")

    # ------------------------------------------------------------------ the driver's loop

    def open_slot(self, plan: SlotPlan) -> None:
        """Begin a slot, or go on with the one that a crash left open. Without an epoch it is abandoned at once."""
        books = self._books
        if books.slot is not None and books.slot.plan == plan and not books.slot.ended:
            self._resume(books.slot)
            return
        if plan.slot <= books.last_slot:
            raise ProtocolFailure(FailureName.SLOT_REUSED, f"slot {plan.slot} was opened before; slots only go up")
        self.outcome, self._reasons, self._silent, self._checked = None, {}, set(), set()
        epoch = books.epoch
        stands = epoch is not None and epoch.phase == "stands"
        sealed = epoch is not None and stands and plan.slot < epoch.terms.first_slot + epoch.terms.slots
        self._record("slot", plan=wire.encode(plan.to_message()).hex(), sealed=sealed)
        reached("collector.slot_written")
        if not sealed:
            code, reason = epoch.failure if epoch is not None and epoch.failure[0] else (
                FailureName.COHORT_NOT_EPOCH.value,
                "no epoch stands that holds this slot; call begin_epoch and finish its exchanges first",
            )  # fmt: skip
            self._abandon(code, reason)

    def _resume(self, slot: SlotBook) -> None:
        if slot.phase != "decided":
            return
        if slot.committed:
            self._open()
        else:
            self.outcome = Abandoned(slot.failure, "abandoned before the coordinator restarted", dict(self._reasons))

    def exchange(self) -> Exchange | None:
        """What to ask now, of those whose answers are not held; None when there is nothing to ask."""
        while True:
            made = self._next_exchange()
            if made is None or made.bodies:
                return made
            self.close_exchange()

    def _next_exchange(self) -> Exchange | None:
        epoch, slot = self._books.epoch, self._books.slot
        if slot is not None and slot.phase != "decided":
            return self._slot_exchange(epoch, slot) if epoch is not None else None
        if epoch is not None and epoch.phase in {"advertise", "share"} and self.resumable is None:
            return self._epoch_exchange(epoch)
        return None

    def _waiting(self, members: tuple[str, ...], answered: Container[str]) -> list[str]:
        return [name for name in members if name not in answered and name not in self._silent]

    def receive(self, node: str, body: bytes, payload: DigestedFile | None) -> None:
        """Take one answer to the exchange that is open; a crash of this process does not lose it any more."""
        try:
            self._taker()(node, body, payload)
        except ConfideError as error:
            self.lost(node, error.code, str(error))
            raise

    def _taker(self) -> Callable[[str, bytes, DigestedFile | None], None]:
        epoch, slot = self._books.epoch, self._books.slot
        if epoch is not None and slot is not None and slot.phase != "decided":
            take = {"train": self._take_upload, "confirm": self._take_confirmation, "reveal": self._take_reveal}
            return lambda node, body, payload: take[slot.phase](epoch, slot, node, body, payload)
        if epoch is not None and self.resumable is None and epoch.phase == "advertise":
            return lambda node, body, payload: self._take_bundle(epoch, node, body)
        if epoch is not None and self.resumable is None and epoch.phase == "share":
            return lambda node, body, payload: self._take_dealings(epoch, node, body)
        return _too_late

    def lost(self, node: str, code: str, message: str) -> None:
        """The node does not answer this exchange."""
        slot = self._books.slot
        self._silent.add(node)
        detail = message.removeprefix(f"{code}: ")
        self._reasons.setdefault(node, f"{code}: {detail}")
        # Who falls out of an epoch that is being made is asked again after a slot of it: a node that is ill, or lies,
        # could else keep the others from ever having one.
        if code in _RENEWS and self.resumable is not None:
            self._renew = True
        if code in _EXCLUDES or (code == FailureName.MODEL_CHAIN_BROKEN and slot is not None and slot.phase == "train"):
            self._excluded.setdefault(node, f"{code}: {detail}")

    def close_exchange(self) -> None:
        """All answered or the deadline passed: the next phase, or an outcome."""
        epoch, slot = self._books.epoch, self._books.slot
        if epoch is not None and slot is not None and slot.phase != "decided":
            self._close_slot(epoch, slot)
        elif epoch is not None and self.resumable is None and epoch.phase in {"advertise", "share"}:
            self._close_epoch(epoch)

    # ------------------------------------------------------------------ slot

    def _slot_exchange(self, epoch: EpochBook, slot: SlotBook) -> Exchange:
        deadline_s = self._federation.exchange_deadline_s
        if slot.phase == "train":
            waiting = self._waiting(epoch.members, slot.uploads)
            inbound = {} if set(waiting) <= epoch.delivered else self._inbound(epoch)
            bodies = {
                name: self._open_body(epoch, slot, [] if name in epoch.delivered else inbound[name]) for name in waiting
            }
            return Exchange(fleet_pb2.TRAIN, bodies, self._federation.deadline_limit_s, with_model=True)
        if slot.phase == "confirm":
            request = sealing_pb2.ConfirmRequest(
                version=wire.VERSION, slot=slot.plan.slot, context=slot.context, survivors=slot.survivor_list()
            )
            waiting = self._waiting(slot.survivors, slot.confirmations)
            return Exchange(fleet_pb2.CONFIRM, dict.fromkeys(waiting, wire.encode(request)), deadline_s)
        reveal = sealing_pb2.RevealRequest(
            version=wire.VERSION,
            slot=slot.plan.slot,
            context=slot.context,
            survivors=slot.survivor_list(),
            confirmations=[slot.confirmations[name] for name in slot.quorum],
            self_masks=slot.survivors,
            mask_secrets=[name for name in epoch.members if name not in slot.survivors],
        )
        waiting = self._waiting(slot.quorum, slot.reveals)
        return Exchange(fleet_pb2.REVEAL, dict.fromkeys(waiting, wire.encode(reveal)), deadline_s)

    def _open_body(self, epoch: EpochBook, slot: SlotBook, dealings: list[sealing_pb2.Dealing]) -> bytes:
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

    def _take_upload(
        self, epoch: EpochBook, slot: SlotBook, node: str, body: bytes, payload: DigestedFile | None
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
        self._uploads.keep(upload.slot, node, payload, upload.upload_digest, slot.layout.wire_bytes)
        self._checked.add(node)
        self._record("upload", node=node, digest=upload.upload_digest.hex())
        reached("collector.upload_kept")

    def _take_confirmation(
        self, epoch: EpochBook, slot: SlotBook, node: str, body: bytes, payload: DigestedFile | None
    ) -> None:
        if payload is not None:
            raise _too_late_for_upload(node, slot)
        item = wire.decode(sealing_pb2.Confirmation, body)
        if item.node != node or node not in slot.survivors:
            raise ProtocolFailure(
                FailureName.COHORT_NOT_EPOCH, f"{node} answers for {item.node!r}, or is not in the list"
            )
        check_confirmation(item, slot.listed, slot.plan.slot, self._roster.member(node).identity_key)
        if node not in slot.confirmations:
            self._record("confirmation", node=node, body=body.hex(), parsed=item)
            reached("collector.confirmation_kept")

    def _take_reveal(
        self, epoch: EpochBook, slot: SlotBook, node: str, body: bytes, payload: DigestedFile | None
    ) -> None:
        if payload is not None:
            raise _too_late_for_upload(node, slot)
        reveal = wire.decode(sealing_pb2.Reveal, body)
        if reveal.slot != slot.plan.slot or node not in slot.quorum:
            raise ProtocolFailure(
                FailureName.CONTEXT_MISMATCH, f"no reveal of {node} for slot {reveal.slot} is awaited"
            )
        opening.check_reveal(epoch, slot, node, reveal)
        if node not in slot.reveals:
            self._record("reveal", node=node, body=body.hex(), parsed=reveal)
            reached("collector.reveal_kept")

    def _close_slot(self, epoch: EpochBook, slot: SlotBook) -> None:
        parameters = epoch.parameters
        assert parameters is not None  # noqa: S101 - the epoch stands
        self._silent = set()
        if slot.phase == "train":
            self._close_train(epoch, slot, parameters)
        elif slot.phase == "confirm":
            names = sorted(slot.confirmations)
            if len(names) < parameters.quorum:
                self._abandon(
                    FailureName.QUORUM_SHORT.value,
                    f"{len(names)} of {parameters.members} confirmed; at least {parameters.quorum} are needed",
                )
                return
            self._record("quorum", nodes=names)
            reached("collector.quorum_written")
        else:
            self._close_reveal(epoch, slot, parameters)

    def _close_train(self, epoch: EpochBook, slot: SlotBook, parameters: Parameters) -> None:
        names, missing = self._summable(slot.uploads), sorted(set(epoch.members) - set(slot.uploads))
        for name in set(slot.uploads) - set(names):
            self._reasons.setdefault(name, f"{FailureName.BLOCK_SPLIT}: {missing[0]} is missing, and blocks stay whole")
        if len(names) < parameters.smallest_list:
            code = too_few(self._specification, slot.plan.evaluate_only)
            count = f"{len(slot.uploads)} of {parameters.members} uploaded"
            if self._guarded and missing:
                code, count = FailureName.BLOCK_SPLIT, f"{count}, {', '.join(missing)} did not, and blocks stay whole"
            self._abandon(code.value, f"{count}; at least {parameters.smallest_list} are needed")
            return
        self._uploads.settle(slot.plan.slot)
        self._record("list", nodes=names)
        reached("collector.list_written")

    def _close_reveal(self, epoch: EpochBook, slot: SlotBook, parameters: Parameters) -> None:
        reveals = None
        if len(slot.reveals) >= parameters.threshold:
            reveals = opening.Reveals(epoch, slot)
            if self._drop_bad_shares(reveals):
                reveals = None
        if len(slot.reveals) < parameters.threshold:
            self._abandon(
                FailureName.QUORUM_SHORT.value,
                f"{len(slot.reveals)} of {parameters.members} revealed; at least {parameters.threshold} are needed",
            )
        else:
            self._open(reveals)

    def _drop_bad_shares(self, reveals: opening.Reveals) -> bool:
        """Name the holders whose shares their dealers did not sign, and go on without what they revealed.

        Whether there were any.
        """
        found = reveals.unsigned(lambda name: bytes.fromhex(self._roster.member(name).identity_key))
        for holder, dealers in found.items():
            self._record("bad_share", node=holder, dealers=dealers)
            reason = f"it revealed shares that {', '.join(dealers[:8])} did not sign"
            self.lost(holder, FailureName.BAD_SHARE.value, reason)
        return bool(found)

    def _open(self, reveals: opening.Reveals | None = None) -> None:
        """reveals: of all who revealed, when they were parsed already."""
        epoch, slot = self._books.epoch, self._books.slot
        assert epoch is not None and slot is not None and epoch.parameters is not None  # noqa: S101 - it is decided
        uploads = {
            name: (self._uploads.path(slot.plan.slot, name), None if name in self._checked else slot.uploads[name])
            for name in slot.survivors
        }
        try:
            update, weight, metrics = opening.open_sum(self._books, reveals or opening.Reveals(epoch, slot), uploads)
        except ProtocolFailure as error:
            if error.culprit is not None and error.name is FailureName.BAD_DEALING:
                proof = opening.evidence(epoch, slot, error.culprit)
                self._record("convicted", node=error.culprit, name=error.code, evidence=proof)
            self._abandon(error.code, error.detail)
            return
        parameters = epoch.parameters
        self.outcome = Opened(
            update_sum=update,
            weight_sum=weight,
            metrics=metrics,
            contributors=slot.survivors,
            dropped={name: self._reasons.get(name, _NO_ANSWER) for name in epoch.members if name not in slot.survivors},
            promise={
                "kind": "sealed",
                "n": parameters.members,
                "c": parameters.colluding,
                "q": parameters.quorum,
                "t": parameters.threshold,
                "d": parameters.missing,
                "list_size": len(slot.survivors),
                "differences": differences_kind(self._specification),
                "words": words(parameters),
            },
            evidence=(of_slot(epoch, slot),),
        )
        self._decide(committed=True, failure="", contributors=slot.survivors)

    def _abandon(self, code: str, reason: str) -> None:
        epoch, slot = self._books.epoch, self._books.slot
        assert slot is not None  # noqa: S101 - callers have one
        members = () if epoch is None else epoch.members or epoch.asked
        dropped = {
            name: self._reasons.get(name, _NO_ANSWER)
            for name in members
            if name in self._reasons or (slot.phase == "train" and name not in slot.uploads)
        }
        self.outcome = Abandoned(code, reason, dropped)
        self._decide(committed=False, failure=code, contributors=())

    def _decide(self, *, committed: bool, failure: str, contributors: tuple[str, ...]) -> None:
        slot = self._books.slot
        if slot is not None and slot.phase != "decided":
            self._record("decided", committed=committed, failure=failure, contributors=list(contributors))
            reached("collector.decided")

    def end_message(self, next_model_sha256: bytes) -> fleet_pb2.End:
        """The slot's end, after its round is durable; erases its uploads. The same again after a restart."""
        slot = self._books.slot
        if slot is None or slot.phase != "decided":
            raise UpdateError("no slot has been decided; end_message comes after an outcome")
        if not slot.ended:
            self._record("ended", next_model=next_model_sha256.hex())
        self._uploads.erase(slot.plan.slot)
        reached("collector.ended")
        return fleet_pb2.End(
            slot=slot.plan.slot,
            committed=slot.committed,
            failure=slot.failure,
            next_model_sha256=next_model_sha256,
            contributors=slot.contributors,
        )

    def close(self) -> None:
        """Release the journal."""
        self._journal.close()


def _too_late(node: str, body: bytes, payload: DigestedFile | None) -> None:
    raise ProtocolFailure(FailureName.LATE_UPLOAD, f"an answer of {node} came when none was awaited")


def _too_late_for_upload(node: str, slot: SlotBook) -> ProtocolFailure:
    return ProtocolFailure(
        FailureName.LATE_UPLOAD,
        f"the upload of {node} came after the list of slot {slot.plan.slot} was made; it is dropped",
    )
