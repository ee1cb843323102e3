"""`confide server`: the coordinator's own machine.

confide server init server --name coordinator --address coordinator.example.org
confide server init server --admission admission.json --root KEY
confide server start server
"""

import logging
import time
from pathlib import Path
from typing import Annotated

import typer
from confide.errors import IdentityError, StateError
from confide.identity.enrolment import accept_admission, make_renewal, make_request
from confide.identity.expiry import exit_status
from confide.identity.roster import Role
from confide.secrecy import private_files, private_process
from confide.state_option import StateFirst

from confide_server.admin_cli.papers import warn
from confide_server.admin_cli.run_view import plain as printable

app = typer.Typer(
    callback=private_files,
    no_args_is_help=True,
    help="The coordinator: directs runs over organizations it cannot see into.",
)

Folder = Annotated[Path, typer.Argument(help="The coordinator's state folder; --state FOLDER says the same.")]
BIND = "0.0.0.0"  # noqa: S104 - nodes connect from elsewhere
FLEET_PORT, CONTROL_PORT = 9442, 9443


@app.command(cls=StateFirst)
def init(
    folder: Folder,
    name: Annotated[str, typer.Option(help="This coordinator's name in the roster.")] = "coordinator",
    address: Annotated[
        list[str] | None, typer.Option(help="Host name or IP address under which others reach it; may be repeated.")
    ] = None,
    fleet_port: Annotated[int, typer.Option(min=0, max=65535, help="Nodes connect here.")] = FLEET_PORT,
    control_port: Annotated[int, typer.Option(min=0, max=65535, help="Control service (gRPC, mTLS).")] = CONTROL_PORT,
    bind: Annotated[str, typer.Option(help="IP address on which both ports listen.")] = BIND,
    database: Annotated[str, typer.Option(help="SQLAlchemy URL; default: coordinator.db in the folder.")] = "",
    checkpoints: Annotated[str, typer.Option(help="Folder or fsspec URL; default: in the folder.")] = "",
    admission: Annotated[Path | None, typer.Option(help="Second step: the consortium's answer, a file.")] = None,
    root: Annotated[str | None, typer.Option(help="The root's public key as you learned it elsewhere.")] = None,
) -> None:
    """Make keys and a request for the consortium's root; with --admission, take the root's answer."""
    from confide_server.coordinator.process import Settings, write_settings

    if admission is not None:
        try:
            answer = admission.read_bytes()
        except OSError as error:
            raise IdentityError(f"cannot read the admission {admission}: {error.strerror}") from error
        member = accept_admission(folder, answer, time.time(), root=root)
        typer.echo(f"{member.name} is admitted to {member.membership.consortium}.")
        typer.echo(f"root key: {member.membership.root_public} (compare it with the administrator's)")
        typer.echo(f"next: confide server start {folder}")
        return
    if not address:
        raise IdentityError("--address is missing: the host name or IP address under which nodes reach this machine")
    make_request(folder, name, Role.COORDINATOR, address)
    write_settings(
        folder,
        Settings(
            bind=bind, fleet_port=fleet_port, control_port=control_port, database=database, checkpoints=checkpoints
        ),
    )
    typer.echo(f"keys made in {folder}; request: {folder / 'request.json'}")
    typer.echo("next: have the root's administrator run `confide consortium admit request.json`, then")
    typer.echo(f"      confide server init {folder} --admission admission.json")


@app.command(cls=StateFirst)
def renew(
    folder: Folder,
    address: Annotated[list[str] | None, typer.Option(help="New addresses, when they change; may be repeated.")] = None,
) -> None:
    """Ask for a new TLS certificate over a fresh key; `init --admission` takes the answer. The old one works on."""
    make_renewal(folder, address)
    typer.echo(f"request: {folder / 'request.json'}")
    typer.echo("next: have the root's administrator run `confide consortium renew request.json`, then")
    typer.echo(f"      confide server init {folder} --admission admission.json")


@app.command(cls=StateFirst)
def status(folder: Folder) -> None:
    """Say whether the coordinator runs here and drives runs. Exit status 1 when it does not.

    Exit status 4: roster or certificate end within two weeks, or a member waits to be admitted; 5: one has ended, or
    the coordinator was revoked.
    """
    from confide_server.coordinator.process import due_here, standing

    _check(folder)
    due = warn(folder, due_here)
    found = standing(folder)
    if not found["running"]:
        typer.echo(f"not running; start it with `confide server start {folder}`")
        raise typer.Exit(1)
    typer.echo(f"running: process {found['pid']}, fleet port {found['fleet_port']}, control {found['control_port']}")
    if found["trouble"]:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found["since"]))
        typer.echo(f"no run is driven since {since}, and it is tried again: {printable(found['trouble'])}")
        raise typer.Exit(1)
    typer.echo("runs are driven")
    raise typer.Exit(exit_status(due))


@app.command("try-alerts", cls=StateFirst)
def try_alerts(folder: Folder) -> None:
    """Send a trial over each channel of `alerts` in server.json. Exit status 1 when one failed."""
    from confide.identity.member import load_member

    from confide_server.alerts.service import try_channels
    from confide_server.alerts.settings import Alerts
    from confide_server.coordinator.process import read_settings

    settings, member = read_settings(folder), load_member(folder)
    results = try_channels(settings.alerts or Alerts(), (member.membership.consortium, member.name))
    for channel, why in results.items():
        typer.echo(f"{channel}: {printable(why) if why else 'sent'}")
    if any(results.values()):
        raise typer.Exit(1)


@app.command(cls=StateFirst)
def gc(
    folder: Folder,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")] = False,
    work_older_days: Annotated[
        float | None,
        typer.Option(min=0.0, help="Also what rounds of runs that ended so long ago were made with, not their models."),
    ] = None,
) -> None:
    """Remove checkpoint files that nothing needs, while the coordinator is stopped.

    Models of committed rounds are never removed: manifests name them, and releases stand on them.
    """
    from confide_server.coordinator.process import at_rest
    from confide_server.state.garbage import collect, find

    _check(folder)
    with at_rest(folder) as (database, checkpoints):
        found = find(database, checkpoints, work_older_s=None if work_older_days is None else work_older_days * 86400.0)
        if not dry_run:
            collect(database, checkpoints, found)
    verb, what = "would be" if dry_run else "were", f"{len(found.orphans)} files that no round names"
    typer.echo(f"{what} and {len(found.work)} of work {verb} removed: {found.bytes} bytes")


@app.command(cls=StateFirst)
def start(
    folder: Folder,
    fleet_port: Annotated[int | None, typer.Option(min=0, max=65535, help="Instead of the one of `init`.")] = None,
    control_port: Annotated[int | None, typer.Option(min=0, max=65535, help="Instead of the one of `init`.")] = None,
    verbose: Annotated[bool, typer.Option(help="Log more.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Log warnings only.")] = False,
    log_format: Annotated[str, typer.Option(help="text or json, from now on; default: that of server.json.")] = "",
    log_file: Annotated[str, typer.Option(help="Log there, rotated, from now on; default: standard error.")] = "",
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Answer Prometheus there on 127.0.0.1, from now on.")
    ] = None,
    traces: Annotated[
        str | None, typer.Option(help="otlp, or a file for spans of runs and rounds, from now on; '' for none.")
    ] = None,
    max_concurrent_runs: Annotated[
        int | None, typer.Option(min=1, max=64, help="Runs that work with nodes at a time, from now on.")
    ] = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C. Open runs go on where they were."""
    _check(folder)
    from confide_server.coordinator.process import Coordinator, changed, read_settings, write_settings
    from confide_server.telemetry.logs import configure

    level = logging.INFO if verbose else logging.WARNING
    private_process()
    given: dict[str, int | str | None] = {
        "fleet_port": fleet_port,
        "control_port": control_port,
        "metrics_port": metrics_port,
    }
    given |= {
        "log_format": log_format or None,
        "log_file": log_file or None,
        "max_concurrent_runs": max_concurrent_runs,
        "traces": traces,
    }
    chosen = {key: value for key, value in given.items() if value is not None}
    if chosen:
        write_settings(folder, changed(read_settings(folder), chosen))
    settings = read_settings(folder)
    configure(level, settings.log_format, path=Path(settings.log_file) if settings.log_file else None)
    if not quiet:
        logging.getLogger("confide_server").setLevel(logging.INFO)
    warn(folder)
    coordinator = Coordinator(folder)
    try:
        coordinator.start()
        metrics = f", metrics port {coordinator.metrics_port}" if coordinator.metrics_port else ""
        typer.echo(f"ready: fleet port {coordinator.fleet_port}, control port {coordinator.control_port}{metrics}")
        coordinator.run_until_signal()
        typer.echo("stopping; open runs go on at the next start")
    finally:
        coordinator.stop()


def _check(folder: Path) -> None:
    """Raise StateError where no coordinator was made: nothing is put into another folder, nor into a mistyped one."""
    if not (folder / "identity.key").exists():
        raise StateError(
            f"{folder} is no coordinator's folder; make one with `confide server init {folder} --address HOST`"
        )
