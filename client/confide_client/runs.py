"""What this node knows of one run, and how it answers the steps of its slots.

The base model stays loaded from the first training to the run's end. Every training is allowed anew by the policy of
that moment, so that a policy made stricter in mid-run holds at once. torch takes seconds to import: nothing here
imports it before training is asked for.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from confide import canonical
from confide.errors import (
    DataError,
    FailureName,
    PolicyRefusal,
    ProtocolFailure,
    StateError,
    TrainingError,
    TransportError,
)
from confide.files import private_folder, write_atomic
from confide.identity.member import LocalMember
from confide.models.store import ModelStore
from confide.proto import fleet_pb2
from confide.runs.specification import Specification
from confide.sealing.roles import Contribution, Member
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from confide_client.audit import Audit
from confide_client.datasets import DataSets, LocalData
from confide_client.offers import VerifiedOffer, load_offer
from confide_client.policy import Policy, load_policy
from confide_client.replies import Outgoing, ReplyStore
from confide_client.state import StateFolder, read_json

if TYPE_CHECKING:
    from confide.codec.tensors import TensorSchema


class Trainer(Protocol):
    """Local training of one run, with its model loaded."""

    schema: "TensorSchema"

    def contribute(self, model: NDArray[np.float32], data: LocalData, slot: fleet_pb2.SlotOpen) -> Contribution:
        """Train or evaluate from `model`, float32 of shape (schema.size,)."""


class MakeTrainer(Protocol):
    """How a trainer comes to be: the simulation shares one loaded base among its virtual nodes."""

    def __call__(
        self, specification: Specification, base: Path, *, node: str, folder: Path, threads: int | None
    ) -> Trainer:
        """Load the base model and get ready."""


def local_trainer(specification: Specification, base: Path, *, node: str, folder: Path, threads: int | None) -> Trainer:
    """Training on this machine. Imported late: torch takes seconds, and `confide node status` needs none of it."""
    from confide_client.training import LocalTrainer

    return LocalTrainer(specification, base, node=node, folder=folder, threads=threads)


@dataclass(frozen=True, kw_only=True)
class Node:
    """The parts that a runtime works with; a simulation puts others in."""

    state: StateFolder
    member: LocalMember
    audit: Audit
    make_trainer: MakeTrainer = local_trainer
    clock: Callable[[], float] = time.time

    @property
    def policy(self) -> Policy:
        """As it stands now."""
        return load_policy(self.state.policy)

    @property
    def data_sets(self) -> DataSets:
        """The node's register of data sets."""
        return DataSets(self.state.root)

    def check_allowed(self, specification: Specification) -> None:
        """Raise PolicyRefusal, DataError or ModelError unless this node may and can do the run."""
        policy = self.policy
        policy.check_root(self.member.root_public, self.member.membership.demo)
        # What is not allowed is refused before it is looked for: a refusal tells nothing about what is here.
        policy.check(specification, group=self._group(specification.federation.data, policy))
        self.data_sets.get(specification.federation.data)
        ModelStore(self.state.models).path(specification.model.sha256)

    def _group(self, data: str, policy: Policy) -> str:
        found = self.data_sets.all().get(data)
        return found.group if found is not None else data


@dataclass
class Record:
    """run.json: where the run stands on this node, for its operator."""

    status: str
    """waiting | accepted | refused | ended"""
    name: str
    administrator: str
    offer_sha256: str
    rounds: int
    sealing: str
    offered_at: float
    reason: str = ""
    round: int = 0
    uploads: int = 0
    bytes_sent: int = 0
    updated_at: float = field(default=0.0)

    def save(self, folder: Path) -> None:
        """Write it durably."""
        self.updated_at = time.time()
        write_atomic(private_folder(folder) / "run.json", canonical.encode(vars(self)))

    @classmethod
    def load(cls, folder: Path) -> "Record | None":
        """The stored record, or None. Raises StateError when damaged."""
        document: dict[str, Any] = read_json(folder / "run.json")
        if not document:
            return None
        try:
            return cls(**document)
        except TypeError as error:
            raise StateError(f"{folder / 'run.json'} is damaged: {error}") from error


class Run:
    """One accepted run."""

    def __init__(self, node: Node, run_id: str, offer: VerifiedOffer) -> None:
        self.offer = offer
        self.specification = offer.specification
        self.folder = node.state.run(run_id)
        self.replies = ReplyStore(self.folder / "replies")
        self._node = node
        self._run_id = run_id
        self._data: LocalData | None = None
        self._trainer: Trainer | None = None
        self._member: Member | None = None

    @classmethod
    def load(cls, node: Node, run_id: str) -> "Run":
        """An accepted run from its folder, after a restart. Raises StateError when it is not an accepted one."""
        folder = node.state.run(run_id)
        record = Record.load(folder)
        if record is None or record.status != "accepted":
            status = record.status if record else "unknown"
            raise StateError(f"run {run_id[:8]} is {status} on this node; it takes instructions of accepted runs only")
        return cls(node, run_id, load_offer(folder, node.member))

    @property
    def trainer(self) -> Trainer:
        """With the base model loaded, now if it is not yet."""
        if self._trainer is None:
            base = ModelStore(self._node.state.models).path(self.specification.model.sha256)
            self._trainer = self._node.make_trainer(
                self.specification,
                base,
                node=self._node.member.name,
                folder=private_folder(self.folder / "training"),
                threads=self._node.state.settings.threads,
            )
        return self._trainer

    @property
    def ready(self) -> bool:
        """Whether the base model is loaded."""
        return self._trainer is not None

    @property
    def member(self) -> Member:
        """This node's half of update transport."""
        if self._member is None:
            from confide.sealing.factory import make_member

            self._member = make_member(
                self.specification,
                self._node.member.roster.current,
                self._node.member.name,
                self._node.member.identity,
                private_folder(self.folder / "member"),
                self._run_id,
                self.trainer.schema.size,
                initial_model_sha256=self.offer.initial_model_sha256,
            )
        return self._member

    def step(self, instruction: fleet_pb2.Instruction, payload: dict[str, bytes]) -> Outgoing:
        """Answer one step of an epoch or slot. Raises ConfideError: then nothing of it is sent."""
        self._check_standing()
        if instruction.step != fleet_pb2.TRAIN:
            if payload:
                raise TransportError(f"step {fleet_pb2.Step.Name(instruction.step)} came with an unexpected payload")
            answer = self.member.handle(instruction.step, instruction.body, _never_train)
            return Outgoing(answer.body, answer.payload)
        slot = self._check_slot(instruction.body, payload)
        model = self.trainer.schema.decode(payload["model"])
        answer = self.member.handle(
            instruction.step, instruction.body, lambda opened: self._train(model, opened), payload["model"]
        )
        self._note(round=slot.round)
        return Outgoing(answer.body, answer.payload)

    def end(self, end: fleet_pb2.End) -> None:
        """A slot ended, or the whole run: forget what may be forgotten."""
        if self._member is not None or (self.folder / "member").is_dir():
            self.member.slot_ended(end)
        self.replies.erase()
        if end.run_ended:
            self._trainer = self._member = self._data = None
            self._note(status="ended", reason=end.failure)

    def sent(self, size: int, uploaded: bool) -> None:
        """Count what left."""
        record = Record.load(self.folder)
        if record is not None:
            self._note(uploads=record.uploads + uploaded, bytes_sent=record.bytes_sent + size)

    def update_roster(self) -> None:
        """A newer roster came with another offer."""
        if self._member is not None:
            self._member.update_roster(self._node.member.roster.current)

    def _note(self, **changes: Any) -> None:
        record = Record.load(self.folder)
        if record is not None:
            for name, value in changes.items():
                setattr(record, name, value)
            record.save(self.folder)

    def _check_standing(self) -> None:
        roster = self._node.member.roster.current
        roster.check_fresh(self._node.clock())
        roster.member(self._node.member.name)

    def _check_slot(self, body: bytes, payload: dict[str, bytes]) -> fleet_pb2.SlotOpen:
        from confide.codec.tensors import model_digest

        slot = fleet_pb2.SlotOpen()
        try:
            slot.ParseFromString(body)
        except DecodeError as error:
            raise TransportError("the slot cannot be parsed; both sides need the same release") from error
        federation, sealing = self.specification.federation, self.specification.sealing
        last = federation.rounds + (1 if slot.evaluate_only else 0)
        if not 1 <= slot.round <= last:
            raise PolicyRefusal(f"round {slot.round} was asked; the signed specification has 1 to {federation.rounds}.")
        if not 1 <= slot.attempt <= sealing.max_attempts:
            raise ProtocolFailure(
                FailureName.MODEL_REPEATED,
                f"attempt {slot.attempt} on one model; the specification allows {sealing.max_attempts}",
            )
        if set(payload) != {"model"}:
            raise TransportError(f"TRAIN came with the payload {sorted(payload)}; it needs exactly 'model'")
        digest = model_digest(payload["model"])
        if digest != slot.model_sha256:
            raise TransportError("the model that came does not have the SHA-256 that the slot states")
        if slot.round == 1 and not slot.evaluate_only and digest != self.offer.initial_model_sha256:
            raise ProtocolFailure(
                FailureName.MODEL_CHAIN_BROKEN, "round 1 does not start from the model that the administrator signed"
            )
        return slot

    def _train(self, model: NDArray[np.float32], slot: fleet_pb2.SlotOpen) -> Contribution:
        node = self._node
        node.check_allowed(self.specification)
        node.policy.check_hours(datetime.fromtimestamp(node.clock()))
        if self._data is None:
            self._data = node.data_sets.load(self.specification.federation.data)
        if len(self._data.train) == 0 and not slot.evaluate_only:
            raise DataError(f"data set {self.specification.federation.data!r} has no training records on this node")
        node.audit.note("training", run=self._run_id, round=slot.round, slot=slot.slot, attempt=slot.attempt)
        contribution = self.trainer.contribute(model, self._data, slot)
        if not np.isfinite(contribution.update).all():
            raise TrainingError("the update holds NaN or infinity, so nothing is sent; lower training.learning_rate")
        return contribution


def _never_train(_: fleet_pb2.SlotOpen) -> Contribution:
    raise TransportError("this step trains nothing")
