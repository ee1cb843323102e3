"""Annotating blind: which answer is better, without knowing whose either is. Works on a file, without a server.

Each annotator gets the pairs in an order of their own, and the two answers of a pair in an order of their own, both
fixed by their name: nobody sees the same model always first, and who stops goes on where they were.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from confide.errors import DataError

from confide_server.rlhf.annotation.preferences import (
    Candidate,
    Choice,
    Comparison,
    append_line,
    pairs_of,
    read_lines,
    standing,
)

KEYS: dict[str, Choice] = {"1": "first", "2": "second", "t": "tie", "b": "both_bad", "s": "skip"}


@dataclass(frozen=True)
class Task:
    """One pair as it is shown."""

    first: Candidate
    second: Candidate

    @property
    def prompt(self) -> str:
        """To which both answer."""
        return self.first.prompt


def tasks(candidates: Sequence[Candidate], annotator: str) -> list[Task]:
    """All pairs, in this annotator's order."""

    def draw(*parts: str) -> bytes:
        return hashlib.sha256("\0".join(("confide/annotating", annotator, *parts)).encode()).digest()

    found = []
    for one, other in pairs_of(candidates):
        swapped = draw("sides", one.id, other.id)[0] % 2 == 1
        found.append(Task(other, one) if swapped else Task(one, other))
    return sorted(found, key=lambda task: draw("order", *sorted((task.first.id, task.second.id))))


def pair_of(task: Task) -> tuple[str, str]:
    """Its answers' ids, as Comparison.pair has them."""
    one, other = sorted((task.first.id, task.second.id))
    return one, other


class Session:
    """One annotator's sitting over one file of candidates."""

    def __init__(
        self, candidates: Sequence[Candidate], annotator: str, file: Path, *, rubric: str = "1",
        clock: Callable[[], float] = time.monotonic, only: Collection[tuple[str, str]] | None = None,
    ) -> None:  # fmt: skip
        """file: the annotator's ratings; may exist. only: these pairs, else all. Raises DataError for a damaged one."""
        self._tasks, self._annotator, self._file, self._rubric = tasks(candidates, annotator), annotator, file, rubric
        if only is not None:
            self._tasks = [task for task in self._tasks if pair_of(task) in only]
        self._clock = clock
        self._stamp, self._made = (0, 0), list[Comparison]()
        self._refresh()
        self._shown_at = clock()
        self._shown: Task | None = None

    def _refresh(self) -> None:
        """Take what stands in the file. Raises DataError ANNOTATOR_OTHER where it is somebody else's."""
        if not self._file.exists():
            self._stamp, self._made = (0, 0), []
            return
        status = self._file.stat()
        if (stamp := (status.st_mtime_ns, status.st_size)) == self._stamp:
            return
        made = standing(read_lines(self._file, Comparison))
        others = sorted({one.annotator for one in made} - {self._annotator})
        if others:
            raise DataError(
                f"ANNOTATOR_OTHER: {self._file} holds judgements of {others[0]}, and you are {self._annotator}; give a "
                "file of your own"
            )
        self._stamp, self._made = stamp, made

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """The same annotator may sit in two windows, or in the console and a terminal: one writes at a time."""
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            self._refresh()
            yield
        finally:
            os.close(descriptor)

    @property
    def done(self) -> int:
        """Pairs that are judged."""
        return len(self._made)

    @property
    def total(self) -> int:
        """Pairs in all."""
        return len(self._tasks)

    def next(self) -> Task | None:
        """The first pair that is not judged, here or in a second window; None when all are."""
        self._refresh()
        judged = {one.pair for one in self._made}
        task = next((task for task in self._tasks if pair_of(task) not in judged), None)
        if task is not self._shown:  # asked again, the same pair has been before its reader all the while
            self._shown, self._shown_at = task, self._clock()
        return task

    def judge(self, task: Task, choice: Choice, reason: str = "") -> None:
        """Durable when it returns. Raises DataError RATING_REPLAYED for a pair that was judged in a second window."""
        spent = max(0, round(1000 * (self._clock() - self._shown_at)))
        made = Comparison(
            first=task.first.id, second=task.second.id, choice=choice, annotator=self._annotator, rubric=self._rubric,
            reason=reason, milliseconds=min(spent, 10**9),
        )  # fmt: skip
        with self._alone():
            if any(one.pair == made.pair for one in self._made):
                raise DataError(
                    "RATING_REPLAYED: this pair was judged meanwhile, perhaps in a second window; look again"
                )
            append_line(self._file, made)
            self._refresh()

    def undo(self) -> bool:
        """Take the last judgement back; whether there was one."""
        with self._alone():
            if not self._made:
                return False
            append_line(self._file, self._made[-1].model_copy(update={"undone": True}))
            self._refresh()
        return True
