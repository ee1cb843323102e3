"""What a node checks of the log of rounds: that it is one log, that it holds what the node sent, and each model's step.

    records = check_log(newest, entries, kept_heads, initial_model_sha256)
    check_inclusion(records[2], "hospital-a", digest, index, path)
    difference = check_step(specification, coordinates, records[2], blobs)

Nothing here trusts the coordinator: what it hands over is held against what it signed, and that against what this node
wrote down when it took part.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confide.codec.norms import l2_norm
from confide.codec.tensors import model_digest
from confide.errors import FailureName, ProtocolFailure
from confide.models.sent_coordinates import SentCoordinates, refactors
from confide.rounds import merkle
from confide.rounds.heads import SignedHead, contradiction
from confide.rounds.outer_step import step_mean
from confide.rounds.record import RoundRecord, parse_record, upload_entry
from confide.runs.specification import Specification
from confide.sealing.member.chain import mean_update_bound

_ROUNDINGS = 8 * 2.0**-23
"""What processors may differ by in a float32 step: a fused multiply-add rounds once where another rounds twice."""
_NORM_SLACK = 1e-3
_REFACTORED = 1e-3
"""FedSVD takes a singular value decomposition, whose rounding depends on the library."""


@dataclass(frozen=True)
class RoundFiles:
    """What the coordinator hands over of one round. Raw float32 tensors, little-endian; b"" where there is none."""

    before: bytes
    after: bytes
    mean: bytes
    outer_state: bytes
    """Before the round, safetensors."""


def check_log(
    newest: SignedHead, entries: Sequence[bytes], kept: Sequence[SignedHead], initial_model_sha256: bytes
) -> list[RoundRecord]:
    """The records of all rounds. newest, kept: heads whose signatures were verified; kept: those that came earlier.

    Raises TwoHeads where a kept head is not of this log, MODEL_CHAIN_BROKEN where the models do not follow one another
    from the signed first one, and MALFORMED.
    """
    leaves = [merkle.leaf_hash(entry) for entry in entries]
    if len(leaves) != newest.size or merkle.root(leaves).hex() != newest.root_sha256:
        raise ProtocolFailure(
            FailureName.MALFORMED, f"{len(leaves)} records came, which are not those of the head of {newest.size}"
        )
    for head in kept:
        if head.size > newest.size:
            raise ProtocolFailure(
                FailureName.MODEL_CHAIN_BROKEN,
                f"the log has {newest.size} rounds; {head.coordinator} signed {head.size} before, and a log never gets "
                "shorter: it holds rounds back, or lost them",
            )
        found = contradiction(head, newest, leaves)
        if found is not None:
            raise found
    records = [parse_record(entry) for entry in entries]
    _check_chain(records, newest.run_id, initial_model_sha256.hex())
    return records


def _check_chain(records: Sequence[RoundRecord], run_id: str, model: str) -> None:
    for number, record in enumerate(records, start=1):
        if (record.run_id, record.round, record.model_sha256) != (run_id, number, model):
            raise ProtocolFailure(
                FailureName.MODEL_CHAIN_BROKEN,
                f"entry {number} of the log is round {record.round} of run {record.run_id[:8]} on the model "
                f"{record.model_sha256[:16]}; the round before, or what was signed, says {model[:16]}",
            )
        model = record.next_model_sha256


def check_inclusion(record: RoundRecord, node: str, digest: str, index: int, path: Sequence[bytes]) -> None:
    """Raise OMITTED_SELF unless the record's sum is over this upload of this node. digest: hex, as the node sent it.

    Guarantee: the coordinator committed itself to having summed exactly this file, and said so to everybody.
    """
    leaf = merkle.leaf_hash(upload_entry(node, digest))
    try:
        found = merkle.root_of_path(leaf, index, record.uploads, path).hex()
    except ProtocolFailure as error:
        raise _omitted(record, node) from error
    if found != record.uploads_root:
        raise _omitted(record, node)


def _omitted(record: RoundRecord, node: str) -> ProtocolFailure:
    return ProtocolFailure(
        FailureName.OMITTED_SELF,
        f"the coordinator cannot show that the upload of {node} is in the sum of round {record.round}, as it told here",
    )


def check_step(
    specification: Specification, coordinates: SentCoordinates, record: RoundRecord, files: RoundFiles
) -> float:
    """How far the next model is from what the specified outer step makes, in units of what rounding allows; 0 is exact.

    Raises MODEL_CHAIN_BROKEN where a file is not the one of the record, or the step is another one; SUM_OUT_OF_RANGE
    where clipped updates have no such mean.
    """
    _check_files(record, files)
    _check_norm(specification, coordinates, record, files.mean)
    if record.evaluate_only:
        if files.after != files.before:
            raise _broken(record, "it evaluates only, and its model moved")
        return 0.0
    expected, _ = step_mean(
        specification,
        coordinates,
        files.before,
        files.outer_state,
        np.frombuffer(files.mean, dtype="<f4"),
        record.round,
    )
    if expected == files.after:
        return 0.0
    if len(expected) != len(files.after):
        raise _broken(record, f"the next model has {len(files.after)} bytes; {len(expected)} follow")
    return _near(record, expected, files, refactored=refactors(specification))


def _check_norm(specification: Specification, coordinates: SentCoordinates, record: RoundRecord, mean: bytes) -> None:
    """What sealed members can sum is bounded by the clipping norm; a mean beyond it is of no such sum."""
    if not (specification.sealed and mean):
        return
    norm = l2_norm(np.frombuffer(mean, dtype="<f4"))
    bound = mean_update_bound(specification, coordinates.most) * (1 + _NORM_SLACK)
    if not norm <= bound:
        raise ProtocolFailure(
            FailureName.SUM_OUT_OF_RANGE,
            f"the mean update of round {record.round} has norm {norm:.6g}; clipped updates have at most {bound:.6g}",
        )


def _near(record: RoundRecord, expected: bytes, files: RoundFiles, *, refactored: bool) -> float:
    before, wanted, got = (np.frombuffer(one, dtype="<f4") for one in (files.before, expected, files.after))
    allowed = _allowed(before, wanted, refactored=refactored)
    share = float(np.max(np.abs(wanted.astype(np.float64) - got) / allowed))
    if not share <= 1.0:
        raise _broken(record, f"the next model differs by {share:.3g} times what rounding explains")
    return share


def _allowed(before: NDArray[np.float32], wanted: NDArray[np.float32], *, refactored: bool) -> NDArray[np.float64]:
    scale = np.maximum(np.abs(before), np.abs(wanted)).astype(np.float64)
    if refactored:
        return np.full(wanted.shape, _REFACTORED * max(float(scale.max(initial=0.0)), 1e-6))
    tiny: NDArray[np.float64] = _ROUNDINGS * scale + 1e-30
    return tiny


def _check_files(record: RoundRecord, files: RoundFiles) -> None:
    told = (record.model_sha256, record.next_model_sha256, record.mean_sha256, record.outer_before_sha256)
    came = (
        model_digest(files.before).hex(),
        model_digest(files.after).hex(),
        _hash(files.mean),
        _hash(files.outer_state),
    )
    for what, one, other in zip(("model", "next model", "mean update", "outer state"), told, came, strict=True):
        if one != other:
            raise _broken(record, f"the {what} that came is {other[:16] or 'none'}; signed is {one[:16] or 'none'}")


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if data else ""


def _broken(record: RoundRecord, detail: str) -> ProtocolFailure:
    return ProtocolFailure(FailureName.MODEL_CHAIN_BROKEN, f"round {record.round}: {detail}")
