"""The coordinator's database: runs, answers, slots, rounds, checkpoints, events, instructions, and a chained audit log.

SQLite by default (write-ahead log, every commit on disk before it returns), PostgreSQL by its URL. Payloads are never
in it. Tables change through migrations/ only.

Several threads and processes may write at once. On SQLite a writing transaction takes the database's one write lock
when it begins (BEGIN IMMEDIATE) and waits for it; on PostgreSQL whoever numbers something locks a row first: the run's
own for what is numbered within it, then the events' head, then the audit log's head for the log and for runs.

>>> import tempfile; database = Database(f"sqlite:///{tempfile.mkdtemp()}/coordinator.db")
>>> with database.transaction() as session: append_audit(session, {"event": "example"})
>>> database.verify_audit()
1
"""

import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from confide import canonical
from confide.errors import RetryableError, StateError
from confide.secrecy import private_file
from sqlalchemy import (
    JSON,
    BigInteger,
    Connection,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Row,
    String,
    Text,
    bindparam,
    create_engine,
    event,
    func,
    insert,
    make_url,
    select,
    text,
    update,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from confide_server.state.lease import Lease, check_count, count_up, take_lease

GENESIS = "0" * 64
BUSY_TIMEOUT_S = 60
"""How long a writer of SQLite waits for the others."""
AFTER_COMMIT = "after_commit"
"""In a session's `info`: what is to be called once its transaction is durable."""
CLOCK = "clock"
"""In a session's `info`: the database's clock."""
_BEGIN = "confide_begin"
"""In the notes of a connection to SQLite: how its next transaction begins."""
_MIGRATION_LOCK = 0x436F6E66696465
"""Of PostgreSQL's advisory locks: "Confide"."""
Json = dict[str, Any]


_OFFERS = text("kind = 'offer_answered'")


class Base(DeclarativeBase):
    """All tables."""

    type_annotation_map = {Json: JSON, list[str]: JSON}  # noqa: RUF012 - SQLAlchemy reads it from the class


class Run(Base):
    """A run as submitted, and where it stands."""

    __tablename__ = "runs"
    run_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, unique=True)
    """Order of submission."""
    name: Mapped[str] = mapped_column(String(64))
    status: Mapped[str] = mapped_column(String(16))
    detail: Mapped[str] = mapped_column(Text, default="")
    specification: Mapped[bytes] = mapped_column(LargeBinary)
    initial_model_sha256: Mapped[bytes] = mapped_column(LargeBinary(32))
    signature: Mapped[bytes] = mapped_column(LargeBinary(64))
    administrator: Mapped[str] = mapped_column(String(64))
    schema: Mapped[bytes] = mapped_column(LargeBinary)
    """confide.codec.tensors.TensorSchema.to_bytes of what travels."""
    submitted_at: Mapped[float] = mapped_column(Float)
    round: Mapped[int] = mapped_column(Integer, default=0)
    """Last committed round."""
    rounds: Mapped[int] = mapped_column(Integer)
    sealing: Mapped[str] = mapped_column(String(16))
    cohort: Mapped[list[str]] = mapped_column(default=list)
    stop_requested_by: Mapped[str | None] = mapped_column(String(64))
    nonce: Mapped[bytes] = mapped_column(LargeBinary, default=b"")
    """Of the submission; empty for runs of a release that had none."""
    expires_at: Mapped[int] = mapped_column(BigInteger, default=0)
    """Unix seconds: nodes accept the run until then."""
    stop_signature: Mapped[bytes] = mapped_column(LargeBinary, default=b"")
    """The administrator's order to stop."""
    flower_run_id: Mapped[str | None] = mapped_column(String(20))
    """The Flower run in which this run goes on, decimal."""
    method: Mapped[str] = mapped_column(String(32), default="")
    data: Mapped[str] = mapped_column(String(64), default="")
    privacy_unit: Mapped[str] = mapped_column(String(16), default="")
    privacy_epsilon: Mapped[float] = mapped_column(Float, default=0.0)
    """0: nothing is promised."""
    privacy_delta: Mapped[float] = mapped_column(Float, default=0.0)
    base_sha256: Mapped[str] = mapped_column(String(64), default="")
    base_name: Mapped[str] = mapped_column(String(200), default="")
    """These seven are the specification's, for lists."""
    parent_run_id: Mapped[str] = mapped_column(String(32), default="")
    """The run whose model it began with, as its administrator signed; "" for none."""
    parent_round: Mapped[int] = mapped_column(Integer, default=0)
    priority: Mapped[int] = mapped_column(Integer, default=0)
    """Higher goes first; among equals the older one."""
    paused_by: Mapped[str] = mapped_column(String(64), default="")
    paused_at: Mapped[float | None] = mapped_column(Float)
    """Since when it is to rest, at an operator's wish."""
    pause_reason: Mapped[str] = mapped_column(Text, default="")
    waits_for: Mapped[list[str]] = mapped_column(default=list)
    waits_reason: Mapped[str] = mapped_column(Text, default="")
    waiting_since: Mapped[float | None] = mapped_column(Float)
    """Since when it waits by itself, for whom `waits_for` names or for what `waits_reason` says."""
    started_at: Mapped[float | None] = mapped_column(Float)
    ended_at: Mapped[float | None] = mapped_column(Float)
    short_rounds: Mapped[int] = mapped_column(Integer, default=0)
    """Committed rounds to which not everybody who had accepted contributed."""
    last_event: Mapped[int] = mapped_column(BigInteger, default=0)
    """Number of its newest event."""
    cosigned: Mapped[list[list[str]]] = mapped_column(JSON, default=list)
    """[name, signature in hex] of further administrators."""
    deleted_at: Mapped[float | None] = mapped_column(Float)
    """When everything of it but this row was removed: its id and nonce stay used."""
    deleted_by: Mapped[str] = mapped_column(String(64), default="")


class Answer(Base):
    """How a node of the cohort answered the offer of a run; no row: not yet."""

    __tablename__ = "answers"
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.run_id"), primary_key=True)
    node: Mapped[str] = mapped_column(String(64), primary_key=True)
    answer: Mapped[str] = mapped_column(String(16))
    """accepted | waiting | preparing | refused"""


class Slot(Base):
    """Journal of slots: planned, then committed or abandoned."""

    __tablename__ = "slots"
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.run_id"), primary_key=True)
    slot: Mapped[int] = mapped_column(Integer, primary_key=True)
    round: Mapped[int] = mapped_column(Integer)
    attempt: Mapped[int] = mapped_column(Integer)
    state: Mapped[str] = mapped_column(String(16))
    code: Mapped[str] = mapped_column(String(64), default="")
    reason: Mapped[str] = mapped_column(Text, default="")
    planned_at: Mapped[float] = mapped_column(Float)


class Round(Base):
    """A committed round."""

    __tablename__ = "rounds"
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.run_id"), primary_key=True)
    round: Mapped[int] = mapped_column(Integer, primary_key=True)
    slot: Mapped[int] = mapped_column(Integer)
    attempts: Mapped[int] = mapped_column(Integer)
    contributors: Mapped[list[str]]
    dropped: Mapped[Json]
    metrics: Mapped[Json]
    promise: Mapped[Json]
    evidence: Mapped[list[Json]] = mapped_column(JSON, default=list)
    """confide.sealing.evidence, one for each sealed sum."""
    update_norm: Mapped[float] = mapped_column(Float)
    seconds: Mapped[float] = mapped_column(Float)
    committed_at: Mapped[float] = mapped_column(Float)
    phases: Mapped[Json] = mapped_column(default=dict)
    """Seconds by step of the protocol; empty for rounds of a release that did not record them."""
    received: Mapped[Json] = mapped_column(default=dict)
    """Bytes of each node's upload."""
    record: Mapped[bytes] = mapped_column(LargeBinary, default=b"")
    """confide.rounds.record, the entry of the log of rounds; empty for rounds of a release that kept none."""
    mean_file: Mapped[str] = mapped_column(String(80), default="")
    """The mean update, among the checkpoints; "" for none."""


class SignedRoster(Base):
    """A roster that this coordinator took, as the root signed it: manifests carry those under which rounds opened."""

    __tablename__ = "rosters"
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    signed: Mapped[bytes] = mapped_column(LargeBinary)
    version: Mapped[int] = mapped_column(BigInteger, default=0)


class Checkpoint(Base):
    """The model after a round (round 0: the first model), by the names of its files."""

    __tablename__ = "checkpoints"
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.run_id"), primary_key=True)
    round: Mapped[int] = mapped_column(Integer, primary_key=True)
    model_sha256: Mapped[bytes] = mapped_column(LargeBinary(32))
    """confide.codec.tensors.model_digest: the hash that nodes check."""
    model_file: Mapped[str] = mapped_column(String(80))
    outer_file: Mapped[str] = mapped_column(String(80))
    """The outer optimizer's state after this round; "" for none."""
    size: Mapped[int] = mapped_column(BigInteger, default=0)
    """Bytes of the model's file; 0 for one of a release that did not record it."""


class Event(Base):
    """What happened in a run, in order."""

    __tablename__ = "events"
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.run_id"), primary_key=True)
    sequence: Mapped[int] = mapped_column(Integer, primary_key=True)
    time: Mapped[float] = mapped_column(Float)
    kind: Mapped[str] = mapped_column(String(32))
    data: Mapped[Json]
    number: Mapped[int] = mapped_column(BigInteger, index=True, unique=True)
    """Rises over all runs."""
    __table_args__ = (
        Index("ix_events_offers", "number", sqlite_where=_OFFERS, postgresql_where=_OFFERS),
        Index("ix_events_offers_of_run", "run_id", "sequence", sqlite_where=_OFFERS, postgresql_where=_OFFERS),
    )


class Instruction(Base):
    """The sequence number under which an instruction's bytes go out, now and when they are sent again."""

    __tablename__ = "instructions"
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.run_id"), primary_key=True)
    digest: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    sequence: Mapped[int] = mapped_column(BigInteger)


class Audit(Base):
    """Append-only, each entry covering the one before it."""

    __tablename__ = "audit"
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    time: Mapped[float] = mapped_column(Float)
    body: Mapped[Json]
    previous: Mapped[str] = mapped_column(String(64), unique=True)
    hash: Mapped[str] = mapped_column(String(64))


class Head(Base):
    """Where an append-only table ends. The row is also the lock of whoever appends.

    That of "coordinator" says how many processes have held the lease of the database (confide_server.state.lease).
    """

    __tablename__ = "heads"
    name: Mapped[str] = mapped_column(String(16), primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger)
    hash: Mapped[str] = mapped_column(String(64))


# Columns, not objects: a log has tens of thousands of entries, and they are only read.
_AUDIT_ENTRIES = select(Audit.number, Audit.time, Audit.body, Audit.previous, Audit.hash).order_by(Audit.number)
_AUDIT_END = select(Head.number, Head.hash).where(Head.name == "audit")
_AUDIT_END_HELD = _AUDIT_END.with_for_update()
_MOVE_AUDIT_END = (
    update(Head.__table__)  # type: ignore[arg-type]  # a table
    .where(Head.name == "audit")
    .values(number=bindparam("to"), hash=bindparam("by"))
)
_ADD_AUDIT = insert(Audit.__table__)  # type: ignore[arg-type]  # a table


def _chain(previous: str, when: float, body: Json) -> str:
    fields = canonical.encode({"body": body, "time": when})
    return canonical.hash_fields("confide/v1/audit", bytes.fromhex(previous), fields).hex()


def append_audit(session: Session, body: Json) -> None:
    """Add an entry to the audit log, in the caller's transaction, which holds the log's head until it ends."""
    head, when = locked_head(session), session.info.get(CLOCK, time.time)()
    number, sha256 = head.number + 1, _chain(head.hash, when, body)
    entry = {"number": number, "time": when, "body": body, "previous": head.hash, "hash": sha256}
    session.connection().execute(_ADD_AUDIT, entry)
    session.connection().execute(_MOVE_AUDIT_END, {"to": number, "by": sha256})


def locked_head(session: Session) -> Row[int, str]:
    """The end of the audit log (number and hash), held against other writers until the transaction ends."""
    return session.connection().execute(_AUDIT_END_HELD).one()


_DAMAGE = ("malformed", "not a database", "no such table", "no such column")


class Database:
    """The engine, migrated to the newest schema."""

    def __init__(
        self, url: str, *, flushed: bool = True, leased: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        """Open, check and migrate. Raises StateError when it is damaged, unreachable, or of a newer release.

        flushed: on SQLite a commit has reached the disk when it returns, and survives a loss of power; else it survives
        the end of the process only, and reaches the disk soon after.
        leased: hold the lease until it is closed, as who drives its runs. Raises Held, before anything is touched,
        while another process has it; transactions then raise LeaseLost once another one took it.
        clock: Unix seconds, by which everything that is written says when.
        """
        self.url = url
        self.clock = clock
        self._lease: Lease | None = None
        self._count = 0
        """The how-manieth holder of the lease this process is."""
        try:
            self._engine = _engine(url, flushed=flushed)
        except (ArgumentError, NoSuchModuleError, ImportError, ValueError) as error:
            raise StateError(self._explain(error)) from error
        # Also when its owner forgets to close it: connections end with the object, and not at some later collection.
        weakref.finalize(self, self._engine.dispose)
        try:
            self._reader = _reader(self._engine)
            if leased:
                self._lease = take_lease(self._engine, self._shown())
            _make_private(self._engine)
            self._check()
            self._migrate()
            if self._lease is not None:
                with self._engine.begin() as connection:
                    self._count = count_up(connection)
            self.verify_audit()
        except Exception as error:
            self.close()  # a database that is refused keeps no connection
            if isinstance(error, DBAPIError | ArgumentError | ImportError | ValueError):
                raise StateError(self._explain(error)) from error
            raise

    @property
    def dialect(self) -> str:
        """SQLAlchemy's name of it: "sqlite" or "postgresql"."""
        return self._engine.dialect.name

    def _named(self, error: DBAPIError) -> StateError:
        """A database that is damaged, or of another shape than it should be, does not mend by itself."""
        passes = isinstance(error, OperationalError) and not any(sign in str(error.orig) for sign in _DAMAGE)
        return (RetryableError if passes else StateError)(self._explain(error))

    def _shown(self) -> str:
        return make_url(self.url).render_as_string(hide_password=True) if "://" in self.url else repr(self.url)

    def _explain(self, error: Exception) -> str:
        shown = self._shown()
        cause = str(getattr(error, "orig", None) or error).splitlines()[0]
        if "database is locked" in cause:
            return (
                f"the database {shown} is busy: another process has been writing to it for {BUSY_TIMEOUT_S} s. It is "
                "not damaged; end that process, or try again."
            )
        return (
            f"the database {shown} cannot be used: {cause}. If it is damaged, restore it from a backup (checkpoints "
            "are files beside it); if it is elsewhere, correct --database."
        )

    def _check(self) -> None:
        if self._engine.dialect.name != "sqlite":
            return
        with self._engine.connect() as connection:
            verdict = connection.execute(text("PRAGMA quick_check(1)")).scalar()
        if verdict != "ok":
            raise OperationalError("PRAGMA quick_check", {}, Exception(f"database is malformed: {verdict}"))

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        with self._engine.begin() as connection:
            if connection.dialect.name == "postgresql":  # SQLite's transaction holds the database already
                connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, "heads")
            except CommandError as error:
                raise StateError(f"the database is of another release: {error}. Upgrade this coordinator.") from error

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """All or nothing, written. Raises RetryableError when the disk is full or the database is gone."""
        try:
            with Session(self._engine, expire_on_commit=False, info={CLOCK: self.clock}) as session:
                with session.begin():
                    if self._lease is not None:
                        check_count(session.connection(), self._count)
                    yield session
                done: list[Callable[[], None]] = session.info.get(AFTER_COMMIT, [])
            for tell in done:
                tell()
        except DBAPIError as error:
            raise self._named(error) from error

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """One moment's state, while others write. Raises RetryableError when the database is gone."""
        try:
            with (
                self._beginning("BEGIN") as connection,
                Session(connection, expire_on_commit=False) as session,
                session.begin(),
            ):
                yield session
        except DBAPIError as error:
            raise self._named(error) from error

    @contextmanager
    def looking(self) -> Iterator[Connection]:
        """As `reading`, for one statement that has been built already and gives columns: in a third of the time."""
        try:
            with self._beginning("") as connection:
                yield connection
        except DBAPIError as error:
            raise self._named(error) from error

    @contextmanager
    def _beginning(self, how: str) -> Iterator[Connection]:
        """A connection that reads. how: SQLite's statement that begins; "" for none, so that each sees a moment."""
        with self._reader.connect() as connection:
            notes = connection.connection.info
            notes[_BEGIN] = how
            try:
                yield connection
            finally:
                notes.pop(_BEGIN, None)

    def look_after_lease(self) -> bool:
        """Make sure that the lease is held; whether it had been lost, and was taken again. Without one: False.

        Raises LeaseLost when another process took it meanwhile and counts now, Held when it only has it, RetryableError
        when the database is gone.
        """
        if self._lease is None:
            return False
        self._check_count()
        if again := self._lease.look():
            self._check_count()
        return again

    def _check_count(self) -> None:
        with self.looking() as connection:
            check_count(connection, self._count, writes=False)

    def verify_audit(self) -> int:
        """Number of audit entries, after checking their chain. Raises StateError naming the first that breaks it."""
        head, count = GENESIS, 0
        with self.reading() as session:
            connection = session.connection()
            for entry in connection.execute(_AUDIT_ENTRIES, execution_options={"yield_per": 1000}):
                count += 1
                sound = entry.number == count and entry.previous == head
                if not sound or entry.hash != _chain(head, entry.time, entry.body):
                    raise StateError(
                        f"audit entry {entry.number} does not follow from the one before it: the database was edited. "
                        "Restore it from a backup, or ask your auditor."
                    )
                head = entry.hash
            end = connection.execute(_AUDIT_END).one()
            if (end.number, end.hash) != (count, head):
                raise StateError(
                    f"the audit log ends with entry {count}, and {end.number} were written: the database was edited. "
                    "Restore it from a backup, or ask your auditor."
                )
        return count

    def close(self) -> None:
        """Release the connections, and the lease after them."""
        self._engine.dispose()
        if self._lease is not None:
            self._lease.close()


def _make_private(engine: Engine) -> None:
    # SQLite gives its log beside the database the database's own mode.
    if engine.dialect.name != "sqlite" or engine.url.database in (None, "", ":memory:"):
        return
    path = Path(str(engine.url.database))
    try:
        private_file(path)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error


def _reader(engine: Engine) -> Engine:
    if engine.dialect.name == "sqlite":
        return engine
    return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


def _begin_at_once(connection: Any) -> None:
    """In place of the dialect's do_begin: SQLite's write lock is taken when a transaction begins, unless it reads."""
    # A lock that is taken only at the first write fails at once when somebody else wrote since the first read.
    if how := connection.info.pop(_BEGIN, "BEGIN IMMEDIATE"):
        connection.dbapi_connection.execute(how)


def _engine(url: str, *, flushed: bool = True) -> Engine:
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def _durable(connection: Any, _: Any) -> None:
            connection.isolation_level = None  # else the driver begins by itself, and later than at the beginning
            synchronous = f"synchronous={'FULL' if flushed else 'NORMAL'}"
            for pragma in (f"busy_timeout={BUSY_TIMEOUT_S * 1000}", "journal_mode=WAL", synchronous):
                connection.execute(f"PRAGMA {pragma}")
            connection.execute("PRAGMA foreign_keys=ON")

        # Not by an event of the engine: with one, each statement looks for listeners in eight places.
        engine.dialect.do_begin = _begin_at_once  # type: ignore[assignment]  # of this engine's own dialect

    return engine
