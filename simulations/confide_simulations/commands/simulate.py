"""`confide simulate`: a federation of virtual nodes from one specification and one data file."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

SpecificationFile = Annotated[Path, typer.Argument(help="run specification (TOML)", exists=True, dir_okay=False)]
ModelFolder = Annotated[
    Path | None, typer.Option(help="the base model; none for a tokenizer", exists=True, file_okay=False)
]
Data = Annotated[Path, typer.Option(help="jsonl, csv, parquet or txt; dealt to the nodes", exists=True, dir_okay=False)]
Nodes = Annotated[int, typer.Option(help="virtual nodes", min=1, max=10_000)]
Partition = Annotated[str, typer.Option(help="iid, by-key or dirichlet:ALPHA")]
Key = Annotated[str | None, typer.Option(help="the field by which by-key and dirichlet deal")]
HeldOut = Annotated[float, typer.Option(help="share of the records that no node gets, for scoring")]
Evaluation = Annotated[float, typer.Option(help="share of a node's records on which it evaluates received models")]
Groups = Annotated[int, typer.Option(help="groups of the roster, each with a sum of its own", min=1)]
RayAddress = Annotated[str, typer.Option(help="a Ray cluster; empty starts Ray on this machine")]
Cpus = Annotated[float, typer.Option(help="CPUs of one worker", min=0.1)]
Gpus = Annotated[float, typer.Option(help="GPUs of one worker; 0.25 puts four on a GPU", min=0)]
Workers = Annotated[int | None, typer.Option(help="most worker processes; default as many as fit", min=1)]


def simulate(
    specification: SpecificationFile,
    data: Data,
    nodes: Nodes,
    model_folder: ModelFolder = None,
    partition: Partition = "iid",
    key: Key = None,
    seed: Annotated[int | None, typer.Option(help="in place of the specification's", min=0)] = None,
    output: Annotated[Path, typer.Option(help="results; the same again goes on with it", file_okay=False)] = Path(
        "simulation-output"
    ),
    held_out: HeldOut = 0.1,
    node_evaluation: Evaluation = 0.1,
    groups: Groups = 1,
    ray_address: RayAddress = "",
    cpus_per_node: Cpus = 1.0,
    gpus_per_node: Gpus = 0.0,
    workers: Workers = None,
) -> None:
    """Simulate a federation with the product's own client, protocol and coordinator, on Flower's Ray engine."""
    from confide_simulations.simulate import results, study
    from confide_simulations.simulate.engine import Engine, Resources
    from confide_simulations.simulate.progress import RunProgress

    console = Console()
    asked = study.Study(
        specification=specification,
        base=model_folder,
        data=data,
        nodes=nodes,
        output=output,
        partition=partition,
        key=key,
        seed=seed,
        held_out=held_out,
        evaluation=node_evaluation,
        groups=groups,
    )
    prepared = study.prepare(asked)
    console.print(prepared.plan, highlight=False, markup=False)
    sizes = sorted(prepared.counts.values())
    console.print(f"shards of {sizes[0]} to {sizes[-1]} records; starting Ray", highlight=False)
    resources = Resources(address=ray_address, cpus=cpus_per_node, gpus=gpus_per_node, workers=workers)
    rounds = prepared.job.specification.federation.rounds
    with Engine(resources, nodes=nodes) as engine:
        console.print(f"{nodes} virtual nodes on {engine.workers} workers", highlight=False)
        with RunProgress(console, rounds=rounds, nodes=nodes) as progress:
            report = study.run(asked, prepared, engine, progress.event, console.print)
    console.print(results.table(report))
    console.print(f"results: {output}/results.json, rounds.parquet, loss.png, model/", highlight=False)
