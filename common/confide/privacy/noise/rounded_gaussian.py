"""Integers distributed exactly as a Gaussian number that is rounded to the nearest integer.

    K = floor(s Z + 1/2),  Z standard normal,  P(K = k) = Phi((k + 1/2) / s) - Phi((k - 1/2) / s)

Drawn by inversion of a uniform number V whose binary digits come one word at a time. float64 finds K at once unless s Z
lies so near to a half integer that float64's own error could decide; then the digits known so far are compared with
the boundary in as many digits as it takes, and further ones are drawn while they do not decide (Karney 2016 calls such
samplers exact). So no float64 rounding and no cut tail is left in the distribution.

>>> from confide.privacy.noise.randomness import SecureRandom
>>> SecureRandom().rounded_gaussian(3, stddev=2.0**22).dtype
dtype('int64')
"""

from collections.abc import Callable

import mpmath
import numpy as np
from numpy.typing import NDArray
from scipy import special

Words = Callable[[int], NDArray[np.uint64]]
"""Returns that many fresh uniform 64-bit words."""

MAX_STDDEV = 2.0**40
"""Beyond, float64 could not hold the result to half an integer."""

_CHUNK = 1 << 14
_TAIL = np.uint64(1 << 52)
_MAGNITUDE = np.uint64((1 << 63) - 1)

_DOUBT = 2.0**-47
"""Bound on the relative error of scipy's ndtri and of what is computed around it; 4 * 2^-53 is what tests find."""


def rounded_gaussian(words: Words, size: int, *, stddev: float) -> NDArray[np.int64]:
    """int64, shape (size,): floor(stddev * Z + 1/2) for independent standard normal Z. 0 < stddev <= 2^40.

    Guarantee: exact for uniform words, as far as float64's normal quantile is within 2^-47 (1 + |z|) of the true one.
    """
    if not 0 < stddev <= MAX_STDDEV:
        raise ValueError(f"stddev is {stddev}; rounded Gaussian noise needs one above 0 and at most 2^40")
    parts = [_draw(words, min(_CHUNK, size - start), stddev) for start in range(0, size, _CHUNK)]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def _draw(words: Words, size: int, stddev: float) -> NDArray[np.int64]:
    """One bit of each word is the sign; V in (0, 1/2), the probability of the tail beyond |Z|, begins with the rest."""
    first = words(size)
    digits = first & _MAGNITUDE
    tail = (digits.astype(np.float64) + 0.5) * 2.0**-64
    # Far out in the tail 63 digits are too few for float64: take another word, so that V is known to full precision.
    far = np.flatnonzero(digits < _TAIL)
    more = words(far.size)
    tail[far] = (digits[far].astype(np.float64) + (more.astype(np.float64) + 0.5) * 2.0**-64) * 2.0**-64
    magnitude = -special.ndtri(tail)
    shifted = stddev * magnitude + 0.5
    result: NDArray[np.int64] = np.floor(shifted).astype(np.int64)
    doubt = _DOUBT * (stddev * (1.0 + magnitude) + 1.0)
    # Where even the first word is zero, two words may be too few for float64.
    doubtful = (np.abs(shifted - np.rint(shifted)) <= doubt) | (digits == 0)
    for index in np.flatnonzero(doubtful):
        known, bits = int(digits[index]), 64
        place = int(np.searchsorted(far, index))
        if place < far.size and far[place] == index:
            known, bits = (known << 64) | int(more[place]), 128
        result[index] = _Tail(words, known, bits).rounded(int(result[index]), stddev)
    np.negative(result, out=result, where=first > _MAGNITUDE)
    return result


class _Tail:
    """V, of which the first `bits` binary digits are known: known <= 2^bits V < known + 1."""

    def __init__(self, words: Words, known: int, bits: int) -> None:
        self._words, self._known, self._bits = words, known, bits

    def rounded(self, guess: int, stddev: float) -> int:
        """The k >= 0 whose interval [k - 1/2, k + 1/2) holds |s Z|: the smallest that |s Z| is not beyond.

        A guess that is right, or nearly so, takes two comparisons; one that is far off (known digits that are almost
        all zero say little of the quantile) is closed in on by doubling steps and halving.
        """
        low, high, step = guess, guess, 1
        while low > 0 and not self._beyond(low - 0.5, stddev):
            low, high, step = max(0, low - step), low - 1, 2 * step
        step = 1
        while self._beyond(high + 0.5, stddev):
            low, high, step = high + 1, high + step, 2 * step
        while low < high:
            middle = (low + high) // 2
            if self._beyond(middle + 0.5, stddev):
                low = middle + 1
            else:
                high = middle
        return low

    def _beyond(self, boundary: float, stddev: float) -> bool:
        """Whether |s Z| is above the boundary, a half integer below 2^52: V is below the boundary's own tail."""
        while True:
            with mpmath.workprec(self._bits + 96):
                own = mpmath.ldexp(mpmath.ncdf(-mpmath.mpf(boundary) / mpmath.mpf(stddev)), self._bits)
                # The error of `own` is below 2^-64 of a unit; this asks for far more.
                if self._known + 1 <= own - 2.0**-32:
                    return True
                if self._known >= own + 2.0**-32:
                    return False
            self._known = (self._known << 64) | int(self._words(1)[0])
            self._bits += 64
