"""Seeds one after the other in a process of its own: python -m confide_simulations.chaos.worker FIRST STOP STEP

Prints one JSON line a seed, then an empty one. From then on it looks for each planted bug whose name comes by standard
input, and prints one JSON line for each. It runs with PYTHONHASHSEED=0, so that a seed is the same in every process.
"""

import gc
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree

from confide_simulations.chaos.consortium import Ground
from confide_simulations.chaos.planted import planted
from confide_simulations.chaos.world import Outcome, World

_MEMORY = Path("/dev/shm")  # noqa: S108 - a file system in memory; folders in it are private
PLANTED_SEEDS = 1500
"""A planted bug has to be found within so many seeds."""
_COLLECT_EVERY = 40
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
    """Seeds FIRST, FIRST + STEP, ... below STOP, then bugs."""
    first, stop, step = (int(one) for one in sys.argv[1:4])
    gc.disable()
    with ground() as shared:
        gc.collect()
        gc.freeze()  # what is loaded by now stays, and need not be looked through
        for outcome in _outcomes(range(first, stop, step), shared):
            print(to_line(outcome), flush=True)
        print(flush=True)
        for line in sys.stdin:
            _search_apart(line.strip(), shared)


def _outcomes(seeds: range, shared: Ground, bug: str = "") -> Iterator[Outcome]:
    for number, seed in enumerate(seeds):
        yield run_seed(seed, shared, bug)
        if number % _COLLECT_EVERY == 0:
            gc.collect()


def _search_apart(bug: str, shared: Ground) -> None:
    """In a copy of this process, which ends with the bug."""
    child = os.fork()
    if not child:
        code = 1
        try:
            print(json.dumps(_search(bug, shared)), flush=True)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)  # what is this process's own to tidy up is left to it
    if os.waitpid(child, 0)[1]:
        sys.exit(f"the search for the planted bug {bug} failed")


def _search(bug: str, shared: Ground) -> dict[str, int | bool]:
    count, found = 0, False
    for outcome in _outcomes(range(PLANTED_SEEDS), shared, bug):
        count, found = count + 1, bool(outcome.violations)
        if found:
            break
    return {"found": found, "after": count}


if __name__ == "__main__":
    main()
