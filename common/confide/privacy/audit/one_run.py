"""A lower bound on epsilon from one training run (Steinke, Nasr and Jagielski 2023).

Canaries are put into the training data or left out by independent fair coins. After training somebody guesses some of
the coins from the model. Under (epsilon, delta)-differential privacy the number of right guesses is bounded; more right
guesses than that refute the claim.

>>> round(epsilon_lower_bound(canaries=100, guesses=100, correct=100, delta=0.0, confidence=0.95), 2)
3.49
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from confide.errors import DataError

GUESSED_FRACTIONS = (1.0, 0.5, 0.25, 0.1)
"""Of the canaries: how many of the clearest cases are guessed. Fixed in advance; each pays its share of the error."""


def p_value(*, canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """The most probable it can be, for any (epsilon, delta)-private training, to guess this many coins right.

    Theorem 5.2: with f(v) = P[Binomial(r, e^eps / (1 + e^eps)) >= v] it is at most
    beta + 2 m delta alpha, beta = f(v), alpha = max over i >= 1 of (f(v - i) - f(v)) / i.
    m canaries, r guesses (the others are abstained from), v correct ones.
    """
    if not 0 <= correct <= guesses <= canaries or epsilon < 0 or not 0 <= delta <= 1:
        raise DataError(
            f"{correct} correct of {guesses} guesses over {canaries} canaries at epsilon {epsilon}, delta {delta} "
            "is not the outcome of an audit"
        )
    accuracy = 1.0 / (1.0 + math.exp(-epsilon))
    beta = float(stats.binom.sf(correct - 1, guesses, accuracy))
    alpha = 0.0
    if delta > 0 and correct > 0:
        below = np.cumsum(stats.binom.pmf(np.arange(correct - 1, -1, -1), guesses, accuracy))
        alpha = float(np.max(below / np.arange(1, correct + 1)))
    return min(1.0, beta + 2.0 * canaries * delta * alpha)


def epsilon_lower_bound(*, canaries: int, guesses: int, correct: int, delta: float, confidence: float) -> float:
    """The largest epsilon, to 1e-6, whose claim at `delta` this outcome refutes with `confidence`; 0 when none.

    Guarantee: for training that is (epsilon, delta)-private in each canary, the returned value exceeds epsilon with
    probability at most 1 - confidence over the coins, whatever the guesser does.
    """
    if not 0 < confidence < 1:
        raise DataError(f"confidence is {confidence}; it must lie between 0 and 1, for example 0.95")

    def refuted(epsilon: float) -> bool:
        p = p_value(canaries=canaries, guesses=guesses, correct=correct, epsilon=epsilon, delta=delta)
        return p < 1.0 - confidence

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high):
        low, high = high, 2.0 * high
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


@dataclass(frozen=True, kw_only=True)
class OneRunBound:
    """What guessing gave. `epsilon` is the lower bound at `confidence`, corrected for trying several fractions."""

    canaries: int
    guesses: int
    correct: int
    delta: float
    confidence: float
    epsilon: float


def audit_scores(
    scores: Sequence[float] | NDArray[np.float64], included: Sequence[bool], *, delta: float, confidence: float
) -> OneRunBound:
    """Guess the coins from scores (higher: more likely included) and bound epsilon.

    For each of GUESSED_FRACTIONS the clearest half of the guesses on either side says included or left out, and the
    middle is abstained from. The best bound counts, each at the confidence 1 - (1 - confidence) / number of fractions.
    """
    values, coins = np.asarray(scores, dtype=np.float64), np.asarray(included, dtype=np.bool_)
    if values.shape != coins.shape or values.ndim != 1 or values.size < 2 or not np.isfinite(values).all():
        raise DataError(
            f"{values.size} scores came for {coins.size} canaries; each needs one finite score, two at least"
        )
    order = np.argsort(values, kind="stable")
    each = 1.0 - (1.0 - confidence) / len(GUESSED_FRACTIONS)
    bounds = []
    for fraction in GUESSED_FRACTIONS:
        side = max(1, int(fraction * values.size) // 2)
        correct = int(coins[order[-side:]].sum() + (~coins[order[:side]]).sum())
        epsilon = epsilon_lower_bound(
            canaries=values.size, guesses=2 * side, correct=correct, delta=delta, confidence=each
        )
        bounds.append(
            OneRunBound(
                canaries=values.size,
                guesses=2 * side,
                correct=correct,
                delta=delta,
                confidence=confidence,
                epsilon=epsilon,
            )
        )
    return max(bounds, key=lambda bound: bound.epsilon)


def detectable_epsilon(canaries: int, *, delta: float, confidence: float) -> float:
    """The bound if every coin were guessed right: what an audit with so many canaries can show at most."""
    coins = [number % 2 == 1 for number in range(canaries)]
    scores = [float(coin) for coin in coins]
    return audit_scores(scores, coins, delta=delta, confidence=confidence).epsilon
