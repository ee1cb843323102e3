"""`--state FOLDER`, as every command of a node or a coordinator takes it, for those that name the folder first.

>>> state_first(["--state", "node", "run-id"]), state_first(["node", "run-id"]), state_first(["x", "--state=node"])
(['node', 'run-id'], ['node', 'run-id'], ['node', 'x'])
"""

import click
from typer.core import TyperCommand

OPTION = "--state"


def state_first(arguments: list[str]) -> list[str]:
    """The folder that stands behind `--state`, moved to the front. Behind "--" nothing is looked at."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    for index, argument in enumerate(arguments[:end]):
        if argument == OPTION and index + 1 < end:
            return [arguments[index + 1], *arguments[:index], *arguments[index + 2 :]]
        if argument.startswith(f"{OPTION}="):
            return [argument.removeprefix(f"{OPTION}="), *arguments[:index], *arguments[index + 1 :]]
    return arguments


class StateFirst(TyperCommand):
    """A command whose first argument is the state folder of a node or a coordinator."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """`--state FOLDER` is the same as FOLDER in front."""
        return super().parse_args(ctx, state_first(args))
