"""One-run auditing against closed forms, exact fractions and mechanisms of known epsilon."""

import math
from fractions import Fraction

import numpy as np
import pytest
from confide.errors import DataError
from confide.privacy.audit.membership import attack_of
from confide.privacy.audit.one_run import (
    GUESSED_FRACTIONS,
    audit_scores,
    detectable_epsilon,
    epsilon_lower_bound,
    p_value,
)
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(("guesses", "confidence"), [(100, 0.95), (30, 0.95), (1000, 0.99)])
def test_all_right_has_a_closed_form(guesses: int, confidence: float) -> None:
    """delta 0, every guess right: q^r = 1 - confidence, so epsilon = logit((1 - confidence)^(1/r))."""
    q = (1 - confidence) ** (1 / guesses)
    bound = epsilon_lower_bound(canaries=2000, guesses=guesses, correct=guesses, delta=0.0, confidence=confidence)
    assert bound == pytest.approx(math.log(q / (1 - q)), abs=2e-6)


def test_known_p_value() -> None:
    # P[Binomial(10, 1/2) >= 9] = 11/1024
    assert p_value(canaries=10, guesses=10, correct=9, epsilon=0.0, delta=0.0) == pytest.approx(11 / 1024)


@pytest.mark.parametrize(("r", "v", "m"), [(20, 17, 20), (20, 17, 200), (12, 12, 50), (9, 1, 9)])
def test_p_value_with_delta_equals_the_theorem_in_exact_fractions(r: int, v: int, m: int) -> None:
    delta, odds = Fraction(1, 10**4), Fraction(5, 2)
    q = odds / (1 + odds)

    def f(least: int) -> Fraction:
        chosen = range(max(least, 0), r + 1)
        return sum((math.comb(r, k) * q**k * (1 - q) ** (r - k) for k in chosen), Fraction(0))

    expected = f(v) + 2 * m * delta * max((f(v - i) - f(v)) / i for i in range(1, m + 1))
    found = p_value(canaries=m, guesses=r, correct=v, epsilon=math.log(odds), delta=float(delta))
    assert found == pytest.approx(float(min(expected, Fraction(1))), rel=1e-9)


@given(
    correct=st.integers(0, 40),
    extra=st.integers(0, 40),
    epsilon=st.floats(0, 6),
    delta=st.floats(0, 0.1),
)
def test_more_right_guesses_never_weaken_the_evidence(correct: int, extra: int, epsilon: float, delta: float) -> None:
    guesses = correct + extra + 1
    less = p_value(canaries=guesses, guesses=guesses, correct=correct, epsilon=epsilon, delta=0.0)
    more = p_value(canaries=guesses, guesses=guesses, correct=correct + 1, epsilon=epsilon, delta=0.0)
    assert more <= less + 1e-12
    with_delta = p_value(canaries=guesses, guesses=guesses, correct=correct, epsilon=epsilon, delta=delta)
    assert less - 1e-12 <= with_delta <= 1.0


def randomized_response(random: np.random.Generator, canaries: int, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """Coins, and a mechanism that tells each with probability e^eps/(1+e^eps): exactly epsilon-private, and no less."""
    coins = random.random(canaries) < 0.5
    truth = random.random(canaries) < 1 / (1 + math.exp(-epsilon))
    return np.where(truth, coins, ~coins) + random.random(canaries) * 0.1, coins


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_bounds_hold_for_a_mechanism_of_known_epsilon_and_come_near_it(epsilon: float) -> None:
    random = np.random.Generator(np.random.PCG64(7))
    bounds = []
    for _ in range(200):
        scores, coins = randomized_response(random, 1000, epsilon)
        bounds.append(audit_scores(scores, coins, delta=0.0, confidence=0.95).epsilon)
    # At most 5 % may exceed epsilon; 200 draws of a 5 % event stay below 20 but once in 10^4.
    assert sum(bound > epsilon for bound in bounds) <= 20
    assert np.median(bounds) > 0.6 * epsilon


def test_a_claim_below_the_truth_is_refuted() -> None:
    scores, coins = randomized_response(np.random.Generator(np.random.PCG64(8)), 1000, 3.0)
    assert audit_scores(scores, coins, delta=1e-5, confidence=0.95).epsilon > 2.0


def test_guessing_at_random_shows_nothing() -> None:
    random = np.random.Generator(np.random.PCG64(9))
    bounds = [
        audit_scores(random.random(400), random.random(400) < 0.5, delta=1e-5, confidence=0.95).epsilon
        for _ in range(100)
    ]
    assert sum(bound > 0 for bound in bounds) <= 10
    assert max(bounds) < 0.8


def test_abstaining_helps_where_only_the_clearest_cases_leak() -> None:
    coins = np.arange(400) % 2 == 0
    scores = np.zeros(400) + np.random.Generator(np.random.PCG64(1)).random(400) * 0.1
    scores[:40] += np.where(coins[:40], 1.0, -1.0)
    bound = audit_scores(scores, coins, delta=1e-6, confidence=0.95)
    assert bound.guesses == 40
    assert bound.correct == 40
    assert bound.epsilon > 1.5


def test_trying_several_fractions_is_paid_for() -> None:
    coins = np.arange(100) % 2 == 0
    bound = audit_scores(coins.astype(float), coins, delta=0.0, confidence=0.95)
    each = epsilon_lower_bound(
        canaries=100, guesses=100, correct=100, delta=0.0, confidence=1 - 0.05 / len(GUESSED_FRACTIONS)
    )
    assert (
        bound.epsilon == each < epsilon_lower_bound(canaries=100, guesses=100, correct=100, delta=0.0, confidence=0.95)
    )


def test_what_an_audit_can_show_grows_with_the_canaries() -> None:
    shown = [detectable_epsilon(count, delta=1e-5, confidence=0.95) for count in (20, 100, 1000)]
    assert 1.0 < shown[0] < 2.0 < shown[1] < 3.5 < shown[2] < 6.0


@pytest.mark.parametrize(("guesses", "correct"), [(5, 6), (11, 3), (5, -1)])
def test_impossible_outcomes_are_refused(guesses: int, correct: int) -> None:
    with pytest.raises(DataError, match="not the outcome of an audit"):
        p_value(canaries=10, guesses=guesses, correct=correct, epsilon=1.0, delta=0.0)


def test_scores_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(DataError, match="finite score"):
        audit_scores([1.0, math.nan], [True, False], delta=0.0, confidence=0.95)


def test_membership_figures() -> None:
    random = np.random.Generator(np.random.PCG64(2))
    included = np.arange(2000) % 2 == 0
    none = attack_of(random.normal(size=2000), included)
    assert abs(none.auc - 0.5) < 0.05
    assert none.tpr_at_10_percent_fpr == pytest.approx(0.1, abs=0.05)
    # Two unit normals one apart: AUC is Phi(1/sqrt 2) = 0.760.
    shifted = attack_of(random.normal(size=2000) + included, included)
    assert shifted.auc == pytest.approx(0.760, abs=0.03)
    assert attack_of(np.zeros(10), np.arange(10) % 2 == 0).auc == 0.5
    with pytest.raises(DataError, match="same coin"):
        attack_of(np.zeros(3), np.ones(3, dtype=np.bool_))
