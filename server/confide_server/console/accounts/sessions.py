"""Server-side sessions: a cookie names one, and everything about it is here, where it can be ended.

A session begins incomplete (the password was right) and is replaced by a complete one (the second factor too): the
cookie changes at each step, so that one that was planted before is worth nothing after.
"""

import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from confide.errors import IdentityError
from confide.web.secrets import digest, new_secret

from confide_server.console.accounts.people import People, Person
from confide_server.console.accounts.store import AccountStore

INCOMPLETE_S = 300.0
CONFIRMED_S = 300.0
"""How long a second factor counts for acts that ask for one."""
CHALLENGE_BYTES = 32


@dataclass(frozen=True)
class Session:
    """One browser of one person."""

    hash: bytes
    person: Person
    csrf: str
    complete: bool
    created_at: float
    confirmed: bool
    """Whether the second factor was given just now."""
    address: str


class Sessions:
    """All sessions."""

    def __init__(
        self,
        store: AccountStore,
        people: People,
        *,
        idle_s: float,
        absolute_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._people, self._clock = store, people, clock
        self._idle_s, self._absolute_s = idle_s, absolute_s

    def begin(self, person: Person, address: str, *, complete: bool, instead_of: Session | None = None) -> str:
        """A new session's cookie value; the one that it replaces ends."""
        handed, kept = new_secret()
        now = self._clock()
        with self._store.changing():
            if instead_of is not None:
                self.end(instead_of)
            self._store.run("DELETE FROM sessions WHERE created_at < ? OR seen_at < ?", now - self._absolute_s,
                            now - self._idle_s)  # fmt: skip
            self._store.run(
                "INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)",
                kept, person.id, secrets.token_urlsafe(24), int(complete), now, now, now if complete else 0.0, address,
            )  # fmt: skip
        return handed

    def find(self, handed: str) -> Session | None:
        """The session of a cookie while it holds; looking at it keeps it from idling."""
        now = self._clock()
        row = self._store.one("SELECT * FROM sessions WHERE hash = ?", digest(handed))
        if row is None:
            return None
        absolute_s = self._absolute_s if row["complete"] else INCOMPLETE_S
        if now - row["created_at"] > absolute_s or now - row["seen_at"] > self._idle_s:
            self._store.run("DELETE FROM sessions WHERE hash = ?", row["hash"])
            return None
        if now - row["seen_at"] > 15.0:
            self._store.run("UPDATE sessions SET seen_at = ? WHERE hash = ?", now, row["hash"])
        person = self._people.get(row["person"])
        if person.disabled:
            return None
        return Session(
            hash=row["hash"],
            person=person,
            csrf=row["csrf"],
            complete=bool(row["complete"]),
            created_at=row["created_at"],
            confirmed=now - row["confirmed_at"] < CONFIRMED_S,
            address=row["address"],
        )

    def holds(self, session: Session | None) -> bool:
        """Whether a session that was found is still there: for connections that stay open."""
        if session is None:
            return False
        row = self._store.one("SELECT created_at FROM sessions WHERE hash = ?", session.hash)
        return row is not None and self._clock() - row["created_at"] <= self._absolute_s

    def confirm(self, session: Session) -> None:
        """The second factor was given again."""
        self._store.run("UPDATE sessions SET confirmed_at = ? WHERE hash = ?", self._clock(), session.hash)

    def challenge(self, session: Session) -> bytes:
        """Fresh random bytes for a security key to sign, kept for this session."""
        drawn = secrets.token_bytes(CHALLENGE_BYTES)
        self._store.run("UPDATE sessions SET challenge = ? WHERE hash = ?", drawn, session.hash)
        return drawn

    def take_challenge(self, session: Session) -> bytes:
        """What was drawn last, once. Raises IdentityError where nothing was."""
        with self._store.changing():
            row = self._store.one("SELECT challenge FROM sessions WHERE hash = ?", session.hash)
            self._store.run("UPDATE sessions SET challenge = NULL WHERE hash = ?", session.hash)
        if row is None or row["challenge"] is None:
            raise IdentityError("nothing was asked of a security key in this session; begin again")
        return bytes(row["challenge"])

    def end(self, session: Session) -> None:
        """Sign out here."""
        self._store.run("DELETE FROM sessions WHERE hash = ?", session.hash)

    def end_all(self, person: Person) -> int:
        """Sign out everywhere; returns in how many browsers."""
        return self._store.run("DELETE FROM sessions WHERE person = ?", person.id)

    def of(self, person: Person) -> list[tuple[float, float, str]]:
        """(began, last seen, address) of each complete one."""
        query = "SELECT created_at, seen_at, address FROM sessions WHERE person = ? AND complete ORDER BY seen_at DESC"
        return [(row["created_at"], row["seen_at"], row["address"]) for row in self._store.all(query, person.id)]


def form_token(session: Session) -> str:
    """The session's token for a page's forms, in other characters on every page.

    Guarantee: how well a page can be compressed tells nothing about it, whatever text of others stands beside it.
    """
    kept = session.csrf.encode()
    pad = secrets.token_bytes(len(kept))
    return pad.hex() + bytes(a ^ b for a, b in zip(pad, kept, strict=True)).hex()


def check_csrf(session: Session, given: str) -> None:
    """Raise IdentityError unless a form came from a page of this very session."""
    try:
        both = bytes.fromhex(given)
    except ValueError:
        both = b""
    half = len(both) // 2
    found = bytes(a ^ b for a, b in zip(both[:half], both[half:], strict=False))
    if not hmac.compare_digest(session.csrf.encode(), found):
        raise IdentityError("this form is not of your present session; open the page again and repeat it")
