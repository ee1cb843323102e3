"""One coordinator a database: whoever drives its runs holds a lease of it, from before it migrates until it ends.

    FileLease     SQLite: a lock of a file beside the database's real one
    SessionLease  PostgreSQL: an advisory lock of the schema, held by a session that does nothing else

Guarantee: while one process holds the lease no other one on the same database gets it, and it ends with the process,
however that ends. A lease can be lost unnoticed (a connection drops, somebody removes the file), so each holder counts
itself in the database, and its transactions check that count before they write: of two that both believe to hold the
lease only the newer one writes. Against whoever may write to the database by themselves it promises nothing.
"""

import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from confide.errors import RetryableError, StateError
from confide.running import Held, hold
from confide.text import line
from sqlalchemy import Connection, Engine, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

LOOK_S = 5.0
"""How often a holder looks whether it still holds the lease."""
_ENDS_S = 2.0
"""PostgreSQL hears of the end of a process a moment later: its successor waits so long before it is refused."""
_CLASS = 0x436F4C73
"""Of PostgreSQL's advisory locks of two numbers: "CoLs"; the other one is the schema."""
_NAMED = "confide coordinator "
"""How the session is named, before process and host."""
_SCHEMA = "coalesce((SELECT oid FROM pg_namespace WHERE nspname = current_schema()), 0)"
_TAKE = text(f"SELECT pg_try_advisory_lock({_CLASS}, {_SCHEMA}::int4)")
_HOLDER = text(
    "SELECT l.pid, a.application_name, extract(epoch FROM a.backend_start) "  # noqa: S608 - constants
    "FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid "
    "WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2 "
    "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
    f"AND l.classid = {_CLASS} AND l.objid = {_SCHEMA}"
)
# An idle session is not ended; a machine that is gone is noticed within a minute. What a release lacks is left alone.
_KEPT = text(
    "SELECT set_config(name, wanted, false) FROM pg_settings JOIN (VALUES ('idle_session_timeout', '0'), "
    "('tcp_keepalives_idle', '30'), ('tcp_keepalives_interval', '10'), ('tcp_keepalives_count', '3'), "
    "('application_name', :named)) AS wishes (wish, wanted) ON name = wish"
)
_ALIVE = text("SELECT 1")
_COUNT_UP = text("UPDATE heads SET number = number + 1 WHERE name = 'coordinator'")
_FIRST = text("INSERT INTO heads (name, number, hash) VALUES ('coordinator', 1, '')")
_COUNT = text("SELECT number FROM heads WHERE name = 'coordinator'")
_COUNT_HELD = text("SELECT number FROM heads WHERE name = 'coordinator' FOR SHARE")


class LeaseLost(StateError):
    """Another coordinator took the database, or another state of it stands in its place: this process is to end."""


class Lease(Protocol):
    """What one process holds."""

    def look(self) -> bool:
        """Make sure that it is held; returns whether it had been lost, and was taken again.

        Raises Held while somebody else has it, and RetryableError while the database cannot be reached.
        """

    def close(self) -> None:
        """Let others have it. Idempotent."""


def take_lease(engine: Engine, shown: str) -> Lease | None:
    """The lease of an engine's database; None for one in memory. shown: the database, in an error's words.

    Raises Held, naming the holder, StateError where it cannot be had at all, and DBAPIError where the server is not
    reached.
    """
    if engine.dialect.name != "sqlite":
        return SessionLease(engine, shown)
    if engine.url.database in (None, "", ":memory:"):
        return None
    return FileLease(Path(str(engine.url.database)), shown)


def count_up(connection: Connection) -> int:
    """Count this process as the newest that holds the lease. Waits for the transactions of the one before it."""
    if connection.execute(_COUNT_UP).rowcount == 0:
        connection.execute(_FIRST)
    return int(connection.execute(_COUNT).scalar_one())


def check_count(connection: Connection, mine: int, *, writes: bool = True) -> None:
    """Raises LeaseLost where another one is the newest. writes: nobody becomes it before the transaction has ended."""
    held = writes and connection.dialect.name != "sqlite"  # a transaction of SQLite that writes is alone already
    newest = connection.execute(_COUNT_HELD if held else _COUNT).scalar()
    if newest != mine:
        raise LeaseLost(
            "another coordinator took the database, or a backup was put in its place: it was taken "
            f"{newest or 0} times, the {mine}. time by this process, which writes nothing more to it. See that one "
            "coordinator runs, and start this one again if it is to be the one."
        )


def _taken(shown: str, holder: str, since: float | None) -> Held:
    when = "" if since is None else time.strftime(", since %Y-%m-%d %H:%M:%S UTC", time.gmtime(since))
    return Held(
        f"the database {shown} is used by a coordinator{holder}{when}; stop it, or give this one a database of its own "
        "(`database` in server.json)"
    )


class FileLease:
    """Of a database in a file. It ends with the process, a killed one too: the kernel holds it."""

    def __init__(self, database: Path, shown: str) -> None:
        self._shown = shown
        database = Path(os.path.realpath(database))  # one for all names and links that lead to it
        self._path = database.with_name(f".{database.name}.lock")
        with suppress(FileNotFoundError):
            if (names := database.stat().st_nlink) > 1:
                raise StateError(
                    f"the database {shown} has {names} names (hard links), by another of which another process may "
                    "write to it unseen; leave it one: `cp --preserve=all FILE NEW`, then put NEW in its place"
                )
        self._descriptor = self._held()

    def _held(self) -> int:
        try:
            descriptor = hold(self._path, "")
        except Held as error:
            raise self._refusal() from error
        except OSError as error:
            raise StateError(f"the database {self._shown} cannot be used: {self._path}: {error.strerror}") from error
        about = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
        with suppress(OSError):  # a full disk: it is held all the same, and says less
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(about).encode(), 0)
        return descriptor

    def _refusal(self) -> Held:
        holder, since = "", None
        with suppress(OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            found: dict[str, Any] = json.loads(self._path.read_bytes())
            holder, since = f" on {line(str(found['host']), 100)}, process {int(found['pid'])}", float(found["since"])
            time.gmtime(since)
        return _taken(self._shown, holder, since)

    def look(self) -> bool:
        """As Lease: a file that was removed holds nobody off any more."""
        with suppress(FileNotFoundError):
            if os.path.samestat(self._path.stat(), os.fstat(self._descriptor)):
                return False
        descriptor = self._held()
        os.close(self._descriptor)
        self._descriptor = descriptor
        return True

    def close(self) -> None:
        """As Lease."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


class SessionLease:
    """Of a schema of PostgreSQL. It ends with the session, and with that of a killed process."""

    def __init__(self, engine: Engine, shown: str) -> None:
        self._shown = shown
        # As the engine connects, but one session, which no pool gives to anybody else.
        self._engine = create_engine(engine.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        self._session: Connection | None = self._held(_ENDS_S)

    def _held(self, patience_s: float) -> Connection:
        session, end = self._engine.connect(), time.monotonic() + patience_s
        try:
            session.execute(_KEPT, {"named": f"{_NAMED}{os.getpid()} {socket.gethostname()}"})
            while not session.execute(_TAKE).scalar():
                if time.monotonic() >= end:
                    raise self._refusal(session)
                time.sleep(0.1)
        except BaseException:
            session.close()
            raise
        return session

    def _refusal(self, session: Connection) -> Held:
        found = session.execute(_HOLDER).first()
        if found is None:
            return _taken(self._shown, "", None)
        number, name, since = found
        holder = f", session {number} of the server"
        if name and name.startswith(_NAMED):  # told to sessions of its own role
            process, _, host = line(name.removeprefix(_NAMED), 100).partition(" ")
            holder = f" on {host}, process {process}"
        return _taken(self._shown, holder, None if since is None else float(since))

    def look(self) -> bool:
        """As Lease: a connection that dropped took the lock with it."""
        try:
            if self._session is not None:
                self._session.execute(_ALIVE)
                return False
        except DBAPIError:
            self._let_go()
        try:
            self._session = self._held(0.0)
        except DBAPIError as error:
            raise RetryableError(f"the database {self._shown} is not reached: {error.orig}") from error
        return True

    def _let_go(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            with suppress(DBAPIError):
                session.close()

    def close(self) -> None:
        """As Lease."""
        self._let_go()
        self._engine.dispose()
