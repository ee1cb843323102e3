"""What travels in a round: a partition in turns, the same on both sides, and nothing lost between."""

from typing import Any

import numpy as np
import pytest
from confide.codec.tensors import TensorSchema
from confide.errors import SpecificationError, UpdateError
from confide.models.sent_coordinates import SentCoordinates, is_active, needs_names
from hypothesis import given
from hypothesis import strategies as st

from tests.training_specs import specification

SCHEMA = TensorSchema(
    (("1.lora_A", (2, 3)), ("1.lora_B", (4, 2)), ("2.lora_A", (2, 3)), ("2.lora_B", (4, 2)), ("score.weight", (5,)))
)


def coordinates(scheme: str, **federation: Any) -> SentCoordinates:
    return SentCoordinates(specification(adapter={"aggregation": scheme}, federation=federation), SCHEMA)


def test_rolora_takes_turns_and_a_head_goes_always() -> None:
    halves = coordinates("rolora")
    assert halves.intervals(1) == halves.intervals(3) == ((6, 14), (20, 33))
    assert halves.intervals(2) == halves.intervals(4) == ((0, 6), (14, 20), (28, 33))
    assert (halves.phases, halves.count(1), halves.count(2), halves.most) == (2, 21, 17, 21)
    assert halves.rest(1, 1) == [(0, 6), (14, 20)] and halves.rest(2, 1) == [(6, 14), (20, 28)]
    assert halves.rest(1, 2) == halves.rest(2, 9) == []


def test_fedsvd_sends_b_and_the_others_all() -> None:
    assert coordinates("fedsvd").intervals(2) == ((6, 14), (20, 33))
    for scheme in ("average", "ffa", "fedsb"):
        assert coordinates(scheme).count(1) == 33 and not needs_names(specification(adapter={"aggregation": scheme}))
    full = specification(adapter={"kind": "full", "aggregation": "rolora"})
    assert SentCoordinates(full, SCHEMA).phases == 1 and is_active(full, "1.lora_A", 1)


@given(st.integers(1, 12), st.integers(12, 400))
def test_fragments_are_a_partition_of_nearly_equal_pieces(fragments: int, size: int) -> None:
    spec = specification(federation={"fragments": fragments})
    pieces = SentCoordinates(spec, TensorSchema.unnamed(size))
    seen = np.zeros(size, dtype=int)
    flat = np.arange(size, dtype=np.float32)
    for round in range(3, 3 + fragments):
        part = pieces.gather(flat, round)
        assert len(part) == pieces.count(round) and abs(len(part) - size / fragments) < 1
        back = np.full(size, -1.0, np.float32)
        pieces.scatter(part, round, back)
        travelled = back >= 0
        assert np.array_equal(back[travelled], flat[travelled])
        seen += travelled
        still = np.zeros(size, dtype=bool)
        for start, stop in pieces.rest(round, 1):
            still[start:stop] = True
        assert np.array_equal(still, ~travelled)
    assert (seen == 1).all()


@pytest.mark.parametrize("scheme", ["rolora", "fedsvd"])
def test_names_are_asked_for_where_they_matter(scheme: str) -> None:
    spec = specification(adapter={"aggregation": scheme})
    assert needs_names(spec)
    with pytest.raises(SpecificationError, match="names no LoRA matrices"):
        SentCoordinates(spec, TensorSchema.unnamed(33))


def test_more_fragments_than_parameters() -> None:
    with pytest.raises(SpecificationError, match="only 3 parameters"):
        SentCoordinates(specification(federation={"fragments": 4}), TensorSchema.unnamed(3))


def test_a_schema_crosses_as_bytes() -> None:
    assert TensorSchema.from_bytes(SCHEMA.to_bytes()) == SCHEMA
    assert SCHEMA.places()["2.lora_B"] == (20, (4, 2))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{}", b"[1]", b"[[1,[2]]]", b'[["a",[-1]]]', b'[["a",[1.0]]]', b'[["a",[true]]]',
        b'[["b",[1]],["a",[1]]]',
        b'[["a",[1]],["a",[1]]]', b'[["a", [1]]]', b'[["a",[1099511627776]]]', b'[["a",[1048576,1048576]]]',
        b'[["\\ud800",[1]]]', b"[" * 100_000, b'[["a",null]]', b'[["a",[1],2]]',
    ],
)  # fmt: skip
def test_odd_schemas_are_refused(data: bytes) -> None:
    with pytest.raises(UpdateError):
        TensorSchema.from_bytes(data)


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_arbitrary_bytes_are_no_schema_or_canonical(data: bytes) -> None:
    try:
        schema = TensorSchema.from_bytes(data)
    except UpdateError:
        return
    assert schema.to_bytes() == data
