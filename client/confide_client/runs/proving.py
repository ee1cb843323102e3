"""`confide node verify-run`: what the coordinator says of a run's rounds, held against what this node wrote down.

    verdict = verify_run(state, member, client.prove, run_id, round=None)

The checks stand in docs/sealing.md, "The log of rounds", in this order. Needs the coordinator, and no other member.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confide.codec.tensors import TensorSchema
from confide.errors import FailureName, ProtocolFailure, TransportError
from confide.identity.member import LocalMember
from confide.models.sent_coordinates import SentCoordinates, needs_names
from confide.models.store import ModelStore
from confide.proto import control_pb2 as pb
from confide.rounds.checking import RoundFiles, check_inclusion, check_log, check_step
from confide.rounds.heads import MOST_ROUNDS, SignedHead, TwoHeads, head_of_message, verify_head
from confide.rounds.record import RoundRecord
from confide.runs.specification import Specification

from confide_client.runs.heads import CHECKED, Heads, keep_proof, kept_heads
from confide_client.runs.loading import local_schema
from confide_client.runs.offers import load_offer
from confide_client.state import StateFolder

Prove = Callable[[str, int], Iterator[pb.RunProofPart]]
_FILES = ("before", "after", "mean", "outer_state")
MOST_FILE_BYTES = 8 << 30
MOST_PATH = 40


@dataclass(frozen=True)
class Verdict:
    """What was found to hold."""

    run_id: str
    rounds: int
    coordinator: str
    heads: int
    """Kept before, each found to be of the same log."""
    sealed: bool
    summed: tuple[int, ...]
    """Rounds whose sum holds this node's upload, as proved."""
    stepped: int = 0
    """Round whose outer step was followed; 0: none."""
    share: float = 0.0
    """How far that model is from what the step makes, in units of what rounding allows; 0: exact."""
    tensors: bool = True
    """Whether the step was on a mean update; else on counts, which stay with the coordinator, or on nothing."""


@dataclass
class _Proof:
    """What came, unchecked."""

    head: pb.RunProofPart | None = None
    entries: list[pb.RoundEntry] = field(default_factory=list)
    files: dict[str, bytearray] = field(default_factory=dict)


def verify_run(state: StateFolder, member: LocalMember, prove: Prove, run_id: str, round: int | None) -> Verdict:
    """Check the whole log, this node's part in it, and the step of one round. round: None for the newest, 0 for none.

    Raises IdentityError, TwoHeads (the proof is then in the run's folder), OMITTED_SELF, MODEL_CHAIN_BROKEN,
    COHORT_NOT_EPOCH, SUM_OUT_OF_RANGE, MALFORMED or TransportError.
    """
    folder = state.run(run_id)
    offer = load_offer(folder, member)
    proof = _collect(prove(run_id, 0))
    newest, kept = _head(run_id, proof), kept_heads(folder)
    verify_head(member.roster.current, newest)
    try:
        records = check_log(newest, [one.record for one in proof.entries], kept, offer.initial_model_sha256)
    except TwoHeads as found:
        keep_proof(folder, found, member.roster)
        raise
    Heads(folder, CHECKED).take(newest, member.roster)
    summed = _own_part(folder, member.name, records, proof.entries)
    number = len(records) if round is None else round
    verdict = Verdict(run_id, len(records), newest.coordinator, len(kept), offer.specification.sealed, summed)
    if number == 0:
        return verdict
    return _stepped(state, offer.specification, verdict, _record(records, number), prove)


def told(found: Verdict) -> Iterator[str]:
    """The verdict, line by line, for people: what holds, and what nobody proves."""
    yield f"run {found.run_id[:8]}: one log of {found.rounds} rounds, signed by {found.coordinator}"
    yield f"{found.heads} heads that were kept here before are of the same log"
    if found.sealed:
        yield f"this node's upload is in the sum of {_listed(found.summed)}"
    if found.stepped:
        how = "exactly" if not found.share else f"to {found.share:.2g} of what rounding allows"
        step = "the specified outer step of its mean update" if found.tensors else "the model of before, evaluated only"
        yield f"round {found.stepped}: the next model is {step}, {how}"
    elif not found.tensors:
        yield "a tokenizer's counts stay with the coordinator: its merges were not followed"
    yield "on the coordinator's word: that the mean update is that of the sum which was opened"


def _listed(rounds: tuple[int, ...]) -> str:
    """
    >>> _listed((1, 2, 3, 5)), _listed(())
    ('rounds 1-3, 5', 'no round')
    """
    parts: list[list[int]] = []
    for number in rounds:
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    shown = ", ".join("-".join(map(str, part)) for part in parts)
    return f"{'rounds' if len(rounds) > 1 else 'round'} {shown}" if rounds else "no round"


def _record(records: list[RoundRecord], number: int) -> RoundRecord:
    if not 1 <= number <= len(records):
        raise TransportError(f"round {number} was asked; the run has committed 1 to {len(records)}")
    return records[number - 1]


def _head(run_id: str, proof: _Proof) -> SignedHead:
    if proof.head is None:
        raise TransportError("the coordinator showed no head of the log of rounds; is its release ours?")
    return head_of_message(run_id, proof.head.head)


# --- this node's part


def _own_part(folder: Path, node: str, records: list[RoundRecord], entries: list[pb.RoundEntry]) -> tuple[int, ...]:
    """The rounds whose sums hold this node's upload; raises where what was told here and what is shown differ."""
    slots = _slots(folder)
    summed = []
    for record, entry in zip(records, entries, strict=True):
        own = slots.get(record.slot, {})
        told = own.get("ended", {}).get("contributed", False)
        if "reserved" in own and own["reserved"]["model"] != record.model_sha256:
            raise ProtocolFailure(
                FailureName.MODEL_CHAIN_BROKEN,
                f"round {record.round} was trained here on the model {own['reserved']['model'][:16]}; the log says "
                f"{record.model_sha256[:16]}",
            )
        if not entry.included and not told:
            continue
        if "spent" not in own:
            raise ProtocolFailure(
                FailureName.COHORT_NOT_EPOCH,
                f"the log says that {node} is in the sum of round {record.round}; nothing was sent in its slot "
                f"{record.slot}",
            )
        check_inclusion(record, node, own["spent"]["upload_digest"], entry.index, entry.path)
        summed.append(record.round)
    _check_told(slots, records)
    return tuple(summed)


def _check_told(slots: dict[int, dict[str, Any]], records: list[RoundRecord]) -> None:
    """Each slot of which this node was told that its update is in the model is one of the log."""
    logged = {record.slot for record in records}
    for slot, own in slots.items():
        if own.get("ended", {}).get("contributed", False) and slot not in logged:
            raise ProtocolFailure(
                FailureName.OMITTED_SELF,
                f"this node was told that its update of slot {slot} is in the model; the log has no such slot",
            )


def _slots(folder: Path) -> dict[int, dict[str, Any]]:
    from confide.sealing.member.seal_log import rows

    path = folder / "member" / "seal-log.jsonl"
    return {row["slot"]: row for row in rows(path)} if path.exists() else {}


# --- one round's step


def _stepped(
    state: StateFolder, specification: Specification, verdict: Verdict, record: RoundRecord, prove: Prove
) -> Verdict:
    if not specification.trains_model:
        return Verdict(**(vars(verdict) | {"tensors": False}))
    proof = _collect(prove(verdict.run_id, record.round))
    if set(proof.files) != set(_FILES):
        raise TransportError(f"of round {record.round} the files {sorted(proof.files)} came; {list(_FILES)} are needed")
    files = RoundFiles(**{name: bytes(proof.files.pop(name)) for name in _FILES})
    if needs_names(specification):
        schema = local_schema(specification, ModelStore(state.models).path(specification.model.sha256))
    else:
        schema = TensorSchema.unnamed(len(files.before) // 4)
    share = check_step(specification, SentCoordinates(specification, schema), record, files)
    return Verdict(**(vars(verdict) | {"stepped": record.round, "share": share, "tensors": bool(files.mean)}))


def _collect(parts: Iterator[pb.RunProofPart]) -> _Proof:
    """Everything that comes, within limits. Raises TransportError for what is out of turn or too large."""
    proof, name, left = _Proof(), "", 0
    for part in parts:
        match part.WhichOneof("part"):
            case "head" if proof.head is None:
                proof.head = part
            case "entry" if len(proof.entries) < MOST_ROUNDS and len(part.entry.path) <= MOST_PATH:
                proof.entries.append(part.entry)
            case "file" if not left and part.file.name in _FILES and part.file.name not in proof.files:
                name, left = part.file.name, part.file.bytes
                proof.files[name] = bytearray()
                if left > MOST_FILE_BYTES:
                    raise TransportError(f"a file of {left} bytes is announced; at most {MOST_FILE_BYTES} are taken")
            case "chunk" if name and 0 < len(part.chunk) <= left:
                proof.files[name] += part.chunk
                left -= len(part.chunk)
            case other:
                raise TransportError(f"the coordinator's proof holds {other or 'nothing'} out of turn; ask again")
    if left:
        raise TransportError(f"{left} bytes of {name} did not come; ask again")
    return proof
