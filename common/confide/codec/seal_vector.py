"""The codec's two halves: a node's update into one masked, packed file; the coordinator's running sum of such files.

Node: clip -> rotate -> scale -> round stochastically -> (+ noise) -> + masks modulo 2^w -> pack -> file, one tile
of 65,536 coordinates at a time, so that beside the update itself only a few buffers of one tile are held.
Coordinator: add files, subtract masks, restore; its memory does not depend on the number of files.
layout.py specifies the integers and the file; keystream.py the masks.

Guarantee: under masks whose seeds the reader does not hold, a file is indistinguishable from random bytes of its
length: every lane, padding included, is masked before it is packed. The file's length depends on the layout only.

>>> import tempfile
>>> layout = VectorLayout(parameters=3, scalars=1, bits=16, members=2, clip=10.0, rotation_seed=bytes(32))
>>> folder, total, pairwise = Path(tempfile.mkdtemp()), RunningSum(layout), bytes(range(32))
>>> for name, sign in (("hospital-a", 1), ("hospital-b", -1)):
...     update = np.array([1.0, 2.0, sign], dtype=np.float32)
...     key, out = os.urandom(32), folder / name
...     total.add(out, encode_upload(update, [7], layout, rounding_key=key, masks=[(pairwise, sign)], out=out))
>>> vector, scalars = total.open(contributors=2)
>>> [round(float(value), 1) + 0.0 for value in vector], scalars
([2.0, 4.0, 0.0], [14])
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.codec import kernels
from confide.codec.keystream import Keystream
from confide.codec.layout import ROWS, SCALAR_BITS, TILE, TILE_COLUMNS, VectorLayout
from confide.errors import StateError, UpdateError

Lanes = NDArray[Any]
Noise = Callable[[int], NDArray[np.int64]]

_NONE = np.empty(0, dtype=np.float32)


class _Rotation:
    """Scratch memory and the sign stream of one pass over the tiles of a layout, in order."""

    def __init__(self, layout: VectorLayout) -> None:
        self._layout = layout
        self._signs = Keystream(layout.rotation_seed)
        self.words = np.empty(2 * ROWS, dtype="<i4")
        self._memory = np.empty(ROWS * min(TILE_COLUMNS, layout.columns), dtype="<f4")

    def tiles(self) -> Iterator[tuple[int, int, NDArray[np.float32], NDArray[np.int32]]]:
        """(first column, width, float scratch, the same memory as int32); fills `words` with the tile's signs."""
        for start in range(0, self._layout.columns, TILE_COLUMNS):
            width = min(TILE_COLUMNS, self._layout.columns - start)
            self._signs.fill(self.words)
            tile = self._memory[: ROWS * width]
            yield start, width, tile, tile.view("<i4")


class _Packer:
    """Masks and packs lanes chunk by chunk into a file; one reused buffer for all keystreams."""

    def __init__(self, layout: VectorLayout, masks: Sequence[tuple[bytes, int]], out: Path) -> None:
        self._layout = layout
        self._masks = [(Keystream(seed), _checked_sign(sign)) for seed, sign in masks]
        self._stream = np.empty(min(TILE, layout.lanes), dtype=layout.lane_dtype)
        self._words = np.empty(min(TILE, layout.lanes) * layout.lane_bits // _word_bits(layout), layout.lane_dtype)
        self._hash = hashlib.sha256()
        self._file = os.fdopen(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb", buffering=0)

    def put(self, lanes: Lanes) -> None:
        stream = self._stream[: lanes.size]
        for keystream, sign in self._masks:
            keystream.fill(stream)
            (np.add if sign > 0 else np.subtract)(lanes, stream, out=lanes)
        words = self._words[: lanes.size * self._layout.lane_bits // _word_bits(self._layout)]
        kernels.pack(lanes, self._layout.lane_bits, words)
        self._hash.update(words.data)
        self._file.write(words.data)

    def close(self) -> bytes:
        self._file.close()
        return self._hash.digest()


def encode_upload(
    update: NDArray[np.float32],
    scalars: Sequence[int],
    layout: VectorLayout,
    *,
    rounding_key: bytes,
    masks: Sequence[tuple[bytes, int]],
    out: Path,
    feedback: NDArray[np.float32] | None = None,
    noise: Noise | None = None,
) -> bytes:
    """Write the masked, packed upload to `out` (mode 0600, not fsynced) and return its SHA-256.

    update: float32, shape (layout.parameters,), finite; clipped to norm layout.clip (with feedback: their sum is).
    scalars: layout.scalars integers in [0, 2^32), summed exactly.
    rounding_key: 32 secret random bytes, fresh for every upload: stochastic rounding.
    masks: (32-byte seed, +1 or -1), the self mask among them; each seed serves this one vector only.
    feedback: error feedback, float32 like update: added before clipping, and overwritten in place by what rounding
        and the clamp lost. What the norm clip removed is not carried: a node that always exceeds the clip would
        pile it up without bound. Keep a copy to roll back. Not together with noise.
    noise: called with a number of lanes, tile by tile, returns that many integers to add before masking. Scalars
        are not noised. layout.noise_bits must leave room for them.

    Raises UpdateError for a wrong length, dtype, NaN, infinity, scalar or key.
    """
    _check_inputs(update, scalars, layout, feedback, noise)
    extra = _NONE if feedback is None else feedback
    norm = math.sqrt(kernels.squared_norm(update, extra))
    if not math.isfinite(norm):
        raise UpdateError("the update holds NaN or infinity; nothing of it is sent")
    factor = min(1.0, layout.clip / norm) if norm > 0 else 1.0
    rotation, uniform = _Rotation(layout), Keystream(rounding_key)
    random = np.empty(min(TILE, layout.coordinates), dtype="<u2")
    lanes = np.empty(min(TILE, layout.lanes), dtype=layout.lane_dtype)
    packer = _Packer(layout, masks, out)
    # The rotation's kernel leaves out the factor 1/32 that makes the 1024-point transform orthonormal.
    scale = np.float32(factor / layout.step / 32)
    for start, width, tile, bits in rotation.tiles():
        size = ROWS * width
        kernels.rotate_and_round(
            update, extra, rotation.words, start, layout.columns, width, tile, bits,
            uniform.fill(random[:size]), scale, np.float32(layout.levels), lanes[:size],
        )  # fmt: skip
        if feedback is not None:
            word = _word_bits(layout)
            kernels.restore(lanes[:size], word, np.float32(layout.step), rotation.words, width, tile, bits)
            kernels.keep_loss(update, feedback, np.float32(factor), tile, start, layout.columns, width)
        if noise is not None:
            lanes[:size] += noise(size).astype(layout.lane_dtype)
        packer.put(lanes[:size])
    tail = _scalar_lanes(scalars, layout)
    if tail.size:
        packer.put(tail)
    return packer.close()


class RunningSum:
    """The coordinator's sum of uploads of one slot: one lane vector, in memory or in the file `path`.

    Call `add` per upload, `remove_mask` per reconstructed mask, then `open` once.
    """

    def __init__(self, layout: VectorLayout, path: Path | None = None) -> None:
        self._layout = layout
        self._total: Lanes
        if path is None or layout.lanes == 0:
            self._total = np.zeros(layout.lanes, dtype=layout.lane_dtype)
        else:
            self._total = np.memmap(path, dtype=layout.lane_dtype, mode="w+", shape=(layout.lanes,))
            path.chmod(0o600)
        self._packed = bytearray(min(TILE, layout.lanes) * layout.lane_bits // 8)

    def add(self, upload: Path, expected_sha256: bytes) -> None:
        """Add one upload. Raises UpdateError for a wrong size or digest; the sum is then as before."""
        size = upload.stat().st_size
        if size != self._layout.wire_bytes:
            raise UpdateError(f"upload {upload.name} has {size} bytes; the layout says {self._layout.wire_bytes}")
        digest = self._accumulate(upload)
        if digest != expected_sha256:
            np.negative(self._total, out=self._total)
            undone = self._accumulate(upload)
            np.negative(self._total, out=self._total)
            if undone != digest:
                raise StateError(f"upload {upload.name} changed while it was read; the slot's sum is lost")
            raise UpdateError(f"upload {upload.name} has SHA-256 {digest.hex()}, not {expected_sha256.hex()}")

    def remove_mask(self, seed: bytes, sign: int) -> None:
        """Take away one mask that was added with this sign."""
        keystream, remove = Keystream(seed), np.subtract if _checked_sign(sign) > 0 else np.add
        stream = np.empty(min(TILE, self._layout.lanes), dtype=self._layout.lane_dtype)
        for start in range(0, self._layout.lanes, TILE):
            piece = self._total[start : start + TILE]
            remove(piece, keystream.fill(stream[: piece.size]), out=piece)

    def open(self, contributors: int) -> tuple[NDArray[np.float32], list[int]]:
        """(sum of the updates, float32 of shape (parameters,); exact sums of the scalars).

        The caller compares the norm with contributors * clip (SUM_OUT_OF_RANGE). Raises UpdateError when the
        scalars' digits or the padding cannot come from `contributors` vectors: masks are left, or one lied.
        """
        layout, rotation = self._layout, _Rotation(self._layout)
        if not 1 <= contributors <= layout.members:
            raise UpdateError(f"{contributors} contributors; the layout allows 1 to {layout.members}")
        scalars = self._open_scalars(contributors)
        update = np.empty(layout.parameters, dtype=np.float32)
        for start, width, tile, bits in rotation.tiles():
            lanes = self._total[ROWS * start : ROWS * (start + width)]
            kernels.restore(lanes, layout.lane_bits, np.float32(layout.step), rotation.words, width, tile, bits)
            kernels.scatter(tile, start, layout.columns, width, update)
        return update, scalars

    def _open_scalars(self, contributors: int) -> list[int]:
        layout = self._layout
        tail = self._total[layout.coordinates :] & layout.lane_dtype.type(2**layout.lane_bits - 1)
        used = layout.scalars * layout.digits
        digits = tail[:used].astype(np.int64).reshape(layout.scalars, layout.digits)
        if tail[used:].any() or (digits > contributors * (2**layout.bits - 1)).any():
            raise UpdateError(f"the sum of {contributors} uploads does not open: masks are left or a lane is wrong")
        return [sum(int(digit) << (layout.bits * i) for i, digit in enumerate(row)) for row in digits]

    def _accumulate(self, upload: Path) -> bytes:
        digest = hashlib.sha256()
        with upload.open("rb", buffering=0) as file:
            for start in range(0, self._layout.lanes, TILE):
                piece = self._total[start : start + TILE]
                packed = memoryview(self._packed)[: piece.size * self._layout.lane_bits // 8]
                _read_fully(file, packed, upload)
                digest.update(packed)
                words = np.frombuffer(packed, dtype=self._layout.lane_dtype)
                kernels.unpack_add(words, self._layout.lane_bits, piece)
        return digest.digest()


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
    noise: Noise | None,
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
    if feedback is not None and noise is not None:
        raise UpdateError("error feedback together with noise would leak what the noise hides; leave one out")
