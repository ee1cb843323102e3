"""What people change of runs, beside submitting and stopping them: rest, go on, go first, be removed.

Every change may be asked for twice, and stands in the audit log with who asked.
"""

import time
from collections.abc import Callable, Sequence

from confide.errors import SpecificationError, StateError
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from confide_server.state.database import (
    Answer,
    Checkpoint,
    Database,
    Event,
    Instruction,
    Round,
    Run,
    Slot,
    append_audit,
)
from confide_server.state.events import PausedByOperator, ResumedByOperator, RunDeleted
from confide_server.state.release_tables import ReleaseRow
from confide_server.state.runs.journal import RunJournal
from confide_server.state.runs.status import ENDED

MAX_REASON_CHARS = 500
MAX_PRIORITY = 100


class RunControl:
    """Changes of runs by people."""

    def __init__(
        self, database: Database, journal: RunJournal, remove_folder: Callable[[str], None] = lambda run_id: None
    ) -> None:
        """remove_folder: removes what the protocol keeps of a run in files."""
        self._database = database
        self._journal = journal
        self._remove_folder = remove_folder

    def pause(self, run_id: str, reason: str, by: str) -> None:
        """Let the run rest once its open round has ended. Raises StateError for a run that has ended."""
        if len(reason) > MAX_REASON_CHARS:
            raise SpecificationError(f"the reason has {len(reason)} characters; at most {MAX_REASON_CHARS} are kept")
        with self._database.transaction() as session:
            run = self._open(session, run_id, "paused")
            if run.paused_at is not None:
                return
            run.paused_at, run.paused_by, run.pause_reason = time.time(), by, reason
            run.detail = "rests once the open round has ended" if run.round or run.started_at else "rests"
            self._journal.add_event(session, run_id, PausedByOperator(by=by, reason=reason, round=run.round))
            append_audit(session, {"event": "run_paused", "run_id": run_id, "by": by, "reason": reason})
        self._journal.notify()

    def resume(self, run_id: str, by: str) -> None:
        """Let it go on where it was. Raises StateError for a run that has ended."""
        with self._database.transaction() as session:
            run = self._open(session, run_id, "resumed")
            if run.paused_at is None:
                return
            run.paused_at, run.paused_by, run.pause_reason, run.detail = None, "", "", ""
            self._journal.add_event(session, run_id, ResumedByOperator(by=by, round=run.round))
            append_audit(session, {"event": "run_resumed", "run_id": run_id, "by": by})
        self._journal.notify()

    def set_priority(self, run_id: str, priority: int, by: str) -> None:
        """Higher goes first, from the run's next round on."""
        if abs(priority) > MAX_PRIORITY:
            raise SpecificationError(f"the priority is {priority}; from -{MAX_PRIORITY} to {MAX_PRIORITY} is possible")
        with self._database.transaction() as session:
            run = self._open(session, run_id, "moved")
            if run.priority == priority:
                return
            run.priority = priority
            append_audit(session, {"event": "run_priority", "run_id": run_id, "by": by, "priority": priority})
        self._journal.notify()

    def delete(self, run_id: str, by: str) -> None:
        """Remove events, rounds and models of a run that has ended.

        A tombstone is left: that it was there, who removed it and when, in the list of runs and as its one event. Its
        id and nonce stay used, the audit log stays.

        Models that another run or a release stands on are kept. Raises StateError while the run is open, or a release
        of it or a run that went on from it is there: their manifests and lineage name it.
        """
        with self._database.transaction() as session:
            run = session.get(Run, run_id)
            if run is not None and run.deleted_at is not None:
                return
            run = self._journal.locked(session, run_id)
            _check_removable(session, run)
            files = _files(session, run_id)
            for table in (Event, Round, Slot, Answer, Instruction, Checkpoint):
                session.execute(delete(table).where(table.run_id == run_id))
            self._journal.add_event(session, run_id, RunDeleted(by=by))
            run.deleted_at, run.deleted_by, run.detail = time.time(), by, f"deleted by {by}"
            session.flush()
            unused = [name for name in files if not _used(session, name)]
            append_audit(session, {"event": "run_deleted", "run_id": run_id, "by": by, "files": unused})
        for name in unused:
            self._journal.checkpoints.remove(name)
        self._remove_folder(run_id)
        self._journal.notify()

    def _open(self, session: Session, run_id: str, what: str) -> Run:
        run = self._journal.locked(session, run_id)
        if run.status in ENDED:
            raise StateError(f"run {run_id[:8]} is {run.status}; only an open run can be {what}")
        return run


def _check_removable(session: Session, run: Run) -> None:
    if run.status not in ENDED:
        raise StateError(f"run {run.run_id[:8]} is {run.status}; stop it first, then delete it")
    release = session.execute(
        select(ReleaseRow.name, ReleaseRow.number).where(ReleaseRow.run_id == run.run_id).limit(1)
    ).first()
    if release is not None:
        raise StateError(f"release {release[0]}/{release[1]} is of run {run.run_id[:8]}, which is therefore kept")
    child = session.scalar(select(Run.run_id).where(Run.parent_run_id == run.run_id, Run.deleted_at.is_(None)).limit(1))
    if child is not None:
        raise StateError(f"run {child[:8]} goes on from run {run.run_id[:8]}, which is therefore kept")


def _files(session: Session, run_id: str) -> Sequence[str]:
    rows = session.execute(select(Checkpoint.model_file, Checkpoint.outer_file).where(Checkpoint.run_id == run_id))
    means = session.scalars(select(Round.mean_file).where(Round.run_id == run_id))
    return sorted({name for row in rows for name in row if name} | {name for name in means if name})


def _used(session: Session, name: str) -> bool:
    models = select(func.count()).where((Checkpoint.model_file == name) | (Checkpoint.outer_file == name))
    means = select(func.count()).where(Round.mean_file == name)
    return bool(session.scalar(models)) or bool(session.scalar(means))
