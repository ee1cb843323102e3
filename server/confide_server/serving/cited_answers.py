"""Answers from an organization's documents, by confide_server.rag, as the endpoint asks for them."""

from collections.abc import Collection
from pathlib import Path

from confide_server.rag.access import Caller
from confide_server.rag.answering import Answerer, QueryPort
from confide_server.rag.embedder import Embedder
from confide_server.rag.library import Library
from confide_server.serving.documents import Cited


class LibraryDocuments:
    """The library of all collections on this machine. The reader is checked there again, before and after retrieval."""

    def __init__(self, library: Path, embedder: Path) -> None:
        """Raises ModelError when `embedder` holds no model."""
        self._answers: QueryPort = Answerer(Library(library), Embedder(embedder))

    def answer(self, question: str, *, reader: str, organization: str, collections: Collection[str]) -> Cited:
        """Quotations that were verified, or word for word the refusal. Raises AccessRefused, StateError."""
        caller = Caller(name=reader, organization=organization, collections=frozenset(collections))
        found = self._answers.answer(question, caller, sorted(collections))
        annotations = tuple(one.annotation() for one in found.citations)
        return Cited(found.text, annotations, found.abstained, found.reason)
