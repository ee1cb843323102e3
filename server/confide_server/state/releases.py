"""Releases: a round's model under a name and a number, signed by administrators, published, superseded, rolled back.

What is signed is a document (canonical JSON) that names model, run, round and the release before it, so that releases
of one name form a chain. At most one release of a name is published: it is what the name stands for.

    created -> signed (as many administrators as the roster's rules ask) -> published -> superseded | withdrawn

Where the roster's rules ask for it, only past the gate (confide_server.state.release_gate).
"""

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from confide import canonical
from confide.errors import SpecificationError, StateError
from confide.identity.roster import RosterStore
from confide.identity.submission import verify_release
from confide.runs.specification import parse_canonical
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from confide_server.state.database import Checkpoint, Database, Run, append_audit
from confide_server.state.release_gate import GateStand, ReleaseGate
from confide_server.state.release_subject import AlignedModel, read_aligned
from confide_server.state.release_tables import ReleaseRow, ReleaseSignatureRow

VERSION = 1
MAX_NOTES_CHARS = 4000
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Release:
    """One release as it is told."""

    name: str
    number: int
    status: str
    document: bytes
    sha256: str
    run_id: str
    """"": of a model that no run made."""
    round: int
    created_by: str
    created_at: float
    published_by: str
    published_at: float | None
    signatures: Sequence[tuple[str, bytes, float]]
    """(administrator, signature, when)."""
    gate: GateStand

    @property
    def said(self) -> Mapping[str, Any]:
        """The document."""
        document: dict[str, Any] = json.loads(self.document)
        return document


class Releases:
    """All releases of this coordinator. Every change is in the audit log."""

    def __init__(self, database: Database, roster: RosterStore, gate: ReleaseGate) -> None:
        self._database = database
        self._roster = roster
        self._gate = gate

    @property
    def signatures_needed(self) -> int:
        """By different administrators, before a release is published."""
        return self._roster.current.rules.release

    def create(self, name: str, run_id: str, round: int, notes: str, by: str) -> Release:
        """A new release of a committed round (0: the newest). The same model again under its newest number is that one.

        Raises SpecificationError for a name or notes that cannot be, StateError for a run without that round.
        """
        return self._create(name, notes, by, lambda session: _of_run(session, run_id, round))

    def create_aligned(self, name: str, aligned: bytes, notes: str, by: str) -> Release:
        """A new release of a model that was optimised centrally; its document names how. Else as `create`.

        Raises IdentityError or SpecificationError as release_subject.read_aligned.
        """
        model = read_aligned(aligned)
        return self._create(name, notes, by, lambda session: _of_aligned(model))

    def _create(self, name: str, notes: str, by: str, subject_of: Callable[[Session], Mapping[str, Any]]) -> Release:
        if not _NAME.fullmatch(name):
            raise SpecificationError(
                f"{name[:70]!r} is no release's name: lower-case letters, digits, dot, dash and underscore, at most 64"
            )
        if len(notes) > MAX_NOTES_CHARS:
            raise SpecificationError(f"the notes have {len(notes)} characters; at most {MAX_NOTES_CHARS} are kept")
        with self._database.transaction() as session:
            newest = session.scalar(select(func.max(ReleaseRow.number)).where(ReleaseRow.name == name)) or 0
            before = session.get(ReleaseRow, (name, newest)) if newest else None
            document = _document(name, newest + 1, subject_of(session), notes, before)
            if before is not None and _same(json.loads(before.document), document):
                return self._told(session, before)
            row = ReleaseRow(
                name=name,
                number=newest + 1,
                status="created",
                document=canonical.encode(document),
                sha256=canonical.digest(document),
                run_id=document["run_id"] or None,
                round=document["round"],
                created_by=by,
                created_at=time.time(),
                published_by="",
            )
            session.add(row)
            session.flush()
            _audit(session, "release_created", row, by)
            return self._told(session, row)

    def sign(self, name: str, number: int, administrator: str, signature: bytes) -> Release:
        """Keep an administrator's signature. The same again changes nothing.

        Raises IdentityError or REVOKED unless an active administrator signed this very document.
        """
        with self._database.transaction() as session:
            row = _row(session, name, number)
            verify_release(self._roster.current, administrator, row.document, signature)
            if session.get(ReleaseSignatureRow, (name, number, administrator)) is None:
                kept = ReleaseSignatureRow(
                    name=name, number=number, administrator=administrator, signature=signature, at=time.time()
                )
                session.add(kept)
                session.flush()
                _audit(session, "release_signed", row, administrator)
            told = self._told(session, row)
            if row.status == "created" and len(self._valid(told)) >= self.signatures_needed:
                row.status = "signed"
            session.flush()
            return self._told(session, row)

    def attach(self, name: str, number: int, signer: str, evidence: bytes) -> Release:
        """Keep evidence that the release's model passed the gate. Raises as ReleaseGate.attach."""
        with self._database.transaction() as session:
            row = _row(session, name, number)
            self._gate.attach(session, row, signer, evidence)
            return self._told(session, row)

    def override(self, name: str, number: int, administrator: str, reason: str, signature: bytes) -> Release:
        """Keep an administrator's signature that the release goes without. Raises as ReleaseGate.override."""
        with self._database.transaction() as session:
            row = _row(session, name, number)
            self._gate.override(session, row, administrator, reason, signature)
            return self._told(session, row)

    def publish(self, name: str, number: int, by: str) -> Release:
        """Let the name stand for this release. Idempotent.

        Raises StateError while signatures are missing, or the gate's evidence where the rules ask for it.
        """
        with self._database.transaction() as session:
            row = _row(session, name, number)
            if row.status == "published":
                return self._told(session, row)
            if row.status == "withdrawn":
                raise StateError(f"release {name}/{number} was rolled back; make a new release of its model")
            self._check_signed(self._told(session, row))
            self._gate.check(session, row)
            self._stand_for(session, row, "superseded", by, "release_published")
            return self._told(session, row)

    def roll_back(self, name: str, number: int, reason: str, by: str) -> Release:
        """Let the name stand for an earlier release again; the one that is published is withdrawn. Idempotent."""
        with self._database.transaction() as session:
            row = _row(session, name, number)
            if row.status == "published":
                return self._told(session, row)
            if row.published_at is None or row.status == "withdrawn":
                raise StateError(
                    f"release {name}/{number} is {row.status}; only one that was published before, and was not "
                    "withdrawn, can be rolled back to"
                )
            self._check_signed(self._told(session, row))  # an administrator may have been revoked since
            self._stand_for(session, row, "withdrawn", by, "release_rolled_back", reason=reason[:MAX_NOTES_CHARS])
            return self._told(session, row)

    def _stand_for(self, session: Session, row: ReleaseRow, others: str, by: str, event: str, **more: Any) -> None:
        current = (ReleaseRow.name == row.name) & (ReleaseRow.status == "published")
        session.execute(update(ReleaseRow).where(current).values(status=others))
        row.status, row.published_by, row.published_at = "published", by, time.time()
        session.flush()
        _audit(session, event, row, by, **more)

    def _check_signed(self, release: Release) -> None:
        valid, needed = self._valid(release), self.signatures_needed
        if len(valid) < needed:
            raise StateError(
                f"release {release.name}/{release.number} has the signatures of {', '.join(valid) or 'nobody'}; "
                f"{needed} of different administrators are needed. Sign it with `confide release sign`"
            )

    def _valid(self, release: Release) -> list[str]:
        """Names of the administrators whose signatures count today."""
        active = {member.name for member in self._roster.current.active("administrator")}
        return [name for name, _, _ in release.signatures if name in active]

    def list(self, *, name: str = "", limit: int = 50, before: tuple[float, str, int] | None = None) -> list[Release]:
        """Newest first."""
        query = select(ReleaseRow)
        if name:
            query = query.where(ReleaseRow.name == name)
        if before is not None:
            at, last_name, last_number = before
            same = (ReleaseRow.created_at == at) & (
                (ReleaseRow.name > last_name) | ((ReleaseRow.name == last_name) & (ReleaseRow.number < last_number))
            )
            query = query.where((ReleaseRow.created_at < at) | same)
        query = query.order_by(ReleaseRow.created_at.desc(), ReleaseRow.name, ReleaseRow.number.desc()).limit(limit)
        with self._database.reading() as session:
            return [self._told(session, row) for row in session.scalars(query).all()]

    def _told(self, session: Session, row: ReleaseRow) -> Release:
        of_release = (ReleaseSignatureRow.name == row.name) & (ReleaseSignatureRow.number == row.number)
        signed = session.scalars(select(ReleaseSignatureRow).where(of_release).order_by(ReleaseSignatureRow.at)).all()
        return Release(
            name=row.name,
            number=row.number,
            status=row.status,
            document=row.document,
            sha256=row.sha256,
            run_id=row.run_id or "",
            round=row.round,
            created_by=row.created_by,
            created_at=row.created_at,
            published_by=row.published_by,
            published_at=row.published_at,
            signatures=[(one.administrator, one.signature, one.at) for one in signed],
            gate=self._gate.stand(session, row),
        )


def _same(before: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    fields = ("run_id", "round", "model_sha256", "notes")
    return all(before[field] == new[field] for field in fields)


def _document(
    name: str, number: int, subject: Mapping[str, Any], notes: str, before: ReleaseRow | None
) -> dict[str, Any]:
    return {
        "version": VERSION,
        "name": name,
        "number": number,
        **subject,
        "previous": before.sha256 if before is not None else "",
        "notes": notes,
    }


def _of_aligned(model: AlignedModel) -> dict[str, Any]:
    return {
        "run_id": "",
        "round": 0,
        "model_sha256": model.model_sha256,
        "specification_sha256": model.specification_sha256,
        "base_model_sha256": model.base_sha256,
        "aligned": model.model_dump(mode="json"),
    }


def _of_run(session: Session, run_id: str, round: int) -> dict[str, Any]:
    run = session.get(Run, run_id)
    if run is None or run.deleted_at is not None:
        raise StateError(f"there is no run {run_id}; `confide run list` shows which there are")
    checkpoint = session.get(Checkpoint, (run_id, round or run.round))
    if checkpoint is None or checkpoint.round == 0:
        raise StateError(f"run {run_id} has committed {run.round} rounds; there is no round {round or 1} to release")
    specification = parse_canonical(run.specification)
    return {
        "run_id": run_id,
        "round": checkpoint.round,
        "model_sha256": checkpoint.model_sha256.hex(),
        "specification_sha256": specification.digest,
        "base_model_sha256": specification.model.sha256,
    }


def _row(session: Session, name: str, number: int) -> ReleaseRow:
    row = session.get(ReleaseRow, (name, number), with_for_update=True)
    if row is None:
        raise StateError(f"there is no release {name[:64]}/{number}; `confide release list` shows those there are")
    return row


def _audit(session: Session, event: str, row: ReleaseRow, by: str, **more: Any) -> None:
    said = {"event": event, "release": f"{row.name}/{row.number}", "sha256": row.sha256, "by": by}
    said["run_id"] = row.run_id or ""
    append_audit(session, said | more)
