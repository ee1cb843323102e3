"""Ctrl-C while child processes run, and whom their end concerns."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from confide_simulations.processes import ProcessGroup


def test_an_interrupt_that_a_library_swallows_is_raised_again() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), ProcessGroup() as processes:
        processes.check_alive()
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        processes.check_alive()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_child_outlives_the_thread_that_asked_for_it(tmp_path: Path) -> None:
    with ProcessGroup(forked=False) as processes:

        def ask() -> None:
            command = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
            child = processes.start("sleeper", command, tmp_path / "log")
            while child.poll() is None and "up" not in (tmp_path / "log").read_text():
                time.sleep(0.02)

        asking = threading.Thread(target=ask)
        asking.start()
        asking.join()
        with pytest.raises(subprocess.TimeoutExpired):
            processes.children["sleeper"].wait(0.5)


def test_a_number_that_is_given_again_is_not_signalled(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True) as other:
        with ProcessGroup() as processes:
            child = processes.start("short", [sys.executable, "-c", ""], tmp_path / "log")
            child.wait(60)
            child.pid = other.pid  # what the kernel may do once the child's status was taken
        assert other.poll() is None
        other.communicate(b"\n", timeout=60)
    assert other.returncode == 0
