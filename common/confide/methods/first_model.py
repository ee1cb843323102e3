"""What a run learns and passes on, by method: a model's trainable tensors, or a tokenizer's state.

The bytes of payload "model" are one or the other. What they are at first, whether the coordinator may take them as a
first model, and the schema of an update, stands here; how they may change stands in confide.sealing.member.chain on the
node's side and in confide.rounds.outer_step on the coordinator's.

    data, schema = first_model(specification, base)
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from confide.codec.tensors import TensorSchema, first_not_finite, model_digest
from confide.errors import UpdateError
from confide.models.sent_coordinates import SentCoordinates, refactors
from confide.runs.specification import Specification


def first_model(specification: Specification, base: Path | None) -> tuple[bytes, TensorSchema]:
    """(the model before the first round, the schema of updates), from the specification and the base model's folder.

    Raises ModelError where a base model is needed and not named.
    """
    if not specification.trains_model:
        from confide.tokenizer.state import first_state

        return first_state().to_bytes(), _counts(specification)
    from confide.models.store import require_base
    from confide.models.trainable import initial_state

    tensors = initial_state(specification, require_base(specification, base))
    schema = TensorSchema.of(tensors)
    return schema.encode(tensors), schema


def check_first_model(specification: Specification, data: bytes | memoryview, schema: TensorSchema) -> None:
    """What can be seen of a first model without the base. Raises UpdateError, SpecificationError or ProtocolFailure.

    data: also a view on a file, of which a part is looked at at a time.
    schema: as `update_schema_of` gave it.
    """
    if not specification.trains_model:
        if data != first_model(specification, None)[0]:
            raise UpdateError("a tokenizer begins with the bytes alone and no merges; another first state came")
        return
    if len(data) % 4 or (len(data) == 0) != (specification.method.name == "in_context"):
        raise UpdateError(
            f"the first model has {len(data)} bytes; float32 tensors take a positive multiple of 4, and none where "
            "nothing is trained (in_context)"
        )
    flat = np.frombuffer(data, dtype="<f4")
    if first_not_finite(flat) is not None:
        raise UpdateError("the first model holds NaN or infinity")
    if schema.size != len(flat):
        raise UpdateError(f"the first model has {len(flat)} scalars; its schema names {schema.size}. Submit again.")
    if specification.judges_pairs:
        check_candidate(specification, flat)
    SentCoordinates(specification, schema)  # refuses what it cannot be computed for
    if refactors(specification):
        from confide.models.fedsvd import Refactored

        Refactored(schema).check_rows(flat)


def check_candidate(specification: Specification, flat: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of a feedback run by comparisons: the candidate's part of the first model. Raises UpdateError for another model.

    flat: the candidate's tensors, and behind them zeros where the opinion will stand.
    """
    numbers = specification.feedback.numbers
    candidate, opinion = flat[:-numbers], flat[-numbers:]
    found = model_digest(np.ascontiguousarray(candidate, "<f4").data).hex()
    if found != specification.feedback.candidate_sha256 or opinion.any():
        raise UpdateError(
            f"CANDIDATE_CHANGED: the model {found[:16]} came, and feedback.candidate_sha256 names "
            f"{specification.feedback.candidate_sha256[:16]}; submit it with the candidate's own run (--from)"
        )
    return candidate


def update_schema(specification: Specification, base: Path) -> TensorSchema:
    """Of the flat update, from the model's configuration alone."""
    if not specification.trains_model:
        return _counts(specification)
    from confide.models.trainable import schema_of

    return schema_of(specification, base)


def update_schema_of(specification: Specification, submitted: bytes, first_bytes: int) -> TensorSchema:
    """The same for the coordinator, which has no base model: as it was submitted, else by the first model's length."""
    if not specification.trains_model:
        return _counts(specification)
    return TensorSchema.from_bytes(submitted) if submitted else TensorSchema.unnamed(first_bytes // 4)


def _counts(specification: Specification) -> TensorSchema:
    return TensorSchema.unnamed(specification.tokenizer.candidates)
