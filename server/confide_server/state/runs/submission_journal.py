"""How a run comes in: as an administrator signed it, once, with its first model; further signatures; the stop order."""

from dataclasses import replace
from typing import Any

from confide.codec.tensors import model_digest
from confide.errors import FailureName, ProtocolFailure, StateError, UpdateError
from confide.identity.submission import SignedSubmission, signers, verify_stop, verify_submission
from confide.methods.first_model import check_first_model, update_schema_of
from confide.runs.specification import Specification
from confide.sealing.differences import check_named
from confide.sealing.factory import check_promise
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from confide_server.state.database import Checkpoint, Run, append_audit, locked_head
from confide_server.state.events import RunCosigned, RunStopped, RunSubmitted
from confide_server.state.runs.journal_core import JournalCore
from confide_server.state.runs.service import Submission
from confide_server.state.runs.status import ENDED, RunStatus


class SubmissionJournal(JournalCore):
    """What the administration service hands over."""

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
        return self.submit(Submission(signed, self.checkpoints.view(files.model_file), schema))

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
            before = signed_of(run)
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


def _check_first_model(submission: Submission, specification: Specification) -> None:
    data, stated = submission.initial_model, submission.signed.initial_model_sha256
    if model_digest(data) != stated:
        raise UpdateError(
            f"the first model hashes to {model_digest(data).hex()[:16]}; {stated.hex()[:16]} was signed. Submit again."
        )
    schema = update_schema_of(specification, submission.schema, len(data))
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


def signed_of(run: Run) -> SignedSubmission:
    """What was signed when the run came, from its row."""
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
