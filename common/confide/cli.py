"""The `confide` command. Each package brings its subcommands through the entry-point group `confide.commands`."""

import io
import os
import sys
import warnings
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

import click
import typer

from confide import __version__
from confide.errors import ConfideError, StateError
from confide.lazy_commands import LazyGroup, command_of
from confide.memory import nothing_left_to_collect
from confide.text import line, paragraph

GROUP = "confide.commands"


@cache
def _entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)}


def _summary(entry: EntryPoint) -> str:
    try:
        package = import_module(entry.module.rpartition(".")[0])
        known: Mapping[str, str] = getattr(package, "SUMMARIES", {})
        # Another distribution's command need not have one: it is loaded for it.
        return known.get(entry.name) or command_of(entry.load(), entry.name).get_short_help_str(limit=100)
    except ImportError as error:
        return f"Cannot be loaded here: {line(error, 200)}"


class _Commands(LazyGroup):
    """Imports a subcommand only when it is used, so that `confide node status` does not import torch."""

    def summaries(self) -> Mapping[str, str]:
        return {name: _summary(entry) for name, entry in _entries().items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_entries())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One that cannot be loaded keeps nobody from using the others."""
        entry = _entries().get(cmd_name)
        return None if entry is None else click.Command(cmd_name, help=_summary(entry))

    def load(self, name: str) -> click.Command:
        try:
            return command_of(_entries()[name].load(), name)
        except ImportError as error:
            raise StateError(
                f"`confide {name}` cannot be loaded ({line(error, 200)}); install what it needs, or confide again"
            ) from error


app = typer.Typer(
    cls=_Commands,
    add_completion=True,
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
    """Run a command; a ConfideError ends it with one clear line on stderr and exit status 1, and so does a path that
    the system does not take.

    NO_COLOR is obeyed. A letter that the terminal's encoding lacks is shown as a question mark. What libraries warn of
    is for their developers, unless Python is told otherwise (-W).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    color = False if os.environ.get("NO_COLOR") else None
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    try:
        app(color=color)
    except ConfideError as error:
        typer.secho(f"error: {paragraph(error)}", fg=typer.colors.RED, err=True, color=color)
        sys.exit(1)
    except OSError as error:
        if error.filename is None:
            raise  # no path that somebody gave: the trace says where it comes from
        said = paragraph(f"{error.filename}: {error.strerror}; check the path and its rights")
        typer.secho(f"error: cannot use {said}", fg=typer.colors.RED, err=True, color=color)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.secho("interrupted", err=True)
        sys.exit(130)
    finally:
        nothing_left_to_collect()
