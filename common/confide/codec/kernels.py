"""Compiled inner loops of the codec: rotate, round, restore, pack, unpack. Each works on one tile or on groups.

The rotation of a tile of 1024 rows and C columns: flip the sign of (r, c) by bit c of 64-bit word r of the tile's
part of the sign stream; with g = C // 4, columns c, c+g, c+2g, c+3g (c < g) go through the orthonormal 4-point
Hadamard transform; every column goes through the 1024-point one in natural order. All but the flip commute, so the
inverse is the same steps with the flip last. Radix-4 passes run over 64 rows at a time ("near": `load`, `store`) and
over 16 rows 64 apart ("far": `round_lanes`, `restore_lanes`): either sweep stays in the first-level cache, because a
tile in memory has a gap of 16 values after every 64 rows; without it rows 64 apart would share a few cache sets. Loops
over columns are written for the constant 64 where it holds, which lets the compiler vectorize them fully.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.codec.compiled import compiled, inlined, narrow_shift

_Floats = NDArray[np.float32]
_Integers = NDArray[Any]

_TOP = np.int32(-(2**31))
_HALF = np.float32(0.5)
_ROUNDING_UNIT = np.float32(2.0**-16)
_ORTHONORMAL = np.float32(1.0 / 32.0)
_GAP = 16

_shifted_left = narrow_shift("left")
_shifted_right = narrow_shift("right")


def tile_values(width: int) -> int:
    """Floats of a tile of `width` columns in memory, gaps included."""
    return 16 * (64 * width + _GAP)


@inlined
def _at(row: int, width: int) -> int:
    """Where a row of a tile begins in memory."""
    return row * width + row // 64 * _GAP


@inlined
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


@inlined
def _near_rows(x: _Floats, first: int, width: int) -> None:
    """Passes over 64 neighbouring rows: distances 1, 4, 16."""
    o = _at(first, width)
    for b in range(0, 64, 4):
        _butterfly(x, o + b * width, o + (b + 1) * width, o + (b + 2) * width, o + (b + 3) * width, width)
    for b in range(0, 64, 16):
        _butterfly(x, o + b * width, o + (b + 4) * width, o + (b + 8) * width, o + (b + 12) * width, 4 * width)
    _butterfly(x, o, o + 16 * width, o + 32 * width, o + 48 * width, 16 * width)


@inlined
def _far_rows(x: _Floats, first: int, width: int) -> None:
    """Passes over the 16 rows `first` + 64 i: distances 64, 256."""
    o = first * width
    far = 64 * width + _GAP
    for b in range(o, o + 16 * far, 4 * far):
        _butterfly(x, b, b + far, b + 2 * far, b + 3 * far, width)
    for b in range(o, o + 4 * far, far):
        _butterfly(x, b, b + 4 * far, b + 8 * far, b + 12 * far, width)


@inlined
def _columns(x: _Floats, row: int, width: int) -> None:
    """The orthonormal 4-point transform over a row's columns in four groups; up to 3 left-over columns stay."""
    group = width // 4
    o = _at(row, width)
    for i in range(o, o + group):
        u = (x[i] + x[i + group]) * _HALF
        v = (x[i] - x[i + group]) * _HALF
        w = (x[i + 2 * group] + x[i + 3 * group]) * _HALF
        z = (x[i + 2 * group] - x[i + 3 * group]) * _HALF
        x[i] = u + w
        x[i + group] = v + z
        x[i + 2 * group] = u - w
        x[i + 3 * group] = v - z


@inlined
def _flipped(value: np.int32, word: np.int32, c: int) -> np.int32:
    """A float32, seen as int32, with its sign flipped where bit c of the word is set."""
    return value ^ (np.int32(word << np.int32(31 - c)) & _TOP)


@inlined
def _load_row(update: _Integers, base: int, signs: _Integers, row: int, width: int, tile: _Integers) -> None:
    """The update from `base` on with signs flipped, zeros after its end; float32 seen as int32."""
    o = _at(row, width)
    if width == 64 and base + 64 <= update.size:
        for half in range(2):
            word = signs[2 * row + half]
            into = tile[o + 32 * half : o + 32 * half + 32]
            source = update[base + 32 * half : base + 32 * half + 32]
            for c in range(32):
                into[c] = _flipped(source[c], word, c)
    else:
        for c in range(width):
            value = update[base + c] if base + c < update.size else np.int32(0)
            tile[o + c] = _flipped(value, signs[2 * row + c // 32], c % 32)


@inlined
def _load(
    update: _Integers, signs: _Integers, start: int, stride: int, width: int, tile: _Floats, bits: _Integers
) -> None:
    for near in range(0, 1024, 64):
        for row in range(near, near + 64):
            _load_row(update, row * stride + start, signs, row, width, bits)
            _columns(tile, row, width)
        _near_rows(tile, near, width)


@compiled("void(int32[::1], int32[::1], int64, int64, int64, float32[::1], int32[::1])")
def load(
    update: _Integers, signs: _Integers, start: int, stride: int, width: int, tile: _Floats, bits: _Integers
) -> None:
    """First half of the rotation: columns start .. start + width of the update into `tile`.

    update: float32 seen as int32. signs: 2048 words. stride: columns in all. bits: the tile's memory as int32.
    """
    if width == 64:
        _load(update, signs, start, stride, 64, tile, bits)
    else:
        _load(update, signs, start, stride, width, tile, bits)


@inlined
def _round(
    tile: _Floats, width: int, uniform: _Integers, scale: np.float32, levels: np.float32, lanes: _Integers
) -> None:
    for first in range(64):
        _far_rows(tile, first, width)
        for row in range(first, 1024, 64):
            o = _at(row, width)
            values = tile[o : o + width]
            random = uniform[row * width : (row + 1) * width]
            into = lanes[row * width : (row + 1) * width]
            for c in range(width):
                x = values[c] * scale
                x = levels if x > levels else x
                x = -levels if x < -levels else x
                x = np.floor(x + (np.float32(np.int32(random[c])) + _HALF) * _ROUNDING_UNIT)
                x = levels if x > levels else x
                into[c] = np.int32(x)


@compiled("void(float32[::1], int64, uint16[::1], float32, float32, {lanes})")
def round_lanes(
    tile: _Floats, width: int, uniform: _Integers, scale: np.float32, levels: np.float32, lanes: _Integers
) -> None:
    """Second half of the rotation, then scale and round stochastically to integers in two's complement.

    uniform: one 16-bit random integer u per lane; x becomes floor(x + (u + 1/2) / 2^16), clamped to +-levels before
    and after: the result's mean is x to within 2^-17 for |x| <= levels, and zero stays zero. `tile` is overwritten.
    """
    if width == 64:
        _round(tile, 64, uniform, scale, levels, lanes)
    else:
        _round(tile, width, uniform, scale, levels, lanes)


@compiled("void(float32[::1], int64)")
def finish_rotation(tile: _Floats, width: int) -> None:
    """Second half of the rotation alone, in place: what `round_lanes` begins with."""
    for first in range(64):
        _far_rows(tile, first, width)


@inlined
def _restore(lanes: _Integers, lane_bits: int, step: np.float32, width: int, tile: _Floats) -> None:
    spare = np.int32(32 - lane_bits)
    unit = step * _ORTHONORMAL
    for first in range(64):
        for row in range(first, 1024, 64):
            o = _at(row, width)
            values = tile[o : o + width]
            source = lanes[row * width : (row + 1) * width]
            for c in range(width):
                values[c] = np.float32(np.int32(np.int32(source[c]) << spare) >> spare) * unit
        _far_rows(tile, first, width)


@compiled("void({lanes}, int64, float32, int64, float32[::1])")
def restore_lanes(lanes: _Integers, lane_bits: int, step: np.float32, width: int, tile: _Floats) -> None:
    """First half of the inverse: lanes as two's complement of lane_bits, times step, into `tile`."""
    if width == 64:
        _restore(lanes, lane_bits, step, 64, tile)
    else:
        _restore(lanes, lane_bits, step, width, tile)


@inlined
def _store_row(
    tile: _Floats, tile_bits: _Integers, signs: _Integers, row: int, width: int, base: int, update: _Floats,
    bits: _Integers, subtract: bool,
) -> None:  # fmt: skip
    """update from `base` on = (or -=) the row with signs flipped, as far as the update reaches.

    Flipping on the way keeps the compiler from calling memcpy, which costs more than it copies here.
    """
    o = _at(row, width)
    if width == 64 and base + 64 <= update.size:
        for half in range(2):
            word = signs[2 * row + half]
            source = tile_bits[o + 32 * half : o + 32 * half + 32]
            if subtract:
                for c in range(32):
                    source[c] = _flipped(source[c], word, c)
                for c in range(32):
                    update[base + 32 * half + c] -= tile[o + 32 * half + c]
            else:
                into = bits[base + 32 * half : base + 32 * half + 32]
                for c in range(32):
                    into[c] = _flipped(source[c], word, c)
    else:
        for c in range(min(width, update.size - base)):
            tile_bits[o + c] = _flipped(tile_bits[o + c], signs[2 * row + c // 32], c % 32)
            value = tile[o + c]
            update[base + c] = update[base + c] - value if subtract else value


@inlined
def _store(
    tile: _Floats, tile_bits: _Integers, signs: _Integers, start: int, stride: int, width: int, update: _Floats,
    bits: _Integers, subtract: bool,
) -> None:  # fmt: skip
    for near in range(0, 1024, 64):
        _near_rows(tile, near, width)
        for row in range(near, near + 64):
            _columns(tile, row, width)
            _store_row(tile, tile_bits, signs, row, width, row * stride + start, update, bits, subtract)


@compiled("void(float32[::1], int32[::1], int32[::1], int64, int64, int64, float32[::1], int32[::1], boolean)")
def store(
    tile: _Floats, tile_bits: _Integers, signs: _Integers, start: int, stride: int, width: int, update: _Floats,
    bits: _Integers, subtract: bool,
) -> None:  # fmt: skip
    """Second half of the inverse: the tile's values to where they stand in the update, or subtracted there.

    tile_bits, bits: the memory of the tile and of the update seen as int32. `tile` is overwritten.
    """
    if width == 64:
        _store(tile, tile_bits, signs, start, stride, 64, update, bits, subtract)
    else:
        _store(tile, tile_bits, signs, start, stride, width, update, bits, subtract)


@compiled("float64(float32[::1])", fastmath={"reassoc", "contract"})
def squared_norm(update: _Floats) -> float:
    """Sum of squares in float64. NaN and infinity show in it."""
    total = 0.0
    for i in range(update.size):
        total += np.float64(update[i]) * np.float64(update[i])
    return total


@compiled("void({lanes}, int64, {lanes})")
def pack(lanes: _Integers, lane_bits: int, words: _Integers) -> None:
    """Keep lane_bits of each lane, in groups of 1024 (layout.py, Packing)."""
    word_bits = 8 * lanes.itemsize
    count = 1024 // word_bits
    mask = (1 << lane_bits) - 1
    for group in range(lanes.size // 1024):
        source = lanes[group * 1024 : (group + 1) * 1024]
        into = words[group * count * lane_bits : (group + 1) * count * lane_bits]
        for row in range(word_bits):
            lane = source[row * count : (row + 1) * count]
            shift = row * lane_bits & (word_bits - 1)
            place = row * lane_bits // word_bits * count
            low = into[place : place + count]
            if shift == 0:
                for i in range(count):
                    low[i] = lane[i] & mask
            else:
                for i in range(count):
                    low[i] |= _shifted_left(lane[i] & mask, shift)
            if shift + lane_bits > word_bits:
                high = into[place + count : place + 2 * count]
                for i in range(count):
                    high[i] = _shifted_right(lane[i] & mask, word_bits - shift)


@compiled("void({lanes}, int64, {lanes})")
def unpack_add(words: _Integers, lane_bits: int, total: _Integers) -> None:
    """total += the packed lanes, modulo the word; it is reduced to lane_bits when it is read."""
    word_bits = 8 * total.itemsize
    count = 1024 // word_bits
    mask = (1 << lane_bits) - 1
    for group in range(total.size // 1024):
        into = total[group * 1024 : (group + 1) * 1024]
        source = words[group * count * lane_bits : (group + 1) * count * lane_bits]
        for row in range(word_bits):
            lane = into[row * count : (row + 1) * count]
            shift = row * lane_bits & (word_bits - 1)
            place = row * lane_bits // word_bits * count
            low = source[place : place + count]
            if shift + lane_bits > word_bits:
                high = source[place + count : place + 2 * count]
                for i in range(count):
                    lane[i] += (_shifted_right(low[i], shift) | _shifted_left(high[i], word_bits - shift)) & mask
            else:
                for i in range(count):
                    lane[i] += _shifted_right(low[i], shift) & mask
