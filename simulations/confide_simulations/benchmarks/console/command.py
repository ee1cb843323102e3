"""`confide bench console`: how long each page of the console takes on a consortium with a long history.

Measured is the server's time from a request to its whole answer: the console, its questions to the coordinator over
mTLS, and the coordinator's database, all in this one process, so that its CPU time is that of both. Before each
request the console forgets what it was told, so that nothing is answered from memory; `warm` is the same without
forgetting. Not forgotten is the audit chain's verdict, which is made once a minute while nobody waits for it.
"""

import asyncio
import os
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import pyotp
import typer
from confide_server.console.roles import Role
from confide_server.console.web.app import Console
from rich.console import Console as Terminal
from rich.table import Table

from confide_simulations.benchmarks.console import watchers as many_watchers
from confide_simulations.benchmarks.console.world import ROUNDS, History, console_over
from confide_simulations.benchmarks.meta import meta, write_result

PAGES = {
    "overview": "/", "runs": "/runs", "run": "/runs/{run}", "its series": "/runs/{run}/series",
    "compare six": "/compare?{six}", "members": "/members", "privacy": "/privacy", "models": "/models",
    "audit": "/audit", "specification": "/specification", "people": "/people", "account": "/account",
}  # fmt: skip
ROUNDS_SHOWN, IDLE_S = 6, 30.0
_ADDRESS = "http://127.0.0.1:9444"


def console(
    nodes: Annotated[int, typer.Option(min=20, help="Organizations in the roster.")] = 200,
    runs: Annotated[int, typer.Option(min=10, help="Runs, eight of them live.")] = 1000,
    events: Annotated[int, typer.Option(min=1000, help="Events of all runs.")] = 1_000_000,
    receipts: Annotated[int, typer.Option(min=0, help="Ledger receipts.")] = 60_000,
    audit: Annotated[int, typer.Option(min=1, help="Entries of the audit log.")] = 20_000,
    repeats: Annotated[int, typer.Option(min=0, help="Requests for each page, cold and warm; 0: watchers only.")] = 40,
    watchers: Annotated[int, typer.Option(min=0, help="Pages of a live run that are open at once.")] = 100,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
) -> None:
    """Time every page with 200 nodes, 1,000 runs and 1,000,000 events; reach: 100 ms at the 95th percentile."""
    history = History(nodes=nodes, runs=runs, events=events, receipts=receipts, audit=audit)
    watched: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, console_over(Path(folder), history) as stage:
        figures, cookie = asyncio.run(_measured(stage.console, stage.run_id, runs, repeats))
        if watchers:
            watched = many_watchers.measured(
                stage.console, cookie, stage.run_id, stage.commit, begun=ROUNDS - 1, count=watchers,
                rounds=ROUNDS_SHOWN, idle_s=IDLE_S,
            )  # fmt: skip
    said = f"ms: {nodes} nodes, {runs:,} runs, {events:,} events; load {os.getloadavg()[0]:.1f}"
    table = Table("page", "cold p50", "cold p95", "CPU p50", "CPU p95", "warm p95", "KiB", title=said)
    keys = ("cold_p50_ms", "cold_p95_ms", "cold_cpu_p50_ms", "cold_cpu_p95_ms", "warm_p95_ms", "kib")
    for name, one in figures.items():
        table.add_row(name, *(f"{one[key]:.1f}" for key in keys))
    Terminal().print(table if figures else said)
    if watched:
        Terminal().print(
            f"{watchers} pages, open after {watched['opened_s']:.1f} s: {watched['idle_core_percent']:.1f} % of a core "
            f"while nothing happens. New rounds are on half of the pages after "
            f"{_listed(watched['half_ms'])} ms, on all after {_listed(watched['all_ms'])} ms; CPU for a round: "
            f"{watched['round_cpu_ms']:.0f} ms, of the pages' process {watched['pages_cpu_ms']:.0f} ms"
        )
    if json_path is not None:
        config = {**vars(history), "repeats": repeats}
        write_result(
            json_path, {"benchmark": "console", **meta(seed=0, config=config), "results": figures, "watchers": watched}
        )


def _listed(figures: list[float]) -> str:
    return ", ".join(f"{one:.0f}" for one in figures)


async def _measured(made: Console, run_id: str, runs: int, repeats: int) -> tuple[dict[str, dict[str, float]], str]:
    """(figures of each page, the cookie of who was signed in)."""
    transport = httpx.ASGITransport(made.app())
    async with httpx.AsyncClient(transport=transport, base_url=_ADDRESS, follow_redirects=True) as client:
        await _sign_in(client, made)
        six = "&".join(f"run={number:032x}" for number in range(runs - 6, runs))
        figures = {}
        for name, path in PAGES.items() if repeats else ():
            address = path.format(run=run_id, six=six)
            await _timed(client, made, address)  # templates are compiled at their first use
            cold = [await _timed(client, made, address) for _ in range(repeats)]
            warm = [await _timed(client, made, address, forget=False) for _ in range(repeats)]
            figures[name] = {
                "cold_p50_ms": _percentile(cold, 0, 50), "cold_p95_ms": _percentile(cold, 0, 95),
                "cold_cpu_p50_ms": _percentile(cold, 1, 50), "cold_cpu_p95_ms": _percentile(cold, 1, 95),
                "warm_p95_ms": _percentile(warm, 0, 95), "kib": round(cold[0][2] / 1024, 1),
            }  # fmt: skip
        return figures, "; ".join(f"{name}={value}" for name, value in client.cookies.items())


async def _sign_in(client: httpx.AsyncClient, made: Console) -> None:
    link, seed = made.people.invite(Role.ADMINISTRATOR), pyotp.random_base32()
    fields = {"link": link, "seed": seed, "name": "administrator", "code": pyotp.TOTP(seed).now()}
    answer = await client.post(
        "/welcome", data=fields | {"password": "four words for this", "again": "four words for this"}
    )
    if answer.url.path != "/":
        raise RuntimeError(f"signing in was answered {answer.status_code} at {answer.url.path}")


async def _timed(
    client: httpx.AsyncClient, made: Console, address: str, forget: bool = True
) -> tuple[float, float, float]:
    """(seconds, CPU seconds of all threads, bytes of the answer as it travels)."""
    if forget:
        made.reader.forget(besides=("VerifyAudit",))
    began, cpu_began = time.perf_counter(), time.process_time()
    answer = await client.get(address)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    if answer.status_code != 200:
        raise RuntimeError(f"{address} was answered {answer.status_code}")
    return seconds, cpu_seconds, float(answer.num_bytes_downloaded)


def _percentile(found: list[tuple[float, float, float]], which: int, at: int) -> float:
    return round(1000 * float(np.percentile([one[which] for one in found], at)), 1)
