"""`confide bench`: measurements with their peers in the same run. One line here per benchmark."""

from importlib import import_module

import click
import typer
from typer.core import TyperGroup
from typer.main import get_command

# Name on the command line -> module:function. A module imports what is heavy inside its function.
BENCHMARKS = {
    "aggregation": "confide_simulations.benchmarks.aggregation:aggregation",
    "agreement": "confide_simulations.benchmarks.agreement:agreement",
    "differences": "confide_simulations.benchmarks.differences:differences",
    "corpus": "confide_simulations.benchmarks.corpus:corpus",
    "round": "confide_simulations.benchmarks.round:round_",
    "sealing": "confide_simulations.benchmarks.sealing:sealing",
    "simulation": "confide_simulations.benchmarks.simulation:simulation",
    "scale": "confide_simulations.benchmarks.scale:scale",
    "tokenizer": "confide_simulations.benchmarks.tokenizer:tokenizer",
    "privacy": "confide_simulations.benchmarks.privacy:privacy",
    "training": "confide_simulations.benchmarks.training:training",
}


class _Benchmarks(TyperGroup):
    """Imports a benchmark only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(BENCHMARKS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in BENCHMARKS:
            return None
        module, function = BENCHMARKS[cmd_name].split(":")
        single = typer.Typer(add_completion=False)
        single.command(name=cmd_name)(getattr(import_module(module), function))
        return get_command(single)


app = typer.Typer(
    cls=_Benchmarks,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Measure this machine: each benchmark prints a table and writes JSON.",
)


@app.callback()
def bench() -> None:
    """Measure this machine: each benchmark prints a table and writes JSON."""
