"""What the endpoint asks of an organization's documents: an answer with citations, for one reader."""

import asyncio
import functools
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from confide_server.serving.access import Caller
from confide_server.serving.failures import DENIED, Refused
from confide_server.serving.port import Overloaded

_THREADS, _MOST_WAITING = 2, 64


@dataclass(frozen=True)
class Cited:
    """annotations: OpenAI's url_citation, with indices into the text. abstained: the documents do not say, and why.

    prose: what a model says of the quotations in its own words; nobody verified it, and it is no part of the text.
    """

    text: str
    annotations: Sequence[dict[str, Any]] = field(default_factory=tuple)
    abstained: bool = False
    reason: str = ""
    prose: str = ""


class Documents(Protocol):
    """Collections of documents by organization."""

    def answer(self, question: str, *, reader: str, organization: str, collections: Collection[str]) -> Cited:
        """An answer from these collections of one organization, which the reader may read. Blocks; any thread.

        Raises ConfideError: a collection that is not there, a store that is down.
        """


class AskedDocuments:
    """Documents asked from the event loop, on threads of their own: whoever waits for them holds up nobody else."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="documents")
        self._waiting = 0

    async def answer(self, question: str, *, reader: str, organization: str, collections: Collection[str]) -> Cited:
        """As Documents. Raises Overloaded where too many wait already."""
        if self._waiting >= _MOST_WAITING:
            raise Overloaded(f"{self._waiting} questions to documents wait already; try again later", 5.0)
        asked = functools.partial(
            self._documents.answer, question, reader=reader, organization=organization, collections=collections
        )
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, asked)
        finally:
            self._waiting -= 1


def readable(caller: Caller, asked: Sequence[str]) -> tuple[str, frozenset[str]]:
    """(organization, collections) of names such as clinic/leaflets. Raises Refused for one that the key may not read.

    A collection that is not there and one that may not be read look the same here and afterwards.
    """
    parts = [name.partition("/") for name in asked]
    organizations = {organization for organization, _, _ in parts}
    for name, (organization, _, collection) in zip(asked, parts, strict=True):
        if not organization or not collection:
            raise Refused(
                400,
                f"collections: {name!r} is no ORGANIZATION/COLLECTION, such as clinic/leaflets",
                param="collections",
            )
        if not caller.may_read(name):
            raise no_collection(name)
    if len(organizations) != 1:
        raise Refused(
            400, "collections: one answer comes from one organization's collections; ask each", param="collections"
        )
    return organizations.pop(), frozenset(collection for _, _, collection in parts)


def no_collection(name: str) -> Refused:
    """What somebody hears of a collection that is not theirs, or not there."""
    said = f"the collection {name[:80]!r} is not there, or this key may not read it; its operator says which it may"
    return Refused(404, said, kind=DENIED, param="collections", code="collection_not_found")
