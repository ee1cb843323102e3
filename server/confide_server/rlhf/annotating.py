"""Annotating blind: which answer is better, without knowing whose either is. Works on a file, without a server.

Each annotator gets the pairs in an order of their own, and the two answers of a pair in an order of their own, both
fixed by their name: nobody sees the same model always first, and who stops goes on where they were.
"""

import hashlib
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from confide_server.rlhf.preferences import (
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
        self._made = standing(read_lines(file, Comparison)) if file.exists() else []
        self._shown_at = clock()
        self._shown: Task | None = None

    @property
    def done(self) -> int:
        """Pairs that are judged."""
        return len(self._made)

    @property
    def total(self) -> int:
        """Pairs in all."""
        return len(self._tasks)

    def next(self) -> Task | None:
        """The first pair that is not judged; None when all are."""
        judged = {one.pair for one in self._made}
        task = next((task for task in self._tasks if pair_of(task) not in judged), None)
        if task is not self._shown:  # asked again, the same pair has been before its reader all the while
            self._shown, self._shown_at = task, self._clock()
        return task

    def judge(self, task: Task, choice: Choice, reason: str = "") -> None:
        """Durable when it returns."""
        spent = max(0, round(1000 * (self._clock() - self._shown_at)))
        made = Comparison(
            first=task.first.id, second=task.second.id, choice=choice, annotator=self._annotator, rubric=self._rubric,
            reason=reason, milliseconds=min(spent, 10**9),
        )  # fmt: skip
        append_line(self._file, made)
        self._made.append(made)

    def undo(self) -> bool:
        """Take the last judgement back; whether there was one."""
        if not self._made:
            return False
        last = self._made.pop()
        append_line(self._file, last.model_copy(update={"undone": True}))
        return True
