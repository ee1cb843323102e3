"""What the driver asks of the database again and again, as statements that are built once.

A statement is built anew in more time than SQLite takes to run it, and a whole run with its specification and schema is
read for one word of it. Each function works in the caller's transaction.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Executable, bindparam, func, insert, select, update
from sqlalchemy.orm import Session

from confide_server.state.database import Answer, Base, Checkpoint, Event, Head, Instruction, Run, Slot

_RUNS, _EVENTS, _HEADS, _SENT, _ANSWERS, _MODELS, _SLOTS = (
    Base.metadata.tables[one.__tablename__] for one in (Run, Event, Head, Instruction, Answer, Checkpoint, Slot)
)
_THIS = _RUNS.c.run_id == bindparam("of_run")
_THERE = _THIS & _RUNS.c.deleted_at.is_(None)

RUN = select(Run).where(_THERE)
RUN_HELD = RUN.with_for_update()
STOP_ORDER = select(_RUNS.c.stop_requested_by, _RUNS.c.stop_signature).where(_THERE)
PAUSED_AT = select(_RUNS.c.paused_at).where(_THIS)
PRIORITY = select(_RUNS.c.priority).where(_THERE)
COMMITTED = select(_RUNS.c.round).where(_THERE)
_HOLD = select(_RUNS.c.run_id).where(_THERE).with_for_update()

_MOVE_EVENTS_END = update(_HEADS).where(_HEADS.c.name == "events").values(number=_HEADS.c.number + 1)
_EVENTS_END = select(_HEADS.c.number).where(_HEADS.c.name == "events").scalar_subquery()
_LAST_EVENT = select(func.max(_EVENTS.c.sequence)).where(_EVENTS.c.run_id == bindparam("of_run")).scalar_subquery()
_ADD_EVENT = (
    insert(_EVENTS)
    .values(run_id=bindparam("of_run"), sequence=func.coalesce(_LAST_EVENT, 0) + 1, number=_EVENTS_END)
    .inline()
)
_NOTE_EVENT = update(_RUNS).where(_THIS).values(last_event=_EVENTS_END)

_LAST_SENT = select(func.max(_SENT.c.sequence)).where(_SENT.c.run_id == bindparam("of_run")).scalar_subquery()
_NUMBERS = select(_SENT.c.digest, _SENT.c.sequence).where(
    _SENT.c.run_id == bindparam("of_run"),
    _SENT.c.digest.in_(bindparam("digests", expanding=True)) | (_SENT.c.sequence == _LAST_SENT),
)
_ADD_SENT = insert(_SENT)

_SET_ANSWER = (
    update(_ANSWERS)
    .where(_ANSWERS.c.run_id == bindparam("of_run"), _ANSWERS.c.node == bindparam("of_node"))
    .values(answer=bindparam("said"))
)
_ADD_ANSWER = insert(_ANSWERS)

ACCEPTED = select(_ANSWERS.c.node).where(_ANSWERS.c.run_id == bindparam("of_run"), _ANSWERS.c.answer == "accepted")

_OF_ROUND = (_SLOTS.c.run_id == bindparam("of_run")) & (_SLOTS.c.round == bindparam("this"))
_PLANNED = select(_SLOTS.c.slot, _SLOTS.c.attempt).where(_OF_ROUND, _SLOTS.c.state == "planned")
_SLOTS_END = select(
    func.coalesce(func.max(_SLOTS.c.slot), 0) + 1,
    func.count().filter(_SLOTS.c.round == bindparam("this")) + 1,
).where(_SLOTS.c.run_id == bindparam("of_run"))
_ADD_SLOT = insert(_SLOTS)
ABANDONED = select(func.count()).select_from(_SLOTS).where(_OF_ROUND, _SLOTS.c.state == "abandoned")

MODEL_FILES = select(_MODELS.c.round, _MODELS.c.model_sha256, _MODELS.c.model_file, _MODELS.c.outer_file).where(
    _MODELS.c.run_id == bindparam("of_run"), _MODELS.c.round.in_((bindparam("this"), bindparam("before")))
)


def of_run(connection: Connection, statement: Executable, run_id: str) -> Sequence[Any] | None:
    """The one row of a statement about one run; None where there is no such run."""
    return connection.execute(statement, {"of_run": run_id}).one_or_none()


def hold(session: Session, run_id: str) -> bool:
    """Hold the run against other writers until the transaction ends. False: there is no such run."""
    return of_run(session.connection(), _HOLD, run_id) is not None


def append_event(session: Session, run_id: str, when: float, kind: str, data: Mapping[str, Any]) -> None:
    """Add the run's next event; the run is held. Holds the end of all events until the transaction ends."""
    connection = session.connection()
    connection.execute(_MOVE_EVENTS_END)
    connection.execute(_ADD_EVENT, {"of_run": run_id, "time": when, "kind": kind, "data": data})
    connection.execute(_NOTE_EVENT, {"of_run": run_id})


def set_answer(session: Session, run_id: str, node: str, answer: str) -> None:
    """How the node answers the offer from now on; the run is held."""
    connection = session.connection()
    if not connection.execute(_SET_ANSWER, {"of_run": run_id, "of_node": node, "said": answer}).rowcount:
        connection.execute(_ADD_ANSWER, {"run_id": run_id, "node": node, "answer": answer})


def set_columns(session: Session, run_id: str, columns: Mapping[str, Any]) -> bool:
    """Set columns of the run. False: there is no such run."""
    changed = update(_RUNS).where(_THERE)
    for column, value in columns.items():
        changed = changed.values({column: value})
    return session.connection().execute(changed, {"of_run": run_id}).rowcount > 0


def plan_slot(session: Session, run_id: str, round: int, when: float) -> tuple[int, int]:
    """(slot, attempt) of the slot that is planned for this round, or of a new one; the run is held."""
    connection = session.connection()
    planned = connection.execute(_PLANNED, {"of_run": run_id, "this": round}).first()
    if planned is not None:
        return planned.slot, planned.attempt
    slot, attempt = connection.execute(_SLOTS_END, {"of_run": run_id, "this": round}).one()
    row = {"run_id": run_id, "slot": slot, "round": round, "attempt": attempt, "state": "planned", "planned_at": when}
    connection.execute(_ADD_SLOT, row | {"code": "", "reason": ""})
    return slot, attempt


def numbers_of(session: Session, run_id: str, digests: Collection[bytes]) -> dict[bytes, int]:
    """The sequence number of each digest, an old one or the next; the run is held."""
    connection = session.connection()
    wanted = list(dict.fromkeys(digests))
    known = connection.execute(_NUMBERS, {"of_run": run_id, "digests": wanted})
    numbers: dict[bytes, int] = {row.digest: row.sequence for row in known}
    last = max(numbers.values(), default=0)
    new = [digest for digest in wanted if digest not in numbers]
    numbers |= {digest: last + count for count, digest in enumerate(new, start=1)}
    if new:
        connection.execute(
            _ADD_SENT, [{"run_id": run_id, "digest": digest, "sequence": numbers[digest]} for digest in new]
        )
    return numbers
