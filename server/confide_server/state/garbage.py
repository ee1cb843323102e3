"""What the checkpoint store holds that nothing needs: found first, then removed, by a coordinator that does not run.

    found = find(database, checkpoints, work_older_s=30 * 86400)
    collect(database, checkpoints, found)

Guarantee: the model of a committed round, which its run's manifest names by hash, is never removed, and so never one
that a release or another run stands on. Removed are files that no round names (a crash between writing and committing
leaves one), and, where it is asked for, what rounds of runs that ended long ago were made with: the outer optimizer's
state and the mean update. `confide node verify-run` then follows those rounds' steps no more; their records stay.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from confide_server.state.checkpoints import CheckpointStore, Stored
from confide_server.state.database import Checkpoint, Database, Round, Run, append_audit
from confide_server.state.runs.status import ENDED


@dataclass(frozen=True)
class Garbage:
    """Files by why they may go. A file that any round still needs is in neither."""

    orphans: tuple[Stored, ...]
    """No round names them."""
    work: tuple[Stored, ...]
    """Outer states and means of the runs in `runs`."""
    runs: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[Stored, ...]:
        """All of them."""
        return (*self.orphans, *self.work)

    @property
    def bytes(self) -> int:
        """How much is freed."""
        return sum(file.bytes for file in self.files)


def find(
    database: Database, checkpoints: CheckpointStore, *, work_older_s: float | None = None, now: float | None = None
) -> Garbage:
    """Look; nothing is changed. work_older_s: how long ago a run must have ended for its work to go; None: never."""
    before = None if work_older_s is None else (time.time() if now is None else now) - work_older_s
    with database.reading() as session:
        runs = _ended_before(session, before)
        kept, work = _needed(session, runs)
    stored = {file.name: file for file in checkpoints.stored()}
    return Garbage(
        orphans=_of(stored, set(stored) - kept - work), work=_of(stored, work - kept), runs=tuple(sorted(runs))
    )


def _of(stored: dict[str, Stored], names: Iterable[str]) -> tuple[Stored, ...]:
    return tuple(stored[name] for name in sorted(names) if name in stored)


def _ended_before(session: Session, before: float | None) -> set[str]:
    """Runs whose work may go. Nobody goes on from the state of a round: a continued run begins with a model alone."""
    if before is None:
        return set()
    query = select(Run.run_id).where(Run.status.in_(sorted(ENDED)), Run.ended_at.is_not(None), Run.ended_at < before)
    return set(session.scalars(query))


def _needed(session: Session, ended: set[str]) -> tuple[set[str], set[str]]:
    """(files that stay, files that only the work of `ended` needs)."""
    kept, work = set[str](), set[str]()
    for run_id, model, outer in session.execute(
        select(Checkpoint.run_id, Checkpoint.model_file, Checkpoint.outer_file)
    ):
        kept.add(model)
        (work if run_id in ended else kept).add(outer)
    for run_id, mean in session.execute(select(Round.run_id, Round.mean_file)):
        (work if run_id in ended else kept).add(mean)
    return kept - {""}, work - {""}


def collect(database: Database, checkpoints: CheckpointStore, found: Garbage) -> None:
    """Remove what was found. What rounds say of their work is forgotten first: a crash leaves files, never a gap."""
    with database.transaction() as session:
        session.execute(update(Checkpoint).where(Checkpoint.run_id.in_(found.runs)).values(outer_file=""))
        session.execute(update(Round).where(Round.run_id.in_(found.runs)).values(mean_file=""))
        said = {"event": "garbage_collected", "files": len(found.files), "bytes": found.bytes, "runs": len(found.runs)}
        append_audit(session, said)
    for file in found.files:
        checkpoints.remove(file.name)
