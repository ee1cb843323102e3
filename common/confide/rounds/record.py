"""What the coordinator says of a committed round, for good: an entry of its log of the run's rounds.

    record = RoundRecord(run_id=..., round=3, slot=4, ...)
    tree = upload_leaves([("hospital-a", digest), ...])

The entry names everything by its hash, so that a node learns from it only what it holds or is handed
(docs/sealing.md, "The log of rounds").
"""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, ValidationError

from confide import canonical
from confide.documents import StoredDocument
from confide.errors import FailureName, ProtocolFailure
from confide.privacy.ledger_entries import RunId
from confide.rounds import merkle
from confide.runs.sections import Sha256

MOST_BYTES = 4096
"""Of one record's canonical form."""
MaybeSha256 = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
Number = Annotated[int, Field(ge=1, lt=2**53)]


class RoundRecord(StoredDocument):
    """One committed round. Hashes are lower-case hex."""

    version: int = Field(default=1, ge=1, le=1)
    run_id: RunId
    round: Number
    slot: Number
    attempt: Number
    evaluate_only: bool
    model_sha256: Sha256
    """Of the model that the round began with (confide.codec.tensors.model_digest)."""
    next_model_sha256: Sha256
    uploads: int = Field(ge=0, lt=2**31)
    """How many are in the sum; 0 where nothing is sealed."""
    uploads_root: Sha256
    """Merkle root over `upload_leaves`."""
    mean_sha256: MaybeSha256
    """SHA-256 of the mean update, float32, little-endian; empty where no tensor is stepped."""
    outer_before_sha256: MaybeSha256
    """SHA-256 of the outer optimizer's state before the round; empty for none."""
    outer_after_sha256: MaybeSha256

    def canonical_bytes(self) -> bytes:
        """The entry of the log."""
        return canonical.encode(self.model_dump(mode="json"))


def parse_record(data: bytes) -> RoundRecord:
    """Raises MALFORMED for anything but the canonical form of a record."""
    try:
        record = RoundRecord.model_validate_json(data) if len(data) <= MOST_BYTES else None
    except (ValidationError, ValueError, RecursionError) as error:
        raise ProtocolFailure(FailureName.MALFORMED, f"an entry of the log of rounds is none: {error}") from error
    if record is None or record.canonical_bytes() != data:
        raise ProtocolFailure(FailureName.MALFORMED, "an entry of the log of rounds is too long, or not canonical")
    return record


def upload_entry(node: str, digest: str) -> bytes:
    """An entry of a round's tree of uploads. digest: of the masked upload, BLAKE3, hex."""
    return canonical.encode([node, digest])


def upload_leaves(uploads: Sequence[tuple[str, str]]) -> list[bytes]:
    """Leaf hashes of a round's uploads (name, digest), in order of the names."""
    return [merkle.leaf_hash(upload_entry(node, digest)) for node, digest in sorted(uploads)]


def uploads_of(evidence: Sequence[Any]) -> list[tuple[str, str]]:
    """The uploads in a round's sums, in order of the names. evidence: confide.sealing.evidence, one for each sum."""
    return sorted((name, digest) for one in evidence for name, digest in one["survivors"])
