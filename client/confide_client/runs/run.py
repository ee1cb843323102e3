"""What this node knows of one run, and how it answers the steps of its slots.

The base model stays loaded from the first training to the run's end. Every training is allowed anew by the policy of
that moment, so that a policy made stricter in mid-run holds at once.
"""

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from confide.codec.tensors import TensorSchema, model_digest
from confide.errors import (
    ConfideError,
    DataError,
    FailureName,
    PolicyRefusal,
    ProtocolFailure,
    StateError,
    TrainingError,
    TransportError,
)
from confide.files import private_folder
from confide.identity.member import LocalMember
from confide.memory import trim
from confide.models.sent_coordinates import SentCoordinates
from confide.models.store import ModelStore
from confide.proto import fleet_pb2
from confide.runs.contribution import Contribution
from confide.runs.deadline import Speed
from confide.runs.fields import check_names
from confide.runs.specification import Specification
from confide.sealing.member.heights import Heights, Ledger
from confide.sealing.roles import WORK, Member, check_work
from confide.transport.messages import parse

from confide_client.audit.canaries import planted, with_canaries
from confide_client.audit.log import Audit
from confide_client.data.datasets import DataSet, DataSets, LocalData
from confide_client.data.fitness import Fitness, try_offered
from confide_client.kept_files import forget_checkpoint, forget_from
from confide_client.policy.policy import Policy, load_policy
from confide_client.progress import Phase, Progress, tell
from confide_client.runs.feedback_memory import FEEDBACK_NAME, FeedbackMemory
from confide_client.runs.hardware import told
from confide_client.runs.heads import PROOF
from confide_client.runs.judging import check_judge
from confide_client.runs.loading import Loading, MakeTrainer, Trainer, Turn, local_schema
from confide_client.runs.offers import VerifiedOffer, load_offer
from confide_client.runs.records import Links, OfferStatus, Record
from confide_client.runs.replies import Outgoing, ReplyStore
from confide_client.runs.speed import Speeds, Timed
from confide_client.runs.spending import Spending
from confide_client.runs.submissions import MEMORY_NAME, Submissions
from confide_client.state import StateFolder

if TYPE_CHECKING:
    from confide.sealing.member.revealed import Memory, Revealed

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Node:
    """The parts that a runtime works with; a simulation puts others in."""

    state: StateFolder
    member: LocalMember
    audit: Audit
    make_trainer: MakeTrainer
    schema: Callable[[Specification, Path], TensorSchema] = local_schema
    clock: Callable[[], float] = time.time
    progress: Progress = field(default_factory=Progress)
    measures: bool = True
    """Whether it says how long a round takes it. A simulation's nodes take turns: the time of one says nothing."""
    tries: Callable[[StateFolder, Specification], Fitness | None] = try_offered
    """What is found of a run's method on this node's records, before the policy alone approves the run."""

    @property
    def policy(self) -> Policy:
        """As it stands now."""
        return load_policy(self.state.policy)

    @property
    def data_sets(self) -> DataSets:
        """The node's register of data sets."""
        return DataSets(self.state.root)

    @property
    def speeds(self) -> Speeds:
        """What was measured on this machine."""
        return Speeds(self.state.speeds)

    @cached_property
    def submissions(self) -> Submissions:
        """Which were accepted here, over all runs."""
        return Submissions(self.state.root / MEMORY_NAME)

    @cached_property
    def heights(self) -> Heights:
        """Whose length peers remember, and theirs, over all runs; opened when the first sealed run needs it."""
        return Heights(self.state.root, self._ledgers)

    def _ledgers(self) -> "dict[str, Ledger]":
        found: dict[str, Ledger] = {
            "accepted submissions": self.submissions.journal,
            "record of what was revealed": self.revealed.journal,
        }
        if self.spending.exists:
            found["privacy ledger"] = self.spending.ledger
        if self.feedback.exists:
            found["record of what was judged"] = self.feedback.journal
        return found

    def close(self) -> None:
        """Release what is held open for all runs; it is opened again when it is needed."""
        self.spending.close()
        self.submissions.close()
        for name in ("heights", "revealed", "feedback"):
            if name in vars(self):
                vars(self).pop(name).close()

    @cached_property
    def turn(self) -> Turn:
        """Whose base is in memory."""
        return Turn()

    @cached_property
    def spending(self) -> Spending:
        """The privacy ledger; opened when a private run needs it."""
        return Spending(self.state.root, lambda: self.policy, self.clock)

    @cached_property
    def feedback(self) -> FeedbackMemory:
        """What was answered in feedback runs, over all of them; opened when the first one needs it."""
        return FeedbackMemory(self.state.root / FEEDBACK_NAME)

    @cached_property
    def revealed(self) -> "Revealed":
        """What was revealed for, over all runs; opened when the first sealed run needs it."""
        from confide.sealing.member.revealed import NAME, Revealed

        return Revealed(self.state.root / NAME)

    def memory(self, specification: Specification) -> "Memory | None":
        """Of what was revealed on a run's data; None where nothing is sealed."""
        if not specification.sealed:
            return None
        return self.revealed.on(self._group(specification.federation.data))

    def shard(self, run_id: str, specification: Specification) -> LocalData:
        """What the run trains on here, canaries of an audit included. Raises DataError."""
        registered = self.data_sets.load(specification.federation.data)
        return with_canaries(registered, planted(self.state.run(run_id)), specification)

    def check_new_answers(self, run_id: str, specification: Specification) -> None:
        """For the answer to an offer: raise what `reserve_answers` would, and write nothing."""
        if specification.asks_feedback:
            self.feedback.check(run_id, *self._asked(specification))

    def reserve_answers(self, run_id: str, specification: Specification) -> None:
        """Before a feedback run's answers are made: durable, and once a run. Raises as FeedbackMemory.reserve."""
        self.feedback.reserve(run_id, *self._asked(specification))

    def _asked(self, specification: Specification) -> tuple[str, tuple[str, ...], int, float]:
        """(group of data, names of what is judged, most in a day, now)."""
        allowed = self.policy.feedback
        most = allowed.answers_a_day if allowed is not None else 0
        return self._group(specification.federation.data), specification.feedback.names, most, self.clock()

    def approve_spending(self, run_id: str, specification: Specification, data: LocalData | None = None) -> None:
        """Under privacy: set the run's cost aside, for the data that the node has now. Raises as Spending.approve."""
        if specification.privacy.unit != "none":
            group = self._group(specification.federation.data)
            shard = data if data is not None else self.shard(run_id, specification)
            self.spending.approve(
                run_id, specification, group=group, data=shard, trained=lambda: self._trained(specification)
            )

    def _trained(self, specification: Specification) -> int:
        base = ModelStore(self.state.models).path(specification.model.sha256)
        return SentCoordinates(specification, self.schema(specification, base)).most

    def check_allowed(self, specification: Specification) -> None:
        """Raise PolicyRefusal, DataError or ModelError unless this node may and can do the run."""
        policy = self.policy
        policy.check_root(self.member.root_public, self.member.membership.demo)
        # What is not allowed is refused before it is looked for: a refusal tells nothing about what is here.
        policy.check(specification, group=self._group(specification.federation.data))
        data_set = self.data_sets.get(specification.federation.data)
        base = ModelStore(self.state.models).base_of(specification)
        if specification.asks_feedback:
            judge = policy.feedback.judge if policy.feedback is not None and not specification.judges_pairs else ""
            check_judge(specification, judge, data_set.fields)
        if specification.privacy.unit in ("record", "user"):
            check_offered(specification, base, data_set)

    def _group(self, data: str) -> str:
        found = self.data_sets.all().get(data)
        return found.group if found is not None else data


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
        self._loading: Loading | None = None
        self._member: Member | None = None
        self._roster_version = 0
        self._bytes_sent = 0
        """By answers that run.json does not count yet."""
        record = Record.load(self.folder)
        self._links = Links(**record.links) if record else Links()
        self.slot = self._links.slot
        """The newest slot that was opened here."""
        self.told_slot = 0
        """The newest whose end stands in the audit log."""

    @classmethod
    def load(cls, node: Node, run_id: str) -> "Run":
        """An accepted run from its folder, after a restart. Raises StateError when it is not an accepted one."""
        folder = node.state.run(run_id)
        record = Record.load(folder)
        if record is None or record.status != OfferStatus.ACCEPTED:
            status = record.status if record else "unknown"
            raise StateError(f"run {run_id[:8]} is {status} on this node; it takes instructions of accepted runs only")
        return cls(node, run_id, load_offer(folder, node.member))

    def warm_up(self) -> Loading:
        """Begin to load the base model, so that it is there when training is asked for; again after a failure."""
        if self._loading is None or self._loading.failed:
            self._node.turn.give_to(self.unload)
            self._loading = Loading(
                lambda: self._node.schema(self.specification, self._base()), self._make_trainer, self._node.turn.lock
            )
        return self._loading

    def unload(self) -> None:
        """Another run's base is to be loaded: let go of this one's. It is loaded again when it is needed."""
        if self._loading is not None:
            self._loading.cancel()
        self._loading = None

    @property
    def arithmetic(self) -> str:
        """float32 or bfloat16, in which this node computes the run; empty for a run without a model."""
        if not self.specification.trains_model:
            return ""
        from confide.models.arithmetic import precision

        precision.prefer(self._node.state.settings.precision)
        return precision.used(self.specification, precision.default_device())

    @property
    def hardware(self) -> fleet_pb2.Hardware:
        """What the policy of this moment lets the coordinator know of the machine."""
        return told(self._node.policy.hardware, uses_torch=self.specification.trains_model)

    def _base(self) -> Path:
        return ModelStore(self._node.state.models).base_of(self.specification)

    def _make_trainer(self) -> Trainer:
        settings = self._node.state.settings
        with self._node.progress.beside(self._run_id, Phase.LOADING):
            trainer = self._node.make_trainer(
                self.specification,
                self._base(),
                node=self._node.member.name,
                folder=private_folder(self.folder / "training"),
                threads=settings.threads,
                rank=settings.max_rank,
            )
        if self._node.measures and self._speed() is None and isinstance(trainer, Timed):
            self._measure(trainer)
        return trainer

    def _measure(self, trainer: Timed) -> None:
        """Whatever goes wrong here is no reason not to train."""
        try:
            with self._node.progress.beside(self._run_id, Phase.MEASURING):
                speed = trainer.measure()
            if speed is not None:
                self._node.speeds.keep(self.specification, self._node.state.settings, speed)
        except Exception:
            log.warning("how long a round takes this machine could not be measured", exc_info=True)

    def _speed(self) -> Speed | None:
        return self._node.speeds.find(self.specification, self._node.state.settings)

    def timed(self, timeout_s: float) -> bool:
        """Wait until this machine's speed for the run is known, or that it cannot be; not for ever."""
        return not self._node.measures or self._speed() is not None or self.warm_up().ended(timeout_s)

    @property
    def round_s(self) -> float:
        """How long a round takes this machine at most, as measured; 0 where it was not."""
        speed = self._speed() if self._node.measures else None
        if speed is None:
            return 0.0
        data_set = self._node.data_sets.get(self.specification.federation.data)
        return speed.round_s(self.specification, data_set.evaluation_records)

    def _expected_s(self) -> float:
        """For people to see; never a reason to fail."""
        with contextlib.suppress(ConfideError):
            return self.round_s
        return 0.0

    @property
    def member(self) -> Member:
        """This node's half of update transport, under the newest roster."""
        roster = self._node.member.roster.current
        if self._member is None:
            from confide.sealing.factory import make_member
            from confide.sealing.member.context import NodeRules

            policy = self._node.policy
            self._member = make_member(
                self.specification,
                roster,
                self._node.member.name,
                self._node.member.identity,
                private_folder(self.folder / "member"),
                self._run_id,
                self.warm_up().schema(),
                initial_model_sha256=self.offer.initial_model_sha256,
                rules=NodeRules(
                    min_cohort=policy.min_cohort,
                    waive_colluding=policy.waive_colluding,
                    accept_differences=policy.differences == "accepted",
                ),
                costs=self._node.spending.costs if self.private else None,
                memory=self._node.memory(self.specification),
                heights=self._node.heights if self.specification.sealed else None,
                clock=self._node.clock,
            )
        elif roster.version != self._roster_version:
            self._member.update_roster(roster)
        self._roster_version = roster.version
        return self._member

    def step(self, instruction: fleet_pb2.Instruction, payload: dict[str, bytes]) -> Outgoing:
        """Answer one step of an epoch or slot. Raises ConfideError: then nothing of it is sent."""
        self._check_standing()
        if instruction.step == fleet_pb2.ANCHOR:
            answer = self.member.handle(instruction.step, instruction.body, _never_train, _model(payload, "ANCHOR"))
            return Outgoing(answer.body, answer.payload)
        if instruction.step not in WORK:
            if payload:
                raise TransportError(f"step {fleet_pb2.Step.Name(instruction.step)} came with an unexpected payload")
            answer = self.member.handle(instruction.step, instruction.body, _never_train)
            return Outgoing(answer.body, answer.payload)
        check_work(instruction.step, self.specification)
        slot = self._check_slot(instruction.body, payload)
        self.slot = max(self.slot, slot.slot)
        self._forget_unspent()
        self._charge_open(slot)
        with self._node.progress.of(self._run_id, private=self.private, expected_s=self._expected_s()):
            answer = self.member.handle(
                instruction.step,
                instruction.body,
                lambda opened: self._train(payload["model"], opened),
                payload["model"],
            )
        if self._charged_here:
            self._node.spending.costs.spend(run_id=self._run_id, slot=slot.slot, upload_digest="")
        return Outgoing(answer.body, answer.payload)

    @property
    def round(self) -> int:
        """The newest round that was trained for here."""
        return self._links.round

    @property
    def private(self) -> bool:
        """Whether the run promises differential privacy."""
        return self.specification.privacy.unit != "none"

    @property
    def _charged_here(self) -> bool:
        """Sealed transport charges by itself, between its own durable steps; unsealed transport does not."""
        return self.private and not self.specification.sealed

    def _forget_unspent(self) -> None:
        """Before the draw of work that never left serves another slot: later work must not go on from that work.

        Guarantee: under record- and user-level privacy whatever leaves is made by the steps of spent slots and of the
        slot that is charged for it, also where optimizer state or fragments are kept from round to round.
        """
        if self.private and self._links.slot and self._node.spending.unspent_slot(self._run_id) == self._links.slot:
            forget_from(self.folder / "training", self._links.round)

    def _charge_open(self, slot: fleet_pb2.SlotOpen) -> None:
        if self._charged_here:
            self._node.spending.costs.reserve(
                run_id=self._run_id,
                slot=slot.slot,
                round=slot.round,
                model_sha256=slot.model_sha256.hex(),
                evaluate_only=slot.evaluate_only,
            )

    def slot_ended(self, end: fleet_pb2.End) -> None:
        """Forget what the slot needed."""
        if self._member is not None or (self.folder / "member").is_dir():
            self.member.slot_ended(end)
        if self.private and end.slot:
            self._node.spending.write_receipt(self.folder, self._run_id, end.slot, self._node.member.identity)
        self.replies.erase(end.slot)
        if end.slot >= self.slot:
            forget_checkpoint(self.folder / "training")

    def run_ended(self, end: fleet_pb2.End) -> None:
        """Drop what is in memory; confide_client.runs.endings erases what is on disk."""
        if self._bytes_sent:
            self._note()
        if self._member is not None:
            self._member.slot_ended(end)
        self.close()

    def close(self) -> None:
        """Let go of files and of the loaded model."""
        if self._member is not None:
            self._member.close()
        self.unload()
        self._member = self._data = None

    def sent(self, size: int, uploaded: bool) -> None:
        """Count what left. Small answers are noted with the next update, or when the run ends: a crash forgets them.

        The audit log has each of them, durably.
        """
        self._bytes_sent += size
        if uploaded:
            self._note(uploads=1)

    def _note(self, *, uploads: int = 0, **changes: Any) -> None:
        record = Record.load(self.folder)
        if record is not None:
            for name, value in changes.items():
                setattr(record, name, value)
            record.uploads += uploads
            record.bytes_sent += self._bytes_sent
            record.save(self.folder)
            self._bytes_sent = 0

    def _check_standing(self) -> None:
        roster = self._node.member.roster.current
        roster.check_fresh(self._node.clock())
        roster.member(self._node.member.name)
        if (self.folder / PROOF).exists():
            raise ProtocolFailure(
                FailureName.TWO_HEADS,
                f"the coordinator signed two logs of run {self._run_id[:8]}: this node takes no further part in it. "
                f"{PROOF} in the run's folder here proves it; show it to the consortium",
            )

    def _check_slot(self, body: bytes, payload: dict[str, bytes]) -> fleet_pb2.SlotOpen:
        slot = parse(fleet_pb2.SlotOpen, body, "the slot")
        rounds, attempts = self.specification.federation.rounds, self.specification.sealing.max_attempts
        if not 1 <= slot.round <= rounds:
            raise PolicyRefusal(f"round {slot.round} was asked; the signed specification has 1 to {rounds}.")
        if not 1 <= slot.attempt <= attempts:
            raise ProtocolFailure(
                FailureName.MODEL_REPEATED, f"attempt {slot.attempt} on a model; the specification allows {attempts}"
            )
        if model_digest(_model(payload, "the slot")) != slot.model_sha256:
            raise TransportError("the model that came does not have the SHA-256 that the slot states")
        self._links.check(slot, self.offer.initial_model_sha256, attempts)
        return slot

    def _train(self, received: bytes, slot: fleet_pb2.SlotOpen) -> Contribution:
        node = self._node
        node.check_allowed(self.specification)
        node.policy.check_hours(datetime.fromtimestamp(node.clock()))
        tell(Phase.LOADING)
        trainer = self.warm_up().trainer()
        tell(Phase.ENCODING)
        model = trainer.schema.decode(received)
        if self._data is None:
            self._data = node.shard(self._run_id, self.specification)
        node.approve_spending(self._run_id, self.specification, self._data)
        if len(self._data.train) == 0 and not slot.evaluate_only:
            raise DataError(f"data set {self.specification.federation.data!r} has no training records on this node")
        if self.specification.asks_feedback:
            node.reserve_answers(self._run_id, self.specification)
        self._links = self._links.followed_by(slot)
        self._note(links=vars(self._links))
        what = "answering" if self.specification.asks_feedback else "training"
        node.audit.note(what, run=self._run_id, round=slot.round, slot=slot.slot, attempt=slot.attempt)
        contribution = trainer.contribute(model, self._data, slot)
        trim()
        if not np.isfinite(contribution.update).all():
            raise TrainingError("the update holds NaN or infinity, so nothing is sent; lower training.learning_rate")
        tell(Phase.SEALING)
        return contribution


def _model(payload: dict[str, bytes], step: str) -> bytes:
    if set(payload) != {"model"}:
        raise TransportError(f"{step} came with the payload {sorted(payload)}; it needs exactly 'model'")
    return payload["model"]


def check_offered(specification: Specification, base: Path, data_set: DataSet) -> None:
    """What record- and user-level privacy need, before anything is set aside for the run.

    By the names of fields alone: once a run is on, no record can make it fail, since that would tell of the record.
    Raises DataError or ModelError.
    """
    check_names(specification.method.name, data_set.fields, user_key=specification.privacy.user_key)
    if specification.trains_model:
        from confide.privacy.families import check_base

        check_base(base)


def _never_train(_: fleet_pb2.SlotOpen) -> Contribution:
    raise TransportError("this step trains nothing")
