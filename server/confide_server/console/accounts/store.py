"""The console's own SQLite file: tables, one connection, one lock.

>>> import tempfile
>>> store = AccountStore(Path(tempfile.mkdtemp()) / "console.db")
>>> store.one("SELECT count(*) AS people FROM people")["people"]
0
"""

import contextlib
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

from confide.errors import StateError
from confide.secrecy import private_file

VERSION = 1
_TABLES = """
CREATE TABLE people (
    id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE COLLATE NOCASE, role TEXT NOT NULL, organization TEXT NOT NULL,
    password TEXT NOT NULL, code_seed TEXT NOT NULL, code_step INTEGER NOT NULL, provider_subject TEXT UNIQUE,
    created_at REAL NOT NULL, disabled INTEGER NOT NULL DEFAULT 0);
CREATE TABLE security_keys (
    credential BLOB PRIMARY KEY, person TEXT NOT NULL REFERENCES people(id), public_key BLOB NOT NULL,
    sign_count INTEGER NOT NULL, label TEXT NOT NULL, created_at REAL NOT NULL);
CREATE TABLE sessions (
    hash BLOB PRIMARY KEY, person TEXT NOT NULL REFERENCES people(id), csrf TEXT NOT NULL, complete INTEGER NOT NULL,
    created_at REAL NOT NULL, seen_at REAL NOT NULL, confirmed_at REAL NOT NULL, address TEXT NOT NULL,
    challenge BLOB);
CREATE INDEX sessions_of ON sessions(person);
CREATE TABLE links (
    hash BLOB PRIMARY KEY, name TEXT NOT NULL, role TEXT NOT NULL, organization TEXT NOT NULL,
    expires_at REAL NOT NULL, used_at REAL);
CREATE TABLE attempts (key TEXT PRIMARY KEY, since REAL NOT NULL, count INTEGER NOT NULL);
CREATE TABLE tokens (
    id TEXT PRIMARY KEY, hash BLOB NOT NULL UNIQUE, person TEXT NOT NULL REFERENCES people(id), label TEXT NOT NULL,
    scopes TEXT NOT NULL, created_at REAL NOT NULL, expires_at REAL NOT NULL, used_at REAL);
CREATE TABLE acts (
    number INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, person TEXT NOT NULL, act TEXT NOT NULL,
    detail TEXT NOT NULL);
"""


class AccountStore:
    """Used from several threads: one at a time has the connection."""

    def __init__(self, path: Path) -> None:
        """Open, or make with mode 0600. Raises StateError when it is damaged or of a newer release."""
        self.path = path
        self._lock = threading.RLock()
        try:
            private_file(path)
            self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=30.0)
            weakref.finalize(self, self._connection.close)  # also when it is not let in, or nobody closes it
            self._connection.row_factory = sqlite3.Row
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
                self._connection.execute(f"PRAGMA {pragma}")
            self._prepare()
        except (sqlite3.Error, OSError) as error:
            raise StateError(f"the console's accounts {path} cannot be used: {error}; restore a backup") from error

    def _prepare(self) -> None:
        with self.changing():
            found = int(self._connection.execute("PRAGMA user_version").fetchone()[0])
            if found > VERSION:
                raise StateError(f"{self.path} is of a newer release (its version {found}, ours {VERSION}); upgrade")
            if found == 0:
                for statement in _TABLES.split(";\n"):
                    if statement.strip():
                        self._connection.execute(statement)
                self._connection.execute(f"PRAGMA user_version={VERSION}")

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """All or nothing; nobody else writes in between. May be nested: the outermost counts. Raises StateError."""
        with self._lock:
            if self._connection.in_transaction:
                yield
                return
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield
                except BaseException:
                    self._connection.execute("ROLLBACK")
                    raise
                self._connection.execute("COMMIT")
            except sqlite3.OperationalError as error:
                raise StateError(f"{self.path} cannot be written: {error}; is the disk full?") from error

    def run(self, statement: str, *values: object) -> int:
        """Change rows; returns how many."""
        with self._lock:
            return self._connection.execute(statement, values).rowcount

    def one(self, statement: str, *values: object) -> sqlite3.Row | None:
        """The first row, or None."""
        with self._lock:
            found: sqlite3.Row | None = self._connection.execute(statement, values).fetchone()
            return found

    def all(self, statement: str, *values: object) -> list[sqlite3.Row]:
        """Every row."""
        with self._lock:
            return self._connection.execute(statement, values).fetchall()

    def close(self) -> None:
        """Release the file."""
        with self._lock:
            self._connection.close()
