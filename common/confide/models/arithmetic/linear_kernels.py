"""The gradient of a linear layer's weight in bfloat16 on the matrix unit, in float32.

torch's product takes twice as long as here where both operands lie transposed, as they do in this one, and rounds its
result to bfloat16. Both operands are packed once, 256 tokens at a time, which stay in the core's cache.

    weight.grad = weight_gradient(gradient, inputs)
"""

import torch
from torch.nn import functional as F

from confide.codec.compiled import compiled
from confide.models.arithmetic.matrix_unit import (
    LAYOUT,
    clear,
    configure,
    in_threads,
    load,
    multiply,
    pack,
    release,
    store,
    transpose,
)

BLOCK = 32
"""Widths are multiples of it."""

_TOKENS = 256


@compiled("void(int64, int64, int64, int64, int64, int64, int64, int64, int64, int64, int64, int64, int64)")
def _add_product(
    left: int,
    left_row: int,
    right: int,
    right_row: int,
    sums: int,
    sums_row: int,
    count: int,
    first: int,
    last: int,
    width: int,
    started: int,
    packed: int,
    layout: int,
) -> None:
    """sums += left^T right of `count` tokens; columns first to last of left, all `width` ones of right."""
    rights = packed + _TOKENS * (last - first) * 2
    configure(layout)
    for begin in range(0, count, _TOKENS):
        tokens = min(_TOKENS, count - begin)
        for token in range(0, tokens, 32):
            line = left + (begin + token) * left_row
            for row in range(first, last, 32):
                transpose(line + row * 2, left_row, packed + (row - first) * tokens * 2 + token * 64)
            line = right + (begin + token) * right_row
            for column in range(0, width, 32):
                pack(line + column * 2, right_row, rights + column * tokens * 2 + token * 64)
        for row in range(first, last, 32):
            for column in range(0, width, 32):
                place = sums + row * sums_row + column * 4
                if started or begin > 0:
                    load(place, sums_row)
                else:
                    clear()
                own, other = packed + (row - first) * tokens * 2, rights + column * tokens * 2
                for token in range(0, tokens * 64, 2048):
                    multiply(own + token, 1024, 64, other + token, 1024)
                store(place, sums_row)
    release()


def weight_gradient(gradient: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """gradient^T inputs: (N, out) and (N, in) in bfloat16, rows contiguous -> (out, in) float32."""
    count, outer = gradient.shape
    inner = inputs.shape[1]
    sums = torch.empty(outer, inner)
    whole = count // BLOCK * BLOCK
    parts = [(gradient, inputs, whole)] if whole else []
    if whole < count:
        rest = (0, 0, 0, BLOCK - (count - whole))
        parts.append((F.pad(gradient[whole:], rest), F.pad(inputs[whole:], rest), BLOCK))

    def work(first: int, last: int) -> None:
        first, last = first * BLOCK, last * BLOCK
        packed = torch.empty(_TOKENS * (last - first + inner) * 2, dtype=torch.uint8)
        for number, (left, right, tokens) in enumerate(parts):
            _add_product(
                left.data_ptr(), left.stride(0) * 2, right.data_ptr(), right.stride(0) * 2, sums.data_ptr(), inner * 4,
                tokens, first, last, inner, number, packed.data_ptr(), LAYOUT.data_ptr(),
            )  # fmt: skip

    in_threads(work, outer // BLOCK)
    return sums
