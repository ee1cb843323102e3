"""What people see of collections in a browser: which there are, how their documents stand, what a question finds.

    room = ReadingRoom(Path("library"), Path("all-minilm-l6-v2"))
    for shelf in room.shelves(caller):
        print(shelf.name, shelf.live, shelf.passages)
    room.search(caller, "leaflets", "What does a visit cost?").answer.text

The embedder is loaded at the first question. Used by any number of threads, one at a time.

Guarantee: whatever comes out went through `Library`, which asks `access.allow` for this caller first; a collection of
another organization is refused in the words for one that is not there.
"""

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from confide.rag.access import Caller
from confide.rag.catalogue import Document, State
from confide.rag.embedder import Embedder
from confide.rag.library import Library
from confide.rag.reranker import Reranker
from confide.rag.retrieval import Ranking

from confide_server.rag.answering import Answer, Answerer

FOUND = 8
"""Passages that a question shows."""


@dataclass(frozen=True)
class Shelf:
    """One collection in figures.

    states: documents by state. passages, bytes: of live documents. personal_data: findings by kind. pages 0: unknown.
    calibrated: whether the gate was; answers come from a fixed cosine otherwise.
    """

    name: str
    embedder: str
    personal_data_handling: str
    states: Counter[State]
    passages: int
    bytes: int
    quarantined: int
    newest: int
    calibrated: bool

    @property
    def live(self) -> int:
        """Documents that may be found."""
        return self.states[State.LIVE]

    @property
    def cut_off(self) -> int:
        """Documents whose addition or erasure goes on, or was cut off: the next command ends it."""
        return self.states[State.ADDING] + self.states[State.ERASING]


@dataclass(frozen=True)
class Reading:
    """What one question found: the verified answer or the refusal, and the ranking with its scores by part."""

    question: str
    answer: Answer
    ranking: Ranking


class Knowledge(Protocol):
    """Collections as a page asks for them. Every method raises AccessRefused (access.py) and StateError."""

    def shelves(self, caller: Caller) -> Sequence[Shelf]:
        """Every collection that the caller may read."""

    def documents(self, caller: Caller, collection: str) -> Sequence[Document]:
        """Of one collection, in every state, the newest first."""

    def search(self, caller: Caller, collection: str, question: str) -> Reading:
        """What the question finds there."""


class ReadingRoom:
    """Implements Knowledge over a library on this machine."""

    def __init__(self, library: Path, embedder: Path, reranker: Path | None = None) -> None:
        """Raises ModelError when `embedder` or `reranker` holds no such model."""
        self._library = Library(library)
        self._embedder = Embedder(embedder)
        reads = None if reranker is None else Reranker(reranker)
        self._answerer = Answerer(self._library, self._embedder, reranker=reads)
        self._lock = threading.Lock()

    def shelves(self, caller: Caller) -> Sequence[Shelf]:
        """Every collection that the caller may read. Raises StateError for a damaged one."""
        with self._lock:
            return [self._shelf(caller, name.collection) for name in self._library.collections(caller)]

    def documents(self, caller: Caller, collection: str) -> Sequence[Document]:
        """Of one collection, in every state, the newest first. Raises AccessRefused, StateError."""
        with self._lock:
            return sorted(self._library.documents(caller, collection), key=lambda one: -one.added)

    def search(self, caller: Caller, collection: str, question: str) -> Reading:
        """The answer and the ranking. Raises AccessRefused, StateError (no question, another embedder, store down)."""
        with self._lock:
            ranking = self._library.search(caller, collection, question, self._embedder, limit=FOUND)
            answer = self._answerer.answer(question, caller, [collection])
            return Reading(ranking.question, answer, ranking)

    def close(self) -> None:
        """Let go of the stores."""
        with self._lock:
            self._library.close()

    def _shelf(self, caller: Caller, collection: str) -> Shelf:
        documents = self._library.documents(caller, collection)
        settings = self._library.settings(caller, collection)
        live = [one for one in documents if one.state is State.LIVE]
        return Shelf(
            name=collection,
            embedder=settings.embedder.name,
            personal_data_handling=settings.personal_data,
            states=Counter(one.state for one in documents),
            passages=sum(one.passages for one in live),
            bytes=sum(one.bytes for one in live),
            quarantined=sum(len(one.quarantined) for one in live),
            newest=max((one.added for one in documents), default=0),
            calibrated=self._library.calibration(caller, collection).gate is not None,
        )
