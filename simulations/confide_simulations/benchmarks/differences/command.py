"""`confide bench differences`: what a lying coordinator takes from two sums, and by which attacks it gets them.

The attacks are played against the real node code, with the product's defaults and, beside it, with differences accepted
and public draws, as all runs were before. The table says what two sums tell where nobody refuses (docs/sealing.md).
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

_SEED = 0
Result = dict[str, Any]


def differences(
    seeds: Annotated[int, typer.Option(min=1, help="Federations of each row of the table; the mean counts.")] = 5,
    members: Annotated[str, typer.Option(help="Numbers of organizations, with commas.")] = "4,8,16",
    steps: Annotated[str, typer.Option(help="Local steps of a round.")] = "1,8,32",
    apart: Annotated[str, typer.Option(help="Rounds between the two sums.")] = "0,1,4",
    json: Annotated[Path | None, typer.Option(help="Write the result here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the table here (PNG).")] = None,
) -> None:
    """Two sums that differ by one organization: by which attacks, and what their difference tells."""
    from confide_simulations.benchmarks.differences.plot import draw
    from confide_simulations.benchmarks.differences.table import DELTA, EPSILON, ROUNDS, rows
    from confide_simulations.benchmarks.meta import meta, write_result

    sizes = {"members": _numbers(members), "steps": _numbers(steps), "apart": _numbers(apart)}
    result: Result = {"default": _attacks({}), "accepted": _attacks({"differences": "accepted", "reproducible": True})}
    result["table"] = list(rows(seeds=range(seeds), **sizes))
    config = {**sizes, "seeds": seeds, "epsilon": EPSILON, "delta": DELTA, "rounds": ROUNDS}
    result["meta"] = meta(seed=_SEED, config=config)
    _print(result)
    if json is not None:
        write_result(json, result)
        typer.echo(f"written: {json}")
    if plot is not None:
        draw(result, plot)
        typer.echo(f"written: {plot}")


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _attacks(settings: dict[str, Any]) -> dict[str, Any]:
    from confide_simulations.benchmarks.differences.attacks import ATTACKS, try_attack

    found = {}
    for attack in ATTACKS:
        with TemporaryDirectory() as folder:
            found[attack] = try_attack(attack, Path(folder), **settings)
    return found


def _print(result: Result) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()

    attacks = Table("attack", "default", "accepted, public draws: cosine", title="attacks to two sums")
    for attack, found in result["default"].items():
        told = result["accepted"][attack]["cosine"]
        stopped = ", ".join(found["by"]) if found["refused"] else f"[red]cosine {found['cosine']:.4f}[/red]"
        attacks.add_row(attack, stopped, "refused" if told is None else f"{told:.4f}")
    console.print(attacks)
    kinds = ("one_sum", "one_missing", "blocks", "organization_privacy")
    table = Table("members", "steps", "apart", *kinds, title="cosine / relative error / metric error")
    for row in result["table"]:
        cells = ["  ".join(f"{value:.3f}" for value in row[kind].values()) for kind in kinds]
        table.add_row(str(row["members"]), str(row["local_steps"]), str(row["rounds_apart"]), *cells)
    console.print(table)
