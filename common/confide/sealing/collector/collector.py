"""The coordinator half of sealing, for one group of one run: asks, keeps every answer durably, decides, opens.

epoch.py and slot.py decide what is asked next and take the answers; state.py holds what is known; cohort.py and
attendance.py say with whom. What is asked after a crash has the bytes that it had before. None of it learns more than
a sum, whatever it does: the members see to that.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

from confide.codec.digest import DigestedFile
from confide.codec.tensors import TensorSchema
from confide.errors import ConfideError, FailureName, ProtocolFailure
from confide.files import private_folder
from confide.identity.roster import Roster
from confide.models.sent_coordinates import SentCoordinates
from confide.proto import fleet_pb2
from confide.runs.specification import Specification
from confide.sealing.collector.attendance import Attendance
from confide.sealing.collector.cohort import Cohort
from confide.sealing.collector.epoch import EpochMachine
from confide.sealing.collector.recorder import Recorder
from confide.sealing.collector.slot import SlotMachine
from confide.sealing.collector.state import CollectorState, EpochRecord, SlotRecord
from confide.sealing.roles import Abandoned, Exchange, Opened, SlotPlan


class SealedCollector:
    """A confide.sealing.roles.Collector; goes on with what an earlier process left in its folder."""

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
        private_folder(folder)
        self._state = CollectorState(specification, run_id, SentCoordinates(specification, schema))
        self._attendance = Attendance(self._state)
        self._cohort = Cohort(specification, roster, group, self._state, self._attendance)
        self._recorder = Recorder(folder / "collector.jsonl", self._state)
        self._epochs = EpochMachine(folder / "dealings", self._recorder, self._cohort, self._attendance)
        self._slots = SlotMachine(folder / "uploads", self._recorder, self._cohort, self._attendance, self._epochs)

    @property
    def outcome(self) -> Opened | Abandoned | None:
        """Of the open slot."""
        return self._slots.outcome

    @outcome.setter
    def outcome(self, value: Opened | Abandoned | None) -> None:
        self._slots.outcome = value

    @property
    def resumable(self) -> SlotPlan | None:
        """The slot that is open, or that was when the last process ended."""
        return self._state.resumable

    @property
    def last_slot(self) -> int:
        """The newest slot that was opened here; 0 for none."""
        return self._state.last_slot

    def update_roster(self, roster: Roster) -> None:
        """Use a newer roster. A revoked member ends the epoch; an open slot with it is abandoned."""
        self._cohort.update_roster(roster)
        epoch, slot = self._state.epoch, self._state.slot
        gone = sorted(set(epoch.members if epoch else ()) - self._cohort.standing())
        if gone and slot is not None and slot.phase != "decided":
            self._slots.abandon(FailureName.REVOKED.value, f"{gone[0]} was revoked; nothing was opened")

    def waits_for(self, present: tuple[str, ...], gone: Mapping[str, str]) -> tuple[str, ...]:
        """Without whom no sum can be made; see Cohort.waits_for."""
        return self._cohort.waits_for(present, gone)

    def returned(self, names: Collection[str]) -> None:
        """They connected anew."""
        self._epochs.returned(set(names))

    def epoch_needed(self, present: tuple[str, ...]) -> bool:
        """Whether there is no epoch, it is used up, its members or roster changed, or one lost its secrets."""
        return self._epochs.needed(present)

    def begin_epoch(self, present: tuple[str, ...]) -> None:
        """Start an epoch with fresh keys; drops the one before."""
        self.outcome = None
        self._epochs.begin(present)

    def open_slot(self, plan: SlotPlan) -> None:
        """Begin a slot, or go on with the one that a crash left open. Without an epoch it is abandoned at once."""
        self._slots.open(plan)

    def exchange(self) -> Exchange | None:
        """What to ask now, of those whose answers are not held; None when there is nothing to ask."""
        while True:
            made = self._next_exchange()
            if made is None or made.bodies:
                return made
            self.close_exchange()

    def _next_exchange(self) -> Exchange | None:
        if (opened := self._open_slot) is not None:
            return self._slots.exchange(*opened)
        return None if (epoch := self._open_epoch) is None else self._epochs.exchange(epoch)

    @property
    def _open_slot(self) -> tuple[EpochRecord, SlotRecord] | None:
        """The slot that is not decided, with its epoch."""
        epoch, slot = self._state.epoch, self._state.slot
        return None if epoch is None or slot is None or slot.phase == "decided" else (epoch, slot)

    @property
    def _open_epoch(self) -> EpochRecord | None:
        """The epoch that is being made."""
        epoch = self._state.epoch
        over = epoch is None or epoch.phase not in {"advertise", "share"}
        return None if over or self.resumable is not None else epoch

    def receive(self, node: str, body: bytes, payload: DigestedFile | None) -> None:
        """Take one answer to the exchange that is open; a crash of this process does not lose it any more."""
        try:
            if (opened := self._open_slot) is not None:
                self._slots.take(*opened, node, body, payload)
            elif (epoch := self._open_epoch) is not None:
                self._epochs.take(epoch, node, body)
            else:
                raise ProtocolFailure(FailureName.LATE_UPLOAD, f"an answer of {node} came when none was awaited")
        except ConfideError as error:
            self.lost(node, error.code, str(error))
            raise

    def lost(self, node: str, code: str, message: str) -> None:
        """The node does not answer this exchange."""
        self._attendance.lost(node, code, message)

    def close_exchange(self) -> None:
        """All answered or the deadline passed: the next phase, or an outcome."""
        if (opened := self._open_slot) is not None:
            self._slots.close(*opened)
        elif (epoch := self._open_epoch) is not None:
            self._epochs.close(epoch)

    def end_message(self, next_model_sha256: bytes) -> fleet_pb2.End:
        """The slot's end, after its round is durable; erases its uploads. The same again after a restart."""
        return self._slots.end(next_model_sha256)

    def close(self) -> None:
        """Release the journal."""
        self._recorder.close()
