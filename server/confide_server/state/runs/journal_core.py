"""What every part of the run journal stands on: a run held against other writers, its events in order, who waits.

Everything that it says happened is durable. A run is locked before the events' head, and that before the audit log's.
"""

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from confide import canonical
from confide.errors import StateError
from confide.identity.roster import RosterStore
from sqlalchemy import Executable
from sqlalchemy.orm import Session

from confide_server.state.checkpoints import CheckpointStore
from confide_server.state.database import (
    AFTER_COMMIT,
    Database,
    Run,
    SignedRoster,
    append_audit,
)
from confide_server.state.event_lines import log_event
from confide_server.state.events import Contributed, Dropped, Happening, data_of
from confide_server.state.progress import ProgressBoard
from confide_server.state.runs import statements
from confide_server.state.runs.status import RunStatus

T = TypeVar("T")
_HELD = "held_runs"
"""In a session's notes: the runs that its transaction holds."""
_NO_RUN = "there is no run {}; `confide run list` shows which there are"
ReceiptsOfRun = Callable[[str], Sequence[Mapping[str, Any]]]


class JournalCore:
    """The parts of RunJournal are its subclasses: one database, one lock, one board."""

    def __init__(
        self,
        database: Database,
        checkpoints: CheckpointStore,
        roster: RosterStore,
        receipts: ReceiptsOfRun = lambda run_id: (),
    ) -> None:
        """receipts: the ledger receipts of a run, for its manifest."""
        self._database = database
        self.checkpoints = checkpoints
        self.clock = database.clock
        """Unix seconds, as this coordinator knows them."""
        self._roster = roster
        self._receipts = receipts
        self._changed = threading.Condition()
        self.listeners: list[Callable[[str, Happening], None]] = [log_event]
        """Told of each event once it is durable: the log, and figures."""
        self.changes = 0
        """How often something was written."""
        self._kept_roster = b""
        """The newest of those that `_keep_roster` made durable: no roster is ever removed."""
        self._waiting: dict[str, tuple[tuple[str, ...], str]] = {}
        """What `waits` wrote last, by run: it is told again and again."""
        self.progress = ProgressBoard(lambda: roster.current)

    def notify(self) -> None:
        """Something was written that somebody may wait for: ends a waiting `next_run` or `wait`."""
        with self._changed:
            self.changes += 1
            self._changed.notify_all()

    def wait(self, found: Callable[[], T], timeout_s: float) -> T:
        """What `found` returns, once it is true or the time is over; it is asked again after every change."""
        end = time.monotonic() + timeout_s
        while True:
            with self._changed:
                result, left = found(), end - time.monotonic()
                if result or left <= 0:
                    return result
                self._changed.wait(left)

    def _row(self, session: Session, run_id: str, *, held: bool = False) -> Run:
        statement = statements.RUN_HELD if held else statements.RUN
        run: Run | None = session.scalars(
            statement, {"of_run": run_id}, execution_options={"populate_existing": held}
        ).one_or_none()
        if run is None:
            raise StateError(_NO_RUN.format(run_id))
        return run

    def _of_run(self, statement: Executable, run_id: str) -> Sequence[Any]:
        with self._database.looking() as connection:
            found = statements.of_run(connection, statement, run_id)
        if found is None:
            raise StateError(_NO_RUN.format(run_id))
        return found

    def _hold(self, session: Session, run_id: str) -> None:
        """As `locked`, where nothing of the run is asked."""
        if run_id not in session.info.setdefault(_HELD, {}) and not statements.hold(session, run_id):
            raise StateError(_NO_RUN.format(run_id))

    def locked(self, session: Session, run_id: str) -> Run:
        """The run, held against other writers until the transaction ends. Taken before the audit log's head, always."""
        held: dict[str, Run] = session.info.setdefault(_HELD, {})
        if run_id not in held:
            held[run_id] = self._row(session, run_id, held=True)
        return held[run_id]

    def update(self, run_id: str, **fields: Any) -> None:
        """Set columns of the run, durably."""
        with self._database.transaction() as session:
            if not statements.set_columns(session, run_id, fields):
                raise StateError(_NO_RUN.format(run_id))

    def record(self, run_id: str, event: Happening) -> None:
        """Append an event, durably."""
        if isinstance(event, Contributed | Dropped):
            self.progress.forget(run_id, event.node)
        with self._database.transaction() as session:
            self.add_event(session, run_id, event)
        self.notify()

    def add_event(self, session: Session, run_id: str, event: Happening) -> None:
        """Append an event in the caller's transaction, which holds the run and the events' head until it ends."""
        self._hold(session, run_id)
        statements.append_event(session, run_id, self.clock(), event.kind, data_of(event))
        session.info.setdefault(AFTER_COMMIT, []).append(lambda: self._tell(run_id, event))

    def _tell(self, run_id: str, event: Happening) -> None:
        for listener in self.listeners:
            listener(run_id, event)

    def _end(self, session: Session, run: Run, status: RunStatus, event: Happening, detail: str) -> None:
        run.status, run.detail, run.ended_at = status, detail, self.clock()
        run.waits_for, run.waits_reason, run.waiting_since, run.paused_at = [], "", None, None
        self.add_event(session, run.run_id, event)
        append_audit(session, {"event": event.kind, "run_id": run.run_id, **data_of(event)})

    def keep_roster(self) -> None:
        """Keep the newest roster for the manifests of the rounds that are opened under it."""
        with self._database.transaction() as session:
            self._keep_roster(session)

    def _keep_roster(self, session: Session) -> None:
        signed, version = self._roster.signed, self._roster.current.version
        if signed == self._kept_roster:
            return
        sha256 = canonical.digest(json.loads(signed)["document"])
        session.merge(SignedRoster(sha256=sha256, signed=signed, version=version))
        session.info.setdefault(AFTER_COMMIT, []).append(lambda: setattr(self, "_kept_roster", signed))
