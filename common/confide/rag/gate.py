"""Answer, or say that the documents do not: a small trained head over what retrieval saw.

Features of one question, all from the ranking: how near the best passage and sentence are, how far the rest lies
behind, whether the best passage is one of many alike (cross-domain similarity local scaling, Conneau et al. 2018),
whether both parts of the search agree, and how much of the question's words stands in the passage. The head is a
logistic regression (ridge, Newton's method). It learns whether the answer would be right from questions asked twice:
once as they are, once with their gold passage taken away.

>>> rng = np.random.default_rng(0)
>>> there = rng.normal(1, 1, (200, 2)); away = rng.normal(0, 1, (200, 2))
>>> x, y = np.concatenate([there, away]), np.repeat([1.0, 0.0], 200)
>>> head = fit(x, y)
>>> auroc(head.scores(x), y) > 0.8
True
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confide.rag.retrieval import Ranking

Array = NDArray[np.float64]
FEATURES = (
    "best_cosine",
    "cosine_margin",
    "cosine_above_mean",
    "cosine_spread",
    "best_lexical",
    "lexical_margin",
    "agreement",
    "same_first",
    "coverage",
    "best_sentence",
    "sentence_margin",
    "question_words",
    "uncrowded",
    "uncrowded_margin",
    "above_neighbour",
    "head_above_tail",
    "score_margin",
)
RIDGE = 100.0
"""Of 3 to 100 the best by cross-validation on the questions that calibrate the demo's three collections (87 to 251)."""
_STEPS = 50


@dataclass(frozen=True)
class Head:
    """Weights over standardised features. Shapes (F,), (F,), (F,)."""

    mean: Array
    scale: Array
    weights: Array
    bias: float

    def scores(self, features: Array) -> Array:
        """(N,): probability that the documents answer. features: (N, F)."""
        scaled = (features - self.mean) / self.scale
        found: Array = 1.0 / (1.0 + np.exp(-np.clip(scaled @ self.weights + self.bias, -50, 50)))
        return found


def features(ranking: Ranking, coverage: float, sentences: Sequence[float]) -> Array:
    """(F,) of one question. coverage: of the best passage; sentences: cosines of the best passages' sentences."""
    dense = np.array(sorted((one.dense for one in ranking.found), reverse=True) or [0.0])
    lexical = np.array(sorted((one.lexical_part for one in ranking.found), reverse=True) or [0.0])
    near = sorted(sentences, reverse=True) or [0.0]
    scores = [one.score for one in ranking.found] or [0.0]
    crowd = ranking.crowding if len(ranking.crowding) else np.zeros((1, 1))
    own = np.array([one.dense for one in ranking.found] or [0.0])
    uncrowded = np.sort(2 * own - crowd.mean(axis=1))[::-1]
    first, second = set(ranking.by_dense[:5]), set(ranking.by_lexical[:5])
    return np.array(
        [
            dense[0],
            dense[0] - dense[1] if len(dense) > 1 else 0.0,
            dense[0] - dense[1:].mean() if len(dense) > 1 else 0.0,
            dense.std(),
            lexical[0],
            lexical[0] - lexical[1] if len(lexical) > 1 else 0.0,
            len(first & second) / 5,
            float(ranking.by_dense[:1] == ranking.by_lexical[:1] and bool(ranking.by_dense)),
            coverage,
            near[0],
            near[0] - near[1] if len(near) > 1 else 0.0,
            min(40, len(ranking.question.split())) / 40,
            uncrowded[0],
            uncrowded[0] - uncrowded[1] if len(uncrowded) > 1 else 0.0,
            own[0] - crowd[0].max(),
            dense[1:5].mean() - dense[5:].mean() if len(dense) > 5 else 0.0,
            scores[0] - scores[1] if len(scores) > 1 else 0.0,
        ]
    )


def fit(x: Array, y: Array, *, ridge: float = RIDGE) -> Head:
    """The head for features (N, F) and labels (N,) of 0 and 1."""
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    z = np.hstack([(x - mean) / scale, np.ones((len(x), 1))])
    penalty = np.diag([ridge] * x.shape[1] + [1e-6])
    weights = np.zeros(z.shape[1])
    for _ in range(_STEPS):
        p = 1.0 / (1.0 + np.exp(-np.clip(z @ weights, -50, 50)))
        step = np.linalg.solve((z.T * (p * (1 - p))) @ z + penalty, z.T @ (y - p) - penalty @ weights)
        weights += step
        if np.abs(step).max() < 1e-8:
            break
    return Head(mean, scale, weights[:-1], float(weights[-1]))


def cross_validated(x: Array, y: Array, groups: NDArray[np.int64], *, folds: int = 5, ridge: float = RIDGE) -> Array:
    """(N,): each score from a head that saw nothing of its group. A question and its copy are one group."""
    scores = np.zeros(len(y))
    for fold in range(folds):
        held = groups % folds == fold
        if held.any():
            scores[held] = fit(x[~held], y[~held], ridge=ridge).scores(x[held])
    return scores


def auroc(scores: Array, y: Array) -> float:
    """Area under the ROC curve: how often a true one scores above a false one, ties half. NaN without both."""
    positive, negative = scores[y > 0.5], scores[y <= 0.5]
    if not len(positive) or not len(negative):
        return float("nan")
    order = np.sort(negative)
    below = np.searchsorted(order, positive, side="left")
    not_above = np.searchsorted(order, positive, side="right")
    return float((below + not_above).sum() / (2 * len(positive) * len(negative)))


def risk_coverage(scores: Array, correct: Array) -> tuple[Array, Array, Array]:
    """(thresholds, coverage, risk), from the strictest on: the share answered, and of those the share that is wrong."""
    order = np.argsort(-scores, kind="stable")
    answered = np.arange(1, len(scores) + 1)
    wrong = np.cumsum(1 - correct[order])
    return scores[order], answered / len(scores), wrong / answered


def threshold_for(scores: Array, correct: Array, most_risk: float | None) -> float:
    """The lowest threshold at which at most that share of these answers is wrong; above all scores where none is.

    most_risk None: where as many right answers pass and as many others are held back as possible (Youden 1950).
    """
    thresholds, coverage, risk = risk_coverage(scores, correct)
    last = np.append(thresholds[1:] < thresholds[:-1], True)
    if most_risk is None:
        right, wrong = coverage * (1 - risk), coverage * risk
        gained = right / max(float(correct.mean()), 1e-9) - wrong / max(float(1 - correct.mean()), 1e-9)
        return float(thresholds[np.where(last, gained, -np.inf).argmax()])
    fits = np.flatnonzero((risk <= most_risk) & last)
    return float(thresholds[fits[-1]]) if len(fits) else float(np.nextafter(max(scores.max(), 0.0), 2.0))
