"""Which answers this node has judged for feedback runs, over all of them: feedback.log, a hash-chained journal.

    judged  {run, group, names: [SHA-256 of what was judged], at}     written before anything is judged

Guarantee: nothing is judged twice on one group of data in two runs, so that no noise is averaged away by asking again;
and no more is judged in 24 hours than the policy allows, whoever asks and in however many runs. A run that is tried
again after a failed slot answers the same again, and counts once.
"""

import threading
from collections.abc import Sequence
from pathlib import Path

from confide.errors import PolicyRefusal
from confide.journal import Journal

FEEDBACK_NAME = "feedback.log"
DAY_S = 86400.0


class FeedbackMemory:
    """The journal, opened when it is first needed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._journal: Journal | None = None
        self._runs: set[str] = set()
        self._judged: dict[tuple[str, str], str] = {}
        self._times: list[tuple[float, int]] = []

    @property
    def journal(self) -> Journal:
        """Raises StateError when it is damaged, or in use by another process."""
        with self._lock:
            return self._opened()

    @property
    def exists(self) -> bool:
        """Whether anything was ever judged here."""
        return self._path.exists()

    def reserve(self, run_id: str, group: str, names: Sequence[str], most: int, now: float) -> None:
        """Durably, before the first answer is judged; again for the same run changes nothing. now: Unix seconds.

        Raises PolicyRefusal FEEDBACK_REPLAYED or FEEDBACK_LIMIT.
        """
        with self._lock:
            journal = self._opened()
            if run_id in self._runs:
                return
            self._check(group, names, most, now)
            body = {"event": "judged", "run": run_id, "group": group, "names": list(names), "at": now}
            journal.append(body)
            self._apply(run_id, group, names, now)

    def check(self, run_id: str, group: str, names: Sequence[str], most: int, now: float) -> None:
        """Raise what `reserve` would, and write nothing: for the answer to an offer."""
        with self._lock:
            self._opened()
            if run_id not in self._runs:
                self._check(group, names, most, now)

    def _check(self, group: str, names: Sequence[str], most: int, now: float) -> None:
        known = [name for name in names if (group, name) in self._judged]
        if known:
            raise PolicyRefusal(
                f"FEEDBACK_REPLAYED: {len(known)} of {len(names)} answers were judged by this node in another run. "
                "What was asked once is not asked again; leave them out."
            )
        # A clock that went back frees nothing: what lies in the future counts too.
        today = sum(count for at, count in self._times if at > now - DAY_S)
        if today + len(names) > most:
            raise PolicyRefusal(
                f"FEEDBACK_LIMIT: {len(names)} answers are asked about, and this node's policy has no room for so many "
                "today. Ask tomorrow, or about fewer."
            )

    def _opened(self) -> Journal:
        if self._journal is None:
            self._journal = Journal(self._path)
            for body in self._journal:
                self._apply(body["run"], body["group"], body["names"], body["at"])
        return self._journal

    def _apply(self, run_id: str, group: str, names: Sequence[str], at: float) -> None:
        self._runs.add(run_id)
        self._judged.update({(group, name): run_id for name in names})
        self._times.append((at, len(names)))

    def close(self) -> None:
        """Release the file; it is opened again when it is needed."""
        with self._lock:
            if self._journal is not None:
                self._journal.close()
            self._journal, self._runs, self._judged, self._times = None, set(), {}, []
