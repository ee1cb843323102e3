"""`confide bench scale`: sealed rounds of 10, 100 and 1,000 organizations, phase by phase.

The product's members, collectors and messages in one process, a tiny model, nobody missing. Up to 100 organizations are
one sum; 1,000 stand in ten groups of 100 that the root's roster fixes, and open ten sums. Each size is measured in a
process of its own, so that its peak memory is its own. CPU time, of one thread.
"""

import itertools
import json as json_module
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

PARAMETERS = 1024
GROUP = 100
PHASES = ("advertise", "share", "upload", "confirm", "reveal", "open", "outer_step", "end")


def scale(
    json: Annotated[Path | None, typer.Option(help="Write the full result here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a plot (PNG) here.")] = None,
    nodes: Annotated[str, typer.Option(help="Numbers of organizations, comma-separated.")] = "10,100,1000",
    parameters: Annotated[int, typer.Option(help="Of the model.", min=1)] = PARAMETERS,
    group: Annotated[int, typer.Option(help="Organizations in a group, at most.", min=3, max=100)] = GROUP,
) -> None:
    """CPU seconds and memory of every phase of sealed rounds, and how they grow with the number of organizations."""
    from confide_simulations.benchmarks.meta import meta, write_result

    console = Console()
    sizes = [int(text) for text in nodes.split(",")]
    rows = []
    for count in sizes:
        console.print(f"measuring {count} organizations in {-(-count // group)} group(s)", highlight=False)
        rows.append(_in_own_process(count, parameters, group))
    config = {"nodes": sizes, "parameters": parameters, "group": group}
    document = {"sizes": rows, "growth": growth(rows), "meta": meta(seed=0, config=config)}
    console.print(_table(rows))
    if json is not None:
        write_result(json, document)
    if plot is not None:
        write_plot(rows, plot)


def growth(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By what factor each size exceeds the one before it: CPU of the coordinator, of one node, and peak memory."""
    return [
        {
            "from": smaller["nodes"],
            "to": larger["nodes"],
            "coordinator": round(larger["coordinator_s"] / smaller["coordinator_s"], 2),
            "one_node": round(larger["one_node_s"] / smaller["one_node_s"], 2),
            "peak_memory": round(larger["peak_mib"] / smaller["peak_mib"], 2),
        }
        for smaller, larger in itertools.pairwise(rows)
    ]


def _in_own_process(nodes: int, parameters: int, group: int) -> dict[str, Any]:
    module = "confide_simulations.benchmarks.scale.worker"
    command = [sys.executable, "-m", module, str(nodes), str(parameters), str(group)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    row: dict[str, Any] = json_module.loads(done.stdout)
    return row


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="CPU seconds of an epoch and its first slot: all nodes / coordinator")
    table.add_column("phase")
    for row in rows:
        table.add_column(f"{row['nodes']} in {row['groups']}", justify="right")
    for phase in PHASES:
        table.add_row(phase, *[f"{row['nodes_s'][phase]:.3f} / {row['phases_s'][phase]:.3f}" for row in rows])
    table.add_row("one node, all phases", *[f"{row['one_node_s']:.4f}" for row in rows])
    table.add_row("coordinator, all phases", *[f"{row['coordinator_s']:.3f}" for row in rows])
    table.add_row("coordinator, a later slot", *[f"{row['later_slot']['coordinator_s']:.3f}" for row in rows])
    table.add_row("peak memory, MiB", *[f"{row['peak_mib']:.0f}" for row in rows])
    table.add_row("messages, MiB", *[f"{row['message_mib']:.2f}" for row in rows])
    return table


def write_plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Both axes logarithmic: CPU of each phase over the number of organizations, and memory beside it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (times, memory) = pyplot.subplots(1, 2, figsize=(9.5, 4.0), dpi=110, width_ratios=(3, 2))
    counts = [row["nodes"] for row in rows]
    for phase in PHASES:
        times.plot(counts, [row["phases_s"][phase] for row in rows], "o-", ms=4, lw=1.4, label=f"coordinator: {phase}")
    times.plot(counts, [row["one_node_s"] for row in rows], "s--", ms=5, lw=1.8, color="black", label="one node: all")
    memory.plot(counts, [row["peak_mib"] for row in rows], "o-", ms=5, lw=1.6, label="peak, all in one process")
    memory.plot(counts, [row["message_mib"] for row in rows], "s--", ms=5, lw=1.6, label="messages of the round")
    for axes, label in ((times, "CPU seconds"), (memory, "MiB")):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("organizations")
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7, frameon=False)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
