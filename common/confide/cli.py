"""The `confide` command. Each package brings its subcommands through the entry-point group `confide.commands`."""

import sys
from importlib.metadata import EntryPoint, entry_points

import click
import typer
from typer.core import TyperGroup
from typer.main import get_command

from confide import __version__
from confide.errors import ConfideError
from confide.text import paragraph

GROUP = "confide.commands"


def _load(entry: EntryPoint) -> click.Command:
    loaded = entry.load()
    if isinstance(loaded, typer.Typer):
        return get_command(loaded)
    single = typer.Typer(add_completion=False)
    single.command(name=entry.name)(loaded)
    return get_command(single)


class _Commands(TyperGroup):
    """Loads a subcommand only when it is used, so that `confide node status` does not import torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(entry.name for entry in entry_points(group=GROUP))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for entry in entry_points(group=GROUP, name=cmd_name):
            command = _load(entry)
            command.name = cmd_name
            return command
        return None


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
