"""What scheduler and drivers ask and record of a run as a whole: which is next, for whom it waits, how it ended."""

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from confide.codec.tensors import TensorSchema
from confide.errors import ConfideError, StateError
from confide.identity.submission import SignedSubmission
from confide.methods.first_model import update_schema_of
from confide.runs.specification import Specification, parse_canonical
from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from confide_server.state.database import Answer, Run
from confide_server.state.events import OfferAnswered, RunFailed, RunFinished, RunStopped, RunWaits
from confide_server.state.runs import statements
from confide_server.state.runs.round_journal import RoundJournal
from confide_server.state.runs.status import OPEN, RunStatus
from confide_server.state.runs.submission_journal import signed_of

log = logging.getLogger(__name__)
_NEXT = (
    select(Run)
    .where(
        Run.status.in_(OPEN),
        Run.paused_at.is_(None) | Run.stop_requested_by.is_not(None),
        Run.run_id.not_in(bindparam("besides", expanding=True)),
    )
    .order_by(Run.priority.desc(), Run.number)
    .limit(1)
)


@dataclass(frozen=True)
class OpenRun:
    """What the driver needs to begin or go on."""

    run_id: str
    status: str
    specification: Specification
    schema: TensorSchema
    """Of the trainable tensors; unnamed where nothing depends on names."""
    signed: SignedSubmission
    round: int
    cohort: tuple[str, ...]
    answers: Mapping[str, str]
    """Of the cohort, by name; "" for none yet."""
    flower_run_id: int | None


class DrivingJournal(RoundJournal):
    """Runs on their way from submitted to ended."""

    def next_run(self, timeout_s: float, besides: Collection[str] = ()) -> OpenRun | None:
        """The next run to be driven, waiting up to timeout_s for one. One that cannot be opened fails by name.

        Higher priorities first, then the older run. Runs that rest are passed over, unless they are to be stopped.
        besides: runs that are driven already. Raises StateError for what may pass.
        """
        end = time.monotonic() + timeout_s
        while True:
            run = self.wait(lambda: self._next(besides), end - time.monotonic())
            if run is None:
                return None
            try:
                return self._open_run(*run)
            except StateError:
                raise  # a disk or database that fails may be mended
            except Exception as error:
                self.fail(run[0].run_id, error)

    def open_run(self, run_id: str) -> OpenRun | None:
        """The run as it stands now, to go on with it; None when it has ended or rests.

        Raises StateError for what may pass; a run that cannot be opened fails by name.
        """
        with self._database.reading() as session:
            run = self._row(session, run_id)
            answers = _answers(session, run)
        rests = run.paused_at is not None and not run.stop_requested_by
        if run.status not in OPEN or rests:
            return None
        try:
            return self._open_run(run, answers)
        except StateError:
            raise
        except Exception as error:
            self.fail(run_id, error)
            return None

    def _next(self, besides: Collection[str]) -> tuple[Run, dict[str, str]] | None:
        with self._database.reading() as session:
            run = session.scalars(_NEXT, {"besides": list(besides)}).first()
            return None if run is None else (run, _answers(session, run))

    def _open_run(self, run: Run, answers: Mapping[str, str]) -> OpenRun:
        specification = parse_canonical(run.specification)
        first_bytes = self.checkpoints.size(self._files(run.run_id, 0)[0].model_file)
        return OpenRun(
            run_id=run.run_id,
            status=run.status,
            specification=specification,
            schema=update_schema_of(specification, run.schema, first_bytes),
            signed=signed_of(run),
            round=run.round,
            cohort=tuple(run.cohort),
            answers=answers,
            flower_run_id=int(run.flower_run_id) if run.flower_run_id else None,
        )

    def stop_requested(self, run_id: str) -> bool:
        """Whether an administrator asked this run to stop."""
        return bool(self.stop_order(run_id)[0])

    def stop_order(self, run_id: str) -> tuple[str, bytes]:
        """(administrator, signature) of the order to stop; ("", b"") when there is none."""
        by, signature = self._of_run(statements.STOP_ORDER, run_id)
        return by or "", signature

    def paused(self, run_id: str) -> bool:
        """Whether the run is to rest."""
        with self._database.looking() as connection:
            found = statements.of_run(connection, statements.PAUSED_AT, run_id)
        return found is not None and found[0] is not None

    def priority(self, run_id: str) -> int:
        """Higher goes first."""
        return int(self._of_run(statements.PRIORITY, run_id)[0])

    def committed(self, run_id: str) -> int:
        """The last committed round."""
        return int(self._of_run(statements.COMMITTED, run_id)[0])

    def waits(self, run_id: str, names: Sequence[str], reason: str) -> None:
        """Note for whom and for what the run waits from now on; an empty reason: it does not any more."""
        said = (tuple(names), reason)
        if self._waiting.get(run_id, ((), "")) == said:
            return
        self._waiting[run_id] = said
        with self._database.transaction() as session:
            run = self.locked(session, run_id)
            if (run.waits_for, run.waits_reason) == (list(names), reason):
                return
            since = run.waiting_since if reason and run.waiting_since is not None else self.clock()
            run.waits_for, run.waits_reason, run.waiting_since = list(names), reason, since if reason else None
            self.add_event(session, run_id, RunWaits(waits_for=list(names), reason=reason))
        self.notify()

    def answered(self, run_id: str, answer: str, event: OfferAnswered) -> None:
        """Keep one node's answer to the offer, with its event, in one transaction."""
        with self._database.transaction() as session:
            self._hold(session, run_id)
            statements.set_answer(session, run_id, event.node, answer)
            self.add_event(session, run_id, event)
        self.notify()

    def end(
        self, run_id: str, status: RunStatus, event: RunFinished | RunFailed | RunStopped, detail: str = ""
    ) -> None:
        """Close the run: finished, failed or stopped, with its event."""
        with self._database.transaction() as session:
            self._end(session, self.locked(session, run_id), status, event, detail)
        self.progress.leave(run_id)
        self.notify()

    def fail(self, run_id: str, error: Exception) -> None:
        """Close a run that cannot go on, by the error's name; one without a name is in the log as a whole."""
        if isinstance(error, ConfideError):
            code, reason, coded = error.code, str(error), error.coded
            log.warning("run %s failed: %s", run_id, error)
        else:
            code, reason = "Internal", f"the coordinator failed ({type(error).__name__}); its log says more"
            coded = f"{code}: {reason}"
            log.error("run %s failed for a reason that has no name", run_id, exc_info=error)
        self.end(run_id, RunStatus.FAILED, RunFailed(code=code, reason=reason), coded)


def _answers(session: Session, run: Run) -> dict[str, str]:
    rows = session.scalars(select(Answer).where(Answer.run_id == run.run_id))
    return dict.fromkeys(run.cohort, "") | {row.node: row.answer for row in rows}
