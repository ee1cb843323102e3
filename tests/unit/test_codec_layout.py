"""The layout's arithmetic, its refusals, and the packing and keystream against slow, obvious implementations."""

import math

import numpy as np
import pytest
from confide.codec import kernels
from confide.codec.keystream import Keystream
from confide.codec.layout import VectorLayout
from confide.errors import SpecificationError, UpdateError
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.codec_oracle import bits_of_groups, counter_stream


def layout(**changes: object) -> VectorLayout:
    fields = {"parameters": 10, "scalars": 1, "bits": 8, "members": 3, "clip": 1.0, "rotation_seed": bytes(32)}
    return VectorLayout(**(fields | changes))  # type: ignore[arg-type]


@given(bits=st.sampled_from([4, 8, 12, 16]), members=st.integers(1, 4096), noise_bits=st.integers(0, 4))
def test_a_lane_holds_every_sum_and_no_bit_more(bits: int, members: int, noise_bits: int) -> None:
    made = layout(bits=bits, members=members, noise_bits=noise_bits)
    assert made.lane_bits - noise_bits == math.ceil(math.log2(members * (2**bits - 1) + 1))
    assert 2 * members * made.levels < 2 ** (made.lane_bits - noise_bits)


@given(parameters=st.integers(0, 10**8), scalars=st.integers(0, 50), bits=st.sampled_from([4, 8, 12, 16]))
def test_sizes_cover_the_vector_with_little_padding(parameters: int, scalars: int, bits: int) -> None:
    made = layout(parameters=parameters, scalars=scalars, bits=bits)
    assert parameters <= made.coordinates < parameters + 2048
    assert made.lanes % 1024 == 0
    assert made.coordinates + scalars * made.digits <= made.lanes < made.coordinates + scalars * made.digits + 1024
    assert made.wire_bytes * 8 == made.lanes * made.lane_bits


def test_eight_organizations_at_eight_bits_cost_eleven_bits() -> None:
    assert 8 * layout(parameters=10_000_000, members=8).wire_bytes / 10_000_000 < 11.1


@pytest.mark.parametrize(
    "changes",
    [
        {"parameters": -1},
        {"scalars": -1},
        {"bits": 7},
        {"members": 0},
        {"clip": 0.0},
        {"clip": math.nan},
        {"clip": math.inf},
        {"rotation_seed": b"short"},
        {"noise_bits": -1},
        {"bits": 16, "noise_bits": 17},
        {"granularity": -1},
        {"granularity": 4097},
    ],
)
def test_an_impossible_layout_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(SpecificationError, match="allowed"):
        layout(**changes)


def test_every_field_changes_the_bytes_that_both_sides_hash() -> None:
    changes: list[dict[str, object]] = [
        {}, {"parameters": 11}, {"scalars": 2}, {"bits": 4}, {"members": 4}, {"clip": 2.0},
        {"rotation_seed": bytes(31) + b"x"}, {"noise_bits": 1},
        {"granularity": 1}, {"granularity": 2},
    ]  # fmt: skip
    assert len({layout(**change).to_bytes() for change in changes}) == len(changes)


@pytest.mark.parametrize("lane_bits", range(1, 33))
def test_packing_agrees_with_big_integers(lane_bits: int) -> None:
    dtype = np.uint16 if lane_bits <= 16 else np.uint32
    lanes = np.random.default_rng(lane_bits).integers(0, 2 ** (8 * np.dtype(dtype).itemsize), 2048).astype(dtype)
    words = np.full(2048 * lane_bits // (8 * lanes.itemsize), 0xABCD, dtype=dtype)
    kernels.pack(lanes, lane_bits, words)
    assert words.tobytes() == bits_of_groups(lanes, lane_bits)
    total = lanes.copy()
    kernels.unpack_add(words, lane_bits, total)
    assert np.array_equal(total.astype(np.int64) % 2**lane_bits, lanes.astype(np.int64) * 2 % 2**lane_bits)


@settings(max_examples=30)
@given(key=st.binary(min_size=32, max_size=32), pieces=st.lists(st.integers(0, 40_000), max_size=6))
def test_the_keystream_is_counter_mode_whatever_the_pieces(key: bytes, pieces: list[int]) -> None:
    stream = Keystream(key)
    read = b"".join(stream.fill(np.ones(8 * size, dtype="<u2")).tobytes() for size in pieces)
    assert read == counter_stream(key, 16 * sum(pieces))


def test_a_stream_longer_than_one_piece_goes_on() -> None:
    assert Keystream(bytes(32)).fill(np.empty(300_000, dtype="<u4")).tobytes() == counter_stream(bytes(32), 1_200_000)


def test_a_short_key_is_refused() -> None:
    with pytest.raises(UpdateError, match="31 bytes"):
        Keystream(bytes(31))
