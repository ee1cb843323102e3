"""Confide's own arm: what `confide demo` runs, without its scores. Nothing is forked from a warm parent here."""

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from confide.errors import TrainingError
from confide.runs.specification import parse_canonical

from confide_simulations.benchmarks.peers.arm import Outcome, loopback_bytes
from confide_simulations.benchmarks.peers.task import DATA, Task
from confide_simulations.local_federation import LocalFederation
from confide_simulations.processes import ProcessGroup


def commands(nodes: int) -> list[str]:
    """As the quickstart types them, for so many organizations."""
    return [
        "confide consortium start-kit consortium --name demo --organization NAME ...",
        "confide server start consortium/coordinator",
        *["confide node join NAME.kit.json --data shard=FILE --model FOLDER --start"] * nodes,
        "confide consortium admit --waiting --folder consortium/root --admin consortium/administrator",
        "confide run new run.toml --model-folder FOLDER --data shard",
        "confide run submit run.toml --admin consortium/administrator --model-folder FOLDER --watch",
        *["confide node approve FOLDER"] * nodes,
        "confide run export adapter --admin consortium/administrator --model-folder FOLDER",
    ]


def run(task: Task) -> Outcome:
    """Sealed. Raises TrainingError when the run does not finish."""
    began = time.monotonic()
    # In a process that ends, as the commands are when people type them: what they load is not the federation's memory.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as typed:
        federation = typed.submit(_set_up, task).result()
    specification = parse_canonical(task.sealed.read_bytes())
    started, before = time.monotonic(), loopback_bytes()
    with ProcessGroup(forked=False) as processes:
        federation.start(processes)
        run_id = federation.submit(specification, task.initial().tobytes())
        for kind, data in federation.watch(run_id):
            processes.check_alive()
            if kind in ("run_failed", "run_stopped"):
                raise TrainingError(f"the sealed run did not finish: {data.get('reason', kind)}")
        _, raw = federation.checkpoint(run_id)
        wall_s, wire = time.monotonic() - started, loopback_bytes() - before
    task.keep("confide", np.frombuffer(raw, "<f4"))
    return Outcome(
        set_up_s=started - began,
        wall_s=wall_s,
        wire_bytes=wire,
        commands=commands(len(task.nodes)),
        coordinator_sees="one sum a round over all organizations; no single update",
        transport="TLS with the consortium's authority, every node's signature in every message",
    )


def _set_up(task: Task) -> LocalFederation:
    federation = LocalFederation(
        Path(task.folder) / "confide",
        nodes={node: task.shard(node) for node in task.nodes},
        base=Path(task.base),
        data=DATA,
    )
    federation.set_up()
    for node in task.nodes:
        task.register(node, federation.node_folder(node))
    federation.allow(parse_canonical(task.sealed.read_bytes()))
    return federation
