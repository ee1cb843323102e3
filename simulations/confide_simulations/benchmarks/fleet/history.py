"""`confide bench history`: how long a list of runs takes on a coordinator that has driven many.

Rows of finished runs, each with the specification of the example, rounds and events, in SQLite; measured is what the
administration service asks of the database for one page, in CPU time.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from confide.runs.specification import EXAMPLE, parse_toml
from confide_server.state.database import Database, Event, Run
from confide_server.state.views import Filters, Views
from rich.console import Console
from rich.table import Table

from confide_simulations.benchmarks.meta import meta, write_result

REPEATS = 15


def history(
    runs: Annotated[int, typer.Option(min=1, help="Finished runs.")] = 200,
    events: Annotated[int, typer.Option(min=1, help="Events of each.")] = 200,
    nodes: Annotated[int, typer.Option(min=1, help="Organizations in each cohort.")] = 20,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
) -> None:
    """Time a page of runs on a coordinator with a long history; reach: 200 runs in under 50 ms."""
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{folder}/coordinator.db")
        _fill(database, runs, events, nodes)
        views, page = Views(database), min(runs, 200)
        named = Filters(organization="organization-00")
        figures = {
            "page_ms": _milliseconds(lambda: views.runs(Filters(), limit=page)),
            "page_of_one_organization_ms": _milliseconds(lambda: views.runs(named, limit=page)),
            "counts_ms": _milliseconds(views.counts),
            "run_ms": _milliseconds(lambda: views.detail(f"{0:032x}")),
        }
        database.close()
    table = Table("asked", "CPU ms", title=f"{runs} runs, {events} events each, {nodes} organizations")
    for name, milliseconds in figures.items():
        table.add_row(name.removesuffix("_ms").replace("_", " "), f"{milliseconds:.2f}")
    Console().print(table)
    config = {"runs": runs, "events": events, "nodes": nodes}
    if json_path is not None:
        write_result(json_path, {"benchmark": "history", **meta(seed=0, config=config), "results": figures})


def _fill(database: Database, runs: int, events: int, nodes: int) -> None:
    specification, now = parse_toml(EXAMPLE), time.time()
    document, cohort = specification.canonical_bytes(), [f"organization-{number:02}" for number in range(nodes)]
    for number in range(runs):
        with database.transaction() as session:
            run = Run(
                run_id=f"{number:032x}",
                number=number + 1,
                name=f"run-{number}",
                status="finished",
                specification=document,
                initial_model_sha256=bytes(32),
                signature=bytes(64),
                administrator="administrator",
                schema=b"",
                submitted_at=now,
                round=3,
                rounds=3,
                sealing="sealed",
                cohort=cohort,
                last_event=(number + 1) * events,
            )
            session.add(run)
            session.flush()
            for sequence in range(1, events + 1):
                said = {"round": 1, "node": cohort[sequence % nodes], "bytes": 1000}
                event = Event(run_id=run.run_id, sequence=sequence, time=now, kind="contributed", data=said)
                event.number = number * events + sequence
                session.add(event)


def _milliseconds(work: Callable[[], object]) -> float:
    work()
    found = []
    for _ in range(REPEATS):
        began = time.process_time()
        work()
        found.append(1000 * (time.process_time() - began))
    return round(statistics.median(found), 3)
