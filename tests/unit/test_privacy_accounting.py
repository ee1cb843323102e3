"""Accounting against published figures, closed forms and numerical integration."""

import math

import numpy as np
import pytest
from confide.errors import LedgerError
from confide.privacy.accounting import (
    epsilon,
    epsilon_by_pld,
    epsilon_by_rdp,
    rdp_to_epsilon,
    renyi,
    skellam_renyi,
)
from confide.privacy.events import Event, GaussianRelease, SampledGaussian, SkellamRelease
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import optimize, special, stats

DELTA = 1e-5


def facts(sigma: float) -> list[Event]:
    """N = 10000, B = 512, 98 steps."""
    return [SampledGaussian(noise_multiplier=sigma, sampling_rate=512 / 10000, steps=98)]


@pytest.mark.parametrize(("sigma", "pld", "rdp"), [(1.0873, 3.00, 3.44), (0.69925, 8.00, 9.29)])
def test_the_known_run_costs_what_is_known(sigma: float, pld: float, rdp: float) -> None:
    assert epsilon_by_pld(facts(sigma), delta=DELTA) == pytest.approx(pld, abs=0.005)
    assert epsilon_by_rdp(facts(sigma), delta=DELTA) == pytest.approx(rdp, abs=0.005)


def exact_gaussian_epsilon(sigmas: list[float], delta: float) -> float:
    """Balle and Wang 2018, theorem 8: Gaussians compose to one Gaussian."""
    mu = math.sqrt(sum(sigma**-2 for sigma in sigmas))

    def excess(eps: float) -> float:
        tail = math.exp(eps) * stats.norm.cdf(-mu / 2 - eps / mu)
        return float(stats.norm.cdf(mu / 2 - eps / mu) - tail - delta)

    return float(optimize.brentq(excess, 0.0, 100.0))


@pytest.mark.parametrize("sigmas", [[1.0], [2.0, 3.0], [0.8, 5.0, 5.0]])
def test_plain_gaussians_cost_their_closed_form(sigmas: list[float]) -> None:
    events = [GaussianRelease(noise_multiplier=sigma) for sigma in sigmas]
    exact = exact_gaussian_epsilon(sigmas, DELTA)
    assert exact <= epsilon_by_pld(events, delta=DELTA) <= exact * 1.002
    assert exact < epsilon_by_rdp(events, delta=DELTA) < exact * 1.2


def sampled_gaussian_oracle(order: float, sigma: float, rate: float) -> float:
    """The Renyi divergence of one step by integrating on a fine grid (Mironov, Talwar and Zhang 2019, theorem 4)."""
    x = np.linspace(-20 * sigma, order + 20 * sigma, 400_001)
    base = stats.norm.logpdf(x, scale=sigma)
    mixture = np.logaddexp(math.log1p(-rate) + base, math.log(rate) + stats.norm.logpdf(x, loc=1, scale=sigma))
    logs = order * mixture + (1 - order) * base
    return float((special.logsumexp(logs) + math.log(x[1] - x[0])) / (order - 1))


@pytest.mark.parametrize("order", [2, 3, 8, 32])
@pytest.mark.parametrize(("sigma", "rate"), [(0.8, 0.01), (1.0, 0.1), (3.0, 0.5), (2.0, 1.0)])
def test_renyi_of_dp_sgd_agrees_with_integration(order: float, sigma: float, rate: float) -> None:
    expected = order / (2 * sigma**2) if rate == 1.0 else sampled_gaussian_oracle(order, sigma, rate)
    got = renyi([SampledGaussian(noise_multiplier=sigma, sampling_rate=rate, steps=7)], [order])[0]
    assert got == pytest.approx(7 * expected, rel=1e-6)


def log_skellam(k: NDArray[np.float64], variance: float) -> NDArray[np.float64]:
    """log P(Z = k), also where it underflows: from e^-mu I_k(mu) = e^-mu (mu/2)^k 0F1(k+1, mu^2/4) / k!."""
    size = np.abs(k)
    scaled = special.ive(size, variance)
    series = (
        -variance
        + size * math.log(variance / 2)
        - special.gammaln(size + 1)
        + np.log(special.hyp0f1(size + 1, np.full_like(size, min(variance, 50.0) ** 2 / 4)))
    )
    with np.errstate(divide="ignore"):
        return np.where((scaled > 1e-280) | (variance > 50), np.log(scaled), series)


def exact_skellam_renyi(order: int, shift: int, variance: float) -> float:
    """The larger of the two directions."""
    reach = int(12 * math.sqrt(variance) + 3 * order * shift + 80)
    k = np.arange(-reach, reach + 1, dtype=np.float64)
    moved, still = log_skellam(k - shift, variance), log_skellam(k, variance)
    known = np.isfinite(moved) & np.isfinite(still)
    moved, still = moved[known], still[known]
    forth = special.logsumexp(order * moved + (1 - order) * still)
    back = special.logsumexp(order * still + (1 - order) * moved)
    return float(max(forth, back) / (order - 1))


@pytest.mark.parametrize("order", [2, 3, 5, 8, 16])
@pytest.mark.parametrize("shift", [1, 2, 4, 7])
@pytest.mark.parametrize("variance", [1.0, 4.0, 30.0, 200.0, 2000.0])
def test_the_skellam_bound_holds_in_one_dimension(variance: float, shift: int, order: int) -> None:
    exact = exact_skellam_renyi(order, shift, variance)
    assert exact <= skellam_renyi(order, variance=variance, l1=shift, l2=shift) * (1 + 1e-9)


@pytest.mark.parametrize("shift", [(1, 1), (2, 1, 0), (3, 1, 1, 2), (1,) * 9])
@pytest.mark.parametrize("variance", [3.0, 25.0, 400.0])
def test_the_skellam_bound_holds_in_more_dimensions(shift: tuple[int, ...], variance: float) -> None:
    """Coordinates are independent, so exact divergences add up."""
    l2, l1 = math.sqrt(sum(s * s for s in shift)), float(sum(shift))
    assert l1 <= l2 * min(math.sqrt(len(shift)), l2) + 1e-9
    for order in (2, 4, 12):
        exact = sum(exact_skellam_renyi(order, s, variance) for s in shift if s)
        assert exact <= skellam_renyi(order, variance=variance, l1=l1, l2=l2) * (1 + 1e-9)


def test_the_skellam_bound_is_tight_where_noise_is_large() -> None:
    """At most 1 % more than the truth, and close to the Gaussian's: oracle and formula meet."""
    exact, bound = exact_skellam_renyi(4, 3, 2000.0), skellam_renyi(4, variance=2000.0, l1=3, l2=3)
    assert exact <= bound <= 1.01 * exact
    assert exact == pytest.approx(4 * 9 / (2 * 2000.0), rel=1e-3)


def test_the_skellam_bound_is_the_published_one() -> None:
    """The price of being discrete is a bound of a proof: the exact divergence leaves room below, so it is pinned here.

    Both branches of the minimum, by hand, at order 3.
    """
    near = 3 * 4 / 200 + (5 * 4 + 6 * 3) / (4 * 100**2)
    assert skellam_renyi(3, variance=100.0, l1=3.0, l2=2.0) == pytest.approx(near)
    far = 3 * 400 / 20 + 3 * 30 / (2 * 10)
    assert skellam_renyi(3, variance=10.0, l1=30.0, l2=20.0) == pytest.approx(far)


def test_fractional_orders_take_the_next_integer() -> None:
    at = [skellam_renyi(order, variance=40.0, l1=3, l2=2) for order in (2.5, 3, 3.0001, 4)]
    assert at[0] == at[1] and at[2] == at[3] and at[1] < at[3]


def test_skellam_events_are_priced_by_renyi() -> None:
    events = [SkellamRelease(variance=400.0, l2=10.0, l1=100.0, count=3), GaussianRelease(noise_multiplier=4.0)]
    assert epsilon(events, delta=DELTA) == epsilon_by_rdp(events, delta=DELTA) > 0
    with pytest.raises(LedgerError, match="not available for Skellam"):
        epsilon_by_pld(events, delta=DELTA)


def test_nothing_costs_nothing() -> None:
    assert epsilon([], delta=DELTA) == 0.0 == epsilon_by_rdp([], delta=DELTA)


@pytest.mark.parametrize("delta", [0.0, -1e-5, 1.0, math.nan])
def test_a_senseless_delta_is_refused(delta: float) -> None:
    with pytest.raises(LedgerError, match="delta"):
        epsilon(facts(1.0), delta=delta)


def test_the_conversion_is_the_published_one() -> None:
    """Canonne, Kamath and Steinke 2020, proposition 12: epsilon = r + log((a-1)/a) - (log delta + log a)/(a-1)."""
    expected = 0.7 + math.log(4 / 5) - (math.log(1e-6) + math.log(5)) / 4
    assert rdp_to_epsilon(5, 0.7, 1e-6) == pytest.approx(expected)


EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(GaussianRelease, noise_multiplier=st.floats(0.5, 100), count=st.integers(1, 50)),
    st.builds(
        SampledGaussian,
        noise_multiplier=st.floats(0.5, 20),
        sampling_rate=st.sampled_from([1e-4, 0.01, 0.1, 1.0]),
        steps=st.integers(1, 10_000),
    ),
    st.builds(
        SkellamRelease, variance=st.floats(10, 1e6), l2=st.floats(1, 30), l1=st.floats(1, 300), count=st.integers(1, 50)
    ),
)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(events=st.lists(EVENTS, min_size=1, max_size=4), extra=EVENTS)
def test_composition_only_ever_costs_more(events: list[Event], extra: Event) -> None:
    assert epsilon_by_rdp([*events, extra], delta=DELTA) >= epsilon_by_rdp(events, delta=DELTA)
    orders = (2.0, 5.0, 20.0)
    whole, parts = renyi([*events, extra], orders), [renyi([event], orders) for event in [*events, extra]]
    assert whole == pytest.approx([sum(values) for values in zip(*parts, strict=True)])
    assert epsilon_by_rdp(events, delta=1e-7) >= epsilon_by_rdp(events, delta=1e-5)


def test_repetition_is_composition() -> None:
    event = SampledGaussian(noise_multiplier=1.0, sampling_rate=0.02, steps=5)
    assert epsilon_by_pld([event] * 8, delta=DELTA) == epsilon_by_pld([event.times(8)], delta=DELTA)
