"""`confide data`: the data sets of this node. Their paths and records never leave it."""

from pathlib import Path
from typing import Annotated

import typer
from confide.secrecy import private_files
from confide.state_option import StateFirst

from confide_client.data.datasets import DataSets, describe
from confide_client.data.readers import Format
from confide_client.state import StateFolder

app = typer.Typer(
    callback=private_files,
    no_args_is_help=True,
    add_completion=False,
    help="Register and check data sets.",
)

Folder = Annotated[Path, typer.Argument(help="the node's state folder; --state FOLDER says the same", file_okay=False)]
Name = Annotated[str, typer.Argument(help="the name by which runs ask for it")]


@app.command(cls=StateFirst)
def add(
    folder: Folder,
    name: Name,
    path: Annotated[Path, typer.Argument(help="a jsonl, csv, parquet or txt file", dir_okay=False)],
    format: Annotated[Format | None, typer.Option(help="if not by ending")] = None,
    evaluation: Annotated[float, typer.Option(help="share of the records kept from training", min=0, max=0.9)] = 0.1,
    group: Annotated[str | None, typer.Option(help="data sets that share records carry one group's name")] = None,
) -> None:
    """Check every record, draw the node's own split, and register the file. Again, after the file changed."""
    registry = DataSets(StateFolder.at(folder).root)
    entry = registry.add(name, path, format=format, evaluation_fraction=evaluation, group=group)
    typer.echo(describe(name, entry))


@app.command(cls=StateFirst)
def check(folder: Folder, name: Name) -> None:
    """Read the file again and compare it with its registration."""
    typer.echo(f"{describe(name, DataSets(StateFolder.at(folder).root).check(name))}: unchanged")


@app.command("list", cls=StateFirst)
def list_sets(folder: Folder) -> None:
    """All registered data sets."""
    for name, entry in DataSets(StateFolder.at(folder).root).all().items():
        typer.echo(describe(name, entry))


@app.command(cls=StateFirst)
def remove(folder: Folder, name: Name) -> None:
    """Forget a data set; its file stays."""
    DataSets(StateFolder.at(folder).root).remove(name)
