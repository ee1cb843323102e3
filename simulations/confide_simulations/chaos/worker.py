"""Seeds one after the other in a process of its own: python -m confide_simulations.chaos.worker FIRST STOP STEP BUG

Prints one JSON line a seed. It runs with PYTHONHASHSEED=0, so that a seed is the same in every process.
"""

import gc
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree

from confide_simulations.chaos.consortium import Ground
from confide_simulations.chaos.planted import planted
from confide_simulations.chaos.world import Outcome, World

_MEMORY = Path("/dev/shm")  # noqa: S108 - a file system in memory; folders in it are private
_COLLECT_EVERY = 20
_WARM_UP = 0
"""A seed that every process runs first: what is imported and compiled once draws from the same randomness."""


@contextmanager
def ground() -> Iterator[Ground]:
    """What seeds share, in memory where the machine has such a file system; removed afterwards."""
    place = str(_MEMORY) if _MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="confide-chaos-", dir=place) as name:
        shared = Ground(Path(name))
        run_seed(_WARM_UP, shared)
        yield shared


def run_seed(seed: int, shared: Ground, bug: str = "") -> Outcome:
    """One seed, perhaps with a planted bug."""
    folder = shared.folder / "seed"
    folder.mkdir()
    try:
        with planted(bug):
            return World(seed, shared, folder).run()
    finally:
        rmtree(folder)


def to_line(outcome: Outcome) -> str:
    """JSON, without the trace's lines."""
    return json.dumps(
        {
            "seed": outcome.seed,
            "ends": outcome.ends,
            "faults": outcome.faults,
            "kills": outcome.kills,
            "violations": [[one.invariant, one.detail] for one in outcome.violations],
            "virtual_s": round(outcome.virtual_s, 1),
            "trace": outcome.trace,
        }
    )


def main() -> None:
    """Seeds FIRST, FIRST + STEP, ... below STOP; with a BUG it ends at the first seed that finds it."""
    first, stop, step, bug = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    gc.disable()
    with ground() as shared:
        for number, seed in enumerate(range(first, stop, step)):
            outcome = run_seed(seed, shared, bug)
            print(to_line(outcome), flush=True)
            if bug and outcome.violations:
                return
            if number % _COLLECT_EVERY == 0:
                gc.collect()


if __name__ == "__main__":
    main()
