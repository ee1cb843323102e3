"""Plain Flower: a SuperLink and a SuperNode for every organization, as its documentation starts them; no TLS."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from confide.errors import TransportError

from confide_simulations.benchmarks.peers.arm import Outcome, loopback_bytes, package_folders, wait_until
from confide_simulations.benchmarks.peers.task import FOLDER, Task
from confide_simulations.local_federation import free_ports
from confide_simulations.processes import ProcessGroup

_PROJECT = """[project]
name = "peers"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[tool.flwr.app]
publisher = "confide"

[tool.flwr.app.components]
serverapp = "peers_app:server"
clientapp = "peers_app:client"

[tool.flwr.app.config]
"""
TIMEOUT_S = 3600.0


def run_plain(task: Task) -> Outcome:
    """FedAvg: the server gets every organization's model."""
    return _run(
        task,
        "flower",
        "confide_simulations.benchmarks.peers.flower_app",
        sees="every organization's model after every round, by its node",
    )


def run_secagg(task: Task) -> Outcome:
    """FedAvg under the SecAgg+ mod."""
    return _run(
        task,
        "flower_secagg",
        "confide_simulations.benchmarks.peers.flower_secagg",
        sees="one sum a round as long as it keeps to the protocol: keys and lists are unsigned, so one that lies "
        "may ask for both shares of a node",
    )


def _run(task: Task, arm: str, module: str, *, sees: str) -> Outcome:
    began = time.monotonic()
    folder = Path(task.folder) / arm
    port, *node_ports = free_ports(1 + len(task.nodes))
    _write_app(folder, module, port)
    environment = {FOLDER: task.folder, "FLWR_HOME": str(folder / "home"), "PATH": _path()}
    environment["PYTHONPATH"] = package_folders()
    commands = [
        f"flower-superlink --insecure --port {port}",
        *[
            f"flower-supernode --insecure --superlink 127.0.0.1:{port} --port {own} --node-config node='{node}'"
            for node, own in zip(task.nodes, node_ports, strict=True)
        ],
        "flwr run . peers",
    ]
    started, before = time.monotonic(), loopback_bytes()
    with ProcessGroup(forked=False) as processes:
        link = ["flower-superlink", "--insecure", "--port", str(port), "--disable-runtime-dependency-installation"]
        processes.start("superlink", link, folder / "superlink.log", environment)
        wait_until(lambda: _listens(port), 120, "the SuperLink's start")
        for node, own in zip(task.nodes, node_ports, strict=True):
            command = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}", "--port", str(own)]
            command += ["--node-config", f'node="{node}"']
            processes.start(node, command, folder / f"{node}.log", environment)
        submitted = processes.start(
            "flwr", ["flwr", "run", str(folder / "app"), "peers"], folder / "flwr.log", environment
        )

        def done() -> bool:
            if submitted.poll() == 0:
                processes.children.pop("flwr", None)
            processes.check_alive()
            if task.model(arm).exists():
                return True
            if "Finished task" in (folder / "superlink.log").read_text("utf-8", "replace"):
                raise TransportError(f"Flower's run ended without a model: {_log_of_run(folder, environment)}")
            return False

        wait_until(done, TIMEOUT_S, f"Flower's {task.rounds} rounds")
        wall_s, wire = time.monotonic() - started, loopback_bytes() - before
    return Outcome(
        set_up_s=started - began,
        wall_s=wall_s,
        wire_bytes=wire,
        commands=commands,
        coordinator_sees=sees,
        transport="no TLS, no authentication (--insecure), as in Flower's first steps",
        notes=("every message starts a process that loads the base anew; SuperNodes poll every 3 s",),
    )


def _log_of_run(folder: Path, environment: dict[str, str]) -> str:
    """The end of what Flower's server app wrote."""
    started = re.search(r"run (\d+)", (folder / "flwr.log").read_text("utf-8", "replace"))
    command = ["flwr", "log", started[1] if started else "", "peers", "--show"]
    shown = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, check=False, timeout=60
    )
    return shown.stdout[-1500:]


def _write_app(folder: Path, module: str, port: int) -> None:
    package = folder / "app" / "peers_app"
    package.mkdir(parents=True)
    (folder / "app" / "pyproject.toml").write_text(_PROJECT, "utf-8")
    # Flower reads the text of this file for assignments before it imports anything.
    text = f"import {module} as parts\n\nclient = parts.client\nserver = parts.server\n"
    (package / "__init__.py").write_text(text, "utf-8")
    home = folder / "home"
    home.mkdir()
    connection = f'[superlink]\ndefault = "peers"\n\n[superlink.peers]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    (home / "config.toml").write_text(connection, "utf-8")


def _path() -> str:
    """The programs of this very environment first; they start each other by name."""
    own = [str(Path(sys.executable).parent)]
    for entry in sys.path:
        programs = Path(entry).parents[2] / "bin" if entry.endswith("site-packages") else None
        if programs is not None and (programs / "flwr").exists():
            own.append(str(programs))
    return os.pathsep.join([*own, os.environ.get("PATH", "")])


def _listens(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0
