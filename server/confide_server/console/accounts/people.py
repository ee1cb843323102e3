"""People who may sign in: made by a one-time link, with a role, a password and a second factor.

The first link makes an administrator; administrators hand out the others. A link opens once, within 15 minutes.
"""

import re
import secrets
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass

from confide.errors import IdentityError, StateError
from confide.web.secrets import LINK_VALID_S, digest, new_secret

from confide_server.console.accounts import codes, passwords
from confide_server.console.accounts.limits import Limits
from confide_server.console.accounts.store import AccountStore
from confide_server.console.roles import Role

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{1,63}")


@dataclass(frozen=True)
class Person:
    """Somebody with an account."""

    id: str
    name: str
    role: Role
    organization: str
    """Of role `organization`: the only one that this person sees; else empty."""
    has_codes: bool
    created_at: float
    disabled: bool


@dataclass(frozen=True)
class Link:
    """What a one-time link makes when it is opened."""

    name: str
    """Proposed; empty: chosen by who opens it."""
    role: Role
    organization: str
    expires_at: float


class People:
    """All accounts."""

    def __init__(self, store: AccountStore, limits: Limits, clock: Callable[[], float] = time.time) -> None:
        self._store, self._limits, self._clock = store, limits, clock

    # --- links

    def invite(self, role: Role, organization: str = "", name: str = "") -> str:
        """A one-time link's secret. Raises IdentityError for a role without what it needs."""
        if (role is Role.ORGANIZATION) != bool(organization):
            raise IdentityError("an organization's person needs the organization's name, and nobody else has one")
        if name:
            _check_name(name)
        handed, kept = new_secret()
        until = self._clock() + LINK_VALID_S
        self._store.run("INSERT INTO links VALUES (?, ?, ?, ?, ?, NULL)", kept, name, role.value, organization, until)
        return handed

    def link(self, handed: str) -> Link:
        """What a link would make. Raises IdentityError for one that was used, is over, or never was."""
        row = self._store.one("SELECT * FROM links WHERE hash = ?", digest(handed))
        if row is None or row["used_at"] is not None or row["expires_at"] < self._clock():
            raise IdentityError("this link was used, is older than 15 minutes, or never was one; ask for a new one")
        return Link(row["name"], Role(row["role"]), row["organization"], row["expires_at"])

    def accept(self, handed: str, name: str, password: str, seed: str, code: str) -> Person:
        """Make the link's account; the link is used up. Raises IdentityError naming what does not do.

        seed: of the codes, as it was shown; code: a present one, which shows that the person's device has it.
        """
        _check_name(name)
        passwords.check_strength(password, name)
        step = codes.step_of(seed, code, after=-1, now=self._clock())
        stored = passwords.hashed(password)
        with self._store.changing():
            link = self.link(handed)
            if self._store.one("SELECT 1 FROM people WHERE name = ?", name) is not None:
                raise IdentityError(f"there is an account {name!r} already; choose another name")
            self._store.run("UPDATE links SET used_at = ? WHERE hash = ?", self._clock(), digest(handed))
            person = secrets.token_hex(8)
            self._store.run(
                "INSERT INTO people VALUES (?, ?, ?, ?, ?, ?, ?, NULL, ?, 0)",
                person, name, link.role.value, link.organization, stored, seed, step, self._clock(),
            )  # fmt: skip
        return self.get(person)

    # --- signing in

    def check_password(self, name: str, password: str, address: str) -> Person:
        """Who this is. Raises IdentityError, in the same words and after the same time whatever was wrong."""
        self._limits.check(name, address)
        row = self._store.one("SELECT * FROM people WHERE name = ?", name)
        right = passwords.fits(row["password"] if row is not None else None, password)
        if row is None or not right or row["disabled"]:
            self._limits.failed(name, address)
            raise IdentityError("name or password are not right, or the account is closed")
        return _person(row)

    def check_code(self, person: Person, code: str, address: str) -> None:
        """Raise IdentityError unless it is a code of this moment that was not used before."""
        self._limits.check(person.name, address)
        row = self._store.one("SELECT code_seed, code_step FROM people WHERE id = ?", person.id)
        try:
            if row is None or not row["code_seed"]:
                raise IdentityError("this account has no codes; use its security key")
            step = codes.step_of(row["code_seed"], code, after=row["code_step"], now=self._clock())
            taken = "UPDATE people SET code_step = ? WHERE id = ? AND code_step < ?"
            if not self._store.run(taken, step, person.id, step):
                raise IdentityError("this code was used already; wait for the next one")
        except IdentityError:
            self._limits.failed(person.name, address)
            raise
        self._limits.succeeded(person.name)

    # --- looking after accounts

    def any(self) -> bool:
        """Whether anybody has an account."""
        return self._store.one("SELECT 1 FROM people") is not None

    def all(self) -> list[Person]:
        """Everybody, by name."""
        return [_person(row) for row in self._store.all("SELECT * FROM people ORDER BY name")]

    def get(self, person: str) -> Person:
        """Raises StateError where there is none."""
        row = self._store.one("SELECT * FROM people WHERE id = ?", person)
        if row is None:
            raise StateError(f"there is no account {person[:32]!r}")
        return _person(row)

    def of_provider(self, subject: str) -> Person | None:
        """Who signs in at the OpenID provider under this subject."""
        row = self._store.one("SELECT * FROM people WHERE provider_subject = ? AND disabled = 0", subject)
        return None if row is None else _person(row)

    def bind_provider(self, person: Person, subject: str) -> None:
        """From now on the provider's subject is this person. Raises IdentityError when it is another's."""
        try:
            self._store.run("UPDATE people SET provider_subject = ? WHERE id = ?", subject, person.id)
        except sqlite3.IntegrityError as error:
            raise IdentityError("this subject of the OpenID provider belongs to another account") from error

    def close(self, person: str) -> None:
        """Nobody signs in with this account any more, and who did is out. Raises IdentityError for the last one."""
        with self._store.changing():
            one = self.get(person)
            others = "SELECT 1 FROM people WHERE role = ? AND disabled = 0 AND id != ?"
            if one.role is Role.ADMINISTRATOR and self._store.one(others, one.role.value, person) is None:
                raise IdentityError(f"{one.name} is the last administrator; make another one first")
            self._store.run("UPDATE people SET disabled = 1 WHERE id = ?", person)
            self._store.run("DELETE FROM sessions WHERE person = ?", person)
            self._store.run("DELETE FROM tokens WHERE person = ?", person)

    def change_password(self, person: Person, old: str, new: str, address: str) -> None:
        """Raises IdentityError. Every session of the person ends."""
        self.check_password(person.name, old, address)
        passwords.check_strength(new, person.name)
        with self._store.changing():
            self._store.run("UPDATE people SET password = ? WHERE id = ?", passwords.hashed(new), person.id)
            self._store.run("DELETE FROM sessions WHERE person = ?", person.id)

    # --- what was done with accounts

    def note(self, person: str, act: str, detail: str = "") -> None:
        """Remember an act: sign-ins, links, changes. Acts on the federation are in the coordinator's audit log too."""
        self._store.run("INSERT INTO acts(at, person, act, detail) VALUES (?, ?, ?, ?)", self._clock(), person, act,
                        detail[:500])  # fmt: skip

    def acts(self, count: int = 100) -> list[sqlite3.Row]:
        """The newest, newest first."""
        return self._store.all("SELECT * FROM acts ORDER BY number DESC LIMIT ?", count)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise IdentityError(
            f"{name[:64]!r} is no name for an account: 2 to 64 letters, digits and . _ @ -, a letter or digit first"
        )


def _person(row: sqlite3.Row) -> Person:
    return Person(
        id=row["id"],
        name=row["name"],
        role=Role(row["role"]),
        organization=row["organization"],
        has_codes=bool(row["code_seed"]),
        created_at=row["created_at"],
        disabled=bool(row["disabled"]),
    )
