"""How often somebody may guess: counted in the file, so that a restart forgives nothing.

Two counts, since one person may guess at many names and many machines at one name. What is counted are failures; who
succeeds clears the name's count and not the address's.
"""

import time
from collections.abc import Callable, Iterable

from confide.errors import IdentityError

from confide_server.console.accounts.store import AccountStore

WINDOW_S = 900.0
OF_NAME, OF_ADDRESS = 8, 40
"""Failures in a window."""


class TooManyAttempts(IdentityError):
    """Refused without looking at what was sent."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"too many failed attempts; wait {max(1, round(wait_s / 60))} min and try again")
        self.wait_s = wait_s


class Limits:
    """Failures by name and by address."""

    def __init__(self, store: AccountStore, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock

    def check(self, name: str, address: str) -> None:
        """Raise TooManyAttempts while the window's failures are used up."""
        for key, most in _keys(name, address):
            row = self._store.one("SELECT since, count FROM attempts WHERE key = ?", key)
            left_s = 0.0 if row is None else row["since"] + WINDOW_S - self._clock()
            if row is not None and left_s > 0 and row["count"] >= most:
                raise TooManyAttempts(left_s)

    def failed(self, name: str, address: str) -> None:
        """One failure more."""
        now = self._clock()
        with self._store.changing():
            self._store.run("DELETE FROM attempts WHERE since < ?", now - WINDOW_S)
            for key, _ in _keys(name, address):
                self._store.run(
                    "INSERT INTO attempts VALUES (?, ?, 1) ON CONFLICT(key) DO UPDATE SET count = count + 1", key, now
                )

    def succeeded(self, name: str) -> None:
        """The name's failures are forgotten."""
        self._store.run("DELETE FROM attempts WHERE key = ?", _name_key(name))


def _name_key(name: str) -> str:
    return f"name:{name.lower()[:64]}"


def _keys(name: str, address: str) -> Iterable[tuple[str, int]]:
    return (_name_key(name), OF_NAME), (f"address:{address[:64]}", OF_ADDRESS)
