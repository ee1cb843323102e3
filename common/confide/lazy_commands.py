"""A group of commands that are imported when they are used; the list of them needs only a line about each.

>>> import click, click.testing
>>> class Two(LazyGroup):
...     def summaries(self): return {"one": "The first.", "two": "The second."}
...     def load(self, name): return click.Command(name, callback=lambda: click.echo(f"ran {name}"))
>>> click.testing.CliRunner().invoke(Two(name="both"), ["two"]).output
'ran two\\n'
"""

from collections.abc import Mapping

import click
import typer
from typer.core import TyperGroup
from typer.main import get_command


def command_of(loaded: object, name: str) -> click.Command:
    """A command from what a module offers: a typer.Typer, or a function."""
    if isinstance(loaded, typer.Typer):
        command = get_command(loaded)
    else:
        single = typer.Typer(add_completion=False)
        single.command(name=name)(loaded)  # type: ignore[type-var]  # whatever else is not callable fails here, by name
        command = get_command(single)
    command.name = name
    return command


class LazyGroup(TyperGroup):
    """Override `summaries` and `load`."""

    def summaries(self) -> Mapping[str, str]:
        """Each command's name and its line in the list, in the list's order."""
        raise NotImplementedError

    def load(self, name: str) -> click.Command:
        """The command itself."""
        raise NotImplementedError

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names."""
        return list(self.summaries())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """What stands for the command in the list. `resolve_command` gives the one that runs."""
        summary = self.summaries().get(cmd_name)
        return None if summary is None else click.Command(cmd_name, help=summary)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that runs, imported now."""
        name, listed, rest = super().resolve_command(ctx, args)
        return name, self.load(name) if name and listed else listed, rest
