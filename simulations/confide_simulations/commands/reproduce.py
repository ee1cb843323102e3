"""`confide reproduce`: run a reproduced result again, from its recipe to table, JSON and plot."""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def reproduce(
    name: Annotated[str, typer.Argument(help="a result; without one they are listed")] = "",
    output: Annotated[
        Path | None, typer.Option(help="default reproduced/NAME; the same again goes on with it", file_okay=False)
    ] = None,
    only: Annotated[str, typer.Option(help="runs to begin, as a pattern such as 'h30-*'")] = "*",
    workers: Annotated[int | None, typer.Option(help="most worker processes; default as many as fit", min=1)] = None,
) -> None:
    """Run a published result again as a simulation; it can be cut off and goes on where it was."""
    from confide_simulations.results import recipe

    console = Console()
    if not name:
        for known in recipe.names():
            console.print(f"{known}: {recipe.load(known).title}", highlight=False)
        return
    asked = recipe.load(name)
    from confide_simulations.results import outcome, running
    from confide_simulations.simulate.engine import Engine, Resources

    folder = output or Path("reproduced") / name
    folder.mkdir(parents=True, exist_ok=True)
    with Engine(Resources(workers=workers), nodes=max(run.nodes for run in asked.run)) as engine:
        outcomes = running.run(
            asked,
            folder,
            engine,
            lambda text: console.print(text, highlight=False),
            lambda one: fnmatchcase(one, only),
        )
    rows = outcome.write(asked, outcomes, folder)
    console.print(outcome.table(asked, rows))
    console.print(f"results: {folder}/results.json, plot.png", highlight=False)
