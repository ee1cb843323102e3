"""Scores and baselines after the run, by two worker processes that share the jobs."""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from confide_simulations.demo.worker import Job, Work
from confide_simulations.forks import ONE_THREAD
from confide_simulations.processes import ProcessGroup

Found = dict[tuple[str, str], float | str]


def _cost(job: Job, rounds: int) -> float:
    """Relative time of a job, to deal jobs evenly."""
    return {"alone": 1.0 + 1.3 * rounds, "score": 1.0, "answer": 1.5}[job.kind]


def deal(jobs: Sequence[Job], workers: int, rounds: int) -> list[list[Job]]:
    """Longest first, each to the worker with least to do."""
    dealt: list[list[Job]] = [[] for _ in range(workers)]
    load = [0.0] * workers
    for job in sorted(jobs, key=lambda job: -_cost(job, rounds)):
        index = load.index(min(load))
        dealt[index].append(job)
        load[index] += _cost(job, rounds)
    return dealt


def run_jobs(
    jobs: Sequence[Job],
    *,
    specification: Path,
    base: Path,
    held_out: Path,
    rounds: int,
    folder: Path,
    progress: Callable[[int, str], None],
    workers: int = 2,
    environment: Mapping[str, str] | None = None,
) -> Found:
    """(kind, label) to value. environment: more, of the workers. Raises TransportError with the log of a failed one."""
    variables = {**ONE_THREAD, **(environment or {})}
    results = [folder / f"worker-{index}.jsonl" for index in range(workers)]
    with ProcessGroup() as processes:
        for index, part in enumerate(deal(jobs, workers, rounds)):
            results[index].touch()
            work = Work(str(specification), str(base), str(held_out), 1, tuple(part))
            path = work.write(folder / f"worker-{index}.json")
            command = [sys.executable, "-m", "confide_simulations.demo.worker", str(path), str(results[index])]
            processes.start(f"worker-{index}", command, folder / f"worker-{index}.log", variables)
        found: Found = {}
        while len(found) < len(jobs):
            time.sleep(0.2)
            finished = [name for name, child in processes.children.items() if child.poll() == 0]
            for line in [line for path in results for line in path.read_text("utf-8").splitlines()]:
                done = json.loads(line)
                key = (done["kind"], done["label"])
                if key not in found:
                    found[key] = done["value"]
                    progress(len(found), f"{done['kind']} {done['label']}")
            for name in finished:
                processes.children.pop(name)
            processes.check_alive()
    return found
