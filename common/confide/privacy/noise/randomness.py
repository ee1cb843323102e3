"""Random numbers that privacy may rest on: AES-256-CTR keyed by the operating system, and samplers of integers.

numpy's and torch's generators are predictable from their output; noise that can be predicted can be subtracted.
Everything here is drawn from one byte source, which tests replace by a fixed one.

Guarantee: against an adversary who sees any part of the output, the rest is as unpredictable as AES-256-CTR under a
key from os.urandom. A forked child never repeats its parent's noise.

All noise is integers: floating-point numbers lie on a grid that depends on their size, which betrays what they were
added to (Mironov 2012). `rounded_gaussian` follows its distribution exactly; `poisson` and `skellam` up to the limits
that their docstrings state.

>>> random = SecureRandom()
>>> random.rounded_gaussian(4, stddev=2.0).dtype, random.skellam(3, variance=50.0).dtype
(dtype('int64'), dtype('int64'))
"""

import math
import os
from collections.abc import Callable

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from confide.privacy.noise.rounded_gaussian import rounded_gaussian

ByteSource = Callable[[int], bytes]
"""Returns exactly that many random bytes."""

_CHUNK = 1 << 16
_MAX_MEAN = 1e15
_SMALL_MEAN = 10.0
_REKEY_BYTES = 1 << 36


class AesKeystream:
    """A byte source: AES-256 in counter mode under a fresh key from os.urandom (NIST SP 800-38A, 6.5)."""

    def __init__(self) -> None:
        self._rekey()

    def _rekey(self) -> None:
        # The counter starts at zero: a fresh key is never used with two counters that overlap.
        self._encryptor = Cipher(algorithms.AES256(os.urandom(32)), modes.CTR(bytes(16))).encryptor()
        self._process = os.getpid()
        self._given = 0

    def __call__(self, length: int) -> bytes:
        if self._process != os.getpid() or self._given > _REKEY_BYTES:
            self._rekey()  # a forked child would repeat its parent's noise
        self._given += length
        return self._encryptor.update(bytes(length))


class SecureRandom:
    """Samplers over a byte source. Not shared between threads."""

    def __init__(self, read: ByteSource | None = None) -> None:
        """`read` is replaced in tests only."""
        self._read = AesKeystream() if read is None else read

    def _words(self, size: int) -> NDArray[np.uint64]:
        return np.frombuffer(self._read(8 * size), dtype="<u8")

    def uniform(self, size: int) -> NDArray[np.float64]:
        """float64, shape (size,): multiples of 2^-53 shifted into the open interval (0, 1)."""
        # 52 bits and a half step: both ends are excluded exactly, so that log and 1/u are always finite.
        return ((self._words(size) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52

    def bernoulli(self, size: int, probability: float) -> NDArray[np.bool_]:
        """bool, shape (size,): each true with `probability` in [0, 1], exact to 2^-64."""
        if not 0 <= probability <= 1:
            raise ValueError(f"probability is {probability}; it must be in [0, 1]")
        if probability == 1:
            return np.ones(size, dtype=np.bool_)
        return self._words(size) < np.uint64(math.floor(math.ldexp(probability, 64)))

    def poisson_sample(self, records: int, sampling_rate: float) -> NDArray[np.int64]:
        """Indices of a Poisson sample: each of `records` records independently with `sampling_rate`, in order.

        Shape (k,) with k binomial, 0 included. Guarantee: the sampler that SampledGaussian accounts for.
        """
        parts = [
            start + np.flatnonzero(self.bernoulli(min(_CHUNK, records - start), sampling_rate))
            for start in range(0, records, _CHUNK)
        ]
        return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, dtype=np.int64)

    def rounded_gaussian(self, size: int, *, stddev: float) -> NDArray[np.int64]:
        """int64, shape (size,): floor(stddev * Z + 1/2), Z standard normal, exactly (rounded_gaussian.py).

        Raises ValueError unless 0 < stddev <= 2^40.
        """
        return rounded_gaussian(self._words, size, stddev=stddev)

    def poisson(self, size: int, *, mean: float) -> NDArray[np.int64]:
        """int64, shape (size,): Poisson with 0 <= mean <= 1e15.

        Below 10 by inverting the distribution function, else by transformed rejection with squeeze (Hörmann 1993,
        algorithm PTRS). Exact up to the float64 rounding of the acceptance test, relative error below 1e-7.
        """
        if not 0 <= mean <= _MAX_MEAN:
            raise ValueError(f"mean is {mean}; Poisson sampling allows 0 to {_MAX_MEAN:g}")
        draw = self._poisson_small if mean < _SMALL_MEAN else self._poisson_large
        parts = [draw(min(_CHUNK, size - start), mean) for start in range(0, size, _CHUNK)]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def _poisson_small(self, size: int, mean: float) -> NDArray[np.int64]:
        terms = np.exp(-mean) * np.cumprod(np.concatenate(([1.0], mean / np.arange(1.0, 100.0))))
        return np.searchsorted(np.cumsum(terms), self.uniform(size), side="right").astype(np.int64)

    def _poisson_large(self, size: int, mean: float) -> NDArray[np.int64]:
        result = np.empty(size, dtype=np.int64)
        missing = np.arange(size)
        while missing.size:
            candidate, accepted = _ptrs(mean, self.uniform(missing.size) - 0.5, self.uniform(missing.size))
            result[missing[accepted]] = candidate[accepted].astype(np.int64)
            missing = missing[~accepted]
        return result

    def skellam(self, size: int, *, variance: float) -> NDArray[np.int64]:
        """int64, shape (size,): the difference of two Poisson variables of mean variance / 2; mean 0.

        The sum of independent ones is again Skellam, which is why many nodes can share the noise of one.
        """
        if not (variance > 0 and math.isfinite(variance)):
            raise ValueError(f"variance is {variance}; noise needs a positive, finite one")
        return self.poisson(size, mean=variance / 2.0) - self.poisson(size, mean=variance / 2.0)


def _ptrs(mean: float, u: NDArray[np.float64], v: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Candidates and which of them are accepted, for u in (-1/2, 1/2) and v in (0, 1). Constants: Hörmann 1993."""
    b = 0.931 + 2.53 * math.sqrt(mean)
    a = -0.059 + 0.02483 * b
    inverse_alpha = 1.1239 + 1.1328 / (b - 3.4)
    squeeze = 0.9277 - 3.6224 / (b - 2.0)
    us = 0.5 - np.abs(u)
    candidate = np.floor((2.0 * a / us + b) * u + mean + 0.43)
    accepted = (us >= 0.07) & (v <= squeeze)
    doubtful = np.flatnonzero(~accepted & (candidate >= 0) & ((us >= 0.013) | (v <= us)))
    if doubtful.size:
        hat = np.log(v[doubtful] * inverse_alpha / (a / us[doubtful] ** 2 + b))
        accepted[doubtful] = hat <= _log_poisson(candidate[doubtful], mean)
    return candidate, accepted


def _log_poisson(k: NDArray[np.float64], mean: float) -> NDArray[np.float64]:
    """log of the Poisson probability of k by the saddle-point form (Loader 2000): no cancellation at large means."""
    at_zero = k == 0
    safe = np.where(at_zero, 1.0, k)
    x = (mean - safe) / safe
    # D(k, mean) = k log(k / mean) + mean - k, written so that the leading terms cancel exactly.
    deviance = safe * (x - np.log1p(x))
    log_probability = -_stirling_error(safe) - deviance - 0.5 * np.log(2.0 * np.pi * safe)
    return np.where(at_zero, -mean, log_probability)


def _stirling_error(k: NDArray[np.float64]) -> NDArray[np.float64]:
    """log(k!) minus Stirling's approximation, k >= 1: the series, after stepping up to k + 16 where k is small.

    With e(k) = log k! - (k + 1/2) log k + k - log(2 pi)/2 the step is e(k) = e(k+1) + (k + 1/2) log(1 + 1/k) - 1.
    """
    total = np.zeros_like(k)
    shifted = k.copy()
    small = k < 16
    for _ in range(16):
        if not small.any():
            break
        total[small] += (shifted[small] + 0.5) * np.log1p(1.0 / shifted[small]) - 1.0
        shifted[small] += 1.0
        small = small & (shifted < 16)
    square = shifted * shifted
    series = (1 / 12 - (1 / 360 - (1 / 1260 - 1 / (1680 * square)) / square) / square) / shifted
    return total + series
