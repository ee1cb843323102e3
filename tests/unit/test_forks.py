"""Programs that are forked behave as programs that are started: status, output, signals, death, what they share."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from confide.errors import StateError
from confide_simulations.forks import ONE_THREAD, Fork, Forks

from tests.waiting import until

PROGRAMS = {
    "speaks": "import sys; print(__name__, sys.argv[1:]); print('loudly', file=sys.stderr); sys.exit(3)",
    "fails": "raise ValueError('on purpose')",
    "draws": "import numpy, random, secrets\nprint(numpy.random.random(), random.random(), secrets.token_hex(8))",
    "waits": "import time\nprint('ready', flush=True)\ntime.sleep(600)",
    "looks": "import os, sys\nprint(os.environ.get('CONFIDE_SAID'), os.getcwd(), os.getsid(0) == os.getpid())\n"
    "print('numpy' in sys.modules, *sorted(os.listdir('/proc/self/fd')))",
}


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks(modules=["numpy"], environment=ONE_THREAD) as made:
        yield made


@pytest.fixture
def run(forks: Forks, tmp_path: Path) -> Callable[..., tuple[Fork, Path]]:
    for name, program in PROGRAMS.items():
        (tmp_path / f"{name}.py").write_text(program + "\n")

    def start(name: str, *arguments: str, **options: object) -> tuple[Fork, Path]:
        log = tmp_path / f"{name}-{time.monotonic_ns()}.log"
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
        child = forks.start(name, arguments, descriptor, directory=tmp_path, **options)  # type: ignore[arg-type]
        os.close(descriptor)
        return child, log

    return start


def test_a_program_has_its_arguments_output_and_status(run: Callable[..., tuple[Fork, Path]]) -> None:
    child, log = run("speaks", "a", "b c")
    assert child.wait(60) == 3 and child.poll() == 3
    assert log.read_text().splitlines() == ["__main__ ['a', 'b c']", "loudly"]
    child, log = run("fails")
    assert child.wait(60) == 1
    assert log.read_text().splitlines()[-1] == "ValueError: on purpose"


def test_a_program_has_a_session_a_folder_and_an_environment_of_its_own(
    run: Callable[..., tuple[Fork, Path]], tmp_path: Path
) -> None:
    child, log = run("looks", environment={"CONFIDE_SAID": "yes"})
    assert child.wait(60) == 0
    # The descriptor 3 is of the listing itself: the parent's own are closed.
    assert log.read_text().split() == ["yes", str(tmp_path), "True", "True", "0", "1", "2", "3"]


def test_no_two_programs_draw_the_same(run: Callable[..., tuple[Fork, Path]]) -> None:
    children = [run("draws") for _ in range(3)]
    assert [child.wait(60) for child, _ in children] == [0, 0, 0]
    drawn = [log.read_text().split() for _, log in children]
    assert all(len(set(column)) == 3 for column in zip(*drawn, strict=True))


def test_signals_and_time_limits(run: Callable[..., tuple[Fork, Path]]) -> None:
    child, log = run("waits")
    until(lambda: "ready" in log.read_text())
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.1)
    child.send_signal(signal.SIGTERM)
    assert child.wait(60) == -signal.SIGTERM
    child.kill()  # nothing to do any more


def test_a_number_that_is_given_again_has_no_status_yet(
    forks: Forks, run: Callable[..., tuple[Fork, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = dict.fromkeys(range(int(Path("/proc/sys/kernel/pid_max").read_text())), -signal.SIGKILL)
    monkeypatch.setattr(forks, "_statuses", ended)  # as after a night in which all numbers were used
    child, _ = run("waits")
    assert child.poll() is None
    child.terminate()
    assert child.wait(60) == -signal.SIGTERM


def test_the_end_of_the_parent_is_the_end_of_every_fork(tmp_path: Path) -> None:
    (tmp_path / "waits.py").write_text(PROGRAMS["waits"])
    with Forks(modules=[]) as forks, (tmp_path / "log").open("wb") as log:
        child = forks.start("waits", [], log.fileno(), directory=tmp_path)
        assert psutil.pid_exists(child.pid)
    until(lambda: not psutil.pid_exists(child.pid))
    assert child.poll() == -signal.SIGKILL


def test_a_parent_with_threads_is_refused(tmp_path: Path) -> None:
    program = "import threading, time\nthreading.Thread(target=time.sleep, args=[9]).start()\n"
    (tmp_path / "threads.py").write_text(program)
    forks = Forks(modules=["threads"], environment={"PYTHONPATH": str(tmp_path)})
    with forks, pytest.raises(StateError, match="parent of forks ended"):
        forks.start("threads", [], 1)


def test_what_is_not_the_same_is_not_forked() -> None:
    forks = Forks(modules=[], environment={"A": "1", "TORCHINDUCTOR_CACHE_DIR": "/kept"})
    command = [sys.executable, "-m", "confide"]
    same = {**os.environ, "A": "1", "TORCHINDUCTOR_CACHE_DIR": "/kept"}
    assert forks.serves(command, {**same, "CONFIDE_X": "2", "PYTEST_CURRENT_TEST": "another"})
    for different in ({"A": "2"}, {"ONEDNN_MAX_CPU_ISA": "SSE41"}, {"TORCHINDUCTOR_CACHE_DIR": "/other"}):
        assert not forks.serves(command, {**same, **different})
    assert not forks.serves(["/usr/bin/python3", "-m", "confide"], same)
    assert not forks.serves([sys.executable, "-c", "pass"], same)
