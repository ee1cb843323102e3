"""Attention forward and backward in bfloat16 on the matrix unit, one head of one sequence after another.

What is T x T is made in blocks of 32 queries and stays in the core's cache; blocks of 32 x 32 that the mask hides
entirely (above the diagonal, other documents) are skipped. Softmax and sums are float32, what is multiplied bfloat16.

    attend(query, key, value, mask, output)
"""

import math
from typing import Any

import numpy as np
import torch

from confide.codec.compiled import compiled, inlined
from confide.models.arithmetic.matrix_unit import (
    LAYOUT,
    clear,
    configure,
    in_threads,
    largest,
    multiply,
    pack,
    pack_transposed,
    power_of_two,
    release,
    round_lanes,
    store,
    transpose,
)

BLOCK = 32
"""Queries and keys of a block: sequences and widths are multiples of it."""

_SIGNATURE = (
    "void(int64[:, ::1], uint8[:, :, :, ::1], int64[:, ::1], uint8[:, ::1], float32[:, :, ::1], uint16[:, :, ::1], "
    "int64, int64, int64, int64, int64)"
)
# Not "nnan": a diverged model's NaN has to come out again.
_FAST = {"reassoc", "contract", "nsz"}
_HIDDEN = np.float32(-1e30)
_LOG2_E = np.float32(math.log2(math.e))
_LEAST = np.float32(-126)
_HALF = np.float32(0.5)
_ZERO, _ONE = np.float32(0), np.float32(1)
# 2^x between -1/2 and 1/2 by its Taylor series: relative error 3e-6, a thousandth of bfloat16's.
_C1, _C2, _C3, _C4, _C5 = (np.float32(math.log(2) ** n / math.factorial(n)) for n in range(1, 6))


@inlined
def _softmax(scores: Any, seen: Any) -> None:
    """In place, of one query, where `seen`; zeros where nothing is."""
    for key in range(scores.size):
        scores[key] = scores[key] if seen[key] else _HIDDEN
    top = _HIDDEN
    for key in range(0, scores.size, 32):
        top = max(top, largest(scores.ctypes.data + 4 * key))
    total = _ZERO
    for key in range(scores.size):
        power = max((scores[key] - top) * _LOG2_E, _LEAST)
        whole = np.floor(power + _HALF)
        x = power - whole
        value = (((((_C5 * x + _C4) * x + _C3) * x + _C2) * x + _C1) * x + _ONE) * power_of_two(whole)
        value = value if seen[key] else _ZERO
        scores[key] = value
        total += value
    share = _ONE / total if total > _ZERO else _ZERO
    for key in range(scores.size):
        scores[key] *= share


@inlined
def _find_ranges(seen: Any, ranges: Any) -> None:
    """Of each block of queries the first key that one of them sees, and the end of the last one, in whole blocks."""
    length = seen.shape[0]
    for block in range(length // 32):
        low, high = length, 0
        for start in range(0, length, 32):
            part = seen[block * 32 : block * 32 + 32, start : start + 32]
            count = 0
            for query in range(32):
                for key in range(32):
                    count += part[query, key]
            if count > 0:
                low = min(low, start)
                high = start + 32
        ranges[block, 0] = min(low, high)
        ranges[block, 1] = high


@inlined
def _pack_columns(source: int, row: int, count: int, width: int, packed: int) -> None:
    """Right tiles whose inner places are tokens: pair of column tiles after pair, 32 tokens after 32."""
    for column in range(0, width, 32):
        for token in range(0, count, 32):
            pack(source + token * row + column * 2, row, packed + column * count * 2 + token * 64)


@inlined
def _pack_rows(source: int, row: int, count: int, width: int, packed: int) -> None:
    """Right tiles whose columns are tokens: 32 tokens after 32, of each 32 places of the width after 32."""
    for token in range(0, count, 32):
        for column in range(0, width, 32):
            pack_transposed(source + token * row + column * 2, row, packed + token * width * 2 + column * 64)


@inlined
def _scores(rows: int, row: int, width: int, packed: int, low: int, high: int, out: int, out_row: int) -> None:
    """32 rows times tokens low to high, packed by rows."""
    for token in range(low, high, 32):
        clear()
        for column in range(0, width, 32):
            multiply(rows + column * 2, 16 * row, row, packed + token * width * 2 + column * 64, 1024)
        store(out + token * 4, out_row)


@inlined
def _sums(
    left: int, left_row: int, count: int, width: int, packed: int, low: int, high: int, sums: int, sums_row: int
) -> None:
    """32 rows of weights of tokens low to high, times these tokens, packed by columns."""
    for column in range(0, width, 32):
        clear()
        for token in range(low, high, 32):
            multiply(left + token * 2, 16 * left_row, left_row, packed + column * count * 2 + token * 64, 1024)
        store(sums + column * 4, sums_row)


@inlined
def _round(sums: int, sums_row: int, count: int, width: int, out: int, out_row: int) -> None:
    """Rows of sums, to bfloat16."""
    for row in range(count):
        for column in range(0, width, 32):
            round_lanes(sums + row * sums_row + column * 4, out + row * out_row + column * 2)


@inlined
def _start(places: Any, tensor: int, sequence: int, head: int) -> int:
    start: int = places[tensor, 0] + sequence * places[tensor, 1] + head * places[tensor, 2]
    return start


@compiled(_SIGNATURE, fastmath=_FAST)
def forward(
    places: Any,
    mask: Any,
    ranges: Any,
    packed: Any,
    scores: Any,
    shares: Any,
    first: int,
    last: int,
    heads: int,
    width: int,
    layout: int,
) -> None:
    """places: of query, key, value, output: address, and bytes from one sequence, head and token to the next.

    Sequences from first to last. mask (B or 1, H or 1, T, T). Scratch: ranges (T / 32, 2), packed (2, 2 T D),
    scores (1, 32, T or D), shares (1, 32, T).
    """
    length = mask.shape[2]
    keys, values = packed[0].ctypes.data, packed[1].ctypes.data
    table, table_row, weights = scores[0].ctypes.data, scores.shape[2] * 4, shares[0].ctypes.data
    query_row, key_row, value_row, out_row = places[0, 3], places[1, 3], places[2, 3], places[3, 3]
    configure(layout)
    for sequence in range(first, last):
        for head in range(heads):
            seen = mask[sequence if mask.shape[0] > 1 else 0, head if mask.shape[1] > 1 else 0]
            if head == 0 or mask.shape[1] > 1:
                _find_ranges(seen, ranges)
            query, out = _start(places, 0, sequence, head), _start(places, 3, sequence, head)
            _pack_rows(_start(places, 1, sequence, head), key_row, length, width, keys)
            _pack_columns(_start(places, 2, sequence, head), value_row, length, width, values)
            for start in range(0, length, 32):
                low, high = ranges[start // 32, 0], ranges[start // 32, 1]
                _scores(query + start * query_row, query_row, width, keys, low, high, table, table_row)
                for row in range(32):
                    _softmax(scores[0, row, low:high], seen[start + row, low:high])
                _round(table + low * 4, table_row, 32, high - low, weights + low * 2, length * 2)
                _sums(weights, length * 2, length, width, values, low, high, table, table_row)
                _round(table, table_row, 32, width, out + start * out_row, out_row)
    release()


@inlined
def _to_scores(shares: Any, gradients: Any) -> None:
    """Gradients of shares to those of scores, in place, of one query."""
    total = _ZERO
    for key in range(shares.size):
        total += shares[key] * gradients[key]
    for key in range(shares.size):
        gradients[key] = shares[key] * (gradients[key] - total)


@inlined
def _to_tokens(
    weights: Any, ranges: Any, rows: int, width: int, turned: int, sums: int, sums_row: int, out: int, out_row: int
) -> None:
    """weights^T rows, of weights (T, T) in which a block of queries has its range, and rows packed by columns."""
    length = weights.shape[0]
    first, row = weights.ctypes.data, length * 2
    for key in range(0, length, 32):
        for start in range(0, length, 32):
            if ranges[start // 32, 0] <= key < ranges[start // 32, 1]:
                transpose(first + start * row + key * 2, row, turned + start * 64)
        for column in range(0, width, 32):
            clear()
            for start in range(0, length, 32):
                if ranges[start // 32, 0] <= key < ranges[start // 32, 1]:
                    place = rows + column * length * 2 + start * 64
                    multiply(turned + start * 64, 1024, 64, place, 1024)
            store(sums + column * 4, sums_row)
        _round(sums, sums_row, 32, width, out + key * out_row, out_row)


@compiled(_SIGNATURE, fastmath=_FAST)
def backward(
    places: Any,
    mask: Any,
    ranges: Any,
    packed: Any,
    scores: Any,
    shares: Any,
    first: int,
    last: int,
    heads: int,
    width: int,
    layout: int,
) -> None:
    """places: of query, key, value, the output's gradient, and those of query, key and value.

    As `forward`, but packed (6, 2 T D or 64 T), scores (2, 32, T or D), shares (2, T, T).
    """
    length = mask.shape[2]
    table_row, sums, gradients = scores.shape[2] * 4, scores[0].ctypes.data, scores[1].ctypes.data
    weights, weight_gradients, weights_row = shares[0].ctypes.data, shares[1].ctypes.data, length * 2
    query_row, key_row, value_row, given_row, to_query_row = (
        places[0, 3], places[1, 3], places[2, 3], places[3, 3], places[4, 3],
    )  # fmt: skip
    key_rows, value_rows, keys, queries, givens, turned = (
        packed[0].ctypes.data, packed[1].ctypes.data, packed[2].ctypes.data,
        packed[3].ctypes.data, packed[4].ctypes.data, packed[5].ctypes.data,
    )  # fmt: skip
    configure(layout)
    for sequence in range(first, last):
        for head in range(heads):
            seen = mask[sequence if mask.shape[0] > 1 else 0, head if mask.shape[1] > 1 else 0]
            if head == 0 or mask.shape[1] > 1:
                _find_ranges(seen, ranges)
            query, key = _start(places, 0, sequence, head), _start(places, 1, sequence, head)
            value, given = _start(places, 2, sequence, head), _start(places, 3, sequence, head)
            to_query = _start(places, 4, sequence, head)
            _pack_rows(key, key_row, length, width, key_rows)
            _pack_rows(value, value_row, length, width, value_rows)
            _pack_columns(key, key_row, length, width, keys)
            _pack_columns(query, query_row, length, width, queries)
            _pack_columns(given, given_row, length, width, givens)
            for start in range(0, length, 32):
                low, high = ranges[start // 32, 0], ranges[start // 32, 1]
                _scores(query + start * query_row, query_row, width, key_rows, low, high, sums, table_row)
                _scores(given + start * given_row, given_row, width, value_rows, low, high, gradients, table_row)
                for row in range(32):
                    _softmax(scores[0, row, low:high], seen[start + row, low:high])
                    _to_scores(scores[0, row, low:high], scores[1, row, low:high])
                offset = start * weights_row + low * 2
                _round(sums + low * 4, table_row, 32, high - low, weights + offset, weights_row)
                _round(gradients + low * 4, table_row, 32, high - low, weight_gradients + offset, weights_row)
                own = weight_gradients + start * weights_row
                _sums(own, weights_row, length, width, keys, low, high, sums, table_row)
                _round(sums, table_row, 32, width, to_query + start * to_query_row, to_query_row)
            to_key, to_value = _start(places, 5, sequence, head), _start(places, 6, sequence, head)
            _to_tokens(shares[1], ranges, queries, width, turned, sums, table_row, to_key, places[5, 3])
            _to_tokens(shares[0], ranges, givens, width, turned, sums, table_row, to_value, places[6, 3])
    release()


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, output: torch.Tensor
) -> None:
    """softmax(query key^T) value where the mask is true, else zero, to `output`.

    Tensors (B, H, T, D) in bfloat16, of any strides but in D; mask bool (B or 1, H or 1, T, T).
    """
    _run(forward, (query, key, value, output), mask, packed=2, scores=1, shares=BLOCK)


def attend_backward(inputs: tuple[torch.Tensor, ...], mask: torch.Tensor, outputs: tuple[torch.Tensor, ...]) -> None:
    """inputs: query, key, value and the gradient of the output; outputs: the gradients of query, key and value."""
    _run(backward, (*inputs, *outputs), mask, packed=6, scores=2, shares=mask.shape[-1])


def _run(
    kernel: Any, tensors: tuple[torch.Tensor, ...], mask: torch.Tensor, *, packed: int, scores: int, shares: int
) -> None:
    sequences, heads, length, width = tensors[0].shape
    places = np.array([[t.data_ptr(), *(2 * stride for stride in t.stride()[:3])] for t in tensors], dtype=np.int64)
    seen = mask.contiguous().view(torch.uint8).numpy()

    def part(first: int, last: int) -> None:
        kernel(
            places,
            seen,
            np.empty((length // BLOCK, 2), dtype=np.int64),
            torch.empty(packed, 2 * length * max(width, BLOCK), dtype=torch.uint8).numpy(),
            torch.empty(scores, BLOCK, max(length, width)).numpy(),
            torch.empty(scores, shares, length, dtype=torch.uint16).numpy(),
            first,
            last,
            heads,
            width,
            LAYOUT.data_ptr(),
        )

    in_threads(part, sequences)
