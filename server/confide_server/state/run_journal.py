"""The run journal: what the control service asks and what the run driver records, over database and checkpoints.

Everything that it says happened is durable: a round's checkpoint is on disk before the one transaction that commits
the round, its slot and its event.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from confide import __version__, canonical
from confide.codec.tensors import TensorSchema, model_digest
from confide.errors import ConfideError, FailureName, ProtocolFailure, StateError, UpdateError
from confide.identity.roster import RosterStore
from confide.identity.submission import SignedSubmission, signers, verify_stop, verify_submission
from confide.methods.first_model import check_first_model, update_schema_of
from confide.runs.specification import Specification, parse_canonical
from confide.sealing.differences import check_named
from confide.sealing.factory import check_promise
from confide.sealing.roles import Opened, SlotPlan
from sqlalchemy import Executable, func, select
from sqlalchemy.orm import Session

from confide_server.state import run_statements
from confide_server.state.checkpoints import CheckpointStore
from confide_server.state.database import (
    AFTER_COMMIT,
    Answer,
    Checkpoint,
    Database,
    Event,
    Round,
    Run,
    SignedRoster,
    Slot,
    append_audit,
    locked_head,
)
from confide_server.state.event_lines import log_event
from confide_server.state.events import (
    Contributed,
    Dropped,
    Happening,
    OfferAnswered,
    RoundCommitted,
    RunCosigned,
    RunFailed,
    RunFinished,
    RunStopped,
    RunSubmitted,
    RunWaits,
    SlotAbandoned,
    data_of,
)
from confide_server.state.progress import ProgressBoard
from confide_server.state.run_service import RunEvent, RunSummary, Submission
from confide_server.state.run_status import ENDED, OPEN, RunStatus
from confide_server.state.views import SHOWN

log = logging.getLogger(__name__)
T = TypeVar("T")
_HELD = "held_runs"
"""In a session's notes: the runs that its transaction holds."""
_NO_RUN = "there is no run {}; `confide run list` shows which there are"
ReceiptsOfRun = Callable[[str], Sequence[Mapping[str, Any]]]


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


@dataclass(frozen=True)
class Model:
    """The model after a committed round."""

    round: int
    sha256: bytes
    parent_sha256: bytes
    data: bytes
    outer_state: bytes
    outer_file: str = ""
    """Where the outer state lies among the checkpoints; "" for none."""


@dataclass(frozen=True)
class Committed:
    """What one round brought, to be recorded."""

    plan: SlotPlan
    opened: Opened
    model_file: str
    outer_file: str
    model_sha256: bytes
    model_bytes: int
    update_norm: float
    seconds: float
    phases: Mapping[str, float]
    """Seconds by step of the protocol, over all attempts."""
    received: Mapping[str, int]
    """Bytes of each node's upload."""
    record: bytes = b""
    """The entry of the log of rounds (confide.rounds.record)."""
    mean_file: str = ""


class RunJournal:
    """Implements run_service.RunService; its other methods are the driver's."""

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

    # --- what the control service asks

    def submit(self, submission: Submission) -> str:
        """Verify, store durably, and queue; returns the run id, which the administrator drew and signed."""
        signed = submission.signed
        roster = self._roster.current
        specification = verify_submission(roster, signed, complete=False)
        enough = len(signers(roster, signed)) >= roster.rules.submission
        check_named(specification, self._roster.current)
        self.check_new(signed)
        if signed.parent_run_id:
            self._parent(signed)
        _check_first_model(submission, specification)
        model_file = self.checkpoints.put(submission.initial_model, "bin")
        run_id = signed.run_id
        with self._database.transaction() as session:
            locked_head(session)
            _check_unused(session, signed)
            number = (session.scalar(select(func.max(Run.number))) or 0) + 1
            run = _new_run(number, submission, specification, self.clock())
            run.status = RunStatus.SUBMITTED if enough else RunStatus.DRAFT
            session.add(run)
            session.flush()
            session.add(
                Checkpoint(
                    run_id=run_id,
                    round=0,
                    model_sha256=signed.initial_model_sha256,
                    model_file=model_file,
                    outer_file="",
                    size=len(submission.initial_model),
                )
            )
            begun = RunSubmitted(
                name=specification.name,
                administrator=signed.administrator,
                parent_run_id=signed.parent_run_id,
                parent_round=signed.parent_round,
            )
            self.add_event(session, run_id, begun)
            append_audit(session, _submitted(signed, specification))
        self.notify()
        return run_id

    def continue_from(self, signed: SignedSubmission) -> str:
        """Submit a run that begins with the model of another one's round, which is here already; returns its id.

        Raises StateError when that round is not there, UpdateError when another model was signed, and as `submit`.
        """
        schema, files = self._parent(signed)
        return self.submit(Submission(signed, self.checkpoints.get(files.model_file), schema))

    def _parent(self, signed: SignedSubmission) -> tuple[bytes, Checkpoint]:
        """(schema, files) of the round with whose model it says it begins. Raises StateError, UpdateError."""
        with self._database.reading() as session:
            parent = self._row(session, signed.parent_run_id)
            files = session.get(Checkpoint, (signed.parent_run_id, signed.parent_round))
        if files is None:
            raise StateError(
                f"run {parent.run_id} has no round {signed.parent_round}; it has committed {parent.round} rounds"
            )
        if files.model_sha256 != signed.initial_model_sha256:
            made = files.model_sha256.hex()[:16]
            raise UpdateError(
                f"round {signed.parent_round} of run {parent.run_id[:8]} made the model {made}; "
                f"{signed.initial_model_sha256.hex()[:16]} was signed as the first one. Submit again"
            )
        return parent.schema, files

    def cosign(self, run_id: str, administrator: str, signature: bytes) -> None:
        """Add an administrator's signature; with as many as the roster's rules ask, the run is submitted. Idempotent.

        Raises IdentityError, REVOKED, SUBMISSION_EXPIRED, or StateError for a run that waits for no signature.
        """
        roster = self._roster.current
        with self._database.transaction() as session:
            run = self.locked(session, run_id)
            if administrator in (run.administrator, *(name for name, _ in run.cosigned)):
                return
            if run.status != RunStatus.DRAFT:
                raise StateError(f"run {run_id[:8]} is {run.status}; it waits for no signature")
            before = _signed(run)
            signed = replace(before, cosigned=(*before.cosigned, (administrator, signature)))
            names = signers(roster, signed)
            signed.check_in_time(self.clock())
            run.cosigned = [[name, one.hex()] for name, one in signed.cosigned]
            enough = len(names) >= roster.rules.submission
            run.status = RunStatus.SUBMITTED if enough else RunStatus.DRAFT
            self.add_event(session, run_id, RunCosigned(by=administrator, complete=enough))
            append_audit(session, {"event": "run_cosigned", "run_id": run_id, "administrator": administrator})
        self.notify()

    def check_new(self, signed: SignedSubmission) -> None:
        """Raise SUBMISSION_EXPIRED or SUBMISSION_REPLAYED for what need not be looked at any further."""
        signed.check_in_time(self.clock())
        with self._database.transaction() as session:
            _check_unused(session, signed)

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

    def ended(self, run_id: str) -> bool:
        """Whether nothing more will happen in this run."""
        with self._database.reading() as session:
            return session.scalar(select(Run.status).where(Run.run_id == run_id)) in ENDED

    def events(self, run_id: str, after: int, timeout_s: float) -> Sequence[RunEvent]:
        """Events with sequence > after; waits up to timeout_s for the first one."""
        return self.wait(lambda: self._events_now(run_id, after), timeout_s)

    def _events_now(self, run_id: str, after: int) -> list[RunEvent]:
        with self._database.reading() as session:
            self._row(session, run_id)
            query = select(Event).where(Event.run_id == run_id, Event.sequence > after).order_by(Event.sequence)
            return [RunEvent(row.sequence, row.time, row.kind, row.data) for row in session.scalars(query)]

    def progress_since(self, run_id: str, number: int) -> tuple[int, Sequence[Mapping[str, Any]]]:
        """(newest change, what nodes said of their work after change `number`); nothing of it is kept."""
        return self.progress.since(run_id, number)

    def stop(self, run_id: str, administrator: str, signature: bytes) -> None:
        """Finish the open slot's bookkeeping, tell the nodes, and stop. Idempotent. Raises IdentityError or REVOKED."""
        verify_stop(self._roster.current, administrator, run_id, signature)
        with self._database.transaction() as session:
            run = self.locked(session, run_id)
            if run.status in ENDED or run.stop_requested_by:
                return
            run.stop_requested_by, run.stop_signature = administrator, signature
            append_audit(session, {"event": "stop_requested", "run_id": run_id, "administrator": administrator})
            if run.status in (RunStatus.DRAFT, RunStatus.SUBMITTED):
                self._end(session, run, RunStatus.STOPPED, RunStopped(round=run.round), "stopped before it began")
        self.notify()

    def checkpoint(self, run_id: str, round: int | None) -> tuple[dict[str, Any], bytes]:
        """(manifest, raw trainable tensors) after a committed round; None is the newest."""
        with self._database.reading() as session:
            run = self._row(session, run_id)
            number = run.round if round is None else round
            files = session.get(Checkpoint, (run_id, number))
            if files is None:
                raise StateError(f"run {run_id} has no round {number}; it has committed {run.round} of {run.rounds}")
            manifest = self._manifest(session, run, number)
        return manifest, self.checkpoints.get(files.model_file)

    def _manifest(self, session: Session, run: Run, number: int) -> dict[str, Any]:
        specification = parse_canonical(run.specification)
        chain = session.scalars(
            select(Checkpoint.model_sha256)
            .where(Checkpoint.run_id == run.run_id, Checkpoint.round <= number)
            .order_by(Checkpoint.round)
        ).all()
        rounds = session.scalars(
            select(Round).where(Round.run_id == run.run_id, Round.round <= number).order_by(Round.round)
        ).all()
        return {
            "run_id": run.run_id,
            "specification": json.loads(run.specification),  # what was signed, by whatever release
            "specification_sha256": specification.digest,
            "base_model_sha256": specification.model.sha256,
            "administrator": run.administrator,
            "signature": run.signature.hex(),
            "nonce": run.nonce.hex(),
            "expires_at": run.expires_at,
            **({"parent_run_id": run.parent_run_id, "parent_round": run.parent_round} if run.parent_run_id else {}),
            **({"cosigned": run.cosigned} if run.cosigned else {}),
            "round": number,
            "model_sha256": chain[-1].hex(),
            "chain": [one.hex() for one in chain],
            "rounds": [_round_entry(row, chain[row.round]) for row in rounds],
            "rosters": self._rosters(session, rounds),
            "sealing": run.sealing,
            "precision": _precisions(session, run.run_id),
            "receipts": [dict(one) for one in self._receipts(run.run_id)],
            "release": __version__,
        }

    def keep_roster(self) -> None:
        """Keep the newest roster for the manifests of the rounds that are opened under it."""
        with self._database.transaction() as session:
            self._keep_roster(session)

    def _keep_roster(self, session: Session) -> None:
        signed, version = self._roster.signed, self._roster.current.version
        sha256 = canonical.digest(json.loads(signed)["document"])
        session.merge(SignedRoster(sha256=sha256, signed=signed, version=version))

    def _rosters(self, session: Session, rounds: Sequence[Round]) -> list[Any]:
        """The signed rosters that the rounds were opened under, and the newest."""
        wanted = {one["roster_sha256"] for row in rounds for one in row.evidence}
        kept = session.scalars(select(SignedRoster).where(SignedRoster.sha256.in_(wanted))).all()
        return [json.loads(data) for data in sorted({row.signed for row in kept} | {self._roster.signed})]

    def _row(self, session: Session, run_id: str, **how: Any) -> Run:
        run = session.get(Run, run_id, **how)
        if run is None or run.deleted_at is not None:
            raise StateError(_NO_RUN.format(run_id))
        return run

    def _of_run(self, statement: Executable, run_id: str) -> Sequence[Any]:
        with self._database.looking() as connection:
            found = run_statements.of_run(connection, statement, run_id)
        if found is None:
            raise StateError(_NO_RUN.format(run_id))
        return found

    def _hold(self, session: Session, run_id: str) -> None:
        """As `locked`, where nothing of the run is asked."""
        if run_id not in session.info.setdefault(_HELD, {}) and not run_statements.hold(session, run_id):
            raise StateError(_NO_RUN.format(run_id))

    def locked(self, session: Session, run_id: str) -> Run:
        """The run, held against other writers until the transaction ends. Taken before the audit log's head, always."""
        held: dict[str, Run] = session.info.setdefault(_HELD, {})
        if run_id not in held:
            held[run_id] = self._row(session, run_id, with_for_update=True, populate_existing=True)
        return held[run_id]

    # --- what the driver records

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
        awake = Run.paused_at.is_(None) | Run.stop_requested_by.is_not(None)
        query = select(Run).where(Run.status.in_(OPEN), awake, Run.run_id.not_in(besides))
        with self._database.reading() as session:
            run = session.scalars(query.order_by(Run.priority.desc(), Run.number).limit(1)).first()
            return None if run is None else (run, _answers(session, run))

    def _open_run(self, run: Run, answers: Mapping[str, str]) -> OpenRun:
        specification = parse_canonical(run.specification)
        return OpenRun(
            run_id=run.run_id,
            status=run.status,
            specification=specification,
            schema=update_schema_of(specification, run.schema, self.model(run.run_id, 0).data),
            signed=_signed(run),
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
        found = self._of_run(run_statements.STOP_ORDER, run_id)
        return found[0] or "", found[1]

    def paused(self, run_id: str) -> bool:
        """Whether the run is to rest."""
        with self._database.looking() as connection:
            found = run_statements.of_run(connection, run_statements.PAUSED_AT, run_id)
        return found is not None and found[0] is not None

    def priority(self, run_id: str) -> int:
        """Higher goes first."""
        return int(self._of_run(run_statements.PRIORITY, run_id)[0])

    def committed(self, run_id: str) -> int:
        """The last committed round."""
        return int(self._of_run(run_statements.COMMITTED, run_id)[0])

    def update(self, run_id: str, **fields: Any) -> None:
        """Set columns of the run, durably."""
        with self._database.transaction() as session:
            run = self.locked(session, run_id)
            for name, value in fields.items():
                setattr(run, name, value)

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
            self.locked(session, run_id)
            session.merge(Answer(run_id=run_id, node=event.node, answer=answer))
            self.add_event(session, run_id, event)
        self.notify()

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
        run_statements.append_event(session, run_id, self.clock(), event.kind, data_of(event))
        session.info.setdefault(AFTER_COMMIT, []).append(lambda: self._tell(run_id, event))

    def _tell(self, run_id: str, event: Happening) -> None:
        for listener in self.listeners:
            listener(run_id, event)

    def sequences(self, run_id: str, digests: Sequence[bytes]) -> list[int]:
        """One number for each instruction's digest, the same one whenever it is asked for; numbers only go up."""
        with self._database.transaction() as session:
            self._hold(session, run_id)
            numbers = run_statements.numbers_of(session, run_id, digests)
        return [numbers[digest] for digest in digests]

    def model(self, run_id: str, number: int) -> Model:
        """The model after this round (0: the first) with the outer optimizer's state."""
        with self._database.reading() as session:
            files = session.get(Checkpoint, (run_id, number))
            before = session.get(Checkpoint, (run_id, number - 1))
        if files is None:
            raise StateError(f"the database has no checkpoint of round {number} of run {run_id}; restore a backup")
        return Model(
            round=number,
            sha256=files.model_sha256,
            parent_sha256=before.model_sha256 if before else b"",
            data=self.checkpoints.get(files.model_file),
            outer_state=self.checkpoints.get(files.outer_file) if files.outer_file else b"",
            outer_file=files.outer_file,
        )

    def plan_slot(self, run_id: str, round: int) -> tuple[int, int]:
        """(slot, attempt) of a new slot for this round, written to the journal.

        One that was planned before a crash, and that the collector never opened, is used instead.
        """
        with self._database.transaction() as session:
            self.locked(session, run_id)
            of_round = select(Slot).where(Slot.run_id == run_id, Slot.round == round)
            unopened = session.scalars(of_round.where(Slot.state == "planned")).first()
            if unopened is not None:
                return unopened.slot, unopened.attempt
            slot = (session.scalar(select(func.max(Slot.slot)).where(Slot.run_id == run_id)) or 0) + 1
            attempt = len(session.scalars(of_round).all()) + 1
            row = Slot(run_id=run_id, slot=slot, round=round, attempt=attempt, state="planned", planned_at=self.clock())
            row.code = row.reason = ""
            session.add(row)
        return slot, attempt

    def attempts(self, run_id: str, round: int) -> int:
        """How many slots of this round were abandoned."""
        with self._database.reading() as session:
            query = select(func.count()).where(Slot.run_id == run_id, Slot.round == round, Slot.state == "abandoned")
            return session.scalar(query) or 0

    def abandon_slot(self, run_id: str, plan: SlotPlan, code: str, reason: str) -> None:
        """Close a slot that opened nothing."""
        with self._database.transaction() as session:
            row = session.get(Slot, (run_id, plan.slot))
            if row is not None:
                row.state, row.code, row.reason = "abandoned", code, reason
            event = SlotAbandoned(round=plan.round, attempt=plan.attempt, code=code, reason=reason)
            self.add_event(session, run_id, event)
        self.notify()

    def commit_round(self, run_id: str, done: Committed) -> None:
        """Everything about a round in one transaction. Its checkpoint files are durable already."""
        plan, opened = done.plan, done.opened
        metrics = {
            name.value: {"mean": total / count, "count": count} for name, (total, count) in opened.metrics.items()
        }
        event = RoundCommitted(
            round=plan.round,
            metrics=metrics,
            contributors=list(opened.contributors),
            dropped=dict(opened.dropped),
            seconds=done.seconds,
            model_sha256=done.model_sha256.hex(),
            update_norm=done.update_norm,
        )
        with self._database.transaction() as session:
            run = self.locked(session, run_id)
            row = session.get(Slot, (run_id, plan.slot))
            if row is not None:
                row.state = "committed"
            session.add(
                Round(
                    run_id=run_id,
                    round=plan.round,
                    slot=plan.slot,
                    attempts=plan.attempt,
                    contributors=list(opened.contributors),
                    dropped=dict(opened.dropped),
                    metrics=metrics,
                    promise=dict(opened.promise),
                    evidence=[dict(one) for one in opened.evidence],
                    update_norm=done.update_norm,
                    seconds=done.seconds,
                    committed_at=self.clock(),
                    phases=dict(done.phases),
                    received=dict(done.received),
                    record=done.record,
                    mean_file=done.mean_file,
                )
            )
            self._keep_roster(session)
            session.add(
                Checkpoint(
                    run_id=run_id,
                    round=plan.round,
                    model_sha256=done.model_sha256,
                    model_file=done.model_file,
                    outer_file=done.outer_file,
                    size=done.model_bytes,
                )
            )
            run.round, run.detail = plan.round, ""
            run.short_rounds += bool(_accepted(session, run_id) - set(opened.contributors))
            self.add_event(session, run_id, event)
            append_audit(session, {"event": "round_committed", "run_id": run_id, **_audited(data_of(event))})
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
            code, reason = error.code, str(error)
            log.warning("run %s failed: %s", run_id, error)
        else:
            code, reason = "Internal", f"the coordinator failed ({type(error).__name__}); its log says more"
            log.error("run %s failed for a reason that has no name", run_id, exc_info=error)
        self.end(run_id, RunStatus.FAILED, RunFailed(code=code, reason=reason), f"{code}: {reason}")

    def _end(self, session: Session, run: Run, status: RunStatus, event: Happening, detail: str) -> None:
        run.status, run.detail, run.ended_at = status, detail, self.clock()
        run.waits_for, run.waits_reason, run.waiting_since, run.paused_at = [], "", None, None
        self.add_event(session, run.run_id, event)
        append_audit(session, {"event": event.kind, "run_id": run.run_id, **data_of(event)})


def _submitted(signed: SignedSubmission, specification: Specification) -> dict[str, Any]:
    said = {
        "event": "run_submitted",
        "run_id": signed.run_id,
        "specification_sha256": specification.digest,
        "initial_model_sha256": signed.initial_model_sha256.hex(),
        "administrator": signed.administrator,
        "nonce": signed.nonce.hex(),
    }
    if signed.parent_run_id:
        said["parent"] = f"{signed.parent_run_id}/{signed.parent_round}"
    return said


def _audited(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in ("round", "contributors", "dropped", "model_sha256")}


def _round_entry(row: Round, model_sha256: bytes) -> dict[str, Any]:
    return {
        "round": row.round,
        "contributors": row.contributors,
        "dropped": row.dropped,
        "metrics": row.metrics,
        "promise": row.promise,
        "evidence": row.evidence,
        "attempts": row.attempts,
        "model_sha256": model_sha256.hex(),
    }


def _check_first_model(submission: Submission, specification: Specification) -> None:
    data, stated = submission.initial_model, submission.signed.initial_model_sha256
    if model_digest(data) != stated:
        raise UpdateError(
            f"the first model hashes to {model_digest(data).hex()[:16]}; {stated.hex()[:16]} was signed. Submit again."
        )
    schema = update_schema_of(specification, submission.schema, data)
    check_first_model(specification, data, schema)
    check_promise(specification, schema)


def _check_unused(session: Session, signed: SignedSubmission) -> None:
    same = select(Run.run_id).where((Run.run_id == signed.run_id) | (Run.nonce == signed.nonce))
    known = session.scalars(same).first()
    if known is not None:
        raise ProtocolFailure(
            FailureName.SUBMISSION_REPLAYED,
            f"this submission, or its run id or nonce, came before: it is run {known[:8]}. Nothing was begun again; "
            "submit anew for another run",
        )


def _signed(run: Run) -> SignedSubmission:
    return SignedSubmission(
        run_id=run.run_id,
        nonce=run.nonce,
        expires_at=run.expires_at,
        specification=run.specification,
        initial_model_sha256=run.initial_model_sha256,
        administrator=run.administrator,
        signature=run.signature,
        parent_run_id=run.parent_run_id,
        parent_round=run.parent_round,
        cosigned=tuple((name, bytes.fromhex(one)) for name, one in run.cosigned),
    )


def _new_run(number: int, submission: Submission, specification: Specification, now: float) -> Run:
    signed = submission.signed
    return Run(
        run_id=signed.run_id,
        number=number,
        name=specification.name,
        status="submitted",
        detail="",
        specification=signed.specification,
        initial_model_sha256=signed.initial_model_sha256,
        signature=signed.signature,
        administrator=signed.administrator,
        nonce=signed.nonce,
        expires_at=signed.expires_at,
        stop_signature=b"",
        schema=submission.schema,
        submitted_at=now,
        round=0,
        rounds=specification.federation.rounds,
        sealing=specification.sealing.kind.value,
        cohort=[],
        method=specification.method.name,
        data=specification.federation.data,
        privacy_unit=specification.privacy.unit,
        privacy_epsilon=specification.privacy.epsilon or 0.0,
        privacy_delta=(specification.privacy.delta or 0.0) if specification.privacy.epsilon else 0.0,
        base_sha256=specification.model.sha256,
        base_name=specification.model.name,
        parent_run_id=signed.parent_run_id,
        parent_round=signed.parent_round,
        cosigned=[[name, one.hex()] for name, one in signed.cosigned],
    )


def _precisions(session: Session, run_id: str) -> dict[str, str]:
    """What each node said it computes in, by name; empty for one that said nothing known."""
    query = select(Event.data).where(Event.run_id == run_id, Event.kind == "offer_answered").order_by(Event.sequence)
    return {data["node"]: data.get("precision", "") for data in session.scalars(query) if data["accepted"]}


def _accepted(session: Session, run_id: str) -> set[str]:
    return set(session.scalars(select(Answer.node).where(Answer.run_id == run_id, Answer.answer == "accepted")))


def _answers(session: Session, run: Run) -> dict[str, str]:
    rows = session.scalars(select(Answer).where(Answer.run_id == run.run_id))
    return dict.fromkeys(run.cohort, "") | {row.node: row.answer for row in rows}
