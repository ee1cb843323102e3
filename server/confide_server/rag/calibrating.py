"""Calibrate a collection on questions whose answers' places are known: the fusion's weight, whether a cross-encoder
helps, and when to answer.

What costs more, or trusts more parts, is used only where its gain would come by chance once in twenty times at most,
also where the best of several was picked: a test by signs drawn at random over all that were tried.

The gate learns whether the passage that would be quoted holds the answer, from each question asked twice: as it is, and
with its gold passages taken out of the search, which is what a question looks like that the documents do not answer.
Its quality is told by cross-validation in which both copies of a question are held out together. docs/rag.md has what
came out on real collections.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from confide.errors import DataError
from confide.rag.access import Caller
from confide.rag.calibration import Calibration, GateWeights, RerankerPin
from confide.rag.collection import Collection
from confide.rag.embedder import Embedder
from confide.rag.gate import Array, auroc, cross_validated, fit, risk_coverage, threshold_for
from confide.rag.lexical import FORMAT
from confide.rag.reranker import Reranker, reranked
from confide.rag.retrieval import Searcher
from confide.rag.sentences_near import SentenceVectors, sentences_of
from numpy.typing import NDArray

from confide_server.rag.answering import LOOKED_AT, RANKED, seen_of
from confide_server.rag.questions import Asked

WEIGHTS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 4.0, 1000.0)
"""The first is embeddings alone, the last BM25 alone."""
FEWEST_QUESTIONS = 20
_CHANCE = 0.05
_DRAWN = 2000
_TOP = 10


@dataclass(frozen=True)
class Calibrated:
    """What to keep, and the curve to draw: scores of cross-validation, and whether each answer was right."""

    calibration: Calibration
    scores: Array
    correct: Array


def calibrate(
    collection: Collection,
    searcher: Searcher,
    embedder: Embedder,
    asked: Sequence[Asked],
    caller: Caller,
    *,
    most_risk: float | None,
    sentences: SentenceVectors | None = None,
    reranker: Reranker | None = None,
) -> Calibrated:
    """Raises DataError with fewer than FEWEST_QUESTIONS answerable questions, and where none would be answered right.

    reranker: a cross-encoder, kept if it is better than the fused order.

    sentences: shared with what else looks at the same passages, so that each is embedded once.
    """
    answerable = [one for one in asked if one.passages]
    if len(answerable) < FEWEST_QUESTIONS:
        raise DataError(f"{len(answerable)} questions name where their answer is; calibration needs {FEWEST_QUESTIONS}")
    vectors = embedder.embed([one.question.question for one in asked])
    weight = best_weight(searcher, asked, vectors, caller)
    pin = None if reranker is None else _pinned(reranker, searcher, asked, vectors, caller, weight)
    order = Calibration(lexical_weight=weight, reranker=pin)
    kept = sentences or SentenceVectors(embedder)
    seen = examples(collection, searcher, kept, asked, vectors, caller, order, reranker)
    right = seen.right
    if not right.any():
        raise DataError(
            f"of {len(answerable)} questions none finds its passage first, so that there is no right answer to learn "
            "from; check that the places that the questions name answer them"
        )
    scores = cross_validated(seen.features, right, seen.question)
    threshold = threshold_for(scores, right, most_risk)
    answered = scores >= threshold
    calibration = Calibration(
        lexical_weight=weight,
        gate=GateWeights.of(fit(seen.features, right), threshold),
        questions=len(asked),
        auroc=auroc(scores, right),
        auroc_removed=auroc(scores, seen.answers),
        most_risk=most_risk,
        risk=float(1 - right[answered].mean()) if answered.any() else 0.0,
        coverage=float(answered.mean()),
        reranker=pin,
        lexical_format=FORMAT,
    )
    return Calibrated(calibration, scores, right)


def best_weight(searcher: Searcher, asked: Sequence[Asked], vectors: NDArray[np.float32], caller: Caller) -> float:
    """The weight with the best mean nDCG@10; the better part alone unless mixtures beat it beyond chance."""
    gains = []
    for one, vector in zip(asked, vectors, strict=True):
        if one.passages:
            names, dense, lexical = searcher.parts(one.question.question, vector, caller)
            gold = np.array([name in one.passages for name in names])
            gains.append([gain(dense + weight * lexical, gold) for weight in WEIGHTS])
    table = np.array(gains)
    means = table.mean(axis=0)
    alone = 0 if means[0] >= means[-1] else len(WEIGHTS) - 1
    differences = np.delete(table - table[:, [alone]], alone, axis=1)
    return WEIGHTS[int(means.argmax()) if by_chance(differences) < _CHANCE else alone]


def _pinned(
    reranker: Reranker,
    searcher: Searcher,
    asked: Sequence[Asked],
    vectors: NDArray[np.float32],
    caller: Caller,
    weight: float,
) -> RerankerPin | None:
    """The cross-encoder, if its order's nDCG@10 is better than the fused one's beyond chance."""
    differences = []
    for one, vector in zip(asked, vectors, strict=True):
        if one.passages:
            ranking = searcher.search(one.question.question, vector, caller, limit=RANKED, weight=weight)
            orders = ranking.found, reranked(ranking, reranker, first=RANKED).found
            fused, read = (np.array([found.passage.name in one.passages for found in order]) for order in orders)
            places = -np.arange(len(fused), dtype=np.float32)
            differences.append([gain(places, read) - gain(places, fused)])
    if by_chance(np.array(differences)) >= _CHANCE:
        return None
    return RerankerPin(name=reranker.name, sha256=reranker.sha256, first=RANKED)


def by_chance(differences: Array) -> float:
    """How often the largest of W mean gains would be as clear if no question had one: by signs drawn at random.

    differences: (N, W), question by question. Each gain is measured by its own spread (Westfall & Young 1993, max-T).
    """
    spread = differences.std(axis=0)
    scaled = differences / np.where(spread > 0, spread, 1.0)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (_DRAWN, len(differences)))
    drawn = (signs @ scaled).max(axis=1)
    return float((1 + (drawn >= scaled.sum(axis=0).max()).sum()) / (1 + _DRAWN))


def gain(scores: NDArray[np.float32], gold: NDArray[np.bool_]) -> float:
    """nDCG@10 of one ranking with binary gains."""
    order = np.argsort(-scores, kind="stable")[:_TOP]
    discounts = 1 / np.log2(np.arange(2, _TOP + 2))
    ideal = discounts[: min(_TOP, int(gold.sum()))].sum()
    return float((discounts[: len(order)] * gold[order]).sum() / ideal) if ideal else 0.0


@dataclass(frozen=True)
class Examples:
    """features (N, F); answers: whether the documents answer (N,); question: its number (N,), a question and its copy
    without gold have one; right: whether the passage that is ranked first is gold (N,).
    """

    features: Array
    answers: Array
    question: NDArray[np.int64]
    right: Array


def examples(
    collection: Collection,
    searcher: Searcher,
    sentences: SentenceVectors,
    asked: Sequence[Asked],
    vectors: NDArray[np.float32],
    caller: Caller,
    order: Calibration,
    reranker: Reranker | None,
) -> Examples:
    """Every question as it is, and without its gold passages. vectors: the questions' embeddings."""
    rankings = []
    for number, one in enumerate(asked):
        for without in ((), tuple(one.passages)) if one.passages else ((),):
            found = searcher.search(
                one.question.question,
                vectors[number],
                caller,
                limit=RANKED,
                weight=order.lexical_weight,
                without=without,
                crowding=True,
            )
            rankings.append((number, order.ordered(found, reranker), not without))
    # All at once: texts of like length are embedded together.
    texts = [s.text for _, found, _ in rankings for s in sentences_of(collection, found.found[:LOOKED_AT])]
    sentences.know(texts)
    rows, answers, right = [], [], []
    for number, found, whole in rankings:
        gold = asked[number].passages if whole else frozenset()
        rows.append(seen_of(found, vectors[number], collection, searcher, sentences).features())
        answers.append(float(bool(gold)))
        right.append(float(bool(found.found) and found.found[0].passage.name in gold))
    return Examples(np.array(rows), np.array(answers), np.array([n for n, _, _ in rankings]), np.array(right))


def plot(calibrated: Calibrated, path: Path) -> None:
    """The risk-coverage curve as a picture: of all questions how many are answered, and how many of those wrongly."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    _, coverage, risk = risk_coverage(calibrated.scores, calibrated.correct)
    kept = calibrated.calibration
    figure, axes = pyplot.subplots(figsize=(6, 4))
    axes.plot(coverage, risk, color="#1f5fa8")
    if kept.coverage is not None and kept.risk is not None:
        axes.plot([kept.coverage], [kept.risk], "o", color="#b03a2e", label="threshold")
        axes.legend(frameon=False)
    axes.set_xlabel("questions answered")
    axes.set_ylabel("of those answered wrongly")
    axes.set_title(f"{kept.questions} questions, AUROC {kept.auroc:.3f}; half of them with their passage taken away")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
