"""One upload: its integers against a dense oracle, its precision, its error feedback, its refusals, its memory."""

import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from confide.codec.digest import upload_file_digest
from confide.codec.keystream import Keystream
from confide.codec.layout import VectorLayout
from confide.codec.seal_vector import UploadSum, encode_upload
from confide.errors import UpdateError
from numpy.typing import NDArray

from tests.codec_oracle import counter_stream, dense_rotation, unpacked

SEED = bytes(range(32))
KEY = b"k" * 32
Floats = NDArray[np.float32]


def layout(parameters: int, bits: int = 16, *, members: int = 3, clip: float = 1.0, scalars: int = 0) -> VectorLayout:
    return VectorLayout(
        parameters=parameters, scalars=scalars, bits=bits, members=members, clip=clip, rotation_seed=SEED
    )


def random_update(parameters: int, seed: int = 0, norm: float = 1.0) -> Floats:
    update = np.random.default_rng(seed).standard_normal(parameters)
    return (update * norm / np.linalg.norm(update)).astype(np.float32)


def opened(update: Floats, made: VectorLayout, out: Path, key: bytes = KEY) -> Floats:
    digest = encode_upload(update, [0] * made.scalars, made, rounding_key=key, masks=[], out=out)
    total = UploadSum(made)
    total.add(out, digest)
    return total.open(1)[0]


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("parameters", [3, 1500, 64 * 1024 + 10_000])
def test_the_integers_are_the_rotated_update_rounded_as_specified(tmp_path: Path, parameters: int, bits: int) -> None:
    made, update = layout(parameters, bits), random_update(parameters, norm=0.9)
    encode_upload(update, [], made, rounding_key=KEY, masks=[], out=tmp_path / "u")
    uniform = np.frombuffer(counter_stream(KEY, 2 * made.coordinates), dtype="<u2")
    exact = dense_rotation(update, made) / made.step
    expected = np.floor(np.clip(exact, -made.levels, made.levels) + (uniform + 0.5) / 65536)
    lanes = unpacked(tmp_path / "u", made)
    assert not lanes[made.coordinates :].any()
    off = np.abs(lanes[: made.coordinates] - np.minimum(expected, made.levels))
    assert off.max() <= 1, "float32 may move a value over the edge of one step, no further"
    assert (off > 0).mean() < (1e-4 if bits == 8 else 2e-2)


def test_an_upload_never_changes_its_bytes(tmp_path: Path) -> None:
    """A fixed input's digest: another value means another wire format, which needs another version marker."""
    update = (np.arange(70_000) % 17 - 8).astype(np.float32) / 8192
    made = VectorLayout(parameters=70_000, scalars=2, bits=8, members=5, clip=4.0, rotation_seed=SEED)
    out = tmp_path / "u"
    digest = encode_upload(update, [1, 2**32 - 1], made, rounding_key=KEY, masks=[(SEED, 1), (KEY, -1)], out=out)
    assert digest == upload_file_digest(out)
    assert out.stat().st_size == made.wire_bytes
    assert out.stat().st_mode & 0o777 == 0o600
    assert hashlib.sha256(out.read_bytes()).hexdigest() == (
        "b66bed99a9b7b47ae5f7725298bad00d69ef81c7c19793333df82c3f83d51355"
    )


@pytest.mark.parametrize(("bits", "bound"), [(16, 1e-3), (12, 5e-3), (8, 2e-2), (4, 3e-1)])
@pytest.mark.parametrize("parameters", [1000, 5000, 70_000, 200_000])
def test_the_opened_sum_is_the_plain_sum_within_the_promised_error(
    tmp_path: Path, parameters: int, bits: int, bound: float
) -> None:
    """L2 norm of the error of the mean, relative to the clipping norm, for plain and for lopsided updates."""
    made = layout(parameters, bits)
    layers = np.repeat(np.exp(2 * np.random.default_rng(1).standard_normal(-(-parameters // 500))), 500)[:parameters]
    spread = [np.ones(parameters), layers, np.arange(parameters) < parameters / 50]
    total, plain = UploadSum(made), np.zeros(parameters)
    for i, scale in enumerate(spread):
        update = (random_update(parameters, i) * scale).astype(np.float32)
        update /= np.linalg.norm(update) * np.float32(1.0000001)
        plain += update
        total.add(
            tmp_path / f"u{i}",
            encode_upload(update, [], made, rounding_key=bytes([i] * 32), masks=[], out=tmp_path / f"u{i}"),
        )
    error = np.linalg.norm(total.open(3)[0] - plain) / 3
    assert error <= bound
    if bits == 16:
        assert error * 3 <= 2.5e-4, "16 bits keep far below their promise, the sum's own error included"


def test_rounding_is_unbiased_and_depends_on_its_key(tmp_path: Path) -> None:
    made, update = layout(500, 4, clip=1.0), random_update(500, norm=0.5)
    samples = [opened(update, made, tmp_path / "u", key=i.to_bytes(32, "big")) for i in range(400)]
    mean, error = np.mean(samples, axis=0), np.std(samples, axis=0) / np.sqrt(len(samples))
    assert np.abs((mean - update) / error).max() < 5
    assert np.linalg.norm(samples[0] - samples[1]) > 0


def test_a_zero_update_opens_to_exact_zeros(tmp_path: Path) -> None:
    assert not opened(np.zeros(3000, dtype=np.float32), layout(3000, 4), tmp_path / "u").any()


def test_an_update_beyond_the_clip_is_scaled_onto_it(tmp_path: Path) -> None:
    update = random_update(4000, norm=50.0)
    result = opened(update, layout(4000, clip=2.0), tmp_path / "u")
    assert np.linalg.norm(result - update / 25) < 2e-3


def test_a_single_coordinate_with_all_the_norm_is_clamped_not_wrapped(tmp_path: Path) -> None:
    """No rotation spreads one coordinate of 200,000 beyond its block; it may shrink, never turn."""
    update = np.zeros(200_000, dtype=np.float32)
    update[123_456] = 1.0
    result = opened(update, layout(200_000, 8), tmp_path / "u")
    assert 0.3 < result[123_456] <= 1.01


@pytest.mark.parametrize("parameters", [5, 70_000])
def test_error_feedback_carries_exactly_what_was_lost(tmp_path: Path, parameters: int) -> None:
    made, update = layout(parameters, 4), random_update(parameters, norm=0.5)
    feedback = random_update(parameters, seed=9, norm=0.1)
    wanted = update + feedback
    kept = update.copy()
    digest = encode_upload(update, [], made, rounding_key=KEY, masks=[(SEED, 1)], out=tmp_path / "m", feedback=feedback)
    total = UploadSum(made)
    total.add(tmp_path / "m", digest)
    total.remove_mask(SEED, 1)
    assert np.array_equal(update, kept), "the caller's update is not touched"
    np.testing.assert_allclose(total.open(1)[0] + feedback, wanted, atol=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
def test_with_feedback_the_nearest_integers_travel_whatever_the_key(tmp_path: Path, bits: int) -> None:
    made, update = layout(1500, bits), random_update(1500, norm=0.9)
    exact = np.clip(dense_rotation(update, made) / made.step, -made.levels, made.levels)
    for key in (KEY, SEED):
        feedback = np.zeros(1500, dtype=np.float32)
        encode_upload(update, [], made, rounding_key=key, masks=[], out=tmp_path / "u", feedback=feedback)
        lanes = unpacked(tmp_path / "u", made)[: made.coordinates]
        assert np.abs(lanes - exact).max() < 0.5 + 1e-3


@pytest.mark.parametrize("norm", [0.5, 0.1, 0.01])
def test_what_feedback_carries_is_never_longer_than_what_was_to_be_sent(tmp_path: Path, norm: float) -> None:
    """Rounding at random sends mostly noise when updates are short beside the clip, and all of it comes back."""
    made, update, feedback = layout(3000, 4), random_update(3000, norm=norm), np.zeros(3000, dtype=np.float32)
    half_a_step = made.step / 2 * np.sqrt(made.coordinates)
    for i in range(20):
        wanted = np.linalg.norm(update + feedback)
        encode_upload(
            update, [], made, rounding_key=bytes([i] * 32), masks=[], out=tmp_path / "u", feedback=feedback
        )  # fmt: skip
        assert np.linalg.norm(feedback) <= wanted * (1 + 1e-4)
        assert np.linalg.norm(feedback) <= half_a_step


def test_error_feedback_keeps_the_error_of_many_rounds_at_that_of_one(tmp_path: Path) -> None:
    made, update = layout(3000, 4), random_update(3000, norm=0.5)
    feedback, with_it, without = np.zeros(3000, dtype=np.float32), np.zeros(3000), np.zeros(3000)
    for i in range(30):
        key, total = i.to_bytes(32, "big"), UploadSum(made)
        digest = encode_upload(update, [], made, rounding_key=key, masks=[], out=tmp_path / "u", feedback=feedback)
        total.add(tmp_path / "u", digest)
        with_it += total.open(1)[0]
        without += opened(update, made, tmp_path / "v", key=key)
    assert np.linalg.norm(with_it - 30 * update) < 0.4 * np.linalg.norm(without - 30 * update)


def test_feedback_of_an_update_beyond_the_clip_stays_bounded(tmp_path: Path) -> None:
    made, update, feedback = layout(3000, 8), random_update(3000, norm=10.0), np.zeros(3000, dtype=np.float32)
    for i in range(5):
        encode_upload(update, [], made, rounding_key=bytes([i] * 32), masks=[], out=tmp_path / "u", feedback=feedback)
    assert np.linalg.norm(feedback) < 0.03


def noised_layout(parameters: int, scalars: int = 0) -> VectorLayout:
    return VectorLayout(
        parameters=parameters, scalars=scalars, bits=8, members=2, clip=1.0, rotation_seed=SEED, noise_bits=13,
        granularity=4,
    )  # fmt: skip


def test_whole_integers_come_from_the_rotated_vector_and_leave_scalars_alone(tmp_path: Path) -> None:
    made, seen = noised_layout(69 * 1024, scalars=1), list[NDArray[np.float64]]()
    integers = np.random.default_rng(3).integers(-(1 << 20), 1 << 20, made.coordinates)

    def to_integers(scaled: NDArray[np.float64]) -> NDArray[np.int64]:
        seen.append(scaled)
        return integers

    update, out = random_update(made.parameters, norm=3.0), tmp_path / "u"
    digest = encode_upload(update, [77], made, rounding_key=KEY, masks=[], out=out, to_integers=to_integers)
    assert np.abs(seen[0] - dense_rotation(update / 3.0, made) / made.step).max() < 1e-5
    assert np.array_equal(unpacked(out, made)[: made.coordinates], integers)
    total = UploadSum(made)
    total.add(out, digest)
    opened_update, scalars = total.open(1)
    assert scalars == [77]
    assert np.allclose(dense_rotation(opened_update, made), integers * made.step, atol=1e-4 * made.step * (1 << 20))


def test_what_lies_beyond_the_reach_of_a_noised_layout_is_clamped_before_rounding(tmp_path: Path) -> None:
    made, out = noised_layout(4096), tmp_path / "u"
    one = np.zeros(made.coordinates, dtype=np.int64)
    one[5] = 1 << 20
    total = UploadSum(made)
    concentrated = random_update(4096)
    total.add(
        out, encode_upload(concentrated, [], made, rounding_key=KEY, masks=[], out=out, to_integers=lambda _: one)
    )  # fmt: skip
    concentrated, seen = total.open(1)[0], list[NDArray[np.float64]]()
    encode_upload(
        concentrated, [], made, rounding_key=KEY, masks=[], out=out, to_integers=lambda x: seen.append(x) or one
    )  # fmt: skip
    assert seen[0][5] == made.levels < 64 * made.granularity, "clipped to norm 1 it would reach 64 a"
    assert np.abs(np.delete(seen[0], 5)).max() < 1e-3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_before_anything_is_written(tmp_path: Path, value: float) -> None:
    update = random_update(2000)
    update[1999] = value
    feedback = np.zeros(2000, dtype=np.float32)
    for extra in (None, feedback):
        with pytest.raises(UpdateError, match="NaN or infinity"):
            encode_upload(update, [], layout(2000), rounding_key=KEY, masks=[], out=tmp_path / "u", feedback=extra)
    assert not (tmp_path / "u").exists()
    assert not feedback.any()


def test_wrong_inputs_are_refused_by_what_is_wrong(tmp_path: Path) -> None:
    made, update, out = layout(10, scalars=1), random_update(10), tmp_path / "u"

    def encode(update: NDArray[np.floating] = update, scalars: tuple[int, ...] = (1,), **rest: object) -> None:
        arguments: dict[str, object] = {"rounding_key": KEY, "masks": []} | rest
        encode_upload(update, scalars, made, out=out, **arguments)  # type: ignore[arg-type]

    with pytest.raises(UpdateError, match=r"shape \(9,\)"):
        encode(update[:9])
    with pytest.raises(UpdateError, match="float64"):
        encode(update.astype(np.float64))
    with pytest.raises(UpdateError, match="contiguous"):
        encode(np.zeros(20, dtype=np.float32)[::2])
    with pytest.raises(UpdateError, match="2 scalars"):
        encode(scalars=(1, 2))
    for value in (-1, 2**32):
        with pytest.raises(UpdateError, match="outside"):
            encode(scalars=(value,))
    with pytest.raises(UpdateError, match="sign is 2"):
        encode(masks=[(KEY, 2)])
    with pytest.raises(UpdateError, match="5 bytes"):
        encode(rounding_key=b"short")
    with pytest.raises(UpdateError, match="leave one out"):
        encode(feedback=np.zeros(10, dtype=np.float32), to_integers=lambda x: x.astype(np.int64))
    with pytest.raises(UpdateError, match="goes with noise"):
        encode(to_integers=lambda x: x.astype(np.int64))
    made = noised_layout(10, scalars=1)
    with pytest.raises(UpdateError, match="goes with noise"):
        encode()


def test_encoding_holds_a_few_tiles_whatever_the_size_of_the_update(tmp_path: Path) -> None:
    update = random_update(3_000_000)
    made = layout(update.size, 8, members=8)
    masks = [(bytes([i] * 32), 1) for i in range(8)]
    encode_upload(update[:1000], [], layout(1000, 8, members=8), rounding_key=KEY, masks=masks, out=tmp_path / "w")
    tracemalloc.start()
    encode_upload(update, [], made, rounding_key=KEY, masks=masks, out=tmp_path / "u")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**20


def test_a_masked_upload_looks_random_padding_included(tmp_path: Path) -> None:
    """Every byte value is as frequent as chance allows, though all the lanes under the mask are zero."""
    made = layout(100_000, 8)
    encode_upload(
        np.zeros(100_000, dtype=np.float32), [], made, rounding_key=KEY, masks=[(SEED, 1)], out=tmp_path / "u"
    )
    counts = np.bincount(np.frombuffer((tmp_path / "u").read_bytes(), dtype=np.uint8), minlength=256)
    expected = made.wire_bytes / 256
    assert ((counts - expected) ** 2 / expected).sum() < 255 + 5 * np.sqrt(2 * 255)
    zero = layout(0, 8, scalars=1)
    encode_upload(np.zeros(0, dtype=np.float32), [0], zero, rounding_key=KEY, masks=[(SEED, -1)], out=tmp_path / "z")
    stream = Keystream(SEED).fill(np.empty(1024, dtype="<u2")).astype(np.int64)
    assert np.array_equal(unpacked(tmp_path / "z", zero) % 2**zero.lane_bits, -stream % 2**zero.lane_bits)
