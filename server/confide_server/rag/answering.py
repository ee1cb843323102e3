"""A question in, a verified answer or an abstention out: retrieve, gate, quote, verify.

    answerer = Answerer(Library(Path("library")), Embedder(Path("minilm")))
    answer = answerer.answer("Who pays?", caller, ["leaflets"])
    answer.text, [one.annotation() for one in answer.citations]

Guarantee: a text that comes out of `answer` consists of verified quotations (verifying.py), or is REFUSAL to the word.
An instruction in a document can be quoted like any other sentence; it cannot make the answer say anything else.
"""

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from confide.rag.access import Caller
from confide.rag.calibration import DEFAULT_THRESHOLD, Calibration, calibration_of
from confide.rag.citing import cited
from confide.rag.collection import Collection
from confide.rag.embedder import Embedder
from confide.rag.gate import Array, features
from confide.rag.library import Library, checked_question
from confide.rag.quoting import Quote, alone, pick
from confide.rag.reranker import Reranker
from confide.rag.retrieval import Ranking, Searcher
from confide.rag.sentences_near import Near, SentenceVectors, near, sentences_of
from confide.rag.verifying import REFUSAL, Citation, CitationError, verify_answer
from numpy.typing import NDArray

from confide_server.rag.grammar import Writer, answer_grammar, chosen

log = logging.getLogger(__name__)
LOOKED_AT = 5
"""Passages whose sentences are looked at."""
RANKED = 20
CHOICES = 12
"""Sentences that a language model may choose among."""


@dataclass(frozen=True)
class Answer:
    """text: what to say. citations: empty when it abstained. reason: why it did, for people; confidence: the gate's."""

    text: str
    citations: tuple[Citation, ...]
    abstained: bool
    reason: str
    confidence: float | None = None


class QueryPort(Protocol):
    """What serving needs of this package."""

    def answer(self, question: str, caller: Caller, collections: Sequence[str]) -> Answer:
        """Raises AccessRefused for a collection that is not the caller's, StateError when a store is down."""


@dataclass(frozen=True)
class Seen:
    """What one collection has to say to a question, before anything is decided."""

    collection: Collection
    ranking: Ranking
    sentences: list[Near]
    coverage: float

    def features(self) -> Array:
        """For the gate (gate.py)."""
        return features(self.ranking, self.coverage, [one.cosine for one in self.sentences])


class Answerer:
    """Implements QueryPort; used by any number of threads, one at a time."""

    def __init__(
        self,
        library: Library,
        embedder: Embedder,
        *,
        most_quotes: int = 1,
        writer: Writer | None = None,
        reranker: Reranker | None = None,
    ) -> None:
        """writer: a language model that chooses among the nearest sentences; None lets the embedder choose.

        reranker: read by collections that were calibrated with it, and by no others.
        """
        self._library, self._embedder, self._most_quotes = library, embedder, most_quotes
        self._writer, self._reranker = writer, reranker
        self._sentences = SentenceVectors(embedder)
        self._lock = threading.Lock()

    def answer(self, question: str, caller: Caller, collections: Sequence[str]) -> Answer:
        """From the collection whose gate is surest; every named collection must be the caller's."""
        question = checked_question(question)
        with self._lock:
            found: list[tuple[float, float, Seen]] = []
            for name in dict.fromkeys(collections):
                seen, calibration = self._seen(question, caller, name)
                found.append((*confidence_of(seen, calibration), seen))
            if not found:
                return _abstained("no collection was named", None)
            # Where nothing can be quoted the gate's number means nothing.
            return self._decided(caller, *max(found, key=lambda one: (bool(one[2].sentences), one[0] - one[1])))

    def _seen(self, question: str, caller: Caller, name: str) -> tuple[Seen, Calibration]:
        collection, searcher = self._library.opened(caller, name)
        collection.check_embedder(self._embedder)
        calibration = calibration_of(collection)
        [vector] = self._embedder.embed([question])
        seen = look(question, vector, caller, collection, searcher, self._sentences, calibration, self._reranker)
        return seen, calibration

    def _decided(self, caller: Caller, confidence: float, threshold: float, seen: Seen) -> Answer:
        if not seen.ranking.found or not seen.sentences:
            return _abstained("nothing was found", None)
        if confidence < threshold:
            return _abstained("nothing that was found is near enough to the question", confidence)
        try:
            quotes = self._quotes(seen)
            if not quotes:
                return _abstained("the model found no sentence that answers", confidence)
            text, citations = cited(seen.collection, quotes)
            verify_answer(text, citations, caller, self._library.root)
        except CitationError as error:  # erased just now, or a text was changed on disk: the operator should know
            log.warning("a quotation from %s is not given: %s", seen.collection.name, error)
            return _abstained(f"what was found could not be verified: {error}", confidence)
        return Answer(text, tuple(citations), False, "", confidence)

    def _quotes(self, seen: Seen) -> list[Quote]:
        if self._writer is None:
            return pick(seen.sentences, seen.ranking.found, most=self._most_quotes)
        writable = [one for one in seen.sentences if self._writer.can_write(one.text)]
        nearest = sorted(writable, key=lambda one: -one.cosine)[:CHOICES]
        passages = list(dict.fromkeys(one.found.passage.name for one in nearest))
        choices = [(1 + passages.index(one.found.passage.name), one.text) for one in nearest]
        texts = {one.found.passage.name: one.found.passage.text for one in nearest}
        written = self._writer.write(seen.ranking.question, [texts[name] for name in passages], answer_grammar(choices))
        place = chosen(written, choices)
        return [] if place is None else [alone(nearest[place])]


def look(
    question: str,
    vector: NDArray[np.float32],
    caller: Caller,
    collection: Collection,
    searcher: Searcher,
    sentences: SentenceVectors,
    calibration: Calibration,
    reranker: Reranker | None = None,
) -> Seen:
    """Retrieve, and look at the sentences of the best passages. vector: the question's embedding."""
    weight = calibration.lexical_weight
    ranking = searcher.search(question, vector, caller, limit=RANKED, weight=weight, crowding=True)
    return seen_of(calibration.ordered(ranking, reranker), vector, collection, searcher, sentences)


def seen_of(
    ranking: Ranking,
    vector: NDArray[np.float32],
    collection: Collection,
    searcher: Searcher,
    sentences: SentenceVectors,
) -> Seen:
    """What a ranking shows."""
    found = near(sentences_of(collection, ranking.found[:LOOKED_AT]), vector, sentences)
    coverage = searcher.coverage(ranking.question, ranking.found[0].passage.text) if ranking.found else 0.0
    return Seen(collection, ranking, found, coverage)


def confidence_of(seen: Seen, calibration: Calibration) -> tuple[float, float]:
    """(confidence, threshold): the gate's; the best sentence's cosine where the collection was not calibrated."""
    if calibration.gate is not None:
        [confidence] = calibration.gate.head().scores(seen.features()[None])
        return float(confidence), calibration.gate.threshold
    return max((one.cosine for one in seen.sentences), default=-1.0), DEFAULT_THRESHOLD


def _abstained(reason: str, confidence: float | None) -> Answer:
    return Answer(REFUSAL, (), True, reason, confidence)
