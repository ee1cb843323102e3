"""A node's opinion on public answers, from its own comparisons: what a feedback run asks (confide.runs.feedback).

The judge is a reward head on the specified base: the node's own one, or fitted here to the node's comparisons, whose
weights never leave. Scores are made comparable over organizations, whose rewards have scales of their own: of each
answer the reward minus the mean of its prompt's answers, over the spread of all, in [-1, 1] by tanh.

Guarantee: every number that is returned is finite and within its range, whatever the judge says; a judge that says NaN
is refused by name (SCORE_NOT_FINITE).
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from confide.errors import DataError
from confide.methods.reward import Reward
from confide.runs.feedback import FeedbackSection, encode_gate

Vectors = NDArray[np.float64]
Rewards = Callable[[Sequence[str], Sequence[str]], Vectors]
"""(prompts, answers) -> (N,)."""
LEAST_PAIRS = 20
_SAME = 1e-9
"""Rewards that differ by less are a tie."""


def newton(differences_ND: Vectors, *, penalty: float = 1e-3, steps: int = 25) -> Vectors:
    """(D,): the minimum of mean -log sigmoid(x w) + penalty/2 |w|^2 by Newton's method; convex, so there is one."""
    count, width = differences_ND.shape
    weight = np.zeros(width)
    for _ in range(steps):
        probability = 1 / (1 + np.exp(np.clip(differences_ND @ weight, -500, 500)))
        gradient = -(differences_ND.T @ probability) / count + penalty * weight
        curvature = (differences_ND * (probability * (1 - probability))[:, None]).T @ differences_ND / count
        step = np.linalg.solve(curvature + penalty * np.eye(width), gradient)
        weight -= step
        if np.linalg.norm(step) < 1e-10:
            break
    return weight


def opinion(asked: FeedbackSection, rewards: Rewards) -> Vectors:
    """(asked.numbers,): what leaves this node, before noise."""
    given = _finite(rewards(asked.prompts, asked.answers))
    if asked.purpose == "scores":
        return _scores(asked.prompts, given)
    return gate_opinion(given - _finite(rewards(asked.prompts, asked.against)), asked.below)


def _scores(prompts: Sequence[str], given: Vectors) -> Vectors:
    own = np.array([given[[other == prompt for other in prompts]].mean() for prompt in prompts])
    alone = np.array([prompts.count(prompt) == 1 for prompt in prompts])
    centred = given - np.where(alone, given.mean(), own)
    return np.tanh(centred / max(float(centred.std()), _SAME))


def gate_opinion(margins: Vectors, below: float) -> Vectors:
    """(3,): shares of what a candidate wins and ties, and whether it wins too little. margins: above 0 it wins."""
    ties = float(np.mean(np.abs(margins) < _SAME))
    wins = float(np.mean(margins >= _SAME))
    return np.array(encode_gate(wins, ties, below=wins + ties / 2 < below))


def _finite(rewards: Vectors) -> Vectors:
    if not np.isfinite(rewards).all():
        raise DataError(
            "SCORE_NOT_FINITE: this node's judge gives NaN or infinity, so nothing is answered; train it again"
        )
    return rewards


class Feedback(Reward):
    """How the node's own comparisons are read: as method "reward" does, on a frozen base."""

    name = "feedback"


METHOD = Feedback
