"""Noise on a lattice: the sampler against exact probabilities, exact integers, and what it costs in epsilon."""

import math
from collections.abc import Iterator
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from confide.errors import SpecificationError
from confide.privacy.accounting import epsilon_by_pld
from confide.privacy.dpsgd import _add_clipped
from confide.privacy.events import SampledGaussian
from confide.privacy.noise import rounded_gaussian as sampler
from confide.privacy.noise.lattice import FINEST_BITS, Lattice
from confide.privacy.noise.randomness import SecureRandom
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import special, stats

from tests.unit.test_privacy_randomness import LEAST_P, SAMPLES, chi_square_p, fixed, fixed_bytes

# --- the sampler


class Rounded:
    """P(K <= k) = Phi((k + 1/2) / s)."""

    def __init__(self, stddev: float) -> None:
        self.stddev = stddev

    def cdf(self, k: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(stats.norm.cdf((k + 0.5) / self.stddev))

    def ppf(self, q: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.ceil(stats.norm.ppf(q) * self.stddev - 0.5)


@pytest.mark.parametrize("stddev", [0.4, 1.0, 7.3, 1e3, 2.0**22 * 0.7, 2.0**26])
def test_rounded_gaussian_fits_its_distribution(stddev: float) -> None:
    values = fixed().rounded_gaussian(SAMPLES, stddev=stddev)
    assert values.dtype == np.int64
    assert chi_square_p(values, Rounded(stddev)) > LEAST_P
    neighbours = np.corrcoef(values[:-1], values[1:])[0, 1]
    assert abs(neighbours) < 4 / math.sqrt(SAMPLES)


@pytest.mark.parametrize("stddev", [1.0, 2.0**22])
def test_the_test_of_rounded_gaussian_has_power(stddev: float) -> None:
    values = fixed().rounded_gaussian(SAMPLES, stddev=stddev)
    assert chi_square_p(values, Rounded(stddev * 1.03)) < LEAST_P
    assert chi_square_p(values + math.ceil(stddev / 10), Rounded(stddev)) < LEAST_P


def test_every_single_probability_is_right() -> None:
    """A small deviation, cell by cell, tails beyond four deviations in two cells."""
    values, k = fixed().rounded_gaussian(2_000_000, stddev=1.3), np.arange(-5, 6)
    expected = np.diff(np.concatenate(([0.0], Rounded(1.3).cdf(k - 0.0), [1.0])))
    counts = np.bincount(np.searchsorted(k, values, side="left"), minlength=k.size + 1)
    assert stats.chisquare(counts, expected * values.size).pvalue > LEAST_P


def test_tails_are_there() -> None:
    values = np.abs(fixed().rounded_gaussian(2_000_000, stddev=2.0**22))
    beyond = int((values > 4 * 2**22).sum())
    assert abs(beyond - 126.7) < 4 * math.sqrt(126.7)


def source(words: list[int]) -> tuple[SecureRandom, Iterator[int]]:
    """A generator whose words are given; the rest of them is what it has not taken."""
    left = iter(words)
    return SecureRandom(lambda length: b"".join(next(left).to_bytes(8, "little") for _ in range(length // 8))), left


WORDS = st.one_of(st.integers(0, 2**64 - 1), st.integers(1, 2**52), st.integers(2**63 + 1, 2**63 + 2**30))


@given(first=WORDS, more=st.lists(st.integers(0, 2**64 - 1), min_size=3, max_size=3), log_stddev=st.floats(-3, 40))
@example(first=2**63 - 1, more=[5, 5, 5], log_stddev=22.0)
@example(first=1, more=[2**64 - 1, 5, 5], log_stddev=40.0)
@example(first=0, more=[0, 5, 5], log_stddev=40.0)
def test_what_is_drawn_is_the_rounded_quantile_of_all_digits(first: int, more: list[int], log_stddev: float) -> None:
    """Against more digits: V = 0.digits of all words that were taken, K = floor(s |quantile of V| + 1/2)."""
    stddev = 2.0**log_stddev
    more = [*more, *[0x9E3779B97F4A7C15] * 20]  # after words of zeros, as many as it takes
    random, left = source([first, *more])
    found = abs(int(random.rounded_gaussian(1, stddev=stddev)[0]))
    taken = len(more) - len(list(left))
    with mpmath.workprec(64 * taken + 400):
        known = mpmath.mpf(first & (2**63 - 1)) / mpmath.mpf(2) ** 64
        for number in range(taken):
            known += mpmath.mpf(more[number]) / mpmath.mpf(2) ** (128 + 64 * number)
        unknown = mpmath.mpf(2) ** (-64 * (taken + 1))
        # |s Z| >= k - 1/2 for the whole of what is known of V, and < k + 1/2.
        s = mpmath.mpf(stddev)
        assert found == 0 or known + unknown / 2 <= mpmath.ncdf(-(found - mpmath.mpf(0.5)) / s)
        assert known + unknown / 2 >= mpmath.ncdf(-(found + mpmath.mpf(0.5)) / s)


@pytest.mark.parametrize("boundary", [1, 1000, 3 * 2**22, 4 * 2**22])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_draw_on_a_boundary_takes_digits_until_it_is_decided(boundary: int, sign: int) -> None:
    stddev = 2.0**22
    with mpmath.workdps(120):
        digits = int(mpmath.floor(mpmath.ldexp(mpmath.ncdf(-(boundary - mpmath.mpf(0.5)) / stddev), 256)))
    words = [digits >> shift & (2**64 - 1) for shift in (192, 128, 64, 0)]
    words[0] |= 0 if sign > 0 else 2**63
    for last, size in ((words[3] - 2, boundary), (words[3] + 2, boundary - 1)):
        random, left = source([*words[:3], last, 7, 7])
        assert random.rounded_gaussian(1, stddev=stddev).tolist() == [sign * size]
        assert len(list(left)) == 2, "four words decide, and not fewer"


def test_float64_quantiles_are_far_within_what_counts_as_doubt() -> None:
    drawn = np.random.default_rng(1)
    joints = np.concatenate([np.exp(-2) * (1 + np.linspace(-1e-9, 1e-9, 9)), np.exp(-32) * np.linspace(0.9, 1.1, 9)])
    tails = np.concatenate([drawn.random(300) / 2, 2.0 ** -drawn.uniform(1, 128, 500), joints])
    with mpmath.workprec(250):
        for tail, found in zip(tails, -special.ndtri(tails), strict=True):
            x = mpmath.mpf(float(found))
            error = (mpmath.ncdf(-x) - mpmath.mpf(float(tail))) / mpmath.npdf(x)
            assert abs(float(error)) < sampler._DOUBT / 8 * (1 + found)


def test_noise_comes_from_the_systems_generator_and_never_repeats() -> None:
    one, two = (SecureRandom().rounded_gaussian(1000, stddev=2.0**22) for _ in range(2))
    assert (one == two).mean() < 0.01
    words = 0

    def counted(length: int) -> bytes:
        nonlocal words
        words += length // 8
        return fixed_bytes(3)(length)

    SecureRandom(counted).rounded_gaussian(5000, stddev=2.0**22)
    assert 5000 <= words < 5020  # all its bits are the byte source's


def test_noise_beyond_what_float64_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 2"):
        fixed().rounded_gaussian(1, stddev=2.0**41)


# --- the lattice


def test_the_step_follows_from_public_constants_alone() -> None:
    for multiplier, bits in ((1e-3, 22), (0.5, 22), (15.9, 22), (16.0, 21), (1000.0, 16), (1e6, 6), (2.0**27, 0)):
        lattice = Lattice(clip=0.3, noise_multiplier=multiplier)
        assert lattice.bits == bits
        assert lattice.granularity * lattice.bound == 0.3
        assert lattice.noise_stddev / lattice.bound == multiplier
        assert lattice.noise_stddev <= 2.0**27
    assert FINEST_BITS == 22


@pytest.mark.parametrize("field", ["clip", "noise_multiplier"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_a_meaningless_lattice_is_refused(field: str, value: float) -> None:
    with pytest.raises(SpecificationError, match=f"{field} .* must be positive"):
        Lattice(**{"clip": 1.0, "noise_multiplier": 1.0, field: value})


def test_a_clip_near_the_smallest_numbers_is_refused() -> None:
    with pytest.raises(SpecificationError, match="the least that is allowed"):
        Lattice(clip=1e-10, noise_multiplier=1.0)


def integers_of(rows: list[NDArray[np.float32]], clip: float, *, shared: bool = False) -> list[int]:
    """The exact sum, through the product's own path, of one row or several."""
    sums = [torch.zeros(rows[0].size, dtype=torch.int64)]
    gradients = [torch.from_numpy(np.stack(rows))]
    _add_clipped(sums, gradients, Lattice(clip=clip, noise_multiplier=1.0), shared=shared)
    return [int(value) for value in sums[0]]


def hostile_rows(seed: int, size: int, spread: float) -> NDArray[np.float32]:
    random = np.random.default_rng(seed)
    row = random.standard_normal(size) * 10.0 ** random.uniform(-spread, spread, size)
    return row.astype(np.float32)


@given(
    seed=st.integers(0, 2**31),
    size=st.sampled_from([1, 2, 255, 256, 257, 1000, 40_000]),
    spread=st.sampled_from([0.0, 1.0, 15.0]),
    clip=st.floats(2.0**-30, 2.0**30),
)
def test_no_units_integers_are_longer_than_the_bound(seed: int, size: int, spread: float, clip: float) -> None:
    made = integers_of([hostile_rows(seed, size, spread)], clip)
    assert sum(value * value for value in made) <= 2 ** (2 * FINEST_BITS)


@pytest.mark.parametrize("value", [1.0, 0.1, 1 / 3, 1e-6, 1e12])
@pytest.mark.parametrize("size", [1, 3, 256, 300_000])
def test_equal_coordinates_reach_the_bound_and_not_beyond(value: float, size: int) -> None:
    """The worst case of adding squares in one direction of rounding."""
    made = integers_of([np.full(size, value, dtype=np.float32)], value / 7)
    squared = sum(v * v for v in made)
    assert squared <= 2 ** (2 * FINEST_BITS)
    assert squared > 0.99 * 2 ** (2 * FINEST_BITS) or size > 100_000  # rounding towards zero shortens


@given(seed=st.integers(0, 2**31), rows=st.integers(1, 6), cut=st.integers(0, 6))
def test_the_sum_is_exact_in_any_order_and_grouping(seed: int, rows: int, cut: int) -> None:
    made = [hostile_rows(seed + number, 300, 2.0) for number in range(rows)]
    whole = integers_of(made, 1.0)
    alone = [integers_of([row], 1.0) for row in made]
    assert whole == [sum(column) for column in zip(*alone, strict=True)]
    assert whole == integers_of(made[::-1], 1.0)
    if 0 < cut < rows:
        parts = integers_of(made[:cut], 1.0), integers_of(made[cut:], 1.0)
        assert whole == [a + b for a, b in zip(*parts, strict=True)]


def test_many_rows_at_the_bound_do_not_overflow() -> None:
    made = integers_of([np.array([1.0, 0.0], dtype=np.float32)] * 2000, 1.0)
    assert made[0] > 2000 * 2**22 * 0.999 > 2**31 and made[1] == 0


def test_a_part_of_the_bound_is_left_where_a_micro_batch_is_shared() -> None:
    row = [np.ones(64, dtype=np.float32)]
    alone, shared = (math.hypot(*integers_of(row, 1.0, shared=shared)) for shared in (False, True))
    assert shared / alone == pytest.approx(1 - 2.0**-7, rel=1e-5)


# --- what it costs


def divergence(p: NDArray[np.float64], q: NDArray[np.float64], epsilon: float) -> float:
    return float(np.maximum(p - math.exp(epsilon) * q, 0.0).sum())


def cells(shift: int, stddev: float) -> NDArray[np.float64]:
    """Probabilities of shift + K over all integers within 40 deviations, to float64's relative precision."""
    k = np.arange(-math.ceil(40 * stddev) - 60, math.ceil(40 * stddev) + 61)
    near = np.abs(k - shift)
    return np.asarray(special.ndtr((0.5 - near) / stddev) - special.ndtr((-0.5 - near) / stddev))


def continuous(epsilon: float, *, shift: float, stddev: float, rate: float) -> tuple[float, float]:
    """delta(epsilon) of the sampled Gaussian mechanism in both directions, from where its likelihood ratio crosses."""

    def crossing(ratio: float) -> float:
        return stddev**2 / shift * math.log((ratio - (1 - rate)) / rate) + shift / 2

    def beyond(x: float, mean: float) -> float:
        return float(stats.norm.sf((x - mean) / stddev))

    x = crossing(math.exp(epsilon))
    added = (1 - rate) * beyond(x, 0) + rate * beyond(x, shift) - math.exp(epsilon) * beyond(x, 0)
    if math.exp(-epsilon) <= 1 - rate:
        return added, 0.0
    y = crossing(math.exp(-epsilon))
    below = lambda mean: 1 - beyond(y, mean)  # noqa: E731
    removed = below(0) - math.exp(epsilon) * ((1 - rate) * below(0) + rate * below(shift))
    return added, removed


@pytest.mark.parametrize("rate", [1.0, 0.3, 0.01])
@pytest.mark.parametrize(("shift", "stddev"), [(1, 0.5), (1, 2.0), (8, 8.0), (64, 40.0), (1024, 1024.0)])
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0])
def test_the_rounded_mechanism_never_costs_more_than_the_gaussian(
    rate: float, shift: int, stddev: float, epsilon: float
) -> None:
    """The exact divergence of the integers, summed over them all, beside the closed form of the real mechanism."""
    silent, present = cells(0, stddev), cells(shift, stddev)
    mixed = (1 - rate) * silent + rate * present
    added, removed = continuous(epsilon, shift=shift, stddev=stddev, rate=rate)
    assert divergence(mixed, silent, epsilon) <= added * (1 + 1e-9) + 1e-14
    assert divergence(silent, mixed, epsilon) <= removed * (1 + 1e-9) + 1e-14
    if stddev >= 1000:  # and it is no free lunch either: on fine lattices nothing is gained
        assert divergence(mixed, silent, epsilon) == pytest.approx(added, rel=1e-4, abs=1e-12)


def test_two_dimensions_cost_no_more_than_their_length() -> None:
    stddev, epsilon = 6.0, 1.0
    p = np.multiply.outer(cells(3, stddev), cells(4, stddev)).ravel()
    q = np.multiply.outer(cells(0, stddev), cells(0, stddev)).ravel()
    added, _ = continuous(epsilon, shift=5.0, stddev=stddev, rate=1.0)
    assert 0.9 * added < divergence(p, q, epsilon) <= added * (1 + 1e-9)


@pytest.mark.parametrize("rate", [1.0, 0.05])
def test_what_the_ledger_charges_covers_several_steps_on_the_lattice(rate: float) -> None:
    """Three steps, composed exactly on the integers, cost at most what SampledGaussian says."""
    stddev, steps, delta = 3.0, 3, 1e-4
    silent = cells(0, stddev)
    mixed = (1 - rate) * silent + rate * cells(2, stddev)
    keep = silent > 1e-12
    p, q = mixed[keep], silent[keep]
    for _ in range(steps - 1):
        p, q = np.multiply.outer(p, mixed[keep]).ravel(), np.multiply.outer(q, silent[keep]).ravel()
    event = SampledGaussian(noise_multiplier=stddev / 2, sampling_rate=rate, steps=steps)
    claimed = epsilon_by_pld([event], delta=delta)
    assert max(divergence(p, q, claimed), divergence(q, p, claimed)) <= delta
    assert divergence(p, q, claimed * 0.8) > delta  # the claim is not far off


def test_the_sum_and_its_noise_are_the_rounding_of_a_gaussian_mechanism() -> None:
    """x + round(z) = round(x + z) for integers x: the step on which the whole proof rests."""
    noise = fixed(5).rounded_gaussian(SAMPLES, stddev=20.0)
    real = np.random.default_rng(5).normal(0, 20.0, SAMPLES)
    x: Any = np.random.default_rng(6).integers(-1000, 1000, SAMPLES)
    assert (x + np.floor(real + 0.5) == np.floor(x + real + 0.5)).all()
    assert chi_square_p(x + noise - x, Rounded(20.0)) > LEAST_P
