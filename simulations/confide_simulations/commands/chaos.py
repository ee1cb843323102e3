"""`confide chaos`: simulated crashes by the thousand, over the product's own code."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from confide.errors import SpecificationError
from rich.console import Console
from rich.table import Table

Seeds = Annotated[int, typer.Option(help="how many, from 0 on", min=1, max=10_000_000)]
Seed = Annotated[int | None, typer.Option(help="this one alone", min=0)]
Trace = Annotated[bool, typer.Option("--trace", help="with --seed: everything that happens in it, line by line")]
Processes = Annotated[int | None, typer.Option(help="default: one a core; what is found does not depend on it", min=1)]
Planted = Annotated[list[str] | None, typer.Option(help="look for this planted bug; again for more; default all")]
NoPlanted = Annotated[bool, typer.Option("--no-planted", help="plant no bugs")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="write the report here", dir_okay=False)]


def chaos(
    seeds: Seeds = 1000,
    seed: Seed = None,
    trace: Trace = False,
    processes: Processes = None,
    planted: Planted = None,
    no_planted: NoPlanted = False,
    json_file: JsonFile = None,
) -> None:
    """Crash a simulated federation by the thousand: kills, power cuts, partitions, full disks, clocks, old disks.

    Ends with 1 when something that must hold did not, or when a planted bug was not found.
    """
    from confide_simulations.chaos import campaign

    console = Console()
    bugs = () if no_planted else tuple(planted or campaign.names_of_bugs())
    if unknown := set(bugs) - set(campaign.names_of_bugs()):
        known = ", ".join(campaign.names_of_bugs())
        raise SpecificationError(f"{sorted(unknown)[0]!r} is no bug that can be planted; known are {known}")
    if seed is not None:
        found = campaign.trace(seed, planted[0] if planted else "")
        for line in found if trace else found[-2:]:
            print(line)
        raise typer.Exit(int(any(line.startswith("violation:") for line in found)))
    with console.status("") as status:
        report = campaign.run(
            seeds,
            processes or os.cpu_count() or 1,
            bugs,
            lambda so_far: status.update(f"{so_far.seeds} seeds, {len(so_far.violations)} violations"),
        )
    document = report.document()
    if json_file is not None:
        json_file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    console.print(_table(document))
    for one in document["violations"]:
        console.print(f"seed {one['seed']}: {one['invariant']}: {one['detail']}", markup=False, highlight=False)
    missed = [bug for bug, was_found in report.planted.items() if not was_found]
    for bug in missed:
        console.print(f"the planted bug {bug} was not found", markup=False, highlight=False)
    raise typer.Exit(int(bool(report.violations or missed)))


def _table(document: dict[str, object]) -> Table:
    table = Table("what", "count")
    faults, planted = document["faults"], document["planted"]
    assert isinstance(faults, dict) and isinstance(planted, dict)  # noqa: S101 - the report's own
    rows = {
        "seeds": document["seeds"],
        **{f"fault: {name}": count for name, count in faults.items()},
        "violations": len(document["violations"]),  # type: ignore[arg-type]
        "planted bugs found": f"{sum(planted.values())} of {len(planted)}",
        "seconds": document["seconds"],
    }
    for name, value in rows.items():
        table.add_row(name, str(value))
    return table
