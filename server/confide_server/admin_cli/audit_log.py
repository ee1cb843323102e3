"""`confide audit-log`: the coordinator's audit log, shown, exported, and verified without believing the coordinator.

confide audit-log export audit.jsonl --admin auditor
confide audit-log verify audit.jsonl --admin auditor
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from confide.errors import StateError
from confide.files import write_atomic
from confide.identity.roster import Member, Role
from confide.text import line
from confide.transport.admin import AdminClient, check_export

from confide_server.admin_cli.papers import load_member
from confide_server.admin_cli.run_options import Admin, AsJson, Coordinator

app = typer.Typer(no_args_is_help=True, help="The coordinator's audit log: show, export, verify.")


@app.command()
def show(
    admin: Admin,
    event: Annotated[str, typer.Option(help="Only these, for example run_submitted.")] = "",
    run: Annotated[str, typer.Option(help="Only of this run (whole id).")] = "",
    limit: Annotated[int, typer.Option(min=1, max=500, help="As many of the newest.")] = 50,
    coordinator: Coordinator = "",
    as_json: AsJson = False,
) -> None:
    """Show the newest entries, oldest of them first."""
    with AdminClient.of_member(load_member(admin), coordinator) as client:
        entries = client.list_audit(limit=limit, run_id=run, event=event).entries
    for entry in reversed(entries):
        body = json.loads(entry.body)
        if as_json:
            typer.echo(json.dumps({"number": entry.number, "time": entry.time, "body": body, "hash": entry.hash}))
            continue
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.time))
        rest = ", ".join(f"{key} {value}" for key, value in body.items() if key != "event")
        typer.echo(line(f"{entry.number:6} {moment} {entry.event}: {rest}", 400))


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="The file to write: JSON lines.", dir_okay=False)],
    admin: Admin,
    coordinator: Coordinator = "",
) -> None:
    """Write the whole log with its signed end, verified on the way."""
    member = load_member(admin)
    with AdminClient.of_member(member, coordinator) as client:
        data = b"".join(client.export_audit())
        entries, head = check_export(
            data.splitlines(), _coordinator_key(member.roster.current.active(Role.COORDINATOR))
        )
    write_atomic(out, data)
    typer.echo(f"{entries} entries written to {out}, verified; head {head}")


@app.command()
def verify(file: Annotated[Path, typer.Argument(help="What `export` wrote.", dir_okay=False)], admin: Admin) -> None:
    """Check an export without the coordinator: every entry covers the one before; the coordinator signed the end."""
    roster = load_member(admin).roster.current
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise StateError(f"cannot read {file}: {error.strerror}") from error
    entries, head = check_export(lines, _coordinator_key(roster.active(Role.COORDINATOR)))
    typer.echo(f"{entries} entries hold; head {head}")
    typer.echo("keep the head: a later export that does not hold it as entry's hash convicts the coordinator")


def _coordinator_key(coordinators: Sequence[Member]) -> bytes:
    if len(coordinators) != 1:
        raise StateError(f"the roster has {len(coordinators)} coordinators; one is needed to say whose log it is")
    return bytes.fromhex(coordinators[0].identity_key)
