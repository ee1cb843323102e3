"""Preferences in the coordinator's database: prompt sets, answers, judgements, snapshots.

What the documents mean is `confide_server.rlhf`'s business; here they are canonical JSON under their hash. A judgement
is written once for each annotator and pair, and stays: taking it back is a mark, so that nothing said is lost.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from confide import canonical
from confide.errors import StateError
from sqlalchemy import Boolean, Float, ForeignKey, Integer, LargeBinary, String, select
from sqlalchemy.orm import Mapped, mapped_column

from confide_server.state.database import Base, Database, append_audit


class PromptSetRow(Base):
    """Prompts that answers are asked to."""

    __tablename__ = "rlhf_prompt_sets"
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    source: Mapped[str] = mapped_column(String(256))
    licence: Mapped[str] = mapped_column(String(64))
    document: Mapped[bytes] = mapped_column(LargeBinary)
    added_at: Mapped[float] = mapped_column(Float)


class CandidateRow(Base):
    """One answer."""

    __tablename__ = "rlhf_candidates"
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    prompt_set: Mapped[str] = mapped_column(ForeignKey("rlhf_prompt_sets.sha256"), index=True)
    document: Mapped[bytes] = mapped_column(LargeBinary)


class ComparisonRow(Base):
    """One judgement of two answers, in the order of their hashes."""

    __tablename__ = "rlhf_comparisons"
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    one: Mapped[str] = mapped_column(ForeignKey("rlhf_candidates.sha256"), index=True)
    other: Mapped[str] = mapped_column(ForeignKey("rlhf_candidates.sha256"))
    annotator: Mapped[str] = mapped_column(String(64), index=True)
    document: Mapped[bytes] = mapped_column(LargeBinary)
    undone: Mapped[bool] = mapped_column(Boolean)
    made_at: Mapped[float] = mapped_column(Float)


class SnapshotRow(Base):
    """A frozen set of judgements."""

    __tablename__ = "rlhf_snapshots"
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    document: Mapped[bytes] = mapped_column(LargeBinary)
    made_at: Mapped[float] = mapped_column(Float)


@dataclass(frozen=True)
class Judged:
    """One judgement, or one that takes an earlier one back; document: its canonical bytes."""

    pair: tuple[str, str]
    annotator: str
    document: bytes
    undone: bool


class PreferenceStore:
    """Reads and writes; every method is one transaction."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database, self._clock = database, clock

    def add_prompts(self, prompts: Sequence[str], *, name: str, source: str, licence: str) -> str:
        """The set's hash; the same set again is the same row."""
        document = canonical.encode({"prompts": list(prompts)})
        sha256 = canonical.digest({"prompts": list(prompts)})
        with self._database.transaction() as session:
            if session.get(PromptSetRow, sha256) is None:
                row = PromptSetRow(
                    sha256=sha256, name=name, source=source, licence=licence, document=document, added_at=self._clock()
                )
                session.add(row)
        return sha256

    def add_candidates(self, prompt_set: str, documents: Mapping[str, bytes]) -> int:
        """By hash; returns how many were new. Raises StateError for a prompt set that is not here."""
        with self._database.transaction() as session:
            if session.get(PromptSetRow, prompt_set) is None:
                raise StateError(f"no prompt set {prompt_set[:16]} is here; add it before its answers")
            new = [name for name in documents if session.get(CandidateRow, name) is None]
            session.add_all(CandidateRow(sha256=n, prompt_set=prompt_set, document=documents[n]) for n in new)
        return len(new)

    def rate(self, pair: tuple[str, str], annotator: str, document: bytes) -> None:
        """Raises StateError RATING_REPLAYED for a second standing judgement of a pair, or for unknown answers."""
        one, other = sorted(pair)
        with self._database.transaction() as session:
            self._rate(session, (one, other), annotator, document)

    def _rate(self, session: Any, pair: tuple[str, str], annotator: str, document: bytes) -> None:
        one, other = pair
        if any(session.get(CandidateRow, name) is None for name in (one, other)):
            raise StateError("a judged answer is not here; add the candidates first")
        if self._standing(session, one, other, annotator) is not None:
            raise StateError(
                f"RATING_REPLAYED: {annotator} has judged the pair {one[:12]}, {other[:12]}; undo it to judge anew"
            )
        session.add(
            ComparisonRow(
                one=one, other=other, annotator=annotator, document=document, undone=False, made_at=self._clock()
            )
        )

    def take(self, judged: Sequence[Judged], *, by: str) -> int:
        """Keep one annotator's judgements and undoings in order, all or none; how many. Raises as rate and undo."""
        with self._database.transaction() as session:
            for one in judged:
                self._take(session, one)
            append_audit(session, {"event": "ratings_taken", "count": len(judged), "by": by})
        return len(judged)

    def _take(self, session: Any, judged: Judged) -> None:
        one, other = sorted(judged.pair)
        if judged.undone:
            self._undo(session, (one, other), judged.annotator)
        else:
            self._rate(session, (one, other), judged.annotator, judged.document)
        session.flush()

    def undo(self, pair: tuple[str, str], annotator: str) -> None:
        """Raises StateError when there is nothing to take back."""
        one, other = sorted(pair)
        with self._database.transaction() as session:
            self._undo(session, (one, other), annotator)

    def _undo(self, session: Any, pair: tuple[str, str], annotator: str) -> None:
        row = self._standing(session, *pair, annotator)
        if row is None:
            raise StateError(f"{annotator} has no standing judgement of {pair[0][:12]}, {pair[1][:12]}")
        row.undone = True

    @staticmethod
    def _standing(session: Any, one: str, other: str, annotator: str) -> ComparisonRow | None:
        query = select(ComparisonRow).where(
            ComparisonRow.one == one,
            ComparisonRow.other == other,
            ComparisonRow.annotator == annotator,
            ComparisonRow.undone.is_(False),
        )
        found: ComparisonRow | None = session.scalars(query).first()
        return found

    def candidates(self, prompt_set: str) -> list[bytes]:
        """Documents, by hash."""
        query = select(CandidateRow).where(CandidateRow.prompt_set == prompt_set).order_by(CandidateRow.sha256)
        with self._database.reading() as session:
            return [row.document for row in session.scalars(query)]

    def comparisons(self) -> list[bytes]:
        """Those that stand, in the order in which they were made."""
        query = select(ComparisonRow).where(ComparisonRow.undone.is_(False)).order_by(ComparisonRow.number)
        with self._database.reading() as session:
            return [row.document for row in session.scalars(query)]

    def page(self, *, after: int, limit: int) -> tuple[list[tuple[int, bytes]], bool]:
        """((number, document) of those that stand, in order, with a number above `after`; whether there are more)."""
        query = select(ComparisonRow).where(ComparisonRow.undone.is_(False), ComparisonRow.number > after)
        with self._database.reading() as session:
            rows = session.scalars(query.order_by(ComparisonRow.number).limit(limit + 1)).all()
            return [(row.number, row.document) for row in rows[:limit]], len(rows) > limit

    def freeze(self, sha256: str, document: bytes, *, by: str) -> None:
        """Keep a snapshot, and say so in the audit log. The same one again is no change."""
        with self._database.transaction() as session:
            if session.get(SnapshotRow, sha256) is None:
                session.add(SnapshotRow(sha256=sha256, document=document, made_at=self._clock()))
                append_audit(session, {"event": "snapshot_frozen", "snapshot": sha256, "by": by})

    def snapshot(self, sha256: str) -> bytes:
        """Raises StateError when it is not here."""
        with self._database.reading() as session:
            row = session.get(SnapshotRow, sha256)
            if row is None:
                raise StateError(f"no snapshot {sha256[:16]} is here")
            return row.document
