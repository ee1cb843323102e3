"""The `confide` command. Each package brings its subcommands through the entry-point group `confide.commands`."""

import sys
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

import click
import typer

from confide import __version__
from confide.errors import ConfideError
from confide.lazy_commands import LazyGroup, command_of
from confide.text import paragraph

GROUP = "confide.commands"


@cache
def _entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)}


def _summary(entry: EntryPoint) -> str:
    package = import_module(entry.module.rpartition(".")[0])
    known: Mapping[str, str] = getattr(package, "SUMMARIES", {})
    # Another distribution's command need not have one: it is loaded for it.
    return known.get(entry.name) or command_of(entry.load(), entry.name).get_short_help_str(limit=100)


class _Commands(LazyGroup):
    """Imports a subcommand only when it is used, so that `confide node status` does not import torch."""

    def summaries(self) -> Mapping[str, str]:
        return {name: _summary(entry) for name, entry in _entries().items()}

    def load(self, name: str) -> click.Command:
        return command_of(_entries()[name].load(), name)


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    help="Federated, privacy-preserving training of language models.",
    pretty_exceptions_enable=False,
)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"confide {__version__}")
        raise typer.Exit


@app.callback()
def root(version: bool = typer.Option(False, "--version", callback=_version, is_eager=True)) -> None:
    """Federated, privacy-preserving training of language models."""


def main() -> None:
    """Run a command; a ConfideError ends it with one clear line on stderr and exit status 1."""
    try:
        app()
    except ConfideError as error:
        typer.secho(f"error: {paragraph(error)}", fg=typer.colors.RED, err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.secho("interrupted", err=True)
        sys.exit(130)
