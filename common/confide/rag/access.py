"""Who may read which collection, checked at every entrance of this package.

A collection belongs to one organization. A caller speaks for one organization and reads the collections of it that are
named in the caller; nobody reads another organization's. There is no default caller: whoever forgets to say who asks
does not get past the type checker, nor past `allow`.

Guarantee: no passage, score, name or count of a collection comes out of this package for a caller that `allow` refuses,
and a collection that is not there is refused in the same words as one that may not be read.

>>> caller = Caller(name="desk", organization="clinic", collections=frozenset({"leaflets"}))
>>> allow(caller, CollectionName("clinic", "leaflets"))
>>> allow(caller, CollectionName("bank", "leaflets"))
Traceback (most recent call last):
confide.rag.access.AccessRefused: desk of clinic may not read collection 'leaflets' of 'bank', or it is not there
"""

import re
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final, Literal

from confide.errors import PolicyRefusal, StateError
from confide.text import line

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII)


class AccessRefused(PolicyRefusal):
    """A caller asked for what it may not see, or for what is not there: the two are not told apart."""


class _Every:
    """The one value that stands for all collections of the caller's own organization."""

    def __repr__(self) -> str:
        return "EVERY"


EVERY: Final = _Every()


def checked_name(text: str, what: str) -> str:
    """`text`, fit for a folder and a table. Raises StateError for anything but [a-z0-9][a-z0-9._-]*, at most 64."""
    if not isinstance(text, str) or not _NAME.fullmatch(text):
        raise StateError(
            f"{what} {line(text, 80)!r} is no name: use 1 to 64 of a-z, 0-9, dot, underscore and hyphen, "
            "the first one a letter or a digit"
        )
    return text


@dataclass(frozen=True, order=True)
class CollectionName:
    """A collection of one organization. Both parts are safe as the name of a folder."""

    organization: str
    collection: str

    def __post_init__(self) -> None:
        checked_name(self.organization, "organization")
        checked_name(self.collection, "collection")

    def __str__(self) -> str:
        return f"{self.organization}/{self.collection}"


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asks.

    name: for messages and the audit log.
    organization: the one that the caller speaks for.
    collections: those that it may read; EVERY for the organization's own operator.
    writes: whether it may add and erase too.
    """

    name: str
    organization: str
    collections: AbstractSet[str] | _Every
    writes: bool = False

    def __post_init__(self) -> None:
        checked_name(self.organization, "organization")
        if not isinstance(self.collections, _Every):
            for collection in self.collections:
                checked_name(collection, "collection")

    @classmethod
    def operator(cls, organization: str) -> "Caller":
        """Whoever runs commands on the machine that holds the library, for one organization."""
        return cls(name="operator", organization=organization, collections=EVERY, writes=True)


def allow(caller: Caller, name: CollectionName, action: Literal["read", "write"] = "read") -> None:
    """Raises AccessRefused unless the caller may do that with the collection."""
    if not isinstance(caller, Caller):
        raise AccessRefused(f"a {type(caller).__name__} is no caller: say who asks")
    own = caller.organization == name.organization
    named = isinstance(caller.collections, _Every) or name.collection in caller.collections
    if not (own and named):
        raise refusal(caller, name)
    if action == "write" and not caller.writes:
        raise AccessRefused(f"{_who(caller)} may read collection {name.collection!r}, and not change it")


def refusal(caller: Caller, name: CollectionName) -> AccessRefused:
    """What a caller hears of a collection that is not its own, and of one that does not exist."""
    said = f"may not read collection {name.collection!r} of {name.organization!r}, or it is not there"
    return AccessRefused(f"{_who(caller)} {said}")


def _who(caller: Caller) -> str:
    return f"{line(caller.name, 80)} of {caller.organization}"
