"""Real child processes that never outlive their parent, and what the whole tree costs in memory.

>>> with ProcessGroup() as group:
...     child = group.start("sleeper", ["sleep", "60"], Path("/tmp/sleeper.log"))
...     child.poll() is None
True
>>> child.poll() is None
False
"""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from confide.children import start
from confide.errors import StateError, TransportError

from confide_simulations.forks import Fork, shared

Child = subprocess.Popen[bytes] | Fork


class ProcessGroup:
    """Children by name, each with a log file; leaving the block ends all of them: SIGTERM, then SIGKILL.

    Ctrl-C is not lost within the block: a library that swallows KeyboardInterrupt, as imports and destructors do, only
    puts it off until `check_alive`.
    """

    def __init__(self, *, grace_s: float = 8.0, forked: bool = True) -> None:
        """forked: Python programs may share the libraries' pages (forks.py); False where their memory is measured."""
        self._grace_s = grace_s
        self._forked = forked
        self._interrupted = False
        self._before: Any = None
        self.children: dict[str, Child] = {}
        self.logs: dict[str, Path] = {}

    def start(self, name: str, command: Sequence[str], log: Path, environment: dict[str, str] | None = None) -> Child:
        """Start `command`; its output goes to `log` (mode 0600). Raises StateError when `name` runs already.

        A Python program is forked from a parent that has imported the libraries, where that comes to the same.
        """
        if name in self.children and self.children[name].poll() is None:
            raise StateError(f"process {name} runs already; stop it first")
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            child = _start(command, descriptor, {**os.environ, **(environment or {})}, forked=self._forked)
        finally:
            os.close(descriptor)
        self.children[name] = child
        self.logs[name] = log
        return child

    def check_alive(self) -> None:
        """Raises TransportError, with the end of its log, when a child has ended by itself."""
        if self._interrupted:
            raise KeyboardInterrupt
        for name, child in self.children.items():
            if child.poll() is not None:
                tail = self.logs[name].read_text("utf-8", "replace").strip().splitlines()[-12:]
                raise TransportError(
                    f"process {name} ended with status {child.returncode}. The end of {self.logs[name]}:\n"
                    + "\n".join(tail)
                )

    def stop(self, name: str) -> None:
        """End one child and forget it."""
        child = self.children.pop(name)
        _end([child], self._grace_s)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def _interrupt(self, number: int, frame: object) -> None:
        self._interrupted = True
        raise KeyboardInterrupt

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
        _end(list(self.children.values()), self._grace_s)


def _start(command: Sequence[str], output: int, environment: dict[str, str], *, forked: bool) -> Child:
    if forked and shared().serves(command, environment):
        return shared().start(command[2], command[3:], output, environment=environment)
    # A session of its own: Ctrl-C reaches the parent alone, which then ends the children in order.
    return start(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )


def _end(children: Sequence[Child], grace_s: float) -> None:
    for child in children:
        _signal_session(child, signal.SIGTERM)
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(grace_s)
        _signal_session(child, signal.SIGKILL)
        child.wait()


def _signal_session(child: Child, number: signal.Signals) -> None:
    """To the child and what it started; to what it left behind, once it has ended."""
    if child.poll() is not None and psutil.pid_exists(child.pid):
        return  # the number was given again: nothing of the child's is left, and the session is somebody else's
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def tree_pss_mib(root: psutil.Process | None = None) -> float:
    """Proportional set size of a process and all below it, in MiB: shared pages are counted once."""
    root = root or psutil.Process()
    total = 0
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += _pss_bytes(process)
    return total / 2**20


def _pss_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.AccessDenied:
        # Of private processes (confide.secrecy) the kernel tells this to root only. Shared pages then count each time.
        return int(process.memory_info().rss)


def anonymous_mib() -> float:
    """Resident memory of this process that is no file's, in MiB: a mapped file's can be dropped at any time."""
    memory = psutil.Process().memory_info()
    return float(memory.rss - memory.shared) / 2**20


class PeakMemory:
    """Samples the memory of this process's tree in the background; `peak_mib` is the largest value seen."""

    def __init__(self, interval_s: float = 1.0, measure: Callable[[], float] = tree_pss_mib) -> None:
        self.peak_mib = 0.0
        self._interval_s = interval_s
        self._measure = measure
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="peak-memory", daemon=True)

    def _sample(self) -> None:
        while not self._done.wait(self._interval_s):
            self.peak_mib = max(self.peak_mib, self._measure())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self.peak_mib = max(self.peak_mib, self._measure())
