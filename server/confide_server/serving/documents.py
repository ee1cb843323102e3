"""What the endpoint asks of an organization's documents: an answer with citations, for one reader."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from confide_server.serving.access import Caller
from confide_server.serving.failures import DENIED, Refused


@dataclass(frozen=True)
class Cited:
    """annotations: OpenAI's url_citation, with indices into the text. abstained: the documents do not say, and why."""

    text: str
    annotations: Sequence[dict[str, Any]] = field(default_factory=tuple)
    abstained: bool = False
    reason: str = ""


class Documents(Protocol):
    """Collections of documents by organization."""

    def answer(self, question: str, *, reader: str, organization: str, collections: Collection[str]) -> Cited:
        """An answer from these collections of one organization, which the reader may read. Blocks; any thread.

        Raises ConfideError: a collection that is not there, a store that is down.
        """


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
