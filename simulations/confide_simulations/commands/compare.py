"""`confide compare`: several specifications side by side, over several seeds."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from confide_simulations.commands.simulate import (
    Cpus,
    Data,
    Evaluation,
    Gpus,
    Groups,
    HeldOut,
    Key,
    ModelFolder,
    Nodes,
    Partition,
    RayAddress,
    Workers,
)


def compare(
    specifications: Annotated[
        list[Path], typer.Argument(help="run specifications (TOML)", exists=True, dir_okay=False)
    ],
    data: Data,
    nodes: Nodes,
    model_folder: ModelFolder = None,
    seeds: Annotated[int, typer.Option(help="runs of each specification", min=1, max=100)] = 3,
    first_seed: Annotated[int, typer.Option(help="the others follow", min=0)] = 0,
    partition: Partition = "iid",
    key: Key = None,
    output: Annotated[Path, typer.Option(help="results; the same again goes on with it", file_okay=False)] = Path(
        "comparison-output"
    ),
    held_out: HeldOut = 0.1,
    node_evaluation: Evaluation = 0.1,
    groups: Groups = 1,
    ray_address: RayAddress = "",
    cpus_per_node: Cpus = 1.0,
    gpus_per_node: Gpus = 0.0,
    workers: Workers = None,
) -> None:
    """Simulate each specification with each seed, and write one table with means, standard deviations and a plot."""
    from confide_simulations.simulate import comparison, study
    from confide_simulations.simulate.engine import Engine, Resources
    from confide_simulations.simulate.progress import RunProgress
    from confide_simulations.simulate.simulation import Watch

    console = Console()
    template = study.Study(
        specification=specifications[0],
        base=model_folder,
        data=data,
        nodes=nodes,
        output=output,
        partition=partition,
        key=key,
        seed=first_seed,
        held_out=held_out,
        evaluation=node_evaluation,
        groups=groups,
    )
    runs = comparison.prepare(template, specifications, seeds)

    @contextlib.contextmanager
    def watching(one: comparison.Planned) -> Iterator[Watch]:
        specification = one.prepared.job.specification
        label = f"{one.name}, seed {specification.seed}: "
        with RunProgress(console, rounds=specification.federation.rounds, nodes=nodes, label=label) as progress:
            yield progress.event

    resources = Resources(address=ray_address, cpus=cpus_per_node, gpus=gpus_per_node, workers=workers)
    console.print(f"{len(runs)} runs of {nodes} virtual nodes; starting Ray", highlight=False)
    with Engine(resources, nodes=nodes) as engine:
        entries = comparison.run(runs, engine, watching, output)
    console.print(comparison.table(entries))
    console.print(f"results: {output}/compare.json, compare.parquet, compare.png", highlight=False)
