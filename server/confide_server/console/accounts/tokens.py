"""API tokens: for programs that read what their owner may read. Kept as a hash, with scopes and an end.

A token begins with "confide_" so that a scanner for lost secrets finds it.
"""

import secrets
import sqlite3
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from confide.errors import IdentityError
from confide.text import line
from confide.web.secrets import digest, new_secret

from confide_server.console.accounts.people import People, Person
from confide_server.console.accounts.store import AccountStore

PREFIX = "confide_"
SCOPES = ("runs", "members", "privacy", "models", "audit")
"""What a token may read. None changes anything."""
LONGEST_DAYS = 365
_DAY_S = 86400.0


@dataclass(frozen=True)
class Token:
    """What is known of a token; not the token."""

    id: str
    label: str
    scopes: tuple[str, ...]
    created_at: float
    expires_at: float
    used_at: float | None


class Tokens:
    """All tokens."""

    def __init__(self, store: AccountStore, people: People, clock: Callable[[], float] = time.time) -> None:
        self._store, self._people, self._clock = store, people, clock

    def make(self, person: Person, label: str, scopes: Collection[str], days: int) -> str:
        """The token, which is shown this once. Raises IdentityError."""
        unknown = set(scopes) - set(SCOPES)
        if unknown or not scopes:
            raise IdentityError(f"scopes are one or more of {', '.join(SCOPES)}; got {', '.join(unknown) or 'none'}")
        if not 1 <= days <= LONGEST_DAYS:
            raise IdentityError(f"a token is valid for 1 to {LONGEST_DAYS} days; got {days}")
        handed, _ = new_secret()
        token, now = PREFIX + handed, self._clock()
        self._store.run(
            "INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?, NULL)",
            secrets.token_hex(8), digest(token), person.id, line(label, 60), " ".join(sorted(scopes)), now,
            now + days * _DAY_S,
        )  # fmt: skip
        return token

    def check(self, token: str, scope: str) -> Person:
        """Whose it is, if it holds and has the scope. Raises IdentityError."""
        row = self._store.one("SELECT * FROM tokens WHERE hash = ?", digest(token))
        if row is None or row["expires_at"] < self._clock():
            raise IdentityError("this token is not known here, was taken back, or is over; make a new one")
        if scope not in row["scopes"].split():
            raise IdentityError(f"this token may read {row['scopes']}; {scope} is not among them")
        self._store.run("UPDATE tokens SET used_at = ? WHERE id = ?", self._clock(), row["id"])
        return self._people.get(row["person"])

    def of(self, person: Person) -> list[Token]:
        """A person's, newest first."""
        query = "SELECT * FROM tokens WHERE person = ? ORDER BY created_at DESC"
        return [_token(row) for row in self._store.all(query, person.id)]

    def revoke(self, person: Person, token_id: str) -> None:
        """Take it back. Raises IdentityError for one that is not this person's."""
        if not self._store.run("DELETE FROM tokens WHERE id = ? AND person = ?", token_id, person.id):
            raise IdentityError("there is no such token of yours")


def _token(row: sqlite3.Row) -> Token:
    return Token(
        id=row["id"],
        label=row["label"],
        scopes=tuple(row["scopes"].split()),
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        used_at=row["used_at"],
    )
