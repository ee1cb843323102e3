"""`confide simulate --ray-address` on a Ray cluster of two machines, both of which are this one."""

import json
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from confide.models.store import folder_digest
from confide_simulations.processes import ProcessGroup

from tests.ray_marks import RAY
from tests.tiny_models import tiny_llama
from tests.training_specs import specification

pytestmark = [*RAY, pytest.mark.full]

RAY_COMMAND = str(Path(sys.executable).with_name("ray"))
RECORDS = [{"question": f"How thick is wall {i}?", "answer": f"{i + 3} centimetres."} for i in range(24)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_cluster(processes: ProcessGroup, folder: Path) -> str:
    """Two raylets with one CPU each, so that two workers need both; returns the cluster's address.

    folder: short, as Ray's socket names must fit into 107 bytes.
    """
    address = f"127.0.0.1:{free_port()}"
    common = ["--num-cpus=1", "--num-gpus=0", "--block", "--disable-usage-stats"]
    head = [f"--port={address.rpartition(':')[2]}", "--head", "--node-ip-address=127.0.0.1", f"--temp-dir={folder}/ray"]
    processes.start("head", [RAY_COMMAND, "start", *head, "--include-dashboard=false", *common], folder / "head.log")
    _await_nodes(processes, address, 1)
    processes.start("second", [RAY_COMMAND, "start", f"--address={address}", *common], folder / "second.log")
    _await_nodes(processes, address, 2)
    return address


def _await_nodes(processes: ProcessGroup, address: str, nodes: int) -> None:
    end = time.monotonic() + 120
    while True:
        processes.check_alive()
        asked = [RAY_COMMAND, "status", "--address", address]
        status = subprocess.run(asked, check=False, capture_output=True, text=True)
        if status.stdout.count(" 1 node_") >= nodes:
            return
        assert time.monotonic() < end, status.stdout + status.stderr
        time.sleep(0.5)


def simulate(folder: Path, base: Path, data: Path, *options: str) -> tuple[str, bytes]:
    """What the command prints, and the adapter that it leaves."""
    spec = specification(model={"sha256": folder_digest(base)}, federation={"rounds": 2, "clip_norm": 4.0})
    (folder / "spec.json").write_bytes(spec.canonical_bytes())
    output = folder / f"out{len(options)}"
    done = subprocess.run(
        [
            sys.executable, "-m", "confide", "simulate", str(folder / "spec.json"), "--model-folder", str(base),
            "--data", str(data), "--nodes", "3", "--workers", "2", "--output", str(output), *options,
        ],
        check=False, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, (output / "model" / "adapter_model.safetensors").read_bytes()


def test_a_cluster_gives_the_model_that_one_machine_gives(tmp_path: Path) -> None:
    base, data = tiny_llama(tmp_path), tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    _, alone = simulate(tmp_path, base, data)
    # Where no later Ray looks for a cluster to join.
    with tempfile.TemporaryDirectory() as folder, ProcessGroup(grace_s=20) as processes:
        address = start_cluster(processes, Path(folder))
        said, together = simulate(tmp_path, base, data, "--ray-address", address)
        processes.check_alive()
    assert "3 virtual nodes on 2 workers" in said
    assert together == alone
