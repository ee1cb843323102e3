"""The filter across runs: never above its budget, by an account that knows nothing of Renyi divergences."""

import math

import numpy as np
import pytest
from confide.privacy.events import Event, GaussianRelease, SampledGaussian
from confide.privacy.filter import FILTER_ORDERS, Budget, filter_epsilon, fits, order_limits
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

BUDGETS = st.builds(Budget, epsilon=st.floats(0.1, 20.0), delta=st.sampled_from([1e-8, 1e-5, 1e-3]))
GAUSSIANS = st.builds(GaussianRelease, noise_multiplier=st.floats(0.3, 60.0), count=st.integers(1, 5))


def exact_delta(events: list[GaussianRelease], epsilon: float) -> float:
    """Balle and Wang 2018, theorem 8."""
    mu = math.sqrt(sum(event.count * event.noise_multiplier**-2 for event in events))
    return float(stats.norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * stats.norm.cdf(-mu / 2 - epsilon / mu))


@settings(derandomize=True, deadline=None, max_examples=150)
@given(budget=BUDGETS, candidates=st.lists(GAUSSIANS, min_size=1, max_size=30))
def test_what_was_let_through_keeps_the_budget(budget: Budget, candidates: list[GaussianRelease]) -> None:
    accepted: list[GaussianRelease] = []
    for candidate in candidates:
        if fits([*accepted, candidate], budget):
            accepted.append(candidate)
    if accepted:
        assert exact_delta(accepted, budget.epsilon) <= budget.delta


def test_an_adaptive_adversary_stays_within_the_budget() -> None:
    """Played out: the next noise depends on all results so far, and the distinguisher is the best one.

    Under H1 each release has mean 1, under H0 mean 0. The privacy loss of the whole transcript is the sum of the
    releases'. P(loss > epsilon) - e^epsilon Q(...) is estimated from 20,000 games with the loss known exactly.
    """
    budget, rng = Budget(epsilon=1.0, delta=0.009), np.random.default_rng(1)
    menu = [GaussianRelease(noise_multiplier=sigma) for sigma in (2.0, 4.0, 8.0)]
    excess = []
    for _ in range(20_000):
        accepted, loss = [], 0.0
        while True:
            # Strike hard when the loss is low, softly when it is high: the choice leaks through the results.
            choice = menu[0] if loss < 0.2 else menu[1] if loss < 0.6 else menu[2]
            if not _fits_cached((*accepted, choice), budget):
                break
            accepted.append(choice)
            variance = choice.noise_multiplier**2
            loss += (2 * rng.normal(1.0, choice.noise_multiplier) - 1.0) / (2 * variance)
        excess.append(max(0.0, 1.0 - math.exp(budget.epsilon - loss)))
    assert 1e-6 < np.mean(excess) + 1e-5 <= budget.delta + 4 * np.std(excess) / math.sqrt(len(excess))


_known: dict[tuple[tuple[float, int], ...], bool] = {}


def _fits_cached(events: tuple[GaussianRelease, ...], budget: Budget) -> bool:
    sigmas = [event.noise_multiplier for event in events]
    key = tuple((sigma, sigmas.count(sigma)) for sigma in sorted(set(sigmas)))
    if key not in _known:
        _known[key] = fits(events, budget)
    return _known[key]


def test_delta_is_shared_among_the_orders() -> None:
    """Letting every order use the whole delta would be wrong: which order has room depends on what was seen."""
    budget = Budget(epsilon=2.0, delta=1e-5)
    for order, limit in zip(FILTER_ORDERS, order_limits(budget), strict=True):
        share = math.exp((order - 1) * (limit - 2.0 + math.log1p(-1 / order))) / order
        assert share == pytest.approx(1e-5 / len(FILTER_ORDERS))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    events=st.lists(
        st.one_of(
            GAUSSIANS,
            st.builds(
                SampledGaussian,
                noise_multiplier=st.floats(0.6, 5),
                sampling_rate=st.sampled_from([0.001, 0.05]),
                steps=st.integers(1, 2000),
            ),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_the_smallest_budget_is_the_smallest(events: list[Event]) -> None:
    needed = filter_epsilon(events, delta=1e-5)
    if 0.01 < needed < 900:
        assert fits(events, Budget(epsilon=needed, delta=1e-5))
        assert not fits(events, Budget(epsilon=needed * 0.999, delta=1e-5))


def test_nothing_always_fits() -> None:
    assert fits([], Budget(epsilon=1e-6, delta=1e-9))
    assert filter_epsilon([], delta=1e-5) == 0.0
