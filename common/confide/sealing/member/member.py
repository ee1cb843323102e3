"""The node half of sealing. It treats the coordinator as an adversary: every check stands before what it guards.

    no epoch -> ADVERTISE -> SHARE -> (TRAIN -> CONFIRM -> REVEAL -> slot_ended)* -> no epoch

epoch.py holds the epoch, slot.py a slot; context.py is what both share. Epoch secrets live in memory only: a restarted
member has none, refuses the rest of the epoch by name, and takes part again in the next.
"""

import time
from collections.abc import Callable
from pathlib import Path

from confide.codec.tensors import TensorSchema
from confide.files import private_folder
from confide.identity.keys import SigningKey
from confide.identity.roster import Roster
from confide.models.sent_coordinates import SentCoordinates
from confide.proto import fleet_pb2
from confide.runs.specification import Specification
from confide.sealing.member.chain import ModelChain
from confide.sealing.member.context import MemberContext, NodeRules
from confide.sealing.member.epoch import MemberEpoch, MemberEpochs
from confide.sealing.member.heights import Heights
from confide.sealing.member.revealed import NAME, Memory, Revealed
from confide.sealing.member.roster import HeldRoster
from confide.sealing.member.seal_log import Costs, NoCosts, SealLog
from confide.sealing.member.slot import MemberSlots
from confide.sealing.primitives import wire
from confide.sealing.roles import Answer, Train, check_work


class SealedMember:
    """One node in one run.

    Guarantee: whatever the coordinator sends, and with up to c other members helping it, it learns of this node's
    update at most one sum over at least `smallest_list` members per slot, as long as q, t, c, d hold
    (docs/sealing.md).
    """

    def __init__(
        self,
        *,
        specification: Specification,
        roster: Roster,
        node: str,
        identity_key: SigningKey,
        folder: Path,
        run_id: str,
        schema: TensorSchema,
        initial_model_sha256: bytes,
        rules: NodeRules,
        costs: Costs | None = None,
        memory: Memory | None = None,
        heights: Heights | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """folder: the run's own at this node; the seal log in it survives restarts. clock: Unix seconds.

        memory: what the node has revealed for on this run's data, over all its runs. Without one it begins with the
        run, in `folder`, which is for a node that never takes part in another.
        heights: the node's, over all its runs. Without them they begin with the run, in `folder`.
        """
        private_folder(folder)
        log, coordinates = SealLog(folder / "seal-log.jsonl"), SentCoordinates(specification, schema)
        self._own: list[Heights | Revealed] = []
        """What begins with the run, and is closed with it."""
        if heights is None:
            heights = Heights(folder)
            self._own.append(heights)
        if memory is None:
            revealed = Revealed(folder / NAME)
            memory = revealed.on(specification.federation.data)
            self._own.append(revealed)
        self.context = MemberContext(
            specification=specification,
            node=node,
            identity=identity_key,
            run_id=run_id,
            coordinates=coordinates,
            rules=rules,
            folder=folder,
            log=log,
            costs=costs or NoCosts(),
            heights=heights,
            memory=memory,
            chain=ModelChain(
                specification, initial_sha256=initial_model_sha256, coordinates=coordinates, log=log, folder=folder
            ),
            clock=clock,
        )
        self.roster = HeldRoster(self.context, roster)
        self.epochs = MemberEpochs(self.context, self.roster)
        self.slots = MemberSlots(self.context, self.roster, self.epochs)

    @property
    def epoch(self) -> MemberEpoch | None:
        """The epoch in memory."""
        return self.epochs.current

    def handle(self, step: fleet_pb2.Step, body: bytes, train: Train, model: bytes | memoryview = b"") -> Answer:
        """Answer one instruction; docs/sealing.md lists the checks of each step in order."""
        self.context.log.require_running()
        self.context.heights.require_running()
        match step:
            case fleet_pb2.ADVERTISE:
                return Answer(self._advertise(body))
            case fleet_pb2.SHARE:
                return Answer(self.epochs.share(body))
            case fleet_pb2.ANCHOR:
                return self._anchor(body, model)
            case fleet_pb2.TRAIN | fleet_pb2.SCORE:
                check_work(step, self.context.specification)
                return self.slots.train(body, train, model)
            case fleet_pb2.CONFIRM:
                return Answer(self.slots.confirm(body))
            case fleet_pb2.REVEAL:
                return Answer(self.slots.reveal(body))
        raise wire.malformed(f"step {step} is none of ADVERTISE, SHARE, ANCHOR, TRAIN, SCORE, CONFIRM, REVEAL")

    def _advertise(self, body: bytes) -> bytes:
        """Make this epoch's secrets and publish their public halves, once; what was open before is over."""
        if (signed := self.epochs.advertised(body)) is not None:
            return signed
        epoch = self.epochs.make(body)
        self.slots.forget()
        return self.epochs.enter(epoch)

    def _anchor(self, body: bytes, model: bytes | memoryview) -> Answer:
        """Take the signed first model, where this node has followed none from it."""
        if body:
            raise wire.malformed("ANCHOR has no body")
        self.roster.check_own()
        self.slots.require_closed()
        self.context.chain.begin(model)
        return Answer(b"")

    def slot_ended(self, end: fleet_pb2.End) -> None:
        """Erase what the slot needed; the run's end erases the epoch too."""
        self.slots.ended(end)
        if end.run_ended:
            self.epochs.forget()

    def update_roster(self, roster: Roster) -> None:
        """Use a newer roster; its version is remembered durably. One that revokes a member ends the epoch."""
        self.roster.update(roster)
        if self.epoch is not None and not self.roster.all_standing(self.epoch.opened):
            self.slots.forget()
            self.epochs.forget()

    def close(self) -> None:
        """Release the seal log; whatever was in memory is over."""
        self.slots.forget()
        self.epochs.forget()
        self.context.log.journal.close()
        for opened in self._own:
            opened.close()
