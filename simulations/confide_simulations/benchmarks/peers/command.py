"""`confide bench peers`: the demo's very task through other systems, one after the other on this machine.

Every arm is a process whose whole tree is measured; every final model is scored by the same program afterwards. All
compute in float32, from the same first model, on the same batches in the same order, with the same records kept apart.
What differs is what lies between the organizations; `apart` shows how little of it reaches the model.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer
from confide.text import line, table
from rich.console import Console

from confide_simulations.benchmarks.meta import meta, write_result
from confide_simulations.benchmarks.peers.arm import ARMS
from confide_simulations.benchmarks.peers.task import Task
from confide_simulations.processes import PeakMemory, tree_pss_mib

SAMPLE_S = 2.0
_FLOAT32 = {"CONFIDE_PRECISION": "float32", "OMP_NUM_THREADS": "1"}


def peers(
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file.", dir_okay=False)
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rounds.", min=1, max=100)] = 3,
    local_steps: Annotated[int, typer.Option(help="Optimizer steps of a node in a round.", min=1)] = 3,
    nodes: Annotated[int, typer.Option(help="Organizations.", min=3, max=16)] = 4,
    held_out: Annotated[int, typer.Option(help="Questions that nobody trains on.", min=1)] = 40,
    arm: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(ARMS)}; may be repeated. Default: all.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Your own questions, as for `confide demo`.", exists=True)] = None,
    model: Annotated[
        Path | None, typer.Option(help="A model folder instead of SmolLM2.", exists=True, file_okay=False)
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the arms' folders and logs.")] = False,
) -> None:
    """Train the demo's task through plain Flower, Flower's SecAgg+, NVFLARE and Confide; time, memory, wire, loss."""
    console = Console()
    chosen = list(arm or ARMS)
    if unknown := sorted(set(chosen) - set(ARMS)):
        raise typer.BadParameter(f"{', '.join(unknown)}: arms are {', '.join(ARMS)}")
    folder = Path(tempfile.mkdtemp(prefix="confide-peers-"))
    try:
        task = prepare(folder, data, model, nodes, rounds, local_steps, held_out)
        found = {name: measured(name, task, console) for name in chosen}
        base_nll = score(task, found, console)
        compare(task, found)
    finally:
        if keep:
            console.print(f"folders and logs are kept in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    config = {
        "rounds": rounds,
        "local_steps": local_steps,
        "nodes": nodes,
        "held_out": held_out,
        "arithmetic": "float32",
    }
    show(found, base_nll, console)
    if json_file is not None:
        write_result(json_file, {"meta": meta(seed=7, config=config), "base_nll": base_nll, "arms": found})
    if any("failed" in figures for figures in found.values()):
        raise typer.Exit(1)


def prepare(
    folder: Path, data: Path | None, model: Path | None, nodes: int, rounds: int, local_steps: int, held_out: int
) -> Task:
    """Shards, held-out questions, specification and first model, into the task's folder."""
    from confide.methods.first_model import first_model
    from confide.models.architecture import load_config
    from confide.models.store import folder_digest

    from confide_simulations import assets
    from confide_simulations.demo import job, shards

    base = model if model is not None else assets.smollm2(typer.echo)
    records = shards.read_records(data) if data is not None else assets.construction_faq(typer.echo)
    split = shards.split_by_category(records, nodes=nodes, held_out=held_out)
    task = Task(folder=str(folder), base=str(base), nodes=tuple(split.shards), rounds=rounds, local_steps=local_steps)
    task.write()
    for name, shard in split.shards.items():
        shards.write_jsonl(task.shard(name), shard)
    shards.write_jsonl(folder / "held-out.jsonl", split.held_out)
    for path, sealing in ((task.sealed, "sealed"), (task.specification, "none")):
        specification = job.specification(
            sha256=folder_digest(base),
            name="base",
            dtype="bfloat16" if "bfloat16" in str(load_config(base).dtype) else "float32",
            layers=int(load_config(base).num_hidden_layers),
            rounds=rounds,
            nodes=nodes,
            sealing=sealing,
            local_steps=local_steps,
        )
        # Batches that follow from the seed, as an administrator writes it who wants to repeat a run.
        specification = specification.model_copy(update={"reproducible": True})
        path.write_bytes(specification.canonical_bytes())
    initial, _ = first_model(specification, base)
    task.model("initial").write_bytes(initial)
    for name in task.nodes:
        task.register(name, task.state(name))
    return task


def measured(name: str, task: Task, console: Console) -> dict[str, Any]:
    """Run one arm in a process of its own; what it says, and what it cost. {"failed": why} when it failed."""
    console.print(f"[dim]{name}: {task.rounds} rounds of {len(task.nodes)} organizations[/dim]", highlight=False)
    folder = Path(task.folder)
    log, result = folder / f"{name}.log", folder / f"{name}.json"
    command = [sys.executable, "-m", "confide_simulations.benchmarks.peers.arm", name, task.folder, str(result)]
    with log.open("wb") as output:
        child = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **_FLOAT32})
        with PeakMemory(SAMPLE_S, lambda: _pss(child.pid)) as memory:
            # Of the child and of all that it waited for, which is all that it started (arm.end_all).
            _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode or not result.exists():
        return {"failed": line(log.read_text("utf-8", "replace").strip()[-400:]) or f"status {child.returncode}"}
    figures: dict[str, Any] = json.loads(result.read_text("utf-8"))
    figures["cpu_s"] = round(usage.ru_utime + usage.ru_stime, 1)
    figures["peak_memory_mib"] = round(memory.peak_mib)
    return {key: round(value, 1) if isinstance(value, float) else value for key, value in figures.items()}


def _pss(pid: int) -> float:
    with suppress(psutil.NoSuchProcess):
        return tree_pss_mib(psutil.Process(pid))
    return 0.0


def score(task: Task, found: dict[str, dict[str, Any]], console: Console) -> float:
    """The held-out loss of every arm's model, into its figures; returns that of the first model."""
    from confide_simulations.demo.scoring import run_jobs
    from confide_simulations.demo.worker import Job

    arms = ["initial", *(name for name in found if task.model(name).exists())]
    console.print("[dim]scoring all models on the held-out questions[/dim]", highlight=False)
    scores = run_jobs(
        [Job("score", name, str(task.model(name))) for name in arms],
        specification=task.specification,
        base=Path(task.base),
        held_out=Path(task.folder) / "held-out.jsonl",
        rounds=task.rounds,
        folder=Path(task.folder),
        progress=lambda count, what: None,
        environment=_FLOAT32,
    )
    for name in arms[1:]:
        found[name]["nll"] = round(float(scores["score", name]), 4)
    return round(float(scores["score", "initial"]), 4)


def compare(task: Task, found: dict[str, dict[str, Any]]) -> None:
    """Into every arm's figures, how far its final model lies from the arms' median one, over how far that moved.

    L2 norms; the median is of each coordinate. Where arms train on the same batches this is what rounding leaves; of an
    arm that draws its own it is near 1.
    """
    models = {name: task.read_model(name) for name in found if task.model(name).exists()}
    if len(models) < 2:
        return
    middle = np.median(np.stack(list(models.values())), axis=0)
    moved = np.linalg.norm(middle - task.initial())
    for name, model in models.items():
        found[name]["apart"] = float(f"{np.linalg.norm(model - middle) / moved:.3g}")


def show(found: dict[str, dict[str, Any]], base_nll: float, console: Console) -> None:
    """One line an arm."""
    columns = ("", "wall s", "CPU s", "peak MiB", "wire MB", "NLL", "apart", "typed")
    shown = table(*columns, title=f"base NLL {base_nll:.3f}")
    for name, figures in found.items():
        if "failed" in figures:
            shown.add_row(name, f"failed: {figures['failed'][-200:]}", "", "", "", "", "")
            continue
        shown.add_row(
            name,
            f"{figures['wall_s']:.0f}",
            f"{figures['cpu_s']:.0f}",
            str(figures["peak_memory_mib"]),
            f"{figures['wire_bytes'] / 1e6:.1f}",
            f"{figures.get('nll', float('nan')):.3f}",
            f"{figures['apart']:.0e}" if "apart" in figures else "",
            str(len(figures["commands"])),
        )
    console.print(shown)
