"""Compiled inner loops of the codec: rotate and round, restore, pack, unpack. Everything about one tile or group.

Numba compiles them on first use and keeps the machine code in a private folder (XDG_CACHE_HOME/confide/numba)
unless NUMBA_CACHE_DIR names another, so that later processes start at once, from a wheel too. They release the
interpreter lock.

The rotation of a tile of 1024 rows and C columns: flip the sign of (r, c) by bit c of 64-bit word r of the tile's
part of the sign stream; with g = C // 4, columns c, c+g, c+2g, c+3g (c < g) go through the orthonormal 4-point
Hadamard transform; every column goes through the 1024-point one in natural order. It is its own inverse, up to
the order of the steps. Radix-4 passes run over 64 rows at a time and then over 16 rows 64 apart, so that each
sweep works within the first-level cache and the innermost loop is contiguous (vectorized by the compiler).
"""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from confide.files import private_folder


def _cache_folder() -> str:
    """A folder that only this user writes: compiled code is loaded from it."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return str(private_folder(Path(base).expanduser() / "confide" / "numba"))
    except OSError:
        folder = tempfile.mkdtemp(prefix="confide-numba-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return folder


if not os.environ.get("NUMBA_CACHE_DIR"):
    os.environ["NUMBA_CACHE_DIR"] = _cache_folder()

import numba  # noqa: E402  (its cache folder is set above)
import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Floats = NDArray[np.float32]
_Integers = NDArray[Any]

_U2, _U4, _I4, _F4 = numba.uint16[::1], numba.uint32[::1], numba.int32[::1], numba.float32[::1]
_I8, _S4, _S8, _VOID = numba.int64, numba.float32, numba.float64, numba.void


def _compiled(signatures: object, **options: object) -> Callable[[_Function], _Function]:
    """Compile for these signatures when this module is imported, or load the code compiled earlier."""
    made = numba.njit(signatures, cache=True, nogil=True, error_model="numpy", **options)
    return cast(Callable[[_Function], _Function], made)


def _inlined(function: _Function) -> _Function:
    """Compile into each caller."""
    return cast(_Function, numba.njit(inline="always", error_model="numpy")(function))


_TOP = np.int32(-(2**31))


@_inlined
def _butterfly(x: _Floats, a: int, b: int, c: int, d: int, count: int) -> None:
    """The unnormalised 4-point Hadamard transform of x[a + i], x[b + i], x[c + i], x[d + i] for i < count."""
    p = x[a : a + count]
    q = x[b : b + count]
    r = x[c : c + count]
    s = x[d : d + count]
    for i in range(count):
        u = p[i] + q[i]
        v = p[i] - q[i]
        w = r[i] + s[i]
        z = r[i] - s[i]
        p[i] = u + w
        q[i] = v + z
        r[i] = u - w
        s[i] = v - z


@_inlined
def _near_rows(x: _Floats, first: int, width: int) -> None:
    """Passes over 64 neighbouring rows: distances 1, 4, 16."""
    o = first * width
    for b in range(0, 64, 4):
        _butterfly(x, o + b * width, o + (b + 1) * width, o + (b + 2) * width, o + (b + 3) * width, width)
    for b in range(0, 64, 16):
        _butterfly(x, o + b * width, o + (b + 4) * width, o + (b + 8) * width, o + (b + 12) * width, 4 * width)
    _butterfly(x, o, o + 16 * width, o + 32 * width, o + 48 * width, 16 * width)


@_inlined
def _far_rows(x: _Floats, first: int, width: int) -> None:
    """Passes over the 16 rows `first` + 64 i: distances 64, 256."""
    for b in range(first, 1024, 256):
        _butterfly(x, b * width, (b + 64) * width, (b + 128) * width, (b + 192) * width, width)
    for b in range(first, 256, 64):
        _butterfly(x, b * width, (b + 256) * width, (b + 512) * width, (b + 768) * width, width)


@_inlined
def _near_columns(x: _Floats, row: int, width: int) -> None:
    """The orthonormal 4-point transform over a row's columns in four groups; up to 3 left-over columns stay."""
    group = width // 4
    o = row * width
    _butterfly(x, o, o + group, o + 2 * group, o + 3 * group, group)
    for i in range(o, o + 4 * group):
        x[i] *= np.float32(0.5)


@_inlined
def _flip(bits: _Integers, signs: _Integers, row: int, width: int) -> None:
    """Flip the sign bit of column c of a row where bit c of the row's 64-bit word is set; float32 seen as int32."""
    for half in range(2):
        word = signs[2 * row + half]
        start = min(32 * half, width)
        piece = bits[row * width + start : row * width + min(start + 32, width)]
        for c in range(piece.size):
            piece[c] = piece[c] ^ (np.int32(word << np.int32(31 - c)) & _TOP)


@_compiled(_S8(_F4, _F4), fastmath={"reassoc", "contract"})
def squared_norm(update: _Floats, feedback: _Floats) -> float:
    """Sum of squares, in float64, of update + feedback (of the same length, or empty). NaN and infinity show."""
    total = 0.0
    if feedback.size:
        for i in range(update.size):
            value = np.float64(update[i] + feedback[i])
            total += value * value
    else:
        for i in range(update.size):
            total += np.float64(update[i]) * np.float64(update[i])
    return total


@_compiled([_VOID(_F4, _F4, _I4, _I8, _I8, _I8, _F4, _I4, _U2, _S4, _S4, lanes) for lanes in (_U2, _U4)])
def rotate_and_round(
    update: _Floats,
    feedback: _Floats,
    signs: _Integers,
    start: int,
    stride: int,
    width: int,
    tile: _Floats,
    tile_bits: _Integers,
    uniform: _Integers,
    scale: Any,
    levels: Any,
    lanes: _Integers,
) -> None:
    """One tile: columns start .. start + width of update + feedback, rotated, times scale, rounded, as integers.

    uniform: one 16-bit random integer u per lane; x becomes floor(x + (u + 1/2) / 2^16), clamped to +-levels before
    and after, so that E[result] = x within 2^-17 for |x| <= levels and zero stays zero.
    tile: scratch of 1024 * width float32; tile_bits: the same memory as int32.
    lanes: the integers in two's complement, 1024 * width.
    """
    for near in range(0, 1024, 64):
        for row in range(near, near + 64):
            base = row * stride + start
            count = min(width, max(0, update.size - base))
            into = tile[row * width : row * width + width]
            source = update[base : base + count]
            for c in range(count):
                into[c] = source[c]
            if feedback.size:
                extra = feedback[base : base + count]
                for c in range(count):
                    into[c] += extra[c]
            for c in range(count, width):
                into[c] = np.float32(0.0)
            _flip(tile_bits, signs, row, width)
            _near_columns(tile, row, width)
        _near_rows(tile, near, width)
    for first in range(64):
        _far_rows(tile, first, width)
        for row in range(first, 1024, 64):
            values = tile[row * width : row * width + width]
            random = uniform[row * width : row * width + width]
            into = lanes[row * width : row * width + width]
            for c in range(width):
                x = values[c] * scale
                x = levels if x > levels else x
                x = -levels if x < -levels else x
                x = np.floor(x + (np.float32(np.int32(random[c])) + np.float32(0.5)) * np.float32(2.0**-16))
                x = levels if x > levels else x
                into[c] = np.int32(x)


@_compiled([_VOID(lanes, _I8, _S4, _I4, _I8, _F4, _I4) for lanes in (_U2, _U4)])
def restore(
    lanes: _Integers, lane_bits: int, step: Any, signs: _Integers, width: int, tile: _Floats, tile_bits: _Integers
) -> None:
    """The inverse of the rotation: lanes read as two's complement of lane_bits, times step; result in `tile`."""
    spare = np.int32(32 - lane_bits)
    unit = step * np.float32(1.0 / 32.0)
    for first in range(64):
        for row in range(first, 1024, 64):
            values = tile[row * width : row * width + width]
            source = lanes[row * width : row * width + width]
            for c in range(width):
                values[c] = np.float32(np.int32(np.int32(source[c]) << spare) >> spare) * unit
        _far_rows(tile, first, width)
    for near in range(0, 1024, 64):
        _near_rows(tile, near, width)
        for row in range(near, near + 64):
            _near_columns(tile, row, width)
            _flip(tile_bits, signs, row, width)


@_compiled(_VOID(_F4, _I8, _I8, _I8, _F4))
def scatter(tile: _Floats, start: int, stride: int, width: int, update: _Floats) -> None:
    """Write a tile's columns back to where they stand in the update."""
    for row in range(1024):
        base = row * stride + start
        into = update[base : min(base + width, update.size)]
        source = tile[row * width : row * width + width]
        for c in range(into.size):
            into[c] = source[c]


@_compiled(_VOID(_F4, _F4, _S4, _F4, _I8, _I8, _I8))
def keep_loss(
    update: _Floats, feedback: _Floats, factor: Any, tile: _Floats, start: int, stride: int, width: int
) -> None:
    """feedback = (update + feedback) * factor - what the tile's integers stand for."""
    for row in range(1024):
        base = row * stride + start
        into = feedback[base : min(base + width, update.size)]
        source = update[base : min(base + width, update.size)]
        sent = tile[row * width : row * width + width]
        for c in range(into.size):
            into[c] = (source[c] + into[c]) * factor - sent[c]


@_compiled([_VOID(lanes, _I8, lanes) for lanes in (_U2, _U4)])
def pack(lanes: _Integers, lane_bits: int, words: _Integers) -> None:
    """Keep lane_bits of each lane, in groups of 1024 (layout.py, Packing)."""
    word_bits = 8 * lanes.itemsize
    rows = word_bits
    count = 1024 // rows
    mask = (1 << lane_bits) - 1
    for group in range(lanes.size // 1024):
        source = lanes[group * 1024 : group * 1024 + 1024]
        into = words[group * count * lane_bits : (group + 1) * count * lane_bits]
        for row in range(rows):
            lane = source[row * count : row * count + count]
            shift = row * lane_bits & (word_bits - 1)
            place = row * lane_bits // word_bits * count
            low = into[place : place + count]
            if shift == 0:
                for i in range(count):
                    low[i] = lane[i] & mask
            else:
                for i in range(count):
                    low[i] |= (lane[i] & mask) << shift
            if shift + lane_bits > word_bits:
                high = into[place + count : place + 2 * count]
                for i in range(count):
                    high[i] = (lane[i] & mask) >> (word_bits - shift)


@_compiled([_VOID(lanes, _I8, lanes) for lanes in (_U2, _U4)])
def unpack_add(words: _Integers, lane_bits: int, total: _Integers) -> None:
    """total += the packed lanes, modulo the word (reduced to lane_bits when it is read)."""
    word_bits = 8 * total.itemsize
    rows = word_bits
    count = 1024 // rows
    mask = (1 << lane_bits) - 1
    for group in range(total.size // 1024):
        into = total[group * 1024 : group * 1024 + 1024]
        source = words[group * count * lane_bits : (group + 1) * count * lane_bits]
        for row in range(rows):
            lane = into[row * count : row * count + count]
            shift = row * lane_bits & (word_bits - 1)
            place = row * lane_bits // word_bits * count
            low = source[place : place + count]
            if shift + lane_bits > word_bits:
                high = source[place + count : place + 2 * count]
                for i in range(count):
                    lane[i] += ((low[i] >> shift) | (high[i] << (word_bits - shift))) & mask
            else:
                for i in range(count):
                    lane[i] += (low[i] >> shift) & mask
