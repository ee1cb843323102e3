"""`confide model`: base models on this machine."""

import os
from pathlib import Path
from typing import Annotated

import typer
from confide.errors import ModelError
from confide.models.store import ModelStore
from confide.text import markup, table
from rich.console import Console

from confide_client.state import StateFolder

app = typer.Typer(no_args_is_help=True, help="Base models on this machine, each pinned by a hash over its files.")

State = Annotated[
    Path, typer.Option("--state", envvar="CONFIDE_STATE", help="The node's state folder; its models folder is used.")
]
Models = Annotated[
    Path | None, typer.Option("--models", envvar="CONFIDE_MODELS", help="A models folder outside a node's state.")
]
_STATE = Path("~/.confide/node")


def _store(state: Path, models: Path | None) -> ModelStore:
    return ModelStore(models.expanduser() if models is not None else StateFolder.at(state).models)


@app.command()
def add(
    source: Annotated[str, typer.Argument(help="A folder, or a hub id such as organization/model.")],
    name: Annotated[str | None, typer.Option(help="For people; default the folder's name.")] = None,
    state: State = _STATE,
    models: Models = None,
    trial: Annotated[
        bool, typer.Option("--trial/--no-trial", help="Try which methods train it; takes seconds.")
    ] = True,
) -> None:
    """Copy a model in, try its family, and print the hash by which runs and policies name it."""
    if (os.sep in source or source.startswith(".")) and not Path(source).expanduser().exists():
        raise ModelError(f"{source} is not there; give a model's folder as this machine sees it, or a hub id")
    chosen, store = name or Path(source).name.lower(), _store(state, models)
    digest = store.add(source, chosen)
    if trial:
        _try(store, digest)
    typer.echo(f"{chosen} is here as")
    typer.echo(digest)


def _try(store: ModelStore, digest: str) -> None:
    """Say by which methods the model trains. Raises ModelError, with nothing kept, when by none."""
    from confide.planning.fitness import methods_of

    try:
        found = methods_of(store.path(digest))
    except ModelError:
        store.remove(digest)
        raise
    typer.echo(f"trains by {', '.join(name for name, reason in found.items() if not reason)}")
    for name, reason in found.items():
        if reason:
            typer.echo(f"  not by {name}: {reason}")


@app.command()
def new(
    folder: Annotated[Path, typer.Argument(help="Model folder to write, new or empty.")],
    config: Annotated[Path, typer.Option(help="Configuration in transformers' format (JSON).", dir_okay=False)],
    tokenizer: Annotated[Path, typer.Option(help="Folder of an exported tokenizer.", file_okay=False)],
) -> None:
    """Make an untrained model from a configuration and a tokenizer, to pre-train with model.initial = "random"."""
    from confide.models.fresh import make_folder
    from confide.models.store import folder_digest

    made = make_folder(folder, config=config, tokenizer=tokenizer)
    typer.echo(f"{made} holds an untrained model; add it with `confide model add`. Its hash is")
    typer.echo(folder_digest(made))


@app.command(name="list")
def list_models(
    state: State = _STATE,
    models: Models = None,
    hashes: Annotated[bool, typer.Option("--hashes", help="Print the hashes only, one a line.")] = False,
) -> None:
    """Names, hashes, sizes."""
    if hashes:
        for model in _store(state, models).list():
            typer.echo(model.sha256)
        return
    shown = table("name", "sha256", "size", "from", keys={"sha256": 64})
    for model in _store(state, models).list():
        shown.add_row(markup(model.name), model.sha256, f"{model.bytes / 1e6:.1f} MB", markup(model.source))
    Console().print(shown)


@app.command()
def verify(reference: str, state: State = _STATE, models: Models = None) -> None:
    """Hash every file of a model again and compare."""
    store = _store(state, models)
    digest = store.find(reference).sha256
    store.path(digest, verify=True)
    typer.echo(f"{digest} is unaltered")


@app.command()
def remove(reference: str, state: State = _STATE, models: Models = None) -> None:
    """Delete a model, by name or by the beginning of its hash."""
    store = _store(state, models)
    digest = store.find(reference).sha256
    store.remove(digest)
    typer.echo(f"removed {digest}")
