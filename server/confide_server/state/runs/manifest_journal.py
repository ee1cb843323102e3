"""What is told of a committed round for good: its manifest, and the model where it lies."""

import json
from collections.abc import Sequence
from typing import Any

from confide import __version__
from confide.errors import StateError
from confide.runs.specification import parse_canonical
from sqlalchemy import select
from sqlalchemy.orm import Session

from confide_server.state.database import Checkpoint, Event, Round, Run, SignedRoster
from confide_server.state.runs.journal_core import JournalCore
from confide_server.state.runs.service import StoredModel


class ManifestJournal(JournalCore):
    """What leaves the coordinator of a round."""

    def checkpoint(self, run_id: str, round: int | None) -> tuple[dict[str, Any], bytes]:
        """(manifest, raw trainable tensors) after a committed round, all in memory; None is the newest."""
        manifest, files = self._committed_files(run_id, round)
        return manifest, self.checkpoints.get(files.model_file)

    def stored_model(self, run_id: str, round: int | None) -> StoredModel:
        """The same, read when it is asked for."""
        manifest, files = self._committed_files(run_id, round)
        size = self.checkpoints.size(files.model_file)
        return StoredModel(manifest, size, lambda step: self.checkpoints.chunks(files.model_file, step))

    def _committed_files(self, run_id: str, round: int | None) -> tuple[dict[str, Any], Checkpoint]:
        """(manifest, files) after a committed round; None is the newest."""
        with self._database.reading() as session:
            run = self._row(session, run_id)
            number = run.round if round is None else round
            files = session.get(Checkpoint, (run_id, number))
            if files is None:
                raise StateError(f"run {run_id} has no round {number}; it has committed {run.round} of {run.rounds}")
            return self._manifest(session, run, number), files

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

    def _rosters(self, session: Session, rounds: Sequence[Round]) -> list[Any]:
        """The signed rosters that the rounds were opened under, and the newest."""
        wanted = {one["roster_sha256"] for row in rounds for one in row.evidence}
        kept = session.scalars(select(SignedRoster).where(SignedRoster.sha256.in_(wanted))).all()
        return [json.loads(data) for data in sorted({row.signed for row in kept} | {self._roster.signed})]


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


def _precisions(session: Session, run_id: str) -> dict[str, str]:
    """What each node said it computes in, by name; empty for one that said nothing known."""
    query = select(Event.data).where(Event.run_id == run_id, Event.kind == "offer_answered").order_by(Event.sequence)
    return {data["node"]: data.get("precision", "") for data in session.scalars(query) if data["accepted"]}
