"""The same job at the peers: what is measured is measured, and who fails is named. The arms themselves take minutes."""

import io
import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from confide_simulations.benchmarks.peers import arm, command
from confide_simulations.benchmarks.peers.confide_arm import commands
from confide_simulations.benchmarks.peers.task import Task
from rich.console import Console

from tests.tiny_models import tiny_llama


def made(folder: Path, base: str = "/nowhere") -> Task:
    task = Task(folder=str(folder), base=base, nodes=("hospital-a", "bank-b", "law-firm-c"), rounds=1, local_steps=1)
    task.write()
    return task


def test_a_task_is_what_was_written(tmp_path: Path) -> None:
    task = made(tmp_path)
    assert Task.read(tmp_path) == task
    task.keep("initial", np.arange(4, dtype=np.float64))
    assert task.initial().tolist() == [0.0, 1.0, 2.0, 3.0] and task.initial().dtype == np.float32


def test_bytes_over_loopback_are_counted() -> None:
    before = arm.loopback_bytes()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        other, _ = server.accept()
        with other:
            client.sendall(bytes(200_000))
            left = 200_000
            while left:
                left -= len(other.recv(65536))
    assert arm.loopback_bytes() - before >= 200_000


def test_everything_an_arm_started_ends_with_it() -> None:
    code = (
        "import subprocess, sys, psutil, ctypes; from confide_simulations.benchmarks.peers import arm\n"
        "ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)\n"
        'started = \'import subprocess; subprocess.Popen(["sleep", "600"], start_new_session=True)\'\n'
        "subprocess.run([sys.executable, '-c', started], check=True)\n"
        "assert psutil.Process().children(), 'the orphan is ours'\n"
        "arm.end_all()\n"
        "assert not psutil.Process().children(recursive=True)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_an_arm_that_fails_is_named_and_the_table_says_it(tmp_path: Path) -> None:
    task = made(tmp_path)
    figures = command.measured("confide", task, Console(quiet=True))
    assert set(figures) == {"failed"} and "/nowhere" in figures["failed"]
    console = Console(width=100, record=True, file=io.StringIO())
    command.show({"confide": figures}, 4.0, console)
    assert "failed:" in console.export_text()


def test_how_far_models_lie_apart_is_relative_to_how_far_they_moved(tmp_path: Path) -> None:
    task = made(tmp_path)
    models = {"initial": [1.0, 0.0], "confide": [4.0, 4.5], "flower": [4.0, 4.0], "nvflare": [4.0, 4.0]}
    for name, model in models.items():
        task.keep(name, np.array(model))
    found: dict[str, dict[str, object]] = {"confide": {}, "flower": {}, "nvflare": {}, "flower_secagg": {"failed": ""}}
    command.compare(task, found)  # the median is flower's, 5 from the first
    assert {name: figures.get("apart") for name, figures in found.items()} == {
        "confide": 0.1, "flower": 0.0, "nvflare": 0.0, "flower_secagg": None,
    }  # fmt: skip
    alone: dict[str, dict[str, object]] = {"flower": {}}
    command.compare(task, alone)
    assert alone == {"flower": {}}


def test_commands_are_those_of_the_quickstart() -> None:
    assert len(commands(3)) == 12


@pytest.mark.full
def test_the_same_task_gives_the_same_loss_through_flower_and_through_confide(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    data, figures = tmp_path / "faq.jsonl", tmp_path / "figures.json"
    records = [
        {"question": f"How thick is wall {i}?", "answer": f"It is {i} cm.", "category": str(i % 6)} for i in range(36)
    ]
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    sizes = ["--rounds", "1", "--local-steps", "1", "--held-out", "4", "--nodes", "3"]
    files = ["--json", str(figures), "--data", str(data), "--model", str(tiny_llama(tmp_path / "base"))]
    program = [sys.executable, "-m", "confide", "bench", "peers", "--arm", "flower", "--arm", "confide"]
    done = subprocess.run([*program, *sizes, *files], capture_output=True, text=True, check=False, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(figures.read_text())
    assert set(found) == {"meta", "base_nll", "arms"} and set(found["arms"]) == {"flower", "confide"}
    for each in found["arms"].values():
        assert min(each["wall_s"], each["cpu_s"], each["peak_memory_mib"], each["wire_bytes"]) > 0
        assert each["nll"] < found["base_nll"] and each["coordinator_sees"] and each["commands"]
    flower, confide = (found["arms"][name]["nll"] for name in ("flower", "confide"))
    assert abs(flower - confide) < 1e-3
    assert max(each["apart"] for each in found["arms"].values()) < 0.1
