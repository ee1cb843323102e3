"""The parent of forks (forks.py): imports, then forks a program for every request on its socket.

    python -m confide_simulations.forking DESCRIPTOR MODULE...

A request is a message in JSON, {"module", "arguments", "directory", "environment"}, with the descriptor for the
program's output; the answer is {"pid"}, and {"pid", "status"} when the program has ended.
"""

import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1


def _import(modules: list[str]) -> None:
    for name in modules:
        importlib.import_module(name)
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads != 1:
        # A lock that another thread holds during a fork is held in the fork for ever.
        sys.exit(f"error: importing {', '.join(modules)} left {threads} threads; a process with threads is not forked")
    # What is imported stays: collections in the forks then do not touch, and so copy, its pages.
    gc.collect()
    gc.freeze()


def _reap(channel: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        ended = {"pid": pid, "status": os.waitstatus_to_exitcode(status)}
        channel.send(json.dumps(ended).encode())


def _become(request: dict[str, Any], output: int, parent: int) -> None:
    """In the fork: what a process has that was started afresh."""
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.environ.update(request["environment"])
    os.chdir(request["directory"])
    sys.path[0] = request["directory"]
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()


def _serve(channel: socket.socket) -> dict[str, Any]:
    """Fork on request until the socket is closed; returns, in a fork only, the request that it is to run."""
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    parent = os.getpid()
    waiting = select.poll()  # select() takes no descriptor above 1023
    waiting.register(channel, select.POLLIN)
    waiting.register(woken, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in waiting.poll()}
        if woken in ready:
            os.read(woken, 4096)
            _reap(channel)
        if channel.fileno() not in ready:
            continue
        data, descriptors, _, _ = socket.recv_fds(channel, 65536, 1)
        if not data:
            os.killpg(0, signal.SIGKILL)
        request: dict[str, Any] = json.loads(data)
        pid = os.fork()
        if pid == 0:
            channel.close()
            os.close(woken)
            os.close(wake)
            _become(request, descriptors[0], parent)
            return request
        os.close(descriptors[0])
        channel.send(json.dumps({"pid": pid}).encode())


def main() -> None:
    """Serve; in a fork, run its program as `python -m` would."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    _import(sys.argv[2:])
    request = _serve(channel)
    sys.argv = [request["module"], *request["arguments"]]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
