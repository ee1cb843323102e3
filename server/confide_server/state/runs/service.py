"""How runs come to the coordinator and their models leave it: the administration service asks, the journal answers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from confide.identity.submission import SignedSubmission


@dataclass(frozen=True)
class Submission:
    """A run as its administrator signed it, with its first model.

    initial_model: raw trainable tensors (confide.codec.tensors), which hash to what was signed; also a view on a file.
    """

    signed: SignedSubmission
    initial_model: bytes | memoryview
    schema: bytes = b""
    """Names and shapes of the tensors (TensorSchema.to_bytes), where what travels depends on them (models.travel). Not
    signed: a node computes its own, and a coordinator with another one gets another context and no sum."""


@dataclass(frozen=True)
class StoredModel:
    """A committed round's model where it lies."""

    manifest: dict[str, Any]
    model_bytes: int
    chunks: Callable[[int], Iterator[bytes]]
    """Its raw trainable tensors, at most so many bytes at a time. Raises StateError when they are damaged."""


@dataclass(frozen=True)
class RunSummary:
    """One line of `confide run list`."""

    run_id: str
    name: str
    status: str  # submitted | offering | running | finished | failed | stopped
    round: int
    rounds: int
    sealing: str
    detail: str
    submitted_at: float
    standing: str = ""
    """The status as people are shown it: paused, waiting and finished_with_fewer too (status.RunStatus)."""


@dataclass(frozen=True)
class RunEvent:
    """Something that happened in a run, in order of `sequence` (1-based per run).

    kinds and their data:
        offer_answered  {node, accepted, waiting, preparing, reason, round_s: as it measured, 0 if it did not,
                         precision, hardware: as it told}
        run_started     {nodes, rounds, sealing, name}
        epoch_started   {members, slots}
        round_started   {round, attempt, slot, deadline_s}
        contributed     {round, node, bytes}
        dropped         {round, node, code, reason}
        slot_abandoned  {round, attempt, code, reason}
        round_committed {round, metrics {name: {"mean", "count"}}, contributors, dropped, seconds, model_sha256,
                         update_norm}
        run_finished    {rounds, model_sha256}
        run_failed      {code, reason}
        run_stopped     {round}

    One kind is never kept: whoever watches is also told, in between and with the sequence of the event before,
        progress        {node, phase, step, steps, seconds_left}: what a node says it is doing (state.progress)
    """

    sequence: int
    time: float
    kind: str
    data: dict[str, Any]


class RunService(Protocol):
    """Every method raises ConfideError with a remedy."""

    def submit(self, submission: Submission) -> str:
        """Verify, store durably, and queue; returns the run id, which the administrator drew and signed.

        Raises SUBMISSION_EXPIRED, and SUBMISSION_REPLAYED for a run id or nonce that came before.
        """

    def check_new(self, signed: SignedSubmission) -> None:
        """Raise SUBMISSION_EXPIRED or SUBMISSION_REPLAYED, before the first model is read."""

    def stored_model(self, run_id: str, round: int | None) -> StoredModel:
        """A committed round's model; None is the newest.

        Its manifest holds run_id, specification (document), specification_sha256, base_model_sha256, round,
        model_sha256, chain (hashes from the initial model on), rounds [{round, contributors, dropped, metrics,
        promise, attempts, model_sha256}], sealing, precision (what each node said it computes in), receipts, and the
        confide release.
        """
