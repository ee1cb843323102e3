"""What the driver asks of the database again and again, as statements that are built once.

A statement is built anew in more time than SQLite takes to run it, and a whole run with its specification and schema is
read for one word of it. Each function works in the caller's transaction.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Executable, bindparam, func, insert, select, update
from sqlalchemy.orm import Session

from confide_server.state.database import Base, Event, Head, Instruction, Run

_RUNS, _EVENTS, _HEADS, _SENT = (Base.metadata.tables[one.__tablename__] for one in (Run, Event, Head, Instruction))
_THIS = _RUNS.c.run_id == bindparam("of_run")
_THERE = _THIS & _RUNS.c.deleted_at.is_(None)

STOP_ORDER = select(_RUNS.c.stop_requested_by, _RUNS.c.stop_signature).where(_THERE)
PAUSED_AT = select(_RUNS.c.paused_at).where(_THIS)
PRIORITY = select(_RUNS.c.priority).where(_THERE)
COMMITTED = select(_RUNS.c.round).where(_THERE)
_HOLD = select(_RUNS.c.run_id).where(_THERE).with_for_update()

_EVENTS_END = select(_HEADS.c.number).where(_HEADS.c.name == "events").with_for_update()
_MOVE_EVENTS_END = update(_HEADS).where(_HEADS.c.name == "events").values(number=bindparam("to"))
_LAST_EVENT = select(func.max(_EVENTS.c.sequence)).where(_EVENTS.c.run_id == bindparam("of_run"))
_ADD_EVENT = insert(_EVENTS)
_NOTE_EVENT = update(_RUNS).where(_THIS).values(last_event=bindparam("to"))

_LAST_SENT = select(func.max(_SENT.c.sequence)).where(_SENT.c.run_id == bindparam("of_run"))
_NUMBERS = select(_SENT.c.digest, _SENT.c.sequence).where(
    _SENT.c.run_id == bindparam("of_run"), _SENT.c.digest.in_(bindparam("digests", expanding=True))
)
_ADD_SENT = insert(_SENT)


def of_run(connection: Connection, statement: Executable, run_id: str) -> Sequence[Any] | None:
    """The one row of a statement about one run; None where there is no such run."""
    return connection.execute(statement, {"of_run": run_id}).one_or_none()


def hold(session: Session, run_id: str) -> bool:
    """Hold the run against other writers until the transaction ends. False: there is no such run."""
    return of_run(session.connection(), _HOLD, run_id) is not None


def append_event(session: Session, run_id: str, when: float, kind: str, data: Mapping[str, Any]) -> None:
    """Add the run's next event; the run is held. Holds the end of all events until the transaction ends."""
    connection = session.connection()
    number = connection.execute(_EVENTS_END).scalar_one() + 1
    connection.execute(_MOVE_EVENTS_END, {"to": number})
    last = connection.execute(_LAST_EVENT, {"of_run": run_id}).scalar_one() or 0
    row = {"run_id": run_id, "sequence": last + 1, "time": when, "kind": kind, "data": data, "number": number}
    connection.execute(_ADD_EVENT, row)
    connection.execute(_NOTE_EVENT, {"of_run": run_id, "to": number})


def numbers_of(session: Session, run_id: str, digests: Collection[bytes]) -> dict[bytes, int]:
    """The sequence number of each digest, an old one or the next; the run is held."""
    connection = session.connection()
    last = connection.execute(_LAST_SENT, {"of_run": run_id}).scalar_one() or 0
    wanted = list(dict.fromkeys(digests))
    known = connection.execute(_NUMBERS, {"of_run": run_id, "digests": wanted})
    numbers: dict[bytes, int] = {row.digest: row.sequence for row in known}
    new = [digest for digest in wanted if digest not in numbers]
    numbers |= {digest: last + count for count, digest in enumerate(new, start=1)}
    if new:
        connection.execute(
            _ADD_SENT, [{"run_id": run_id, "digest": digest, "sequence": numbers[digest]} for digest in new]
        )
    return numbers
