"""Accepted submissions, over all runs: memory.log, a hash-chained journal in the state folder.

    submission  {run, nonce, administrator, statement, expires_at}   written before the run is accepted
    ended       {run}                                                the run is over here, for good

It grows by some 400 bytes a run. Whoever removes it lets a coordinator offer old submissions again.
"""

import threading
from pathlib import Path
from typing import Any

from confide import canonical
from confide.errors import FailureName, ProtocolFailure
from confide.identity.submission import SignedSubmission
from confide.journal import Journal

MEMORY_NAME = "memory.log"


class Submissions:
    """The journal, opened when it is first needed and held exclusively from then on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._journal: Journal | None = None
        self._by_nonce: dict[tuple[str, str], str] = {}
        self._by_run: dict[str, str] = {}
        self._ended: set[str] = set()

    @property
    def journal(self) -> Journal:
        """Raises StateError when it is damaged, or in use by another process."""
        with self._lock:
            if self._journal is None:
                self._journal = Journal(self._path)
                for body in self._journal:
                    self._apply(body)
            return self._journal

    def close(self) -> None:
        """Release the file; it is opened again when it is needed."""
        with self._lock:
            if self._journal is not None:
                self._journal.close()
            self._journal, self._by_nonce, self._by_run, self._ended = None, {}, {}, set()

    def check_submission(self, signed: SignedSubmission, now: float) -> None:
        """Raise SUBMISSION_REPLAYED when run id or nonce served another submission or a run that has ended here.

        Raise SUBMISSION_EXPIRED when the submission is too old; one that was accepted here does not expire any more.
        """
        _ = self.journal
        name = _digest(signed)
        for known in (self._by_nonce.get((signed.administrator, signed.nonce.hex())), self._by_run.get(signed.run_id)):
            if known not in (None, name):
                raise _replayed(f"the run id or nonce of run {signed.run_id[:8]} served another submission here")
        if signed.run_id in self._ended:
            raise _replayed(f"run {signed.run_id[:8]} has ended on this node")
        if signed.run_id not in self._by_run:
            signed.check_in_time(now)

    def accepted(self, signed: SignedSubmission, now: float) -> None:
        """Keep run id and nonce for good, durably. Again: changes nothing. Raises as `check_submission`."""
        self.check_submission(signed, now)
        if signed.run_id not in self._by_run:
            self._write(
                event="submission",
                run=signed.run_id,
                nonce=signed.nonce.hex(),
                administrator=signed.administrator,
                statement=_digest(signed),
                expires_at=signed.expires_at,
            )

    def ended(self, run_id: str) -> None:
        """The run is over here, durably: its submission is never accepted again."""
        _ = self.journal
        if run_id not in self._ended:
            self._write(event="ended", run=run_id)

    def _write(self, **body: Any) -> None:
        self.journal.append(body)
        self._apply(body)

    def _apply(self, body: dict[str, Any]) -> None:
        match body["event"]:
            case "submission":
                self._by_run[body["run"]] = body["statement"]
                self._by_nonce[body["administrator"], body["nonce"]] = body["statement"]
            case "ended":
                self._ended.add(body["run"])


def _digest(signed: SignedSubmission) -> str:
    return canonical.hash_fields("confide/v1/accepted", signed.administrator.encode(), signed.statement).hex()


def _replayed(what: str) -> ProtocolFailure:
    return ProtocolFailure(
        FailureName.SUBMISSION_REPLAYED, f"{what}; a submission is accepted once. Its administrator submits it anew"
    )
