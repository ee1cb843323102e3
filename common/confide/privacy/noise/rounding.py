"""Stochastic rounding to integers whose norm is bounded for certain, so that the bound may be accounted.

Rounding a vector at random can push its norm above the clipping norm. Instead of accounting for the worst rounding,
the draw is repeated until the norm is within a bound that nearly every draw meets (Kairouz, Liu and Steinke 2021,
section 2 and proposition 22). The bound then holds always, and delta pays nothing for it.

>>> bound = squared_norm_bound(scaled_clip=100.0, dimension=64, beta=0.5)
>>> rounded = conditionally_round(np.full(64, 12.5), bound=bound, random=SecureRandom())
>>> squared_norm(rounded) <= bound
True
"""

import math

import numpy as np
from numpy.typing import NDArray

from confide.errors import FailureName, ProtocolFailure, UpdateError
from confide.privacy.noise.randomness import SecureRandom

DEFAULT_BETA = math.exp(-0.5)
"""Chance that one draw is rejected, at most: about two draws in expectation at the very worst (Kairouz et al. 2021)."""

MAX_INTEGER = 1 << 40
_MAX_DRAWS = 200
_EXACT_PIECE = 1 << 20


def squared_norm_bound(*, scaled_clip: float, dimension: int, beta: float = DEFAULT_BETA) -> int:
    """The largest squared L2 norm, an integer, that a rounded vector may have.

    scaled_clip: s*C, the clipping norm in integer units, above 0. dimension: D, coordinates that are rounded (padding
    included). beta: in (0, 1). With them the bound is the floor of

        min{ (sC + sqrt(D))^2,  s^2 C^2 + D/4 + sqrt(2 ln(1/beta)) (sC + sqrt(D)/2) }

    Guarantee: a vector of norm at most s*C meets it with probability at least 1 - beta at every draw.
    Raises ProtocolFailure PARAMETERS_IMPOSSIBLE for values out of range.
    """
    if not (scaled_clip > 0 and math.isfinite(scaled_clip) and dimension >= 1 and 0 < beta < 1):
        raise ProtocolFailure(
            FailureName.PARAMETERS_IMPOSSIBLE,
            f"conditional rounding of {dimension} coordinates with a clip of {scaled_clip} integer units and beta "
            f"{beta}; the clip must be positive, there must be a coordinate, and beta lies between 0 and 1",
        )
    root = math.sqrt(dimension)
    always = (scaled_clip + root) ** 2
    likely = scaled_clip**2 + dimension / 4 + math.sqrt(2 * math.log(1 / beta)) * (scaled_clip + root / 2)
    return math.floor(min(always, likely))


def squared_norm(integers: NDArray[np.int64]) -> int:
    """The exact squared L2 norm of int64, shape (n,), entries at most 2^40 in size; float64 could round it down."""
    if integers.size and int(np.abs(integers).max()) > MAX_INTEGER:
        raise UpdateError("an integer exceeds 2^40 in size; the scale is out of all proportion")
    total = 0
    for start in range(0, integers.size, _EXACT_PIECE):
        piece = integers[start : start + _EXACT_PIECE]
        low, high = piece & 0xFFFFF, piece >> 20
        # (high 2^20 + low)^2 in three sums, each below 2^63.
        total += (int(high @ high) << 40) + (int(high @ low) << 21) + int(low @ low)
    return total


def conditionally_round(scaled: NDArray[np.float64], *, bound: int, random: SecureRandom) -> NDArray[np.int64]:
    """int64, the shape of `scaled`, (n,): each coordinate rounded up or down at random, unbiased before conditioning.

    scaled: float64, finite, already clipped, rotated and multiplied by the scale.
    Guarantee: squared_norm(result) <= bound, exactly, whatever `scaled` is.
    Raises UpdateError when no draw meets the bound: the vector was not clipped to the norm the bound was made for.
    """
    if scaled.ndim != 1 or not np.isfinite(scaled).all():
        raise UpdateError("a vector to be rounded holds NaN or infinity, or is not flat; nothing of it is sent")
    if scaled.size and float(np.abs(scaled).max()) >= MAX_INTEGER:
        raise UpdateError("a scaled coordinate exceeds 2^40; the scale is out of all proportion")
    floor = np.floor(scaled)
    fraction, base = scaled - floor, floor.astype(np.int64)
    for _ in range(_MAX_DRAWS):
        rounded: NDArray[np.int64] = base + (random.uniform(scaled.size) < fraction)
        if squared_norm(rounded) <= bound:
            return rounded
    raise UpdateError(
        f"{_MAX_DRAWS} draws of stochastic rounding exceeded the norm bound (squared: {bound}); "
        "the update was not clipped to the norm that the bound was calculated for"
    )
