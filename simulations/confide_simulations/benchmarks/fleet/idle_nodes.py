"""`confide bench idle-nodes`: what connected nodes cost an idle coordinator, and how long an empty round of them takes.

The coordinator is `confide server start`, a process of its own; the nodes are light ones in one other process
(light_nodes.py), with keys, connections, polls and heartbeats of their own over the real Fleet protocol. The round is
unsealed and carries one parameter: what is left is the protocol. All of it runs on this machine, so that from some size
on the nodes' own work is in a round's time; both processes' CPU time is said beside it.
"""

import contextlib
import itertools
import json as json_module
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from confide.errors import TransportError
from confide.identity.consortium import Consortium
from confide.identity.enrolment import accept_admission, make_request, read_request
from confide.identity.member import load_member
from confide.identity.roster import Role, sign_roster
from confide.runs.specification import Specification
from confide.transport.admin import AdminClient
from confide_server.coordinator.process import Settings, write_settings
from rich.console import Console
from rich.table import Table

from confide_simulations.benchmarks.meta import meta, write_result
from confide_simulations.processes import ProcessGroup
from confide_simulations.stand_in_run import stand_in_run


@dataclass(frozen=True)
class Place:
    """Folders of a coordinator, an administrator and all the nodes, on the newest roster."""

    folder: Path
    names: tuple[str, ...]

    @classmethod
    def make(cls, folder: Path, nodes: int) -> "Place":
        """Keys of everybody; the nodes are admitted by one roster, since each further one would be signed anew."""
        consortium = Consortium.create(folder / "root", "bench", demo=True)
        for name, role, addresses in (
            ("coordinator", Role.COORDINATOR, ["127.0.0.1"]),
            ("administrator", Role.ADMINISTRATOR, []),
        ):
            request = make_request(folder / name, name, role, addresses)
            accept_admission(folder / name, consortium.admit(request), time.time())
        names = tuple(f"node-{number:04}" for number in range(nodes))
        now, before = int(time.time()), consortium.roster.current
        asked = [read_request(make_request(folder / name, name, Role.NODE)) for name in names]
        members = tuple(sorted((*before.members, *(one.member(now) for one in asked)), key=lambda one: one.name))
        roster = before.model_copy(
            update={"version": before.version + 1, "previous": before.digest, "members": members, "issued_at": now}
        )
        signed = sign_roster(roster, consortium.root)
        for name in ("coordinator", "administrator"):
            load_member(folder / name).roster.accept(signed)
        most = max(16, 4 * nodes + 64)
        settings = Settings(
            bind="127.0.0.1", fleet_port=0, control_port=0, connections=most, connections_per_address=most
        )
        write_settings(folder / "coordinator", settings)
        return cls(folder, names)

    def addresses(self, processes: ProcessGroup) -> dict[str, int]:
        """Ports of the coordinator, once it listens."""
        path = self.folder / "coordinator" / "addresses.json"
        while not path.exists():
            processes.check_alive()
            time.sleep(0.05)
        found: dict[str, int] = json_module.loads(path.read_text())
        return found


@contextlib.contextmanager
def light_nodes(place: Place, fleet_port: int) -> Iterator[tuple[psutil.Process, int]]:
    """The process of the nodes, and how many of them are connected. Raises TransportError when it ends."""
    command = [sys.executable, "-m", "confide_simulations.benchmarks.fleet.light_nodes", str(place.folder)]
    command += [f"127.0.0.1:{fleet_port}", str(place.folder / "administrator" / "ca.crt")]
    pipe = subprocess.PIPE
    with (
        (place.folder / "light_nodes.log").open("wb") as log,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True) as process,
    ):
        try:
            assert process.stdin is not None and process.stdout is not None  # noqa: S101 - both were asked for
            process.stdin.write("\n".join(place.names))
            process.stdin.close()
            said = process.stdout.readline()
            connected = json_module.loads(said)["connected"] if said else 0
            if not connected:
                raise TransportError(f"no node is connected: {Path(log.name).read_text()[-2000:]}")
            yield psutil.Process(process.pid), connected
        finally:
            process.kill()


def measure(nodes: int, *, window_s: float, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """One coordinator with so many light nodes: idle for `window_s`, then a run of empty rounds."""
    with tempfile.TemporaryDirectory(prefix="confide-bench-") as name, ProcessGroup(forked=False) as processes:
        place = Place.make(Path(name), nodes)
        command = [sys.executable, "-m", "confide", "server", "start", str(place.folder / "coordinator")]
        processes.start("coordinator", command, place.folder / "coordinator.log")
        addresses = place.addresses(processes)
        coordinator = psutil.Process(processes.children["coordinator"].pid)
        alone_mib, began = _rss_mib(coordinator), time.monotonic()
        with light_nodes(place, addresses["fleet_port"]) as (light, connected):
            connecting_s = time.monotonic() - began
            time.sleep(min(15.0, window_s))  # every node has polled and sent a heartbeat by then
            row = {
                "nodes": nodes,
                "connected": connected,
                "connecting_s": round(connecting_s, 2),
                **_idle(coordinator, light, window_s),
            }
            row["memory_mib_per_node"] = round((row["memory_mib"] - alone_mib) / max(connected, 1), 3)
            say(json_module.dumps(row))
            return row | _rounds(place, addresses["control_port"], coordinator, light, connected, rounds)


def _idle(coordinator: psutil.Process, light: psutil.Process, window_s: float) -> dict[str, Any]:
    before = _cpu_s(coordinator), _cpu_s(light)
    time.sleep(window_s)
    spent = _cpu_s(coordinator) - before[0], _cpu_s(light) - before[1]
    return {
        "coordinator_cpu_percent_of_a_core": round(100 * spent[0] / window_s, 2),
        "light_nodes_cpu_percent_of_a_core": round(100 * spent[1] / window_s, 2),
        "memory_mib": round(_rss_mib(coordinator), 1),
        "sockets": _sockets(coordinator),
        "threads": coordinator.num_threads(),
    }


def _rounds(
    place: Place,
    control_port: int,
    coordinator: psutil.Process,
    light: psutil.Process,
    connected: int,
    rounds: int,
) -> dict[str, Any]:
    member = load_member(place.folder / "administrator")
    specification, ends = _specification(connected, rounds + 1), list[float]()
    began, cpu_s, started_s = time.monotonic(), (0.0, 0.0), 0.0
    with AdminClient.of_member(member, f"127.0.0.1:{control_port}") as client:
        run_id = client.submit_run(specification, bytes(4), member.identity)
        for event in client.watch(run_id):
            if event.kind == "run_started":
                started_s = time.monotonic() - began
            if event.kind == "round_committed":
                if not ends:
                    cpu_s = _cpu_s(coordinator), _cpu_s(light)
                ends.append(time.monotonic())
                if len(event.round_committed.contributors) != connected:
                    raise TransportError(f"{len(event.round_committed.contributors)} of {connected} nodes contributed")
            if event.kind == "run_failed":
                raise TransportError(f"the benchmark's run failed: {event.run_failed.reason}")
    seconds = [later - earlier for earlier, later in itertools.pairwise(ends)]
    return {
        "offered_and_accepted_s": round(started_s, 2),
        "empty_round_s": [round(one, 3) for one in seconds],
        "empty_round_median_s": round(statistics.median(seconds), 3),
        "coordinator_cpu_s_a_round": round((_cpu_s(coordinator) - cpu_s[0]) / len(seconds), 3),
        "light_nodes_cpu_s_a_round": round((_cpu_s(light) - cpu_s[1]) / len(seconds), 3),
        "peak_memory_mib": round(_rss_mib(coordinator), 1),
    }


def _specification(nodes: int, rounds: int) -> Specification:
    federation = {"rounds": rounds, "data": "nothing", "min_cohort": nodes}
    deadlines = {"exchange_deadline_s": 600.0, "step_deadline_s": 600.0}
    return stand_in_run("idle-nodes", "0" * 64, federation | deadlines, {"kind": "none"})


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _rss_mib(process: psutil.Process) -> float:
    return process.memory_info().rss / 2**20


def _sockets(process: psutil.Process) -> int:
    return sum(os.readlink(path).startswith("socket:") for path in Path(f"/proc/{process.pid}/fd").iterdir())


def idle_nodes(
    nodes: Annotated[str, typer.Option(help="Numbers of nodes, comma-separated.")] = "10,100,1000",
    json: Annotated[Path | None, typer.Option(help="Write the full result here.", dir_okay=False)] = None,
    window_s: Annotated[float, typer.Option(help="How long idle nodes are watched.", min=0.5)] = 30.0,
    rounds: Annotated[int, typer.Option(help="Timed empty rounds.", min=1)] = 3,
) -> None:
    """What connected nodes cost a coordinator that has nothing to do, and an empty round of all of them."""
    console, rows = Console(), list[dict[str, Any]]()

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    for count in (int(text) for text in nodes.split(",")):
        say(f"measuring {count} nodes")
        rows.append(measure(count, window_s=window_s, rounds=rounds, say=say))
    console.print(_table(rows))
    config = {"nodes": nodes, "window_s": window_s, "rounds": rounds, "open_files": limit}
    if json is not None:
        write_result(json, {"benchmark": "idle-nodes", **meta(seed=0, config=config), "results": rows})


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="one coordinator, nodes of one other process")
    table.add_column("")
    for row in rows:
        table.add_column(f"{row['connected']} of {row['nodes']} nodes", justify="right")
    for name in rows[0]:
        if name not in {"nodes", "connected", "empty_round_s"}:
            table.add_row(name.replace("_", " "), *[f"{row[name]:,}" for row in rows])
    return table
