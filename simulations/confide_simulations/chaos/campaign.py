"""Many seeds over several processes. What they find does not depend on how many processes there are."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Self

from confide_simulations.chaos.planted import BUGS


@dataclass
class Report:
    """Of one campaign; `document` is what is written as JSON."""

    seeds: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    violations: list[dict[str, Any]] = field(default_factory=list)
    traces: dict[int, str] = field(default_factory=dict)
    """Of each seed, the SHA-256 of everything that happened in it."""
    killed: dict[int, int] = field(default_factory=dict)
    """Of each seed, how many processes died."""
    planted: dict[str, bool] = field(default_factory=dict)
    planted_after: dict[str, int] = field(default_factory=dict)
    """Seeds that it took to find each."""
    seconds: float = 0.0

    def take(self, line: Mapping[str, Any]) -> None:
        """One seed's result."""
        self.seeds += 1
        self.faults.update(line["faults"])
        self.kills.update(line["kills"])
        self.ends.update(line["ends"])
        self.traces[line["seed"]], self.killed[line["seed"]] = line["trace"], sum(line["kills"].values())
        self.violations += [
            {"seed": line["seed"], "invariant": invariant, "detail": detail} for invariant, detail in line["violations"]
        ]

    def document(self) -> dict[str, Any]:
        """Keys in order of importance."""
        return {
            "seeds": self.seeds,
            "faults": dict(sorted(self.faults.items())),
            "faults_per_seed": round(self.faults.total() / max(1, self.seeds), 2),
            "kills_by_boundary": dict(sorted(self.kills.items())),
            "ends": dict(sorted(self.ends.items())),
            "violations": sorted(self.violations, key=lambda one: (one["seed"], one["invariant"], one["detail"])),
            "planted": self.planted,
            "planted_after": self.planted_after,
            "seconds": round(self.seconds, 1),
        }


class Worker:
    """A process that runs seeds FIRST, FIRST + STEP, ... below STOP, and then looks for planted bugs."""

    def __init__(self, first: int, stop: int, step: int) -> None:
        numbers = (str(first), str(stop), str(step))
        self._command = [sys.executable, "-m", "confide_simulations.chaos.worker", *numbers]
        environment = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, text=True, env=environment)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._process.kill()
        self._process.communicate()

    def results(self) -> Iterator[dict[str, Any]]:
        """One a seed, as they come. Raises CalledProcessError when the process fails."""
        while line := self._line().strip():
            yield json.loads(line)

    def search(self, bug: str) -> tuple[bool, int]:
        """Whether the bug was found, and in how many seeds; asked once `results` has ended. Raises as it does."""
        assert self._process.stdin is not None  # noqa: S101 - it was asked for
        print(bug, file=self._process.stdin, flush=True)
        found = json.loads(self._line())
        return found["found"], found["after"]

    def _line(self) -> str:
        assert self._process.stdout is not None  # noqa: S101 - it was asked for
        line = self._process.stdout.readline()
        if not line:
            raise subprocess.CalledProcessError(self._process.wait(), self._command)
        return line


def run(
    seeds: int,
    processes: int,
    bugs: Sequence[str],
    tell: Callable[[Report], None] = lambda report: None,
    first: int = 0,
) -> Report:
    """The seeds from `first` on, then each planted bug until it is found. tell: called now and then."""
    report, began, left = Report(), time.perf_counter(), deque(bugs)

    def work(number: int) -> None:
        with Worker(first + number, first + seeds, processes) as worker:
            for line in worker.results():
                report.take(line)
                tell(report)
            with contextlib.suppress(IndexError):  # until none is left
                while bug := left.popleft():
                    report.planted[bug], report.planted_after[bug] = worker.search(bug)
                    tell(report)

    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(work, range(min(processes, max(seeds, len(bugs))))))
    report.planted = {bug: report.planted[bug] for bug in bugs}
    report.seconds = time.perf_counter() - began
    return report


def trace(seed: int, bug: str = "") -> list[str]:
    """What happens in a seed, line by line: the same in every process."""
    code = (
        "from confide_simulations.chaos.worker import ground, run_seed\n"
        f"with ground() as shared: outcome = run_seed({seed}, shared, {bug!r})\n"
        "print('\\n'.join(outcome.lines))\n"
        "for one in outcome.violations: print('violation:', one.invariant + ':', one.detail)\n"
        "print('ends:', ', '.join(outcome.ends)); print('trace:', outcome.trace)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


def names_of_bugs() -> tuple[str, ...]:
    """All that can be planted."""
    return tuple(BUGS)
