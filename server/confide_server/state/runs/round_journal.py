"""What the round loop records: slots, instructions' numbers, and a committed round in one transaction with its events.

A round's checkpoint is on disk before the one transaction that commits the round, its slot and its event.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from confide.errors import StateError
from confide.sealing.roles import Opened, SlotPlan
from sqlalchemy.orm import Session

from confide_server.state.database import Checkpoint, Round, Slot, append_audit
from confide_server.state.events import RoundCommitted, SlotAbandoned, data_of
from confide_server.state.runs import statements
from confide_server.state.runs.journal_core import JournalCore


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


class RoundJournal(JournalCore):
    """Slots and rounds of the runs that are driven."""

    def sequences(self, run_id: str, digests: Sequence[bytes]) -> list[int]:
        """One number for each instruction's digest, the same one whenever it is asked for; numbers only go up."""
        with self._database.transaction() as session:
            self._hold(session, run_id)
            numbers = statements.numbers_of(session, run_id, digests)
        return [numbers[digest] for digest in digests]

    def model(self, run_id: str, number: int) -> Model:
        """The model after this round (0: the first) with the outer optimizer's state."""
        files, before = self._files(run_id, number)
        return Model(
            round=number,
            sha256=files.model_sha256,
            parent_sha256=before.model_sha256 if before else b"",
            data=self.checkpoints.get(files.model_file),
            outer_state=self.checkpoints.get(files.outer_file) if files.outer_file else b"",
            outer_file=files.outer_file,
        )

    def _files(self, run_id: str, number: int) -> tuple[Any, Any]:
        """(round, model_sha256, model_file and outer_file of this round, those of the one before, or None)."""
        with self._database.looking() as connection:
            which = {"of_run": run_id, "this": number, "before": number - 1}
            found = {files.round: files for files in connection.execute(statements.MODEL_FILES, which)}
        if number not in found:
            raise StateError(f"the database has no checkpoint of round {number} of run {run_id}; restore a backup")
        return found[number], found.get(number - 1)

    def plan_slot(self, run_id: str, round: int) -> tuple[int, int]:
        """(slot, attempt) of a new slot for this round, written to the journal.

        One that was planned before a crash, and that the collector never opened, is used instead.
        """
        with self._database.transaction() as session:
            self._hold(session, run_id)
            return statements.plan_slot(session, run_id, round, self.clock())

    def attempts(self, run_id: str, round: int) -> int:
        """How many slots of this round were abandoned."""
        with self._database.looking() as connection:
            return int(connection.execute(statements.ABANDONED, {"of_run": run_id, "this": round}).scalar_one())

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


def _audited(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in ("round", "contributors", "dropped", "model_sha256")}


def _accepted(session: Session, run_id: str) -> set[str]:
    return set(session.connection().execute(statements.ACCEPTED, {"of_run": run_id}).scalars())
