"""The two halves of update transport, free of input and output: a Collector at the coordinator, a Member at a node.

`sealing = "none"` and sealed transport are two implementations of the same two roles, so that the run driver and
the node's agent are the same code for both. The set is closed: no plug-in may stand in for a sealed channel.

The driver's loop over one slot, whatever the kind:

    collector.open_slot(plan)
    while (exchange := collector.exchange()) is not None:
        for node, reply in send_and_pull_one_at_a_time(exchange):
            collector.receive(node, reply.body, reply.payload)     # or collector.lost(node, code, message)
        collector.close_exchange()
    outcome = collector.outcome          # Opened | Abandoned
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from confide.codec.digest import DigestedFile
from confide.identity.roster import Roster
from confide.proto import fleet_pb2, sealing_pb2
from confide.runs.contribution import Contribution
from confide.runs.metrics import Metric
from confide.runs.specification import Specification
from confide.sealing.primitives import wire

WORK = frozenset({fleet_pb2.TRAIN, fleet_pb2.SCORE})
"""Steps that open a slot."""


def work_step(specification: Specification) -> fleet_pb2.Step:
    """The one that opens slots of this run; a node answers no other: what is signed as one is not done as the other."""
    return fleet_pb2.SCORE if specification.asks_feedback else fleet_pb2.TRAIN


def check_work(step: fleet_pb2.Step, specification: Specification) -> None:
    """Raise MALFORMED for another step than the one that opens slots of this run."""
    if step != work_step(specification):
        raise wire.malformed(
            f"{fleet_pb2.Step.Name(step)} came; slots of method {specification.method.name!r} are opened by "
            f"{fleet_pb2.Step.Name(work_step(specification))}"
        )


@dataclass(frozen=True)
class SlotPlan:
    """What the coordinator asks of every member in one slot."""

    slot: int
    round: int
    attempt: int
    model_sha256: bytes
    parent_model_sha256: bytes
    evaluate_only: bool = False

    @classmethod
    def of(cls, message: fleet_pb2.SlotOpen | sealing_pb2.SealedOpen) -> "SlotPlan":
        """The plan in a message; nothing of it is checked."""
        return cls(
            slot=message.slot,
            round=message.round,
            attempt=message.attempt,
            model_sha256=message.model_sha256,
            parent_model_sha256=message.parent_model_sha256,
            evaluate_only=message.evaluate_only,
        )

    def to_message(self) -> fleet_pb2.SlotOpen:
        """The wire form, fleet.proto."""
        return fleet_pb2.SlotOpen(
            slot=self.slot,
            round=self.round,
            attempt=self.attempt,
            model_sha256=self.model_sha256,
            parent_model_sha256=self.parent_model_sha256,
            evaluate_only=self.evaluate_only,
        )


@dataclass(frozen=True)
class Exchange:
    """One question to several nodes. `with_model` says that the model travels beside it as payload "model": the slot's,
    with ANCHOR the run's first."""

    step: fleet_pb2.Step
    bodies: Mapping[str, bytes]
    deadline_s: float
    with_model: bool = False


@dataclass(frozen=True)
class Opened:
    """A slot's result: the sum over `contributors`, and nothing else.

    update_sum: float64 or float32, shape (SentCoordinates.count of the round,): sum of weight_i * what is sent of
        update_i (confide.models.sent_coordinates).
    weight_sum: sum of weight_i.
    metrics: name to (sum of values, number of contributors that reported it).
    promise: what sealing promised and what held, for the manifest (kind, n, c, q, t, d, list size).
    """

    update_sum: NDArray[np.floating]
    weight_sum: float
    metrics: Mapping[Metric, tuple[float, int]]
    contributors: tuple[str, ...]
    dropped: Mapping[str, str]
    promise: Mapping[str, object]
    evidence: tuple[Mapping[str, object], ...] = ()
    """Of each sealed sum, for an auditor (confide.sealing.evidence)."""


@dataclass(frozen=True)
class Abandoned:
    """A slot that opened nothing. `code` is a FailureName value, or an error's code."""

    code: str
    reason: str
    dropped: Mapping[str, str]


class Collector(Protocol):
    """Coordinator half, for one run. Its folder holds what it must find again after a crash."""

    outcome: Opened | Abandoned | None

    @property
    def resumable(self) -> SlotPlan | None:
        """After a restart: the slot that is still open. Pass this plan to `open_slot` to go on with it; when its
        round was committed already, call `end_message` instead. None when no slot is open."""

    def update_roster(self, roster: Roster) -> None:
        """A newer roster came. Raises ROSTER_STALE for an older one; a revoked member ends the epoch."""

    def begin_epoch(self, present: tuple[str, ...]) -> None:
        """Start a new epoch with these members; its exchanges come from `exchange` until it returns None."""

    def epoch_needed(self, present: tuple[str, ...]) -> bool:
        """Whether slots are used up, a member was lost or came back, or there is no epoch yet."""

    def waits_for(self, present: tuple[str, ...], gone: Mapping[str, str]) -> tuple[str, ...]:
        """Without whom nothing may be summed now; empty when the run can go on. gone: who never comes, and why.

        Raises BLOCK_SPLIT when the run cannot go on without somebody who never comes.
        """

    def returned(self, names: Collection[str]) -> None:
        """These nodes connected anew: whoever restarted has lost its secrets of the epoch."""

    def open_slot(self, plan: SlotPlan) -> None:
        """Begin a slot; `outcome` becomes None."""

    def exchange(self) -> Exchange | None:
        """What to ask now; None when the epoch stands or the slot has an outcome."""

    def receive(self, node: str, body: bytes, payload: DigestedFile | None) -> None:
        """Take one answer; a crash of this process does not lose it any more when this returns.

        Raises ConfideError: the node is dropped with that reason.
        """

    def lost(self, node: str, code: str, message: str) -> None:
        """The node answered with a failure, or not before the deadline."""

    def close_exchange(self) -> None:
        """All have answered or the deadline passed: decide what comes next."""

    def end_message(self, next_model_sha256: bytes) -> fleet_pb2.End:
        """What to tell the members at the end of the slot (after the round was committed durably)."""

    def close(self) -> None:
        """The run has ended: release the files of its folder."""


@dataclass(frozen=True)
class Answer:
    """A member's answer: a small body, and for uploads a file whose bytes travel as payload "upload"."""

    body: bytes
    payload: Path | None = None


Train = Callable[[fleet_pb2.SlotOpen], Contribution]


class Member(Protocol):
    """Node half, for one run."""

    def handle(self, step: fleet_pb2.Step, body: bytes, train: Train, model: bytes | memoryview = b"") -> Answer:
        """Answer one instruction of the epoch or slot; calls `train` at most once per slot, when all checks passed.

        model: with TRAIN and ANCHOR, the bytes of payload "model" (sealed transport hashes them and checks the chain).
        The same instruction again gets the same bytes again. Raises ProtocolFailure by name.
        """

    def slot_ended(self, end: fleet_pb2.End) -> None:
        """The coordinator committed or abandoned a slot: erase its secrets, keep or roll back error feedback."""

    def update_roster(self, roster: Roster) -> None:
        """A newer roster came. Raises ROSTER_STALE for an older one; a revoked member ends the epoch."""

    def close(self) -> None:
        """The run has ended, or the process does: release the files of its folder."""
