"""The commands of docs/quickstart.md, run as they stand, with a tiny model in the place of a real one."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from confide_simulations.local_federation import free_ports
from confide_simulations.processes import ProcessGroup

from tests.tiny_models import tiny_llama

PAGE = Path(__file__).resolve().parents[2] / "docs" / "quickstart.md"
BLOCK = re.compile(r"^```sh( background)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def put_tiny_in_place(materials: Path) -> None:
    """A tiny model and short records in the place of the packaged ones, which the page's first command wrote."""
    assert (materials / "base-model" / "model.safetensors").exists()
    shutil.rmtree(materials / "base-model")
    tiny_llama(materials / "base-model")
    for name in ("hospital-a", "bank-b", "law-firm-c"):
        assert len((materials / f"{name}.jsonl").read_text().splitlines()) > 100
        lines = [{"question": f"How thick is wall {i}?", "answer": f"{i} centimetres for {name}."} for i in range(20)]
        (materials / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def wait_for_port(port: int, processes: ProcessGroup) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        processes.check_alive()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError(f"nothing listens on {port}")


def test_every_command_of_the_page_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path
    fleet, control = free_ports(2)
    page = PAGE.read_text("utf-8").replace("9442", str(fleet)).replace("9443", str(control))
    blocks = [(bool(found[1]), found[2]) for found in BLOCK.finditer(page)]
    assert sum(background for background, _ in blocks) == 4
    binaries = str(Path(sys.executable).parent)
    environment = {"PATH": binaries + os.pathsep + os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    monkeypatch.chdir(folder)
    with ProcessGroup() as processes:
        for number, (background, commands) in enumerate(blocks):
            if background:
                log = folder / f"process-{number}.log"
                processes.start(str(number), ["bash", "-c", "exec " + commands.strip()], log, environment)
                wait_for_port(control, processes)
                continue
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", commands],
                capture_output=True,
                text=True,
                check=False,
                timeout=240,
                env={**os.environ, **environment},
            )
            assert done.returncode == 0, f"{commands}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
            processes.check_alive()
            if "recipe files" in commands:
                put_tiny_in_place(folder / "materials")
    assert (folder / "adapter" / "adapter_model.safetensors").exists()
    assert (folder / "merged" / "model.safetensors").exists()
    manifest = json.loads((folder / "adapter" / "manifest.json").read_text())
    assert manifest["sealing"] == "sealed"
