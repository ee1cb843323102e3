"""The log of rounds of each run: the signed head after every round, and what a node is handed to check it.

    log = RoundLog(database, checkpoints, member)
    end.head.CopyFrom(log.head(run_id))
    for part in log.prove(run_id, "hospital-a", round=3): ...

The head is a function of what the transaction of each round committed, and Ed25519 signs alike every time: a
coordinator that was killed signs the same head again.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from confide.errors import IdentityError, StateError
from confide.identity.member import LocalMember
from confide.proto import control_pb2 as pb
from confide.proto import fleet_pb2
from confide.rounds import merkle
from confide.rounds.heads import sign_head
from confide.rounds.record import parse_record, upload_leaves, uploads_of
from sqlalchemy import select
from sqlalchemy.orm import Session

from confide_server.state.checkpoints import CheckpointStore
from confide_server.state.database import Answer, Checkpoint, Database, Round, Run

_MOST_RUNS = 64
"""Whose leaf hashes are kept in memory."""


@dataclass(frozen=True)
class ProofFiles:
    """One file of a round: its name in the proof and among the checkpoints ("" for none)."""

    name: str
    stored: str


class RoundLog:
    """Over database and checkpoints."""

    def __init__(self, database: Database, checkpoints: CheckpointStore, member: LocalMember) -> None:
        self._database = database
        self._checkpoints = checkpoints
        self._member = member
        self._leaves: dict[str, list[bytes]] = {}
        self._one = threading.Lock()

    def head(self, run_id: str) -> fleet_pb2.RunHead | None:
        """The signed head over all committed rounds; None before the first, and where one of them has no record."""
        with self._one:
            kept = self._leaves.pop(run_id, [])
            with self._database.reading() as session:
                whole = _count(session, run_id)
                kept = kept + [merkle.leaf_hash(record) for record in _records(session, run_id, after=len(kept))]
            if len(kept) != whole or not kept:
                return None
            self._leaves[run_id] = kept
            while len(self._leaves) > _MOST_RUNS:
                self._leaves.pop(next(iter(self._leaves)))
        return self._signed(run_id, kept)

    def _signed(self, run_id: str, leaves: Sequence[bytes]) -> fleet_pb2.RunHead:
        return sign_head(self._member.identity, self._member.name, run_id, leaves).to_message()

    def prove(self, run_id: str, node: str, round: int, chunk_bytes: int) -> Iterator[pb.RunProofPart]:
        """What ProveRun answers. round: whose files are handed over too; 0: none.

        Raises IdentityError for a node that did not accept the run, StateError where there is no log or no such round.
        """
        with self._database.reading() as session:
            if session.scalar(select(Answer.answer).where(Answer.run_id == run_id, Answer.node == node)) != "accepted":
                raise IdentityError(f"{node} did not accept run {run_id[:8]}; who takes part in a run may check it")
            rounds = session.scalars(select(Round).where(Round.run_id == run_id).order_by(Round.round)).all()
            if not rounds or not all(row.record for row in rounds):
                raise StateError(
                    f"run {run_id[:8]} has no log of rounds: no round is committed, or one was by an earlier release"
                )
            entries = [_entry(row, node) for row in rounds]
            files = self._files(session, run_id, round) if round else ()
        yield pb.RunProofPart(head=self._signed(run_id, [merkle.leaf_hash(one.record) for one in entries]))
        for entry in entries:
            yield pb.RunProofPart(entry=entry)
        for file in files:
            yield from self._chunks(file, chunk_bytes)

    def _files(self, session: Session, run_id: str, round: int) -> tuple[ProofFiles, ...]:
        row = session.get(Round, (run_id, round))
        after, before = (session.get(Checkpoint, (run_id, number)) for number in (round, round - 1))
        lost = row is not None and not row.mean_file and parse_record(row.record).mean_sha256
        if row is None or before is None or after is None or lost:
            made = session.scalar(select(Run.round).where(Run.run_id == run_id))
            raise StateError(
                f"run {run_id[:8]} has no round {round}, or `confide server gc` removed its work; {made} are committed"
            )
        return (
            ProofFiles("before", before.model_file),
            ProofFiles("after", after.model_file),
            ProofFiles("mean", row.mean_file),
            ProofFiles("outer_state", before.outer_file),
        )

    def _chunks(self, file: ProofFiles, chunk_bytes: int) -> Iterator[pb.RunProofPart]:
        size = self._checkpoints.size(file.stored) if file.stored else 0
        yield pb.RunProofPart(file=pb.ProofFile(name=file.name, bytes=size))
        for chunk in self._checkpoints.chunks(file.stored, chunk_bytes) if file.stored else ():
            yield pb.RunProofPart(chunk=chunk)


def _count(session: Session, run_id: str) -> int:
    return session.scalar(select(Run.round).where(Run.run_id == run_id)) or 0


def _records(session: Session, run_id: str, after: int) -> list[bytes]:
    columns = select(Round.record).where(Round.run_id == run_id, Round.round > after).order_by(Round.round)
    return [record for record in session.scalars(columns) if record]


def _entry(row: Round, node: str) -> pb.RoundEntry:
    uploads = uploads_of(row.evidence)
    names = [name for name, _ in uploads]
    if node not in names:
        return pb.RoundEntry(record=row.record)
    index = names.index(node)
    path = merkle.inclusion_path(upload_leaves(uploads), index)
    return pb.RoundEntry(record=row.record, included=True, index=index, path=path)
