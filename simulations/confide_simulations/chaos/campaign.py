"""Many seeds over several processes. What they find does not depend on how many processes there are."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from confide_simulations.chaos.planted import BUGS

PLANTED_SEEDS = 1500
"""A planted bug has to be found within so many seeds."""


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


def results(first: int, stop: int, step: int, bug: str) -> Iterator[dict[str, Any]]:
    """Results of a worker process as they come. Raises CalledProcessError when it fails."""
    command = [sys.executable, "-m", "confide_simulations.chaos.worker", str(first), str(stop), str(step), bug]
    environment = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None  # noqa: S101 - it was asked for
        for line in process.stdout:
            yield json.loads(line)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def run(
    seeds: int,
    processes: int,
    bugs: Sequence[str],
    tell: Callable[[Report], None] = lambda report: None,
    first: int = 0,
) -> Report:
    """The seeds from `first` on, then each planted bug until it is found. tell: called now and then."""
    report, began = Report(), time.perf_counter()

    def work(number: int) -> None:
        for line in results(first + number, first + seeds, processes, ""):
            report.take(line)
            tell(report)

    def search(bug: str) -> None:
        report.planted[bug] = False
        for count, line in enumerate(results(0, PLANTED_SEEDS, 1, bug), start=1):
            report.planted_after[bug], report.planted[bug] = count, bool(line["violations"])
        tell(report)

    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(work, range(min(processes, seeds))))
        list(pool.map(search, bugs))
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
