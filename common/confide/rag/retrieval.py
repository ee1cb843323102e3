"""Search in one collection: BM25 and embeddings, fused by a weight that was calibrated for it.

    fused = cosine + lexical_weight * BM25 / (the best that any passage could score for this query)

The second part lies in [0, 1] and means the same for every query, so that one weight serves all. Where a collection was
not calibrated the weight is small: unweighted fusion hurts where one part is weak (docs/rag.md has figures).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from confide.errors import StateError
from confide.rag.access import Caller, CollectionName, allow
from confide.rag.catalogue import Catalogue, Document
from confide.rag.collection import Collection, split_passage_name
from confide.rag.documents import Content
from confide.rag.injection import suspicion
from confide.rag.lexical import LexicalIndex

DEFAULT_WEIGHT = 0.1
RESIDENT_PASSAGES = 100_000
"""Up to so many, embeddings are held in memory and all passages are scored; above, store and BM25 name candidates."""
_CANDIDATES = 200
_NEIGHBOURS = 10


@dataclass(frozen=True)
class Passage:
    """What may be shown of a document, as it stands in its canonical text."""

    name: str
    collection: CollectionName
    document: Document
    start: int
    stop: int
    text: str
    headings: tuple[str, ...]
    page: int | None
    record: str | None


@dataclass(frozen=True)
class Found:
    """A passage with its scores by part. lexical: raw BM25; lexical_part: of what is possible, 0 to 1.

    cross: the cross-encoder's (reranker.py), which then decides the order; None where none read the passage.
    """

    passage: Passage
    score: float
    dense: float
    lexical: float
    lexical_part: float
    cross: float | None = None


@dataclass(frozen=True)
class Ranking:
    """What one question found, best first, and the two parts' own orders (names of passages, best first).

    crowding: (found, 10) the cosines of each found passage with its nearest others: how much it is one of many.
    """

    question: str
    found: tuple[Found, ...]
    by_dense: tuple[str, ...] = ()
    by_lexical: tuple[str, ...] = ()
    crowding: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, _NEIGHBOURS), np.float32))


@dataclass(frozen=True)
class _Query:
    """What `Searcher.search` was asked."""

    question: str
    vector: NDArray[np.float32]
    limit: int
    weight: float
    since: int
    without: tuple[str, ...]
    crowding: bool


class Searcher:
    """The indices of one collection in memory, as of one generation. Used by one thread at a time."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._generation = -1
        self._lexical: LexicalIndex
        self._matrix: NDArray[np.float32] | None
        self._added: NDArray[np.int64]
        self._shown: NDArray[np.bool_]
        self._places: dict[str, int]

    def search(
        self,
        question: str,
        vector: NDArray[np.float32],
        caller: Caller,
        *,
        limit: int,
        weight: float = DEFAULT_WEIGHT,
        since: int = 0,
        without: Sequence[str] = (),
        crowding: bool = False,
    ) -> Ranking:
        """The best `limit` passages among live documents added at `since` (seconds since 1970) or later.

        vector: the question's embedding. without: names of passages that are left out, for calibration. crowding:
        whether the gate needs it.
        """
        allow(caller, self._collection.name)
        catalogue = self._collection.catalogue()
        query = _Query(question, vector, limit, weight, since, tuple(without), crowding)
        try:
            return self._searched(catalogue, query, caller)
        except StateError:
            if self._collection.catalogue().generation == catalogue.generation:
                raise
            # A document was erased meanwhile: its text went while it was being read.
            return self._searched(self._collection.catalogue(), query, caller)

    def _searched(self, catalogue: Catalogue, query: _Query, caller: Caller) -> Ranking:
        self._refresh(catalogue)
        shown = self._shown & (self._added >= query.since)
        for name in query.without:
            if name in self._places:
                shown[self._places[name]] = False
        lexical = self._lexical.scores(query.question)
        ceiling = self._lexical.ceiling(query.question)
        places, dense = self._dense(query.vector, lexical, shown, query.since)
        parts = lexical[places] / ceiling
        fused = dense + query.weight * parts
        names = self._lexical.names

        found = [
            Found(
                passage=self._passage(catalogue, names[places[place]]),
                score=float(fused[place]),
                dense=float(dense[place]),
                lexical=float(lexical[places[place]]),
                lexical_part=float(parts[place]),
            )
            for place in _best(fused, places, query.limit)
        ]
        kept = self._still_allowed(found, caller)
        return Ranking(
            query.question,
            tuple(kept),
            tuple(names[places[place]] for place in _best(dense, places, query.limit)),
            tuple(names[places[place]] for place in _best(parts, places, query.limit, above=0.0)),
            self._crowding([one.passage.name for one in kept] if query.crowding else [], shown),
        )

    def parts(
        self, question: str, vector: NDArray[np.float32], caller: Caller
    ) -> tuple[list[str], NDArray[np.float32], NDArray[np.float32]]:
        """(names, cosines, lexical parts) of every candidate, for calibration and evaluation."""
        allow(caller, self._collection.name)
        self._refresh(self._collection.catalogue())
        lexical = self._lexical.scores(question)
        places, dense = self._dense(vector, lexical, self._shown, 0)
        names = [self._lexical.names[place] for place in places]
        return names, dense, lexical[places] / self._lexical.ceiling(question)

    def coverage(self, question: str, text: str) -> float:
        """How much of the question's words stands in the text (lexical.LexicalIndex.coverage)."""
        self._refresh(self._collection.catalogue())
        return self._lexical.coverage(question, text)

    def _crowding(self, names: Sequence[str], shown: NDArray[np.bool_]) -> NDArray[np.float32]:
        rows = np.zeros((len(names), _NEIGHBOURS), np.float32)
        own = [self._places[name] for name in names]
        if self._matrix is not None and own:
            near = self._matrix @ self._matrix[own].T
            near[~shown] = 0.0
            near[own, range(len(own))] = 0.0
            best = -np.sort(-near, axis=0)[:_NEIGHBOURS] if len(near) <= 4 * _NEIGHBOURS else _top(near, _NEIGHBOURS)
            rows[:, : len(best)] = best.T
        elif own:
            known = self._collection.store.vectors(names)
            for place, name in enumerate(names):
                found = self._collection.store.search(known[name], _NEIGHBOURS + 1)
                near_by = [score for other, score in found if other != name][:_NEIGHBOURS]
                rows[place, : len(near_by)] = near_by
        return rows

    def _still_allowed(self, found: Sequence[Found], caller: Caller) -> list[Found]:
        """Asked again, of what is on disk now: a document may have been erased while the search ran."""
        live = self._collection.catalogue().live()
        kept = [one for one in found if one.passage.document.id in live]
        for one in kept:
            allow(caller, one.passage.collection)
        return kept

    def _refresh(self, catalogue: Catalogue) -> None:
        while self._generation != catalogue.generation:
            try:
                self._load(catalogue)
            except StateError:
                # A writer may have taken a document out of the store since the catalogue was read.
                before, catalogue = catalogue, self._collection.catalogue()
                if catalogue.generation == before.generation:
                    raise

    def _load(self, catalogue: Catalogue) -> None:
        lexical = self._collection.lexical(catalogue)
        live = catalogue.live()
        quarantined = {f"{document.id}.{one.ordinal}" for document in live.values() for one in document.quarantined}
        store = self._collection.fresh_store(catalogue)
        documents = [live[split_passage_name(name)[0]] for name in lexical.names]
        self._lexical = lexical
        self._places = {name: place for place, name in enumerate(lexical.names)}
        self._added = np.array([document.added for document in documents], np.int64)
        self._shown = np.array([name not in quarantined for name in lexical.names], np.bool_)
        self._matrix = None
        if len(lexical.names) <= RESIDENT_PASSAGES:
            names, _, vectors = store.everything()
            self._collection.check_stored(catalogue, Counter(split_passage_name(name)[0] for name in names))
            self._matrix = self._resident(names, vectors)
        else:
            self._collection.check_stored(catalogue, store.counts())
        self._generation = catalogue.generation

    def _resident(self, names: list[str], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, D) in the lexical index's order."""
        matrix = np.zeros((len(self._places), vectors.shape[1]), np.float32)
        pairs = [(self._places[name], row) for row, name in enumerate(names) if name in self._places]
        if pairs:
            places, rows = map(np.array, zip(*pairs, strict=True))
            matrix[places] = vectors[rows]
        return matrix

    def _dense(
        self, vector: NDArray[np.float32], lexical: NDArray[np.float32], shown: NDArray[np.bool_], since: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(places of candidates, their cosines)."""
        if self._matrix is not None:
            places = np.flatnonzero(shown)
            scores: NDArray[np.float32] = (self._matrix @ vector)[places] if len(places) else np.zeros(0, np.float32)
            return places, scores
        near = [name for name, _ in self._collection.store.search(vector, _CANDIDATES, since=since)]
        words = [self._lexical.names[place] for place in np.argsort(-lexical, kind="stable")[:_CANDIDATES]]
        names = [name for name in dict.fromkeys(near + words) if name in self._places and shown[self._places[name]]]
        known = self._collection.store.vectors(names)
        names = [name for name in names if name in known]
        rows = np.stack([known[name] for name in names]) if names else np.zeros((0, len(vector)), np.float32)
        return np.array([self._places[name] for name in names], np.int64), rows @ vector

    def _passage(self, catalogue: Catalogue, name: str) -> Passage:
        identifier, ordinal = split_passage_name(name)
        document = catalogue.get(identifier)
        if document is None:
            raise StateError(f"document {identifier} of an index is not in the catalogue; add its file again")
        return passage_of(self._collection.name, document, self._collection.content(document), ordinal)


def _best(
    scores: NDArray[np.float32], places: NDArray[np.int64], most: int, above: float = -np.inf
) -> NDArray[np.int64]:
    """Where the largest scores above a bound are, descending. Of equal ones the first in the index is first."""
    candidates = np.flatnonzero(scores > above)
    if most < len(candidates):
        floor = np.partition(scores[candidates], -most)[-most]
        candidates = candidates[scores[candidates] >= floor]
    ranked: NDArray[np.int64] = candidates[np.lexsort((places[candidates], -scores[candidates]))][:most]
    return ranked


def _top(columns: NDArray[np.float32], most: int) -> NDArray[np.float32]:
    """(most, N): the largest of each column, descending."""
    part = np.partition(columns, len(columns) - most, axis=0)[-most:]
    found: NDArray[np.float32] = -np.sort(-part, axis=0)
    return found


def passage_of(collection: CollectionName, document: Document, content: Content, ordinal: int) -> Passage:
    """A passage as it is shown. Headings that read like an instruction are left out: their own passage is kept back."""
    span = content.passages[ordinal]
    first = content.marks_of(span)[0]
    return Passage(
        name=f"{document.id}.{ordinal}",
        collection=collection,
        document=document,
        start=span.start,
        stop=span.stop,
        text=content.text[span.start : span.stop],
        headings=tuple(title for title in content.heading_of(span) if suspicion(title) is None),
        page=first.page,
        record=first.record,
    )
