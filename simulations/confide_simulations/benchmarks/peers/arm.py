"""One arm in a process of its own: everything that it starts ends in it, so that the kernel adds up its CPU time.

    python -m confide_simulations.benchmarks.peers.arm NAME TASK_FOLDER RESULT.json

The result holds what the arm says of itself; its parent adds CPU time and memory.
"""

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path

import psutil

from confide_simulations.benchmarks.peers.task import Task

ARMS = {
    "confide": "confide_simulations.benchmarks.peers.confide_arm:run",
    "flower": "confide_simulations.benchmarks.peers.flower_arm:run_plain",
    "flower_secagg": "confide_simulations.benchmarks.peers.flower_arm:run_secagg",
    "nvflare": "confide_simulations.benchmarks.peers.nvflare_arm:run",
}
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an arm says of itself."""

    set_up_s: float
    """Keys, admissions, environments: what is done once, before any run."""
    wall_s: float
    """From the first process's start to the last round's model, loading included."""
    wire_bytes: int
    """Over the loopback interface meanwhile, other programs' traffic included: nothing else may run."""
    commands: Sequence[str]
    """What people type for it, on all machines together."""
    coordinator_sees: str
    transport: str
    notes: Sequence[str] = field(default_factory=tuple)


def loopback_bytes() -> int:
    """Received so far over the loopback interface. 0 where the kernel does not say (not Linux)."""
    with suppress(OSError):
        for text in Path("/proc/net/dev").read_text().splitlines():
            name, _, rest = text.partition(":")
            if name.strip() == "lo":
                return int(rest.split()[0])
    return 0


def package_folders() -> str:
    """Where Confide's packages are imported from, for programs that may run under another interpreter."""
    import confide
    import confide_client

    import confide_simulations

    found = {str(Path(str(each.__file__)).parents[1]): None for each in (confide, confide_client, confide_simulations)}
    return os.pathsep.join(found)


def wait_until(done: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Look twice a second. Raises TransportError when it takes too long."""
    from confide.errors import TransportError

    end = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > end:
            raise TransportError(f"{what} took longer than {timeout_s:g} s; see the logs in the task's folder (--keep)")
        time.sleep(0.5)


def end_all() -> None:
    """End whatever this process and its children started, and wait for it: only then its CPU time counts."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        left = psutil.Process().children(recursive=True)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        psutil.wait_procs(left, timeout=5.0)
    with suppress(ChildProcessError):
        while os.waitpid(-1, 0)[0]:
            pass


def main(arguments: Sequence[str]) -> None:
    """Run the arm that is named."""
    name, folder, result = arguments
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    module, function = ARMS[name].split(":")
    try:
        outcome: Outcome = getattr(import_module(module), function)(Task.read(folder))
    finally:
        end_all()
    Path(result).write_text(json.dumps(asdict(outcome)), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
