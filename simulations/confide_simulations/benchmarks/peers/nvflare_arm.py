"""NVFLARE in an environment of its own: its requirements are not ours. A server and clients by its POC tools, over TLS.

The environment has NVFLARE and what it asks for; torch and the rest of the local step come from the environment that
the benchmark runs in, behind NVFLARE's own packages on the path.
"""

import os
import subprocess
import sys
import time
import venv
from pathlib import Path

from confide.errors import TransportError

from confide_simulations.benchmarks.peers.arm import Outcome, loopback_bytes, package_folders
from confide_simulations.benchmarks.peers.task import FOLDER, Task

REQUIREMENT = "nvflare==2.9.0"
ENVIRONMENT = Path("build") / "peers" / "nvflare"
TIMEOUT_S = 3600.0
JOB = Path(__file__).with_name("nvflare_job.py")
"""Run by the other environment's Python; NVFLARE cannot be imported here."""


def python() -> Path:
    """The environment's Python; made, and filled from the package index, where it is missing."""
    found = ENVIRONMENT.resolve() / "bin" / "python"
    if not found.exists():
        venv.create(ENVIRONMENT, with_pip=True)
    done = subprocess.run(
        [found, "-m", "pip", "install", "-q", REQUIREMENT], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise TransportError(f"{REQUIREMENT} could not be installed into {ENVIRONMENT}: {done.stderr.strip()[-500:]}")
    site = next((ENVIRONMENT / "lib").glob("python3.*/site-packages"))
    behind = [entry for entry in sys.path if entry and Path(entry).is_dir() and "lib-dynload" not in entry]
    own = [entry for entry in behind if Path(entry).name != f"python3.{sys.version_info.minor}"]
    (site / "zz_behind.pth").write_text("".join(f"{entry}\n" for entry in own), "utf-8")
    return found


def run(task: Task) -> Outcome:
    """FedAvg. Raises TransportError with the end of its log when it fails."""
    began = time.monotonic()
    program, folder = python(), Path(task.folder) / "nvflare"
    folder.mkdir()
    environment = {
        **os.environ,
        FOLDER: task.folder,
        "HOME": str(folder),
        "PYTHONPATH": package_folders(),
        "NVFLARE_POC_WORKSPACE": str(folder / "poc"),
        "PATH": os.pathsep.join([str(program.parent), os.environ.get("PATH", "")]),
    }
    started, before = time.monotonic(), loopback_bytes()
    log = folder / "job.log"
    with log.open("wb") as output:
        done = subprocess.run(
            [program, JOB, task.folder],
            stdout=output,
            stderr=output,
            env=environment,
            timeout=TIMEOUT_S,
            check=False,
        )
    wall_s, wire = time.monotonic() - started, loopback_bytes() - before
    if done.returncode or not task.model("nvflare").exists():
        raise TransportError(f"NVFLARE's job ended with {done.returncode}: {log.read_text('utf-8', 'replace')[-1500:]}")
    return Outcome(
        set_up_s=started - began,
        wall_s=wall_s,
        wire_bytes=wire,
        commands=[
            f"nvflare poc prepare -n {len(task.nodes)}",
            "nvflare poc start",
            "python job.py",
            "nvflare poc stop",
        ],
        coordinator_sees="every organization's model after every round, by its site",
        transport="mutual TLS with certificates of its provisioning",
        notes=("provisioning and the stop of its POC are part of the wall time",),
    )
