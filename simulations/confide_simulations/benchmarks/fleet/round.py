"""`confide bench round`: what a round costs beside training, through real processes over TLS on this machine.

The nodes are stand-ins (stand_in.py): real agents whose training takes no time. An empty round carries one parameter;
a full one carries `--megabytes` down to every node and a distinct update of that size up from each.
"""

import itertools
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from confide.errors import TransportError
from confide.runs.specification import Specification
from rich.console import Console
from rich.table import Table

from confide_simulations.benchmarks.fleet import stand_in
from confide_simulations.benchmarks.meta import meta, write_result
from confide_simulations.local_federation import LocalFederation
from confide_simulations.processes import ProcessGroup
from confide_simulations.stand_in_run import stand_in_run

FLOWER_EMPTY_ROUND_S = (6.0, 10.0)
"""What Flower 1.41's own deployment takes for an empty round of two nodes, measured apart from this benchmark."""


def make_federation(folder: Path, nodes: int) -> LocalFederation:
    """Set up, with stand-in nodes."""
    data = folder / "data.jsonl"
    data.write_text('{"question": "q", "answer": "a"}\n' * 4)
    federation = LocalFederation(
        folder / "federation",
        nodes={f"organization-{number}": data for number in range(nodes)},
        base=stand_in.write_base(folder / "base"),
        node_program=("-m", "confide_simulations.benchmarks.fleet.stand_in"),
    )
    federation.set_up()
    return federation


def specification(federation: LocalFederation, *, rounds: int, sealing: str, bits: int = 8) -> Specification:
    """A run of rounds in which nothing is trained."""
    nodes = len(federation.nodes)
    return stand_in_run(
        "bench-round",
        federation.model_sha256,
        {"rounds": rounds, "data": "shard", "min_cohort": min(2, nodes)},
        {"kind": sealing, "bits": bits, "colluding": 1 if nodes >= 3 else 0},
    )


def round_seconds(federation: LocalFederation, spec: Specification, parameters: int) -> list[float]:
    """Seconds of each committed round of one run, by the clock of who watches; the first round is left out."""
    federation.allow(spec)
    run_id = federation.submit(spec, bytes(4 * parameters))
    ends: list[float] = []
    dropped: list[str] = []
    for kind, data in federation.watch(run_id):
        if kind == "round_committed":
            ends.append(time.monotonic())
        if kind == "dropped":
            dropped.append(f"{data['node']}: {data['reason']}")
        if kind == "run_failed":
            raise TransportError(f"the benchmark's run failed: {data['reason']} ({'; '.join(dropped[:4])})")
    return [later - earlier for earlier, later in itertools.pairwise(ends)]


def measure(nodes: int, parameters: int, *, rounds: int, sealing: str) -> dict[str, float]:
    """One federation, one run: median and worst round, and the coordinator's peak memory (VmHWM, MiB)."""
    with tempfile.TemporaryDirectory(prefix="confide-bench-") as name, ProcessGroup(forked=False) as processes:
        federation = make_federation(Path(name), nodes)
        federation.start_server(processes)
        federation.wait_for_server(processes, 120)
        for node in federation.nodes:
            federation.start_node(processes, node, {stand_in.PARAMETERS: str(parameters)})
        seconds = round_seconds(federation, specification(federation, rounds=rounds + 1, sealing=sealing), parameters)
        return {
            "median_s": statistics.median(seconds),
            "worst_s": max(seconds),
            "coordinator_peak_mib": peak_rss_mib(processes.children["coordinator"].pid),
            "idle_percent_of_a_core_per_agent": idle_cost(processes, nodes),
        }


def peak_rss_mib(pid: int) -> float:
    """Highest resident set of a process so far, MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return math.nan


def idle_cost(processes: ProcessGroup, nodes: int, window_s: float = 8.0) -> float:
    """CPU time of the coordinator per idle agent, in percent of one core."""
    time.sleep(6.0)  # the agents' polling calms down after the run
    coordinator = psutil.Process(processes.children["coordinator"].pid)
    before = coordinator.cpu_times()
    time.sleep(window_s)
    after = coordinator.cpu_times()
    return 100 * ((after.user - before.user) + (after.system - before.system)) / window_s / nodes


def round_(
    nodes: Annotated[int, typer.Option(help="Nodes of the timed rounds.", min=2, max=32)] = 4,
    megabytes: Annotated[float, typer.Option(help="Model size, float32, each way and node.", min=0.1)] = 64.0,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.", dir_okay=False)] = None,
    empty_rounds: Annotated[int, typer.Option(help="Timed empty rounds.", min=1)] = 15,
    full_rounds: Annotated[int, typer.Option(help="Timed full rounds.", min=1)] = 3,
    memory_nodes: Annotated[str, typer.Option(help="Federations whose coordinator's memory is compared.")] = "2,8",
) -> None:
    """Time an empty and a full round, and see what the coordinator needs."""
    console, parameters = Console(), int(megabytes * 2**20 / 4)
    config = {"nodes": nodes, "megabytes": megabytes, "empty_rounds": empty_rounds, "full_rounds": full_rounds}
    found: dict[str, Any] = {}
    for sealing in ("none", "sealed"):
        console.print(f"measuring: {nodes} nodes, sealing {sealing}: empty rounds, then {megabytes:g} MiB each way")
        found[sealing] = {
            "empty": measure(nodes, 1, rounds=empty_rounds, sealing=sealing),
            "full": measure(nodes, parameters, rounds=full_rounds, sealing=sealing),
        }
    peaks: dict[str, dict[str, float]] = {}
    for sealing in ("none", "sealed"):
        peaks[sealing] = {}
        for count in memory_nodes.split(","):
            console.print(f"measuring: the coordinator's memory with {count} nodes, sealing {sealing}")
            result = measure(int(count), parameters, rounds=2, sealing=sealing)
            peaks[sealing][count] = round(result["coordinator_peak_mib"], 1)
    document = {
        "empty_round_s": found["sealed"]["empty"]["median_s"],
        "round_s": found["sealed"]["full"]["median_s"],
        "coordinator_peak_mib": peaks["sealed"],
        "unsealed": {
            "empty_round_s": found["none"]["empty"]["median_s"],
            "round_s": found["none"]["full"]["median_s"],
            "coordinator_peak_mib": peaks["none"],
        },
        "idle_percent_of_a_core_per_agent": found["sealed"]["empty"]["idle_percent_of_a_core_per_agent"],
        "details": found,
        "meta": meta(seed=0, config=config),
    }
    console.print(_table(document, nodes, megabytes))
    if json is not None:
        write_result(json, document)


def _table(document: dict[str, Any], nodes: int, megabytes: float) -> Table:
    table = Table(title=f"{nodes} nodes, real processes, TLS on loopback")
    for name in ("", "sealed (8 bits)", "sealing none"):
        table.add_column(name, justify="right" if name else "left")
    open_ = document["unsealed"]
    table.add_row("empty round", f"{document['empty_round_s']:.3f} s", f"{open_['empty_round_s']:.3f} s")
    table.add_row(f"round with {megabytes:g} MiB each way", f"{document['round_s']:.2f} s", f"{open_['round_s']:.2f} s")
    for count, peak in document["coordinator_peak_mib"].items():
        other = open_["coordinator_peak_mib"][count]
        table.add_row(f"coordinator's peak memory, {count} nodes", f"{peak:.0f} MiB", f"{other:.0f} MiB")
    idle = f"{document['idle_percent_of_a_core_per_agent']:.2f} %"
    table.add_row("coordinator's CPU per idle agent, of a core", idle, "")
    return table
