"""The codec's two halves: a node's update into one masked, packed file; the coordinator's sum of such files.

Node: clip -> rotate -> scale -> round -> + masks modulo 2^w -> pack -> file, one tile
of 65,536 coordinates at a time, so that beside the update itself only a few buffers of one tile are held.
Coordinator: add files, subtract masks, restore, one tile of all files at a time; its memory does not depend on their
number.
layout.py specifies the integers and the file; keystream.py the masks.

Guarantee: under masks whose seeds the reader does not hold, a file is indistinguishable from random bytes of its
length: every lane, padding included, is masked before it is packed. The file's length depends on the layout only.

>>> import tempfile
>>> layout = VectorLayout(parameters=3, scalars=1, bits=16, members=2, clip=10.0, rotation_seed=bytes(32))
>>> folder, total, pairwise = Path(tempfile.mkdtemp()), UploadSum(layout), bytes(range(32))
>>> for name, sign in (("hospital-a", 1), ("hospital-b", -1)):
...     update = np.array([1.0, 2.0, sign], dtype=np.float32)
...     key, out = os.urandom(32), folder / name
...     total.add(out, encode_upload(update, [7], layout, rounding_key=key, masks=[(pairwise, sign)], out=out))
>>> vector, scalars = total.open(contributors=2)
>>> [round(float(value), 1) + 0.0 for value in vector], scalars
([2.0, 4.0, 0.0], [14])
"""

import math
import os
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from confide.codec import kernels
from confide.codec.digest import upload_hash
from confide.codec.keystream import Keystream, checked_key
from confide.codec.layout import ROWS, SCALAR_BITS, TILE, TILE_COLUMNS, VectorLayout
from confide.errors import StateError, UpdateError

Lanes = NDArray[Any]
ToIntegers = Callable[[NDArray[np.float64]], NDArray[np.int64]]

# What the sum takes in at a time, in lanes: enough for few calls, little enough for the second-level cache.
_BLOCK = 4 * TILE

# As the random number of every lane this rounds to the nearest integer.
_NEAREST = 1 << 15


@dataclass(frozen=True)
class _Tile:
    """One tile's place, signs and scratch.

    `values` and `bits` are the same memory as float32 and as int32, with gaps (kernels.py).
    """

    start: int
    width: int
    signs: NDArray[np.int32]
    values: NDArray[np.float32]
    bits: NDArray[np.int32]

    @property
    def lanes(self) -> int:
        return ROWS * self.width


class _Rotation:
    """The tiles of a layout in order, with the stream of signs. A tile's arrays serve until the next one is asked."""

    def __init__(self, layout: VectorLayout) -> None:
        self._columns = layout.columns
        self._stream = Keystream(layout.rotation_seed)
        self._signs = np.empty(2 * ROWS, dtype="<i4")
        self._scratch = np.empty(kernels.tile_values(min(TILE_COLUMNS, layout.columns)), dtype="<f4")

    def tiles(self) -> Iterator[_Tile]:
        for start in range(0, self._columns, TILE_COLUMNS):
            width = min(TILE_COLUMNS, self._columns - start)
            values = self._scratch[: kernels.tile_values(width)]
            yield _Tile(start, width, self._stream.fill(self._signs), values, values.view("<i4"))


class _Masks:
    """The keystreams of signed masks, added to consecutive lanes; all share one buffer, which stays in the cache."""

    def __init__(self, masks: Iterable[tuple[bytes, int]], layout: VectorLayout, most: int) -> None:
        """most: lanes at a time."""
        self._streams = [(Keystream(seed), np.add if _checked_sign(sign) > 0 else np.subtract) for seed, sign in masks]
        self._buffer = np.empty(min(most, layout.lanes), dtype=layout.lane_dtype)

    def add_to(self, lanes: Lanes) -> None:
        """Add the next lanes.size integers of every mask, in place, modulo the word."""
        buffer = self._buffer[: lanes.size]
        for stream, apply in self._streams:
            apply(lanes, stream.fill(buffer), out=lanes)


class _Packer:
    """Masks and packs lanes chunk by chunk into a file; one reused buffer for all keystreams."""

    def __init__(self, layout: VectorLayout, masks: Sequence[tuple[bytes, int]], out: Path) -> None:
        self._lane_bits, self._word_bits = layout.lane_bits, _word_bits(layout)
        self._masks = _Masks(masks, layout, TILE)
        self._words = np.empty(min(TILE, layout.lanes) * self._lane_bits // self._word_bits, dtype=layout.lane_dtype)
        self._hash = upload_hash()
        # Never into the file that was there: whoever linked that one keeps what it held.
        out.unlink(missing_ok=True)
        self._file = os.fdopen(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def digest(self) -> bytes:
        return self._hash.digest()

    def put(self, lanes: Lanes) -> None:
        """Mask in place, pack and write the next lanes: a multiple of 1024, at most one tile."""
        self._masks.add_to(lanes)
        words = self._words[: lanes.size * self._lane_bits // self._word_bits]
        kernels.pack(lanes, self._lane_bits, words)
        packed = words.view("u1").data
        self._hash.update(packed)
        _write_fully(self._file, packed)


def encode_upload(
    update: NDArray[np.float32],
    scalars: Sequence[int],
    layout: VectorLayout,
    *,
    rounding_key: bytes,
    masks: Sequence[tuple[bytes, int]],
    out: Path,
    feedback: NDArray[np.float32] | None = None,
    to_integers: ToIntegers | None = None,
) -> bytes:
    """Write the masked, packed upload to a new file `out` (0600, not fsynced) and return its digest (digest.py).

    update: float32, shape (layout.parameters,), finite; clipped to norm layout.clip (with feedback: their sum is).
    scalars: layout.scalars integers in [0, 2^32), summed exactly.
    rounding_key: 32 secret random bytes, fresh for every upload: stochastic rounding, unbiased.
    masks: (32-byte seed, +1 or -1), the self mask among them; each seed serves this one vector only.
    feedback: error feedback, float32 like update: added before clipping, and overwritten in place by what rounding
        and the clamp lost. Rounding is then to the nearest integer: no coordinate loses more than it has, so that
        the compressor contracts, which feedback rests on (Karimireddy et al. 2019, section 4). What the norm clip
        removed is not carried: a node that always exceeds the clip would pile it up without bound. Keep a copy to
        roll back. Not together with to_integers.
    to_integers: rounds and noises the whole rotated vector at once: float64 of shape (layout.coordinates,) in units
        of layout.step, clamped to +-layout.levels, to integers. For layouts with noise, and only for them. Where the
        layout is of integers it gets them as they are, neither clipped in norm nor rotated. Scalars are not noised. It
        holds the whole vector a few times, where the tiles hold next to nothing.

    Raises UpdateError for a wrong length, dtype, NaN, infinity, scalar or key.
    """
    _check_inputs(update, scalars, layout, feedback, to_integers)
    source, factor = (update, 1.0) if layout.integers else _clipped(update, layout.clip, feedback)
    rotation = _Rotation(layout)
    uniform = Keystream(rounding_key) if feedback is None else None
    random = np.full(min(TILE, layout.coordinates), _NEAREST, dtype="<u2")
    lanes = np.empty(min(TILE, layout.lanes), dtype=layout.lane_dtype)
    # The kernels leave out the factor that makes the 1024-point transform orthonormal.
    scale, levels = np.float32(factor / layout.step / math.sqrt(ROWS)), np.float32(layout.levels)
    with _Packer(layout, masks, out) as packer:
        if to_integers is not None:
            placed = _integers(source, layout) if layout.integers else _rotated(source, rotation, layout, float(scale))
            whole = to_integers(placed)
            for start in range(0, whole.size, TILE):
                part = lanes[: min(TILE, whole.size - start)]
                part[:] = whole[start : start + part.size].astype(layout.lane_dtype)
                packer.put(part)
        for tile in rotation.tiles() if to_integers is None else ():
            part = lanes[: tile.lanes]
            kernels.load(source.view("<i4"), tile.signs, tile.start, layout.columns, tile.width, tile.values, tile.bits)
            drawn = random[: part.size] if uniform is None else uniform.fill(random[: part.size])
            kernels.round_lanes(tile.values, tile.width, drawn, scale, levels, part)
            if feedback is not None:
                _decode(part, _word_bits(layout), tile, layout, feedback, subtract=True)
            packer.put(part)
        packer.put(_scalar_lanes(scalars, layout))
    return packer.digest


def compile_encoder() -> None:
    """Compile, or load, what `encode_upload` runs, for both widths of lanes: some ten seconds, once on a machine.

    For before a deadline runs: on a machine that has never sealed anything, the first upload would wait for it.
    """
    for bits in (8, 16):
        layout = VectorLayout(parameters=1, scalars=1, bits=bits, members=2, clip=1.0, rotation_seed=bytes(32))
        with tempfile.TemporaryDirectory(prefix="confide-") as name:
            encode_upload(
                np.ones(1, dtype=np.float32), [1], layout, rounding_key=secrets.token_bytes(32), masks=[],
                out=Path(name) / "upload",
            )  # fmt: skip


def _integers(update: NDArray[np.float32], layout: VectorLayout) -> NDArray[np.float64]:
    """The integers whose multiples of the step the update holds, exactly: float32 is off by less than half of one."""
    _finite_norm(update)
    whole = np.zeros(layout.coordinates)
    np.rint(update.astype(np.float64) / layout.step, out=whole[: layout.parameters])
    return np.clip(whole, -layout.levels, layout.levels, out=whole)


def _restore_integers(lanes: Lanes, layout: VectorLayout, start: int, into: NDArray[np.float32]) -> None:
    """Write what the lanes from `start` on stand for: two's complement of lane_bits bits."""
    wide = lanes[: max(0, layout.parameters - start)].astype(np.int64) & ((1 << layout.lane_bits) - 1)
    wide -= (wide >> (layout.lane_bits - 1)) << layout.lane_bits
    into[start : start + wide.size] = wide * layout.step


def _rotated(
    source: NDArray[np.float32], rotation: _Rotation, layout: VectorLayout, scale: float
) -> NDArray[np.float64]:
    """The whole rotated vector in order of its lanes, in units of the step, clamped."""
    whole, done = np.empty(layout.coordinates), 0
    for tile in rotation.tiles():
        kernels.load(source.view("<i4"), tile.signs, tile.start, layout.columns, tile.width, tile.values, tile.bits)
        kernels.finish_rotation(tile.values, tile.width)
        without_gaps = tile.values.reshape(16, -1)[:, : 64 * tile.width]
        np.multiply(without_gaps, scale, out=whole[done : done + tile.lanes].reshape(16, -1))
        done += tile.lanes
    return np.clip(whole, -layout.levels, layout.levels, out=whole)


def _clipped(
    update: NDArray[np.float32], clip: float, feedback: NDArray[np.float32] | None
) -> tuple[NDArray[np.float32], float]:
    """(the vector to send, the factor still to be applied to it). With feedback the vector is built in its place."""
    if feedback is not None:
        _finite_norm(update)
        np.add(update, feedback, out=feedback)
    source = update if feedback is None else feedback
    norm = _finite_norm(source)
    factor = clip / norm if norm > clip else 1.0
    if feedback is None or factor == 1.0:
        return source, factor
    feedback *= np.float32(factor)
    return feedback, 1.0


def _finite_norm(vector: NDArray[np.float32]) -> float:
    norm = math.sqrt(kernels.squared_norm(vector))
    if not math.isfinite(norm):
        raise UpdateError("the update holds NaN or infinity; nothing of it is sent")
    return norm


def _decode(
    lanes: Lanes, lane_bits: int, tile: _Tile, layout: VectorLayout, into: NDArray[np.float32], *, subtract: bool
) -> None:
    """Write (or subtract) what a tile's integers stand for."""
    kernels.restore_lanes(lanes, lane_bits, np.float32(layout.step), tile.width, tile.values)
    kernels.store(
        tile.values, tile.bits, tile.signs, tile.start, layout.columns, tile.width, into, into.view("<i4"), subtract
    )


class UploadSum:
    """The coordinator's sum of the uploads of one slot, made tile by tile out of all files at once.

    Call `add` per upload, `remove_mask` per reconstructed mask, then `open` once. Beside the result a few buffers of
    one tile are held, whatever the number of files; a tile's integers never leave the cache.
    """

    def __init__(self, layout: VectorLayout) -> None:
        self._layout = layout
        self._uploads: list[tuple[Path, bytes | None]] = []
        self._removed: list[tuple[bytes, int]] = []

    def add(self, upload: Path, digest: bytes | None) -> None:
        """Add one upload, which is read when the sum is opened. Raises UpdateError for a wrong size.

        digest: what its bytes must have, checked as they are summed; None when the caller has checked the file.
        """
        size = upload.stat().st_size
        if size != self._layout.wire_bytes:
            raise UpdateError(f"upload {upload.name} has {size} bytes; the layout says {self._layout.wire_bytes}")
        self._uploads.append((upload, digest))

    def remove_mask(self, seed: bytes, sign: int) -> None:
        """Take away one mask that was added with this sign. Its keystream is made when the sum is opened."""
        _checked_sign(sign)
        checked_key(seed)
        self._removed.append((seed, sign))

    def open(self, contributors: int) -> tuple[NDArray[np.float32], list[int]]:
        """(sum of the updates, float32 of shape (parameters,); exact sums of the scalars).

        The caller compares the norm with contributors * clip (SUM_OUT_OF_RANGE). Raises UpdateError when a file does
        not have its digest, and when the scalars' digits or the padding cannot come from `contributors` vectors: masks
        are left, or one lied. StateError: a file was cut short.

        Guarantee: a digest that was given is of the very bytes that were summed, also when a file changes meanwhile.
        """
        layout, rotation = self._layout, _Rotation(self._layout)
        if not 1 <= contributors <= layout.members:
            raise UpdateError(f"{contributors} contributors; the layout allows 1 to {layout.members}")
        update = np.empty(layout.parameters, dtype=np.float32)
        masks = _Masks(((seed, -sign) for seed, sign in self._removed), layout, _BLOCK)
        lanes, tiles = np.empty(min(_BLOCK, layout.lanes), dtype=layout.lane_dtype), rotation.tiles()
        with _Unpacker(layout, self._uploads) as uploads:
            for start in range(0, layout.coordinates, _BLOCK):
                block = lanes[: min(_BLOCK, layout.coordinates - start)]
                uploads.sum_into(block)
                masks.add_to(block)
                if layout.integers:
                    _restore_integers(block, layout, start, update)
                    continue
                for done in range(0, block.size, TILE):
                    part = block[done : done + TILE]
                    _decode(part, layout.lane_bits, next(tiles), layout, update, subtract=False)
            tail = np.empty(layout.lanes - layout.coordinates, dtype=layout.lane_dtype)
            uploads.sum_into(tail)
            masks.add_to(tail)
            uploads.check_digests()
        return update, _read_scalars(tail, layout, contributors)


class _Unpacker:
    """Reads the uploads side by side, hashing what has a digest; one reused buffer for all of them."""

    def __init__(self, layout: VectorLayout, uploads: Sequence[tuple[Path, bytes | None]]) -> None:
        self._lane_bits = layout.lane_bits
        self._packed = np.empty(min(_BLOCK, layout.lanes) * layout.lane_bits // _word_bits(layout), layout.lane_dtype)
        self._expected = [(path, expected, None if expected is None else upload_hash()) for path, expected in uploads]
        self._open = ExitStack()
        self._files: list[Any] = []

    def __enter__(self) -> Self:
        with self._open:
            self._files = [
                self._open.enter_context(path.open("rb", buffering=0)) for path, _, _ in self._expected
            ]  # fmt: skip
            self._open = self._open.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def sum_into(self, lanes: Lanes) -> None:
        """Overwrite `lanes`, a multiple of 1024 and at most one block, by the sum of the uploads' next lanes."""
        lanes.fill(0)
        words = self._packed[: lanes.size * self._lane_bits // (8 * lanes.itemsize)]
        packed = words.view("u1").data
        for file, (path, _, made) in zip(self._files, self._expected, strict=True):
            _read_fully(file, packed, path)
            if made is not None:
                made.update(packed)
            kernels.unpack_add(words, self._lane_bits, lanes)

    def check_digests(self) -> None:
        """Raise UpdateError for a file that has another digest than was stated."""
        for path, expected, made in self._expected:
            if made is not None and expected is not None and made.digest() != expected:
                raise UpdateError(f"upload {path.name} has digest {made.hexdigest()}, not {expected.hex()}")


def _write_fully(file: Any, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]


def _read_fully(file: Any, into: memoryview, upload: Path) -> None:
    done = 0
    while done < len(into):
        count = file.readinto(into[done:])
        if not count:
            raise StateError(f"upload {upload.name} was cut short while it was read; the slot's sum is lost")
        done += count


def _scalar_lanes(scalars: Sequence[int], layout: VectorLayout) -> Lanes:
    """The lanes after the vector's: digits of base 2^bits, lowest first, then zeros."""
    tail = np.zeros(layout.lanes - layout.coordinates, dtype=layout.lane_dtype)
    for i, value in enumerate(scalars):
        for j in range(layout.digits):
            tail[i * layout.digits + j] = value >> (layout.bits * j) & (2**layout.bits - 1)
    return tail


def _read_scalars(tail: Lanes, layout: VectorLayout, contributors: int) -> list[int]:
    """The exact sums in the lanes after the vector's."""
    tail &= layout.lane_dtype.type((1 << layout.lane_bits) - 1)
    used = layout.scalars * layout.digits
    digits = tail[:used].astype(np.int64).reshape(layout.scalars, layout.digits)
    if tail[used:].any() or (digits > contributors * (2**layout.bits - 1)).any():
        raise UpdateError(f"the sum of {contributors} uploads does not open: masks are left or a lane is wrong")
    return [sum(int(digit) << (layout.bits * i) for i, digit in enumerate(row)) for row in digits]


def _word_bits(layout: VectorLayout) -> int:
    return 8 * layout.lane_dtype.itemsize


def _checked_sign(sign: int) -> int:
    if sign not in (1, -1):
        raise UpdateError(f"a mask's sign is {sign}; allowed: 1 and -1")
    return sign


def _check_inputs(
    update: NDArray[np.float32],
    scalars: Sequence[int],
    layout: VectorLayout,
    feedback: NDArray[np.float32] | None,
    to_integers: ToIntegers | None,
) -> None:
    for name, vector in (("update", update), ("feedback", feedback)):
        if vector is None:
            continue
        if vector.dtype != np.float32 or vector.shape != (layout.parameters,) or not vector.flags.c_contiguous:
            raise UpdateError(
                f"the {name} is {vector.dtype} of shape {vector.shape}; "
                f"the layout takes contiguous float32 of shape ({layout.parameters},)"
            )
    if len(scalars) != layout.scalars:
        raise UpdateError(f"{len(scalars)} scalars came; the layout has {layout.scalars}")
    for value in scalars:
        if not 0 <= value < 2**SCALAR_BITS:
            raise UpdateError(f"scalar {value} is outside [0, 2^32)")
    if feedback is not None and to_integers is not None:
        raise UpdateError("error feedback together with noise would leak what the noise hides; leave one out")
    if (to_integers is not None) != layout.noised:
        raise UpdateError("a layout made for noise goes with noise, and only with it; nothing is sent without")
