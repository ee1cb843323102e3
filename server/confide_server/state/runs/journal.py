"""The run journal: what the administration service asks and what the run driver records, over database and checkpoints.

    journal_core        a run held, its events in order, who waits for them
    submission_journal  how a run comes in
    manifest_journal    what is told of a committed round for good
    round_journal       slots and rounds
    driving_journal     which run is next, for whom it waits, how it ended

Everything that it says happened is durable: a round's checkpoint is on disk before the one transaction that commits
the round, its slot and its event.
"""

from collections.abc import Sequence

from sqlalchemy import select

from confide_server.state.database import Event, Run
from confide_server.state.runs.driving_journal import DrivingJournal, OpenRun
from confide_server.state.runs.manifest_journal import ManifestJournal
from confide_server.state.runs.round_journal import Committed, Model
from confide_server.state.runs.service import RunEvent, RunSummary
from confide_server.state.runs.submission_journal import SubmissionJournal
from confide_server.state.views import SHOWN

__all__ = ["Committed", "Model", "OpenRun", "RunJournal"]


class RunJournal(SubmissionJournal, ManifestJournal, DrivingJournal):
    """Implements service.RunService; its other methods are the driver's."""

    def runs(self) -> Sequence[RunSummary]:
        """Newest first."""
        with self._database.reading() as session:
            columns = (
                SHOWN.label("standing"),
                Run.run_id,
                Run.name,
                Run.status,
                Run.round,
                Run.rounds,
                Run.sealing,
                Run.detail,
                Run.submitted_at,
            )
            query = select(*columns).where(Run.deleted_at.is_(None)).order_by(Run.number.desc())
            rows = session.execute(query).all()
        return [
            RunSummary(
                run_id=row.run_id,
                name=row.name,
                status=row.status,
                round=row.round,
                rounds=row.rounds,
                sealing=row.sealing,
                detail=row.detail,
                submitted_at=row.submitted_at,
                standing=row.standing,
            )
            for row in rows
        ]

    def events(self, run_id: str, after: int, timeout_s: float) -> Sequence[RunEvent]:
        """Events with sequence > after; waits up to timeout_s for the first one."""
        return self.wait(lambda: self._events_now(run_id, after), timeout_s)

    def _events_now(self, run_id: str, after: int) -> list[RunEvent]:
        with self._database.reading() as session:
            self._row(session, run_id)
            query = select(Event).where(Event.run_id == run_id, Event.sequence > after).order_by(Event.sequence)
            return [RunEvent(row.sequence, row.time, row.kind, row.data) for row in session.scalars(query)]
