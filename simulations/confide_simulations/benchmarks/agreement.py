"""`confide bench agreement`: the demo's run, unsealed and sealed, by the same nodes on the same splits.

What sealing costs in quality is its rounding; this shows it where it counts: in the final model's NLL on the held-out
questions, and in the first round's mean update, relative to the clipping norm.
"""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from confide.errors import TrainingError
from confide.runs.specification import Specification
from rich.console import Console
from rich.table import Table

from confide_simulations.benchmarks.meta import meta, write_result
from confide_simulations.demo.scoring import run_jobs
from confide_simulations.demo.shards import read_records, split_by_category, write_jsonl
from confide_simulations.demo.worker import Job
from confide_simulations.local_federation import LocalFederation
from confide_simulations.processes import ProcessGroup

NODES = 4


def _variants(federation: LocalFederation, base: Path, rounds: int) -> dict[str, Specification]:
    from confide.models.architecture import load_config

    from confide_simulations.demo.job import specification

    config = load_config(base)
    plain = specification(
        sha256=federation.model_sha256,
        name=federation.model_name,
        dtype="bfloat16" if "bfloat16" in str(config.dtype) else "float32",
        layers=int(config.num_hidden_layers),
        rounds=rounds,
        nodes=NODES,
        sealing="none",
    ).model_copy(update={"reproducible": True})
    variants = {"none": plain}
    for bits in (16, 8):
        sealing = plain.sealing.model_copy(update={"kind": "sealed", "bits": bits})
        variants[f"sealed, {bits} bits"] = plain.model_copy(update={"sealing": sealing})
    return variants


def _models(federation: LocalFederation, spec: Specification) -> list[bytes]:
    """Raw trainable tensors after the first and after the last round."""
    federation.allow(spec)
    run_id = federation.submit(spec)
    for kind, data in federation.watch(run_id):
        if kind == "run_failed":
            raise TrainingError(f"the run did not finish: {data['reason']}")
    return [federation.checkpoint(run_id, number)[1] for number in (1, spec.federation.rounds)]


def agreement(
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.", dir_okay=False)] = None,
    rounds: Annotated[int, typer.Option(help="Rounds.", min=1)] = 3,
    model: Annotated[Path | None, typer.Option(help="A model folder instead of SmolLM2.", file_okay=False)] = None,
    data: Annotated[Path | None, typer.Option(help="Questions instead of the construction FAQ.")] = None,
    held_out: Annotated[int, typer.Option(help="Questions that nobody trains on.", min=1)] = 40,
) -> None:
    """Compare sealed with unsealed training: final NLL, and the first round's mean update."""
    from confide_simulations import assets

    console = Console()
    base = model or assets.smollm2(console.print)
    records = read_records(data) if data else assets.construction_faq(console.print)
    split = split_by_category(records, nodes=NODES, held_out=held_out)
    with tempfile.TemporaryDirectory(prefix="confide-bench-") as name:
        folder = Path(name)
        files = {node: folder / f"{node}.jsonl" for node in split.shards}
        for node, path in files.items():
            write_jsonl(path, split.shards[node])
        write_jsonl(folder / "held-out.jsonl", split.held_out)
        federation = LocalFederation(folder / "federation", nodes=files, base=base)
        federation.set_up()
        variants = _variants(federation, base, rounds)
        models: dict[str, list[bytes]] = {}
        with ProcessGroup() as processes:
            federation.start(processes)
            for label, spec in variants.items():
                console.print(f"running: {label}")
                models[label] = _models(federation, spec)
        nll = _score(folder, base, variants["none"], models, console)
    document = {
        "nll": nll,
        "nll_difference": {label: nll[label] - nll["none"] for label in nll if label != "none"},
        "first_round_rms_over_clip": _first_round(models, variants["none"]),
        "meta": meta(seed=variants["none"].seed, config={"rounds": rounds, "nodes": NODES, "model": base.name}),
    }
    console.print(_table(document))
    if json is not None:
        write_result(json, document)


def _score(
    folder: Path, base: Path, spec: Specification, models: dict[str, list[bytes]], console: Console
) -> dict[str, float]:
    path = folder / "specification.json"
    path.write_bytes(spec.canonical_bytes())
    jobs = []
    for index, (label, raw) in enumerate(models.items()):
        file = folder / f"final-{index}.f32"
        file.write_bytes(raw[-1])
        jobs.append(Job("score", label, str(file)))
    found = run_jobs(
        jobs,
        specification=path,
        base=base,
        held_out=folder / "held-out.jsonl",
        rounds=1,
        folder=folder,
        progress=lambda count, what: console.print(f"scored: {what}"),
    )
    return {label: float(found["score", label]) for label in models}


def _first_round(models: dict[str, list[bytes]], spec: Specification) -> dict[str, float]:
    """L2 distance of the first round's mean update from the unsealed one, over the clipping norm."""
    clip = spec.federation.clip_norm or 1.0
    plain = np.frombuffer(models["none"][0], "<f4")
    return {
        label: float(np.linalg.norm(np.frombuffer(raw[0], "<f4") - plain) / clip)
        for label, raw in models.items()
        if label != "none"
    }


def _table(document: dict[str, Any]) -> Table:
    table = Table(title="the demo's run, same nodes, same splits")
    for column in ("sealing", "final NLL", "difference", "first mean update, distance / clip"):
        table.add_column(column, justify="left" if column == "sealing" else "right")
    for label, value in document["nll"].items():
        difference = document["nll_difference"].get(label)
        distance = document["first_round_rms_over_clip"].get(label)
        cells = ["-" if figure is None else f"{figure:.2g}" for figure in (difference, distance)]
        table.add_row(label, f"{value:.4f}", *cells)
    return table
