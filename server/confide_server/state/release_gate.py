"""What stands between a signed release and its publication: evidence that its model passed the gate (docs/rlhf.md).

Which releases need it says the root-signed roster (`Rules.release_gate`). Evidence counts for one release: its model,
its specification, against the model that the name stands for at that moment. Without it two administrators may sign
that the release goes without, which the audit log keeps. Everything is checked again at the moment of publication.

    not_asked | missing -> passed | overridden
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from confide.errors import StateError
from confide.identity.roster import GateRule, Role, Roster, RosterStore
from confide.identity.submission import verify_override
from confide.runs.specification import parse_canonical
from sqlalchemy import Float, Integer, LargeBinary, String, Text, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from confide_server.state.database import Base, Run, append_audit
from confide_server.state.release_tables import ReleaseRow, said_by

OVERRIDES_NEEDED = 2
MAX_EVIDENCE_BYTES = 1 << 20
MAX_REASON_CHARS = 1000
ANSWERING = frozenset({"sft", "causal_lm", "dpo"})
"""Methods whose models answer in words: what a gate can ask."""
ALIGNING = frozenset({"dpo"})
_SIGNERS = (Role.ADMINISTRATOR, Role.OPERATOR, Role.AUDITOR)
_MOST_ANCESTORS = 1000


class GateStatus(StrEnum):
    """Where a release stands before the gate."""

    NOT_ASKED = "not_asked"
    MISSING = "missing"
    PASSED = "passed"
    OVERRIDDEN = "overridden"


class EvidenceRow(Base):
    """The newest evidence of one release."""

    __tablename__ = "release_evidence"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    signer: Mapped[str] = mapped_column(String(64))
    data: Mapped[bytes] = mapped_column(LargeBinary)
    at: Mapped[float] = mapped_column(Float)


class OverrideRow(Base):
    """One administrator's signature that a release goes without evidence."""

    __tablename__ = "release_overrides"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    administrator: Mapped[str] = mapped_column(String(64), primary_key=True)
    reason: Mapped[str] = mapped_column(Text)
    signature: Mapped[bytes] = mapped_column(LargeBinary)
    at: Mapped[float] = mapped_column(Float)


@dataclass(frozen=True, kw_only=True)
class Bound:
    """Of what evidence has to be. Hashes in hex, as releases name them."""

    model_sha256: str
    specification_sha256: str
    base_model_sha256: str
    baseline_sha256: str
    """Of the model that the name stands for now; "": of none on this base, so the base alone."""


class Judge(Protocol):
    """Reads evidence: confide_server.rlhf.release_evidence.check."""

    def __call__(self, data: bytes, public: bytes, bound: Bound, now: float) -> None:
        """Raise StateError or IdentityError, by name, unless the evidence is signed, bound and passes."""


@dataclass(frozen=True)
class GateStand:
    """As it is told of one release."""

    status: GateStatus
    evidence_sha256: str = ""
    evidence_by: str = ""
    overridden_by: Sequence[str] = ()


class ReleaseGate:
    """Decides, in the transaction of whoever asks."""

    def __init__(self, roster: RosterStore, judge: Judge, *, clock: Callable[[], float] = time.time) -> None:
        self._roster, self._judge, self._clock = roster, judge, clock

    def attach(self, session: Session, row: ReleaseRow, signer: str, data: bytes) -> None:
        """Keep evidence that passes. The same again changes nothing; newer evidence takes the place of older.

        Raises StateError GATE_EVIDENCE_REPLAYED for what another release was published with, and what the judge raises.
        """
        if not 0 < len(data) <= MAX_EVIDENCE_BYTES:
            raise StateError(f"the evidence has {len(data)} bytes; evidence.json has 1 to {MAX_EVIDENCE_BYTES}")
        sha256 = hashlib.sha256(data).hexdigest()
        known = session.scalars(select(EvidenceRow).where(EvidenceRow.sha256 == sha256)).first()
        if known is not None and (known.name, known.number) != (row.name, row.number):
            raise StateError(
                f"GATE_EVIDENCE_REPLAYED: evidence {sha256[:16]} stands behind release {known.name}/{known.number}; "
                "evaluate the candidate anew"
            )
        self._judged(session, row, signer, data)
        if known is None:
            kept = EvidenceRow(
                name=row.name, number=row.number, sha256=sha256, signer=signer, data=data, at=self._clock()
            )
            session.merge(kept)
            session.flush()
            _audit(session, "release_evidence", row, signer, evidence=sha256)

    def override(self, session: Session, row: ReleaseRow, administrator: str, reason: str, signature: bytes) -> None:
        """Keep one administrator's signature. Raises IdentityError, REVOKED, or StateError without reason."""
        if not reason.strip() or len(reason) > MAX_REASON_CHARS:
            raise StateError(f"an override says why, in 1 to {MAX_REASON_CHARS} characters; this says {reason[:40]!r}")
        verify_override(self._roster.current, administrator, row.document, reason, signature)
        if session.get(OverrideRow, (row.name, row.number, administrator)) is None:
            kept = OverrideRow(
                name=row.name, number=row.number, administrator=administrator, reason=reason, signature=signature,
                at=self._clock(),
            )  # fmt: skip
            session.add(kept)
            session.flush()
            _audit(session, "release_gate_overridden", row, administrator, reason=reason)

    def check(self, session: Session, row: ReleaseRow) -> None:
        """Raise StateError GATE_MISSING, or by what name the evidence no longer holds, where the rules ask for it."""
        stand = self.stand(session, row)
        if stand.status in (GateStatus.NOT_ASKED, GateStatus.OVERRIDDEN):
            return
        kept = session.get(EvidenceRow, (row.name, row.number))
        if kept is None:
            signed = ", ".join(stand.overridden_by) or "nobody"
            raise StateError(
                f"GATE_MISSING: the consortium's rules ask for evidence that release {row.name}/{row.number} passed "
                "the gate, and there is none. Make it with `confide rlhf evaluate`, hand it over with `confide release "
                f"attach`; or {OVERRIDES_NEEDED} administrators sign `confide release override` (signed by {signed})"
            )
        self._judged(session, row, kept.signer, kept.data)

    def stand(self, session: Session, row: ReleaseRow) -> GateStand:
        """As far as it can be told without reading the evidence again."""
        overridden = self._overridden_by(session, row)
        kept = session.get(EvidenceRow, (row.name, row.number))
        told = (kept.sha256, kept.signer) if kept is not None else ("", "")
        if not gate_asked(session, self._roster.current.rules.release_gate, row.run_id):
            status = GateStatus.NOT_ASKED
        elif len(overridden) >= OVERRIDES_NEEDED:
            status = GateStatus.OVERRIDDEN
        else:
            status = GateStatus.PASSED if kept is not None else GateStatus.MISSING
        return GateStand(status, *told, overridden)

    def _judged(self, session: Session, row: ReleaseRow, signer: str, data: bytes) -> None:
        self._judge(data, _public_of(self._roster.current, signer), _bound(session, row), self._clock())

    def _overridden_by(self, session: Session, row: ReleaseRow) -> list[str]:
        """Names of the administrators whose signatures count today."""
        active = {member.name for member in self._roster.current.active(Role.ADMINISTRATOR)}
        of_release = (OverrideRow.name == row.name) & (OverrideRow.number == row.number)
        rows = session.scalars(select(OverrideRow).where(of_release).order_by(OverrideRow.at))
        return [one.administrator for one in rows if one.administrator in active]


def gate_asked(session: Session, rule: GateRule, run_id: str | None) -> bool:
    """Whether this rule asks for evidence of this run's models. None: of an adapter that was optimised centrally."""
    if run_id is None:
        return rule is not GateRule.OFF
    run = session.get(Run, run_id)
    if rule is GateRule.OFF or run is None or _method(run) not in ANSWERING:
        return False
    return rule is GateRule.REQUIRED or _aligned(session, run)


def _aligned(session: Session, run: Run) -> bool:
    """Whether it, or a run that it goes on from, was optimised for preferences."""
    for _ in range(_MOST_ANCESTORS):
        if _method(run) in ALIGNING:
            return True
        parent = session.get(Run, run.parent_run_id) if run.parent_run_id else None
        if parent is None:
            return False
        run = parent
    return True  # a chain without end proves nothing


def _method(run: Run) -> str:
    return parse_canonical(run.specification).method.name


def _public_of(roster: Roster, signer: str) -> bytes:
    member = roster.member(signer)
    if member.role not in _SIGNERS:
        allowed = ", ".join(role.value for role in _SIGNERS)
        raise StateError(f"GATE_SIGNER: {signer} is a {member.role.value}; evidence is signed by one of {allowed}")
    return bytes.fromhex(member.identity_key)


def _bound(session: Session, row: ReleaseRow) -> Bound:
    said = said_by(row)
    current = (ReleaseRow.name == row.name) & (ReleaseRow.status == "published")
    published = session.scalars(select(ReleaseRow).where(current)).first()
    before = said_by(published) if published is not None and published.number != row.number else {}
    same_base = before.get("base_model_sha256") == said["base_model_sha256"]
    return Bound(
        model_sha256=said["model_sha256"],
        specification_sha256=said["specification_sha256"],
        base_model_sha256=said["base_model_sha256"],
        baseline_sha256=before["model_sha256"] if same_base else "",
    )


def _audit(session: Session, event: str, row: ReleaseRow, by: str, **more: str) -> None:
    said = {"event": event, "release": f"{row.name}/{row.number}", "sha256": row.sha256, "by": by}
    said["run_id"] = row.run_id or ""
    append_audit(session, said | more)
