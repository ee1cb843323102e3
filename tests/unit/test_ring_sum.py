"""The ring: masks that cancel leave exactly the sum of the integers, whatever the sizes and whoever drops out."""

import hashlib
import itertools
import tempfile
from pathlib import Path

import numpy as np
import pytest
from confide.codec.digest import upload_digest
from confide.codec.layout import VectorLayout
from confide.codec.seal_vector import UploadSum, encode_upload
from confide.errors import StateError, UpdateError
from hypothesis import given, settings
from hypothesis import strategies as st

# Sizes around each boundary: groups of 1024, tiles of 64 columns, and the odd stride above them.
SIZES = st.one_of(
    st.sampled_from([0, 1, 1023, 1024, 1025, 65_535, 65_536, 65_537, 66_560, 66_561, 131_073]),
    st.integers(0, 140_000),
)


def seed_of(*names: int) -> bytes:
    return hashlib.sha256(repr(names).encode()).digest()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    parameters=SIZES,
    bits=st.sampled_from([4, 8, 12, 16]),
    members=st.integers(2, 6),
    scalars=st.lists(st.one_of(st.integers(0, 2**32 - 1), st.just(2**32 - 1)), max_size=5),
    noise_bits=st.integers(0, 2),
    data=st.data(),
)
def test_random_vectors_with_random_dropouts_always_sum_exactly(
    parameters: int, bits: int, members: int, scalars: list[int], noise_bits: int, data: st.DataObject
) -> None:
    layout = VectorLayout(
        parameters=parameters, scalars=len(scalars), bits=bits, members=members, clip=1.0,
        rotation_seed=seed_of(parameters), noise_bits=noise_bits,
    )  # fmt: skip
    alive = sorted(data.draw(st.sets(st.integers(0, members - 1), min_size=1)))
    masked, plain = UploadSum(layout), UploadSum(layout)
    with tempfile.TemporaryDirectory() as name:
        for i in alive:
            update = np.random.default_rng(i).standard_normal(parameters).astype(np.float32)
            masks = [(seed_of(min(i, j), max(i, j)), 1 if i < j else -1) for j in range(members) if j != i]
            masks.append((seed_of(i), 1))
            for total, used in ((masked, masks), (plain, [])):
                out = Path(name) / f"upload-{i}-{len(used)}"
                digest = encode_upload(update, scalars, layout, rounding_key=seed_of(i, 9), masks=used, out=out)
                total.add(out, digest)
        for i in alive:
            masked.remove_mask(seed_of(i), 1)
        for i, j in itertools.product(alive, set(range(members)) - set(alive)):
            masked.remove_mask(seed_of(min(i, j), max(i, j)), 1 if i < j else -1)
        vector, sums = masked.open(len(alive))
        expected, expected_sums = plain.open(len(alive))
        assert vector.tobytes() == expected.tobytes()
        assert sums == expected_sums == [len(alive) * value for value in scalars]


def two_uploads(folder: Path, layout: VectorLayout) -> list[tuple[Path, bytes]]:
    made = []
    for i in range(2):
        update = np.full(layout.parameters, i + 1, dtype=np.float32)
        out = folder / f"upload-{i}"
        digest = encode_upload(
            update, [i] * layout.scalars, layout, rounding_key=seed_of(i), masks=[(seed_of(7), 1 - 2 * i)], out=out
        )
        made.append((out, digest))
    return made


def layout(parameters: int = 70_000, scalars: int = 2) -> VectorLayout:
    return VectorLayout(parameters=parameters, scalars=scalars, bits=8, members=4, clip=1.0, rotation_seed=bytes(32))


@pytest.mark.parametrize("damage", ["other digest", "one bit", "last bit", "short", "long", "empty"])
def test_a_damaged_upload_is_refused(tmp_path: Path, damage: str) -> None:
    total, uploads = UploadSum(layout()), two_uploads(tmp_path, layout())
    total.add(*uploads[0])
    bad, digest = tmp_path / "bad", uploads[1][1]
    data = bytearray(uploads[1][0].read_bytes())
    if damage == "other digest":
        digest = bytes(32)
    elif damage.endswith("bit"):
        data[-1 if damage == "last bit" else len(data) // 2] ^= 1
    else:
        data = {"short": data[:-1], "long": data + b"x", "empty": bytearray()}[damage]
    bad.write_bytes(data)
    with pytest.raises(UpdateError, match="upload bad has"):
        total.add(bad, digest)
        total.open(2)


def test_what_is_summed_is_what_is_hashed(tmp_path: Path) -> None:
    uploads = two_uploads(tmp_path, layout())
    for change, error, words in (
        (lambda data: bytes(len(data)), UpdateError, "digest"),
        (lambda data: data[:-1], StateError, "cut short"),
    ):
        total = UploadSum(layout())
        for upload in uploads:
            total.add(*upload)
        kept = uploads[0][0].read_bytes()
        uploads[0][0].write_bytes(change(kept))
        with pytest.raises(error, match=words):
            total.open(2)
        uploads[0][0].write_bytes(kept)
    assert total.open(2)[1] == [1, 1]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(data=st.binary(max_size=3000), digest=st.binary(max_size=40))
def test_arbitrary_bytes_never_raise_anything_but_the_named_error(data: bytes, digest: bytes) -> None:
    small = layout(parameters=10, scalars=1)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "upload"
        for content in (data, (data * small.wire_bytes + bytes(small.wire_bytes))[: small.wire_bytes]):
            path.write_bytes(content)
            with pytest.raises(UpdateError):
                total = UploadSum(small)
                total.add(path, digest)
                total.open(1)


def test_a_sum_with_a_mask_left_does_not_open(tmp_path: Path) -> None:
    total = UploadSum(layout())
    total.add(*two_uploads(tmp_path, layout())[0])
    with pytest.raises(UpdateError, match="masks are left"):
        total.open(1)
    total.remove_mask(seed_of(7), 1)
    assert total.open(1)[1] == [0, 0]


def test_a_padding_lane_that_is_not_zero_is_noticed(tmp_path: Path) -> None:
    made = VectorLayout(parameters=0, scalars=1, bits=8, members=2, clip=1.0, rotation_seed=bytes(32))
    padded = tmp_path / "u"
    digest = encode_upload(np.empty(0, np.float32), [0], made, rounding_key=seed_of(0), masks=[], out=padded)
    data = bytearray(padded.read_bytes())
    data[-1] ^= 1
    padded.write_bytes(data)
    total = UploadSum(made)
    total.add(padded, digest)
    with pytest.raises(UpdateError, match="digest"):
        total.open(1)
    total = UploadSum(made)
    total.add(padded, upload_digest(data))
    with pytest.raises(UpdateError, match="a lane is wrong"):
        total.open(1)


@pytest.mark.parametrize("contributors", [0, 5])
def test_the_number_of_contributors_is_checked(contributors: int) -> None:
    with pytest.raises(UpdateError, match="allows 1 to 4"):
        UploadSum(layout()).open(contributors)


def test_the_largest_scalars_of_the_most_members_sum_exactly(tmp_path: Path) -> None:
    for bits, members in itertools.product((4, 8, 12, 16), (1, 2, 100)):
        made = VectorLayout(parameters=0, scalars=3, bits=bits, members=members, clip=1.0, rotation_seed=bytes(32))
        top, out, total = 2**32 - 1, tmp_path / "u", UploadSum(made)
        digest = encode_upload(
            np.empty(0, dtype=np.float32), [top, 0, 1], made, rounding_key=seed_of(1), masks=[], out=out
        )
        for _ in range(members):
            total.add(out, digest)
        vector, sums = total.open(members)
        assert vector.shape == (0,)
        assert sums == [top * members, 0, members]
