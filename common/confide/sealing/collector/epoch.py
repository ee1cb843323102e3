"""Steps 1 and 2 at the coordinator: everybody's signed bundle, then everybody's dealings. Passes on, learns nothing."""

from pathlib import Path

from confide.errors import FailureName, IdentityError, ProtocolFailure
from confide.files import private_folder, write_atomic
from confide.proto import fleet_pb2, sealing_pb2
from confide.runs.parameters import for_epoch
from confide.sealing.collector.attendance import Attendance
from confide.sealing.collector.cohort import Cohort
from confide.sealing.collector.recorder import Recorder
from confide.sealing.collector.state import EpochRecord
from confide.sealing.crash_points import reached
from confide.sealing.differences import split
from confide.sealing.primitives import bundles, wire
from confide.sealing.roles import Exchange


class EpochMachine:
    """Makes epochs of one collector: advertise -> share -> stands, or failed."""

    def __init__(self, folder: Path, recorder: Recorder, cohort: Cohort, attendance: Attendance) -> None:
        """folder: for dealings, which only their receivers can read."""
        self._folder = private_folder(folder)
        self._recorder, self._state = recorder, recorder.state
        self._cohort, self._attendance = cohort, attendance
        self._specification = cohort.specification

    # ------------------------------------------------------------------ when

    def needed(self, present: tuple[str, ...]) -> bool:
        """Whether there is no epoch, it is used up, its members or roster changed, or one lost its secrets."""
        epoch, last_slot = self._state.epoch, self._state.last_slot
        if self._state.resumable is not None:
            return False
        if epoch is None or epoch.phase != "stands" or self._attendance.renew:
            return True
        if last_slot + 1 >= epoch.terms.first_slot + epoch.terms.slots:
            return True
        if epoch.terms.roster_sha256.hex() != self._cohort.roster.digest:
            return True
        slot = self._state.slot
        if (
            self._cohort.guarded
            and slot is not None
            and slot.plan.slot >= epoch.terms.first_slot
            and not slot.committed
        ):
            return True  # somebody was missing, and may have lost its secrets
        # Who failed to enter this epoch is asked again after a slot of it, not at once and for ever.
        eligible = self._cohort.eligible(present)
        tried = eligible == epoch.wanted and last_slot < epoch.terms.first_slot
        return eligible != epoch.members and not tried

    def returned(self, names: set[str]) -> None:
        """They connected anew. Who restarted holds no secrets, and where nobody may be missing, nobody goes without."""
        epoch = self._state.epoch
        if self._cohort.guarded and epoch is not None and names & set(epoch.members) and self._state.resumable is None:
            self._attendance.renew = True

    def begin(self, present: tuple[str, ...]) -> None:
        """Start an epoch with fresh keys; drops the one before."""
        self._start(self._cohort.eligible(present), self._cohort.eligible(present))

    def _start(self, members: tuple[str, ...], wanted: tuple[str, ...]) -> None:
        self._attendance.begin_epoch()
        self._recorder.record(
            "epoch",
            epoch=self._state.last_epoch + 1,
            first_slot=self._state.last_slot + 1,
            members=list(members),
            wanted=list(wanted),
            roster_version=self._cohort.roster.version,
            roster_sha256=self._cohort.roster.digest,
            eligible=self._cohort.counted,
        )
        for path in self._folder.iterdir():
            path.unlink()
        reached("collector.epoch_written")

    # ------------------------------------------------------------------ ask

    def exchange(self, epoch: EpochRecord) -> Exchange:
        """ADVERTISE, then SHARE."""
        deadline_s = self._specification.federation.exchange_deadline_s
        if epoch.phase == "advertise":
            body = wire.encode(epoch.terms.to_request())
            waiting = self._attendance.waiting(epoch.asked, epoch.signed)
            return Exchange(fleet_pb2.ADVERTISE, dict.fromkeys(waiting, body), deadline_s)
        request = sealing_pb2.ShareRequest(
            version=wire.VERSION,
            run_id=epoch.terms.run_id,
            epoch=epoch.terms.epoch,
            bundles=[epoch.signed[name] for name in epoch.members],
        )
        waiting = self._attendance.waiting(epoch.members, epoch.dealt)
        return Exchange(fleet_pb2.SHARE, dict.fromkeys(waiting, wire.encode(request)), deadline_s)

    # ------------------------------------------------------------------ take

    def take(self, epoch: EpochRecord, node: str, body: bytes) -> None:
        """One answer to the exchange that is open."""
        (self._take_bundle if epoch.phase == "advertise" else self._take_dealings)(epoch, node, body)

    def _take_bundle(self, epoch: EpochRecord, node: str, body: bytes) -> None:
        signed = wire.decode(sealing_pb2.SignedBundle, body)
        bundle = bundles.open_bundle(signed, epoch.terms, self._cohort.roster)
        if bundle.node != node:
            raise IdentityError(f"{node} sent a bundle of {bundle.node}")
        if node in epoch.signed:
            if epoch.signed[node] != signed:
                error = bundles.equivocation(node, epoch.terms.epoch)
                both = [epoch.signed[node].bundle.hex(), signed.bundle.hex()]
                self._recorder.record("convicted", node=node, name=error.code, evidence=both)
                raise error
            return
        self._recorder.record("bundle", node=node, body=body.hex(), parsed=signed)
        reached("collector.bundle_kept")

    def _take_dealings(self, epoch: EpochRecord, node: str, body: bytes) -> None:
        reply = wire.decode(sealing_pb2.ShareReply, body)
        receivers = [name for name in epoch.members if name != node]
        if reply.epoch != epoch.terms.epoch or [item.receiver for item in reply.dealings] != receivers:
            raise ProtocolFailure(FailureName.COHORT_NOT_EPOCH, f"{node} did not deal to every other member")
        if any(item.dealer != node for item in reply.dealings):
            raise IdentityError(f"{node} sent dealings in another's name")
        if node in epoch.dealt:
            return
        write_atomic(self._path(epoch.terms.epoch, node), body)
        self._recorder.record("dealings", node=node)
        reached("collector.dealing_kept")

    # ------------------------------------------------------------------ decide

    def close(self, epoch: EpochRecord) -> None:
        """All answered or the deadline passed: the next step, or again without those who are missing."""
        self._attendance.begin_exchange()
        answered = set(epoch.signed) if epoch.phase == "advertise" else epoch.dealt
        summable = self._cohort.summable(answered)
        if self._cohort.guarded and len(summable) < self._specification.federation.min_cohort:
            missing = ", ".join(sorted(set(epoch.asked) - answered)) or "nobody"
            self._fail(split(f"no whole block made an epoch; missing: {missing}"))
        elif epoch.phase == "advertise" and summable == epoch.members:
            self._share(epoch)
        elif epoch.phase == "share" and summable == epoch.members:
            self._recorder.record("stands")
            reached("collector.epoch_stands")
        else:
            # Nobody holds shares of a member that did not deal: begin again without it, with fresh keys.
            self._start(summable, epoch.wanted)

    def _share(self, epoch: EpochRecord) -> None:
        try:
            for_epoch(self._specification, len(epoch.signed), eligible=epoch.eligible, waive_colluding=True)
        except ProtocolFailure as error:
            self._fail(error)
        else:
            self._recorder.record("sharing")

    def _fail(self, error: ProtocolFailure) -> None:
        self._recorder.record("epoch_failed", code=error.code, reason=error.detail)

    # ------------------------------------------------------------------ pass on

    def inbound(self, epoch: EpochRecord) -> dict[str, list[sealing_pb2.Dealing]]:
        """By receiver, what the others dealt to it, in order of the dealers' names; read once per exchange."""
        found: dict[str, list[sealing_pb2.Dealing]] = {name: [] for name in epoch.members}
        for dealer in epoch.members:
            data = self._path(epoch.terms.epoch, dealer).read_bytes()
            for item in wire.decode(sealing_pb2.ShareReply, data).dealings:
                found[item.receiver].append(item)
        return found

    def _path(self, epoch: int, node: str) -> Path:
        return self._folder / f"{epoch}-{node}"
