"""Python programs as processes of their own, forked from one that has imported already what they all import.

Importing torch, transformers and flwr takes seconds of CPU in each process of a federation on one machine: more than
a small round. Here one parent imports them once, and each program starts as a fork of it: with a session, an
environment and a memory of its own, as if Python had been started afresh, but at once, and sharing the pages of the
libraries. For demos, benchmarks and tests, where all processes are one trust domain; a real node starts by itself.

    with Forks() as forks:
        child = forks.start("confide", ["node", "start", "folder"], log_descriptor)
        child.wait(60)

Guarantee: nothing secret or random is shared. The parent holds no key and draws no randomness; a fork draws from the
operating system, and numpy's global generator, which a fork would inherit, is seeded again.
"""

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from confide.children import start
from confide.errors import StateError

# Not pyarrow, nor what imports it: it starts a thread.
MODULES = (
    "confide_client.training",
    "confide_client.agent.agent",
    "confide_client.runs.loading",
    "confide_client.commands.node",
    "confide_server.admin_cli.server",
    "confide_server.coordinator.process",
    "transformers.models.auto.modeling_auto",
    "peft",
    "numba",
    "httpcore",
    "uvicorn.protocols.http.auto",
    "uvicorn.loops.auto",
)

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_LARGEST = 65536
# Set anew by a test runner or a shell, and read by no program here.
_NO_MATTER = {"PYTEST_CURRENT_TEST", "PWD", "OLDPWD", "_", "COLUMNS", "LINES"}
# Set by the libraries as they are imported: in this process perhaps, in the parent just so.
_SET_BY_IMPORTS = {"NUMBA_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"}
# Read when they are needed, not at import.
_OWN = "CONFIDE_"


def possible() -> bool:
    """False where a driver would not survive the fork (CUDA, ROCm), or the kernel has no forks of this kind."""
    return sys.platform == "linux" and not (Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists())


class Fork:
    """A forked program, to be used as a subprocess.Popen is: pid, returncode, poll, wait, send_signal, kill."""

    def __init__(self, forks: "Forks", pid: int, args: Sequence[str]) -> None:
        self.pid = pid
        self.args = list(args)
        self.returncode: int | None = None
        self._forks = forks

    def poll(self) -> int | None:
        """The exit status, None while it runs; -N when signal N ended it."""
        if self.returncode is None:
            self.returncode = self._forks.status(self.pid, 0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status. Raises subprocess.TimeoutExpired."""
        limit_s = float("inf") if timeout is None else timeout
        deadline = time.monotonic() + limit_s
        while self.returncode is None:
            left_s = deadline - time.monotonic()
            self.returncode = self._forks.status(self.pid, max(0.0, min(left_s, 1.0)))
            if self.returncode is None and left_s <= 0:
                raise subprocess.TimeoutExpired(self.args, limit_s)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Signal it, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)


class Forks:
    """The parent of forks, started with the first of them. Its end, or that of this process, ends all."""

    def __init__(self, modules: Sequence[str] = MODULES, environment: Mapping[str, str] | None = None) -> None:
        """modules: imported before the first fork. environment: beside this process's own, for all forks."""
        self._modules = tuple(modules)
        self._environment = {**os.environ, **(environment or {})}
        self._parent: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._statuses: dict[int, int] = {}
        self._answers: list[int] = []
        self._lock = threading.RLock()

    def serves(self, command: Sequence[str], environment: Mapping[str, str]) -> bool:
        """Whether a fork is as good as the command: `python -m ...` in the parent's environment, read at import."""
        if not possible() or tuple(command[:2]) != (sys.executable, "-m"):
            return False
        differing = {name for name, _ in environment.items() ^ self._environment.items()}
        by_imports = _SET_BY_IMPORTS - self._environment.keys()
        return not {name for name in differing - _NO_MATTER - by_imports if not name.startswith(_OWN)}

    def begin(self) -> socket.socket:
        """Start the parent, if it is not there; it imports while the caller goes on. The channel to it."""
        if self._channel is None:
            # Each message is received whole, as it was sent.
            self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            # -u: what a fork prints is in its log when it is killed.
            command = [sys.executable, "-u", "-m", "confide_simulations.forking", str(theirs.fileno()), *self._modules]
            self._parent = start(
                command,
                stdin=subprocess.DEVNULL,
                env=self._environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
            theirs.close()
        return self._channel

    def prepare(self) -> None:
        """Let the parent import, if forks are possible, while the caller does something else."""
        if possible():
            self.begin()

    def start(
        self,
        module: str,
        arguments: Sequence[str],
        output: int,
        *,
        directory: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Fork:
        """`python -m module arguments`, its output to the descriptor `output`, in a session of its own.

        environment: only what is Confide's own, CONFIDE_*, differs between forks.
        """
        with self._lock:
            channel = self.begin()
            request = {
                "module": module,
                "arguments": list(arguments),
                "directory": str(directory or Path.cwd()),
                "environment": {k: v for k, v in (environment or os.environ).items() if k.startswith(_OWN)},
            }
            socket.send_fds(channel, [json.dumps(request).encode()], [output])
            while not self._answers:
                self._receive(channel, 60.0)
                if self._channel is None:
                    raise StateError("the parent of forks ended; what it said stands above, or it was killed")
            return Fork(self, self._answers.pop(0), [sys.executable, "-m", module, *arguments])

    def status(self, pid: int, timeout_s: float) -> int | None:
        """The exit status of a fork, None if it has not ended within the time."""
        deadline = time.monotonic() + timeout_s
        while True:
            with self._lock:
                if pid in self._statuses or self._channel is None:
                    return self._statuses.get(pid, -signal.SIGKILL)
                # In slices, so that threads that wait for different forks take turns.
                more = self._receive(self._channel, min(0.05, max(0.0, deadline - time.monotonic())))
            if not more and time.monotonic() >= deadline:
                return self._statuses.get(pid)

    def close(self) -> None:
        """End the parent, and with it every fork."""
        with self._lock:
            if self._channel is not None:
                self._channel.close()
            if self._parent is not None:
                self._parent.wait()
            self._channel = self._parent = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _receive(self, channel: socket.socket, timeout_s: float) -> bool:
        """Take what the parent says within the time; whether it said anything. Its end leaves no channel."""
        waiting = select.poll()  # select() takes no descriptor above 1023
        waiting.register(channel, select.POLLIN)
        if not waiting.poll(1000 * timeout_s):
            return False
        try:
            data = channel.recv(_LARGEST)
        except ConnectionResetError:
            data = b""
        if not data:
            channel.close()
            self._channel = None
            return False
        message: dict[str, Any] = json.loads(data)
        if "status" in message:
            self._statuses[message["pid"]] = message["status"]
        else:
            # The kernel gives numbers again: what an earlier fork of this number ended with is not this one's.
            self._statuses.pop(message["pid"], None)
            self._answers.append(message["pid"])
        return True


@cache
def shared() -> Forks:
    """One parent for all that this process starts, with one thread of computation for each fork."""
    forks = Forks(environment=ONE_THREAD)
    atexit.register(forks.close)
    return forks
