"""What a release may name besides a run's round: an adapter that `confide rlhf train` made, with how it came about, or
that adapter merged into its base (`confide rlhf merge`).

The coordinator never had such a model. The release's document holds this one, so that whoever signs it sees what the
adapter was made of, and an adapter that is found somewhere is recognised by its hash.
"""

import json
from typing import Annotated, Any, Literal

from confide import canonical
from confide.errors import SpecificationError
from confide.identity.signed import Document, validated
from confide.runs.sections import Sha256
from pydantic import Field

MAX_BYTES = 1 << 16
FILE_NAME = "aligned.json"
"""In the folder of `confide rlhf train`, beside the adapter, and in the folder of `confide rlhf merge`."""


class AlignedModel(Document):
    """An adapter that was optimised centrally for preferences."""

    version: Literal[1]
    adapter_sha256: Sha256
    """confide.models.adapter_hash.content_hash, by which it is served too."""
    base_sha256: Sha256
    specification: dict[str, Any]
    """The RLHF specification: base, data and reward by hash, method, limits."""
    specification_sha256: Sha256
    steps: Annotated[int, Field(ge=0, lt=2**31)]
    stopped: Annotated[str, Field(max_length=64)]
    """Why it ended before its last step; empty at the end."""
    merged_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    """confide.models.store.folder_digest of base and adapter as one model, by which it is served; "": the adapter."""

    @property
    def model_sha256(self) -> str:
        """Of what is released."""
        return self.merged_sha256 or self.adapter_sha256

    def to_bytes(self) -> bytes:
        """Canonical."""
        return canonical.encode(self.model_dump(mode="json"))


def read_aligned(data: bytes) -> AlignedModel:
    """Raises IdentityError for a malformed document, SpecificationError for one whose parts contradict each other."""
    if len(data) > MAX_BYTES:
        raise SpecificationError(f"the model's document has {len(data)} bytes; at most {MAX_BYTES} are accepted")
    try:
        document = json.loads(data)
        exact = isinstance(document, dict) and canonical.encode(document) == data
    except (ValueError, TypeError, RecursionError):
        exact = False
    if not exact:
        raise SpecificationError(f"the model's document is not canonical JSON; take {FILE_NAME} as it was written")
    made = validated(AlignedModel, document, "the model's document")
    base = made.specification.get("base")
    named = base.get("sha256") if isinstance(base, dict) else None
    if canonical.digest(made.specification) != made.specification_sha256 or named != made.base_sha256:
        raise SpecificationError(
            "the model's document does not hold together: its specification has another hash, or another base, than "
            f"{made.specification_sha256[:16]} and {made.base_sha256[:16]}; take {FILE_NAME} as `confide rlhf train` "
            "wrote it"
        )
    return made
