"""Samplers against the distributions they claim, from fixed bytes: a p-value here never varies between runs."""

import math
import os
from typing import Any

import mpmath
import numpy as np
import pytest
from confide.privacy.noise.randomness import AesKeystream, ByteSource, SecureRandom, _log_poisson
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray
from scipy import special, stats

SAMPLES = 100_000
LEAST_P = 1e-3


def fixed_bytes(seed: int) -> ByteSource:
    """An AES keystream under a key that everybody knows."""
    encryptor = Cipher(algorithms.AES256(seed.to_bytes(32, "big")), modes.CTR(bytes(16))).encryptor()
    return lambda length: encryptor.update(bytes(length))


def fixed(seed: int = 1) -> SecureRandom:
    return SecureRandom(fixed_bytes(seed))


class Skellam:
    """Tabulated from its Bessel form, P(Z = k) = exp(-v) I_k(v): scipy's own quantiles do not converge."""

    def __init__(self, variance: float) -> None:
        self.reach = int(12 * math.sqrt(variance) + 30)
        self.k = np.arange(-self.reach, self.reach + 1)
        self.total = np.cumsum(special.ive(np.abs(self.k), variance))

    def cdf(self, k: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(self.total[np.clip(k.astype(np.int64) + self.reach, 0, 2 * self.reach)])

    def ppf(self, q: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.k[np.searchsorted(self.total, q)].astype(np.float64)


def chi_square_p(values: NDArray[np.int64], distribution: Any) -> float:
    """p-value over about 60 bins of nearly equal expected counts."""
    edges = np.unique(distribution.ppf(np.linspace(0.01, 0.99, 60)))
    probabilities = np.diff(np.concatenate(([0.0], distribution.cdf(edges), [1.0])))
    counts = np.bincount(np.searchsorted(edges, values, side="left"), minlength=edges.size + 1)
    return float(stats.chisquare(counts, probabilities * values.size).pvalue)


@pytest.mark.parametrize("mean", [0.05, 0.7, 3.0, 9.99, 10.0, 17.5, 100.0, 1e4, 1e8])
def test_poisson_fits_its_distribution(mean: float) -> None:
    values = fixed().poisson(SAMPLES, mean=mean)
    assert chi_square_p(values, stats.poisson(mean)) > LEAST_P


@pytest.mark.parametrize("mean", [3.0, 17.5, 1e4])
def test_the_poisson_test_has_power(mean: float) -> None:
    """The same samples do not pass for a distribution whose mean is off by a twentieth of a standard deviation."""
    values = fixed().poisson(SAMPLES, mean=mean)
    assert chi_square_p(values, stats.poisson(mean + math.sqrt(mean) / 20)) < 1e-6


@pytest.mark.parametrize("mean", [12.0, 300.0, 1e6, 1e9, 1e13])
def test_the_acceptance_test_is_exact_at_every_mean(mean: float) -> None:
    """Against 50 digits: float64 formulas such as k log(mean) - mean - log k! lose all of them at large means."""
    k = np.unique(np.clip(np.floor(mean + math.sqrt(mean) * np.linspace(-8, 8, 17)), 0, None))
    with mpmath.workdps(50):
        exact = [float(int(n) * mpmath.log(mean) - mean - mpmath.loggamma(int(n) + 1)) for n in k]
    assert np.abs(_log_poisson(k, mean) - np.array(exact)).max() < 1e-7


def test_poisson_of_a_huge_mean_has_its_moments() -> None:
    values = fixed().poisson(SAMPLES, mean=1e13).astype(np.float64) - 1e13
    assert abs(values.mean()) < 4 * math.sqrt(1e13 / SAMPLES)
    assert abs(values.var() / 1e13 - 1) < 0.02


@pytest.mark.parametrize("variance", [0.3, 4.0, 50.0, 1e6])
def test_skellam_fits_its_distribution(variance: float) -> None:
    values = fixed().skellam(SAMPLES, variance=variance)
    assert chi_square_p(values, Skellam(variance)) > LEAST_P


def test_the_noise_of_several_nodes_is_the_noise_of_one() -> None:
    total = sum(fixed(seed).skellam(SAMPLES, variance=10.0) for seed in range(4))
    assert chi_square_p(np.asarray(total), Skellam(40.0)) > LEAST_P


def test_uniform_excludes_both_ends() -> None:
    assert SecureRandom(lambda length: b"\x00" * length).uniform(1)[0] == 2.0**-53
    assert SecureRandom(lambda length: b"\xff" * length).uniform(1)[0] == 1 - 2.0**-53


def test_poisson_sample_includes_each_record_independently() -> None:
    random, records, rate = fixed(), 1000, 0.05
    sizes, hits = [], np.zeros(records)
    for _ in range(2000):
        sample = random.poisson_sample(records, rate)
        sizes.append(sample.size)
        hits[sample] += 1
    assert chi_square_p(np.array(sizes), stats.binom(records, rate)) > LEAST_P
    assert stats.chisquare(hits).pvalue > LEAST_P / 10


def test_poisson_sample_spans_chunks_in_order_and_knows_its_ends() -> None:
    sample = fixed().poisson_sample(200_000, 0.01)
    assert (np.diff(sample) > 0).all() and sample[-1] > 190_000
    assert fixed().poisson_sample(5, 1.0).tolist() == [0, 1, 2, 3, 4]
    assert fixed().poisson_sample(5, 0.0).size == 0
    assert fixed().poisson_sample(0, 0.5).size == 0


def test_small_batches_can_be_empty() -> None:
    sizes = [fixed(seed).poisson_sample(10, 0.1).size for seed in range(100)]
    assert 0 in sizes and max(sizes) > 1


def test_a_fork_does_not_repeat_the_noise() -> None:
    source = AesKeystream()
    source(16)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, source(32))
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 32) != source(32)
    os.close(reader)
    os.close(writer)


def test_keystreams_differ() -> None:
    assert AesKeystream()(32) != AesKeystream()(32)


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_noise_of_no_size_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="positive, finite"):
        fixed().skellam(1, variance=value)
    with pytest.raises(ValueError, match="above 0 and at most 2"):
        fixed().rounded_gaussian(1, stddev=value)


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        fixed().bernoulli(1, 1.5)
    with pytest.raises(ValueError, match="1e\\+15"):
        fixed().poisson(1, mean=1e16)
