"""How good retrieval, citations and abstention are on questions that calibration did not see.

Retrieval is scored by pytrec-eval for BM25, embeddings and their fusion. Every question is answered as it is and with
its gold passages taken away; an answer then is a false one. Intervals are 95 % bootstraps over questions.
"""

import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from confide.rag.access import Caller
from confide.rag.calibration import Calibration, calibration_of
from confide.rag.citing import cited
from confide.rag.collection import Collection
from confide.rag.embedder import Embedder
from confide.rag.gate import auroc
from confide.rag.library import DEFAULT_LIMIT
from confide.rag.quoting import pick
from confide.rag.reranker import Reranker, reranked
from confide.rag.retrieval import Searcher
from confide.rag.sentences_near import SentenceVectors, sentences_of
from confide.rag.verifying import Citation, CitationError, verify_citation
from numpy.typing import NDArray

from confide_server.rag.answering import LOOKED_AT, RANKED, Seen, confidence_of, look, seen_of
from confide_server.rag.questions import Asked

MEASURES = {"ndcg_cut_10": "ndcg_at_10", "recall_1": "recall_at_1", "recall_5": "recall_at_5", "recip_rank": "mrr"}
PARTS = ("bm25", "dense", "hybrid")
RERANKED = "reranked"
_RESAMPLES = 1000
_DEPTH = 100
_TIMED = 12


@dataclass(frozen=True)
class Support:
    """An answer as ALCE looks at it (Gao et al. 2023, section 3).

    holds: for each citation, whether the cited text, read from disk, has the words that it stands behind.
    uncited: statements behind which no citation stands.
    """

    holds: tuple[bool, ...] = ()
    uncited: int = 0


@dataclass
class _Asked:
    """What one question came to. whole: with its gold passages there."""

    whole: bool
    answerable: bool
    confidence: float
    answered: bool
    right: bool
    support: Support
    f1: float | None


@dataclass(frozen=True)
class Evaluation:
    """figures: nested numbers for JSON; scores: (confidence, right) of each question, for the plot."""

    figures: Mapping[str, Any]
    scores: Sequence[tuple[float, bool]] = field(default_factory=tuple)


def evaluate(
    collection: Collection,
    searcher: Searcher,
    embedder: Embedder,
    asked: Sequence[Asked],
    caller: Caller,
    root: Path,
    *,
    seed: int = 0,
    sentences: SentenceVectors | None = None,
    reranker: Reranker | None = None,
) -> Evaluation:
    """All figures of one collection. root: the library's folder, for the verifier. sentences: as for `calibrate`.

    reranker: its order of the first passages is measured as a part more; answers follow it only where the collection
    was calibrated with it.
    """
    collection.check_embedder(embedder)
    calibration = calibration_of(collection)
    vectors = embedder.embed([one.question.question for one in asked])
    rng = np.random.default_rng(seed)
    retrieval = _retrieval(searcher, asked, vectors, caller, calibration.lexical_weight, rng, reranker)
    kept = sentences or SentenceVectors(embedder)
    found = _answers(collection, searcher, kept, asked, vectors, caller, root, calibration, reranker)
    figures = {
        "questions": len(asked),
        "passages": len(collection.lexical(collection.catalogue()).names),
        "lexical_weight": calibration.lexical_weight,
        "calibrated_on": calibration.questions,
        "retrieval": retrieval,
        "answers": _summary(found, rng),
        "latency_s": _latency(collection, searcher, embedder, asked, caller, calibration, reranker),
    }
    return Evaluation(figures, [(one.confidence, one.right) for one in found])


def _retrieval(
    searcher: Searcher,
    asked: Sequence[Asked],
    vectors: NDArray[np.float32],
    caller: Caller,
    weight: float,
    rng: np.random.Generator,
    reranker: Reranker | None,
) -> dict[str, dict[str, Any]]:
    import pytrec_eval

    relevant = {str(n): dict.fromkeys(one.passages, 1) for n, one in enumerate(asked) if one.passages}
    runs: dict[str, dict[str, dict[str, float]]] = {part: {} for part in (*PARTS, *([RERANKED] if reranker else []))}
    for number, (one, vector) in enumerate(zip(asked, vectors, strict=True)):
        if one.passages:
            names, dense, lexical = searcher.parts(one.question.question, vector, caller)
            for part, scores in zip(PARTS, (lexical, dense, dense + weight * lexical), strict=True):
                best = np.argsort(-scores, kind="stable")[:_DEPTH]
                runs[part][str(number)] = {names[place]: float(scores[place]) for place in best}
            if reranker is not None:
                ranking = searcher.search(one.question.question, vector, caller, limit=_DEPTH, weight=weight)
                order = reranked(ranking, reranker, first=RANKED).found
                runs[RERANKED][str(number)] = {found.passage.name: -float(n) for n, found in enumerate(order)}
    evaluator = pytrec_eval.RelevanceEvaluator(relevant, {"ndcg_cut.10", "recall.1,5", "recip_rank"})
    table: dict[str, dict[str, Any]] = {}
    for part, run in runs.items():
        each = evaluator.evaluate(run)
        table[part] = {
            name: with_interval(np.array([one[measure] for one in each.values()]), rng)
            for measure, name in MEASURES.items()
        }
    return table


def with_interval(values: NDArray[np.float64], rng: np.random.Generator) -> dict[str, float] | None:
    """Mean and 95 % percentile bootstrap. None, in JSON null, where there is nothing to measure."""
    if not len(values):
        return None
    means = values[rng.integers(0, len(values), (_RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def _answers(
    collection: Collection,
    searcher: Searcher,
    sentences: SentenceVectors,
    asked: Sequence[Asked],
    vectors: NDArray[np.float32],
    caller: Caller,
    root: Path,
    calibration: Calibration,
    reranker: Reranker | None,
) -> list[_Asked]:
    rankings = []
    for one, vector in zip(asked, vectors, strict=True):
        for whole in (True, False) if one.passages else (True,):
            without = () if whole else tuple(one.passages)
            ranking = searcher.search(
                one.question.question,
                vector,
                caller,
                limit=RANKED,
                weight=calibration.lexical_weight,
                without=without,
                crowding=True,
            )
            rankings.append((one, vector, whole, calibration.ordered(ranking, reranker)))
    # All at once: texts of like length are embedded together.
    sentences.know([s.text for *_, ranking in rankings for s in sentences_of(collection, ranking.found[:LOOKED_AT])])
    found = []
    for one, vector, whole, ranking in rankings:
        seen = seen_of(ranking, vector, collection, searcher, sentences)
        found.append(_asked(one, seen, calibration, caller, root, whole))
    return found


def _asked(one: Asked, seen: Seen, calibration: Calibration, caller: Caller, root: Path, whole: bool) -> _Asked:
    """Quote and verify whatever the gate says: what it would have said is what the gate is judged by."""
    gold = one.passages if whole else frozenset()
    confidence, threshold = confidence_of(seen, calibration)
    quotes = pick(seen.sentences, seen.ranking.found)
    said = ""
    try:
        text, citations = cited(seen.collection, quotes)
        said = " ".join(citation.quote for citation in citations)
        support = support_of(text, citations, caller, root)
    except CitationError:
        support = Support()  # what ends its own quotation is never said
    right = bool(quotes) and quotes[0].found.passage.name in gold
    f1 = token_f1(said, one.question.answer) if one.question.answer and whole else None
    return _Asked(whole, bool(gold), confidence, confidence >= threshold and bool(said), right, support, f1)


def support_of(text: str, citations: Sequence[Citation], caller: Caller, root: Path) -> Support:
    """Which citations of an answer hold, and how much of it stands outside them. root: the library's folder."""
    holds, place, uncited = [], 0, 0
    for one in citations:
        uncited += bool(text[place : one.text_start].strip())
        place = one.text_stop
        stands = text[one.text_start : one.text_stop] == f'"{" ".join(one.quote.split())}" [{one.number}]'
        holds.append(stands and _verified(one, caller, root))
    return Support(tuple(holds), uncited + bool(text[place:].strip()))


def _verified(citation: Citation, caller: Caller, root: Path) -> bool:
    try:
        verify_citation(citation, caller, root)
    except CitationError:
        return False
    return True


def token_f1(text: str, expected: str) -> float:
    """Of words, as SQuAD has it (Rajpurkar et al. 2016)."""
    ours, theirs = (Counter(re.findall(r"\w+", one.casefold())) for one in (text, expected))
    common = (ours & theirs).total()
    return 2 * common / (ours.total() + theirs.total()) if common else 0.0


def _summary(found: Sequence[_Asked], rng: np.random.Generator) -> dict[str, Any]:
    answered = [one for one in found if one.answered]
    answerable = [one for one in found if one.answerable]
    without = [one for one in found if not one.answerable]
    scores = np.array([one.confidence for one in found])
    holds = [held for one in answered for held in one.support.holds]
    f1 = [one.f1 for one in answered if one.f1 is not None]
    return {
        "answered": len(answered),
        "citations": len(holds),
        "citation_precision": _share(holds),
        "citation_recall": _share([*holds, *([False] * sum(one.support.uncited for one in answered))]),
        "answer_precision": with_interval(np.array([one.right for one in answered], float), rng),
        "answer_recall": with_interval(np.array([one.right and one.answered for one in answerable], float), rng),
        "false_answers": with_interval(np.array([one.answered for one in without], float), rng),
        "abstention_auroc": _auroc(scores, [one.right for one in found]),
        "abstention_auroc_removed": _auroc(scores, [one.answerable for one in found]),
        "answer_f1": float(np.mean(f1)) if f1 else None,
    }


def _auroc(scores: NDArray[np.float64], labels: Sequence[bool]) -> float | None:
    value = auroc(scores, np.array(labels, float))
    return None if np.isnan(value) else value


def _share(values: Sequence[bool]) -> float | None:
    return float(np.mean(values)) if values else None


def _latency(
    collection: Collection,
    searcher: Searcher,
    embedder: Embedder,
    asked: Sequence[Asked],
    caller: Caller,
    calibration: Calibration,
    reranker: Reranker | None,
) -> dict[str, dict[str, float]]:
    """Seconds a question, one after the other: search: its embedding and the ranking; answer: with its sentences."""
    searched, answered = [], []
    for one in asked[:_TIMED]:
        begun = time.perf_counter()
        [vector] = embedder.embed([one.question.question])
        question, weight = one.question.question, calibration.lexical_weight
        searcher.search(question, vector, caller, limit=DEFAULT_LIMIT, weight=weight)
        searched.append(time.perf_counter() - begun)
        look(question, vector, caller, collection, searcher, SentenceVectors(embedder), calibration, reranker)
        answered.append(time.perf_counter() - begun)
    return {
        name: {"median": float(np.median(values)), "p95": float(np.percentile(values, 95))}
        for name, values in (("search", searched), ("answer", answered))
    }


def plot(evaluation: Evaluation, path: Path) -> None:
    """Recall@5 by part with its interval, as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    table = evaluation.figures["retrieval"]
    figure, axes = pyplot.subplots(figsize=(5, 3.5))
    for place, part in enumerate(table):
        one = table[part]["recall_at_5"]
        if one is None:  # no question names where its answer stands
            continue
        axes.bar(place, one["mean"], color="#8fb3d9")
        axes.errorbar(
            place, one["mean"], [[one["mean"] - one["low"]], [one["high"] - one["mean"]]], color="black", capsize=4
        )
    axes.set_xticks(range(len(table)), list(table))
    axes.set_ylim(0, 1)
    axes.set_ylabel("recall@5, 95 % interval")
    axes.set_title(f"{evaluation.figures['questions']} questions, {evaluation.figures['passages']} passages")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
