"""What a store of passages does: it holds numbers and names, and no text.

A row is a passage's name, its document's, when that was added, and its embedding. One store is one table of one
collection of one organization: there is no filter by organization that could be forgotten. The text stands in one place
only (`documents`), so there is one place fewer to erase.

Guarantee: nothing that a user typed becomes part of a query or a filter: names have a fixed form and are checked, the
rest is numbers. After `remove` no byte of the removed rows is in the files that `files` names.
"""

import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from confide.errors import StateError
from confide.text import line

_PASSAGE = re.compile(r"[0-9a-f]{32}\.[0-9]{1,8}", re.ASCII)
_DOCUMENT = re.compile(r"[0-9a-f]{32}", re.ASCII)


class StoreDown(StateError):
    """The store cannot be reached, refused, or is damaged. Its text says whether something may have been changed."""


def down(what: str, reason: object, *, changes: bool) -> StoreDown:
    """changes: whether what failed was to change something. Then nobody knows how far it came."""
    said = line((str(reason).splitlines() or [type(reason).__name__])[0], 250)
    outcome = "It may have been done in part; the next command puts that right" if changes else "Nothing was changed"
    return StoreDown(f"{what} cannot be used: {said}. {outcome}")


@dataclass(frozen=True)
class Row:
    """passage: DOCUMENT.ORDINAL. added: seconds since 1970. vector: (D,) float32 of length 1."""

    passage: str
    document: str
    added: int
    vector: NDArray[np.float32]


class PassageStore(Protocol):
    """One table. Used by one thread at a time; other processes may read while one writes."""

    def add(self, rows: Sequence[Row]) -> None:
        """Add them durably. Rows of the same passage must not be there yet."""

    def search(self, vector: NDArray[np.float32], limit: int, *, since: int = 0) -> list[tuple[str, float]]:
        """(passage, cosine) of the nearest, best first, among rows added at `since` or later."""

    def vectors(self, passages: Sequence[str]) -> Mapping[str, NDArray[np.float32]]:
        """The embeddings of those that are there."""

    def everything(self) -> tuple[list[str], list[int], NDArray[np.float32]]:
        """(passages, when they were added, embeddings (N, D)) of all rows: for a collection that fits into memory."""

    def counts(self) -> Mapping[str, int]:
        """Rows by document."""

    def remove(self, documents: AbstractSet[str]) -> None:
        """Rewrite the table without these documents, also where none of their rows is left."""

    def tidy(self) -> None:
        """Take away what a crash of a writer left. Only for a writer."""

    def files(self) -> Sequence[Path] | None:
        """All files of the table; None where they belong to a server."""

    def reload(self) -> None:
        """See what another process wrote."""

    def close(self) -> None:
        """Let go of files and connections; using it again opens them anew."""

    def drop(self) -> None:
        """Take the table away."""


def checked_passages(names: Sequence[str]) -> list[str]:
    """The names, each in its form. Raises StateError: a name of another form came from nowhere good."""
    for name in names:
        if not _PASSAGE.fullmatch(name):
            raise StateError(f"{name[:80]!r} is no passage's name")
    return list(names)


def checked_documents(names: AbstractSet[str]) -> list[str]:
    """As `checked_passages`, for documents; sorted."""
    for name in names:
        if not _DOCUMENT.fullmatch(name):
            raise StateError(f"{name[:80]!r} is no document's name")
    return sorted(names)
