"""`confide console`: the administrators' web console. A process of its own beside the coordinator, or elsewhere.

confide console init console --name console        (once: keys and a request for the root, as every member)
confide console init console --admission admission.json
confide console start console
"""

import contextlib
import logging
import signal
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
from confide.errors import IdentityError, StateError
from confide.identity.enrolment import accept_admission, make_request
from confide.identity.member import load_member
from confide.identity.roster import Role
from confide.secrecy import private_files, private_process
from confide.state_option import StateFirst
from confide.text import log_to_stderr, paragraph

if TYPE_CHECKING:
    from confide_server.console.settings import Settings

app = typer.Typer(
    callback=private_files, no_args_is_help=True, help="The web console: watch and direct the federation in a browser."
)
CONNECTIONS = 512
"""Open at once; a quarter of them from one address, where that is not this machine itself (a tunnel, a proxy)."""
Folder = Annotated[
    Path, typer.Argument(help="The console's state folder; --state FOLDER says the same.", file_okay=False)
]


@app.command(cls=StateFirst)
def init(
    folder: Folder,
    name: Annotated[str, typer.Option(help="The console's name in the roster.")] = "console",
    admission: Annotated[Path | None, typer.Option(help="Second step: the consortium's answer, a file.")] = None,
    root: Annotated[str | None, typer.Option(help="The root's public key as you learned it elsewhere.")] = None,
) -> None:
    """Make keys and a request for the consortium's root; with --admission, take the root's answer."""
    if admission is not None:
        try:
            answer = admission.read_bytes()
        except OSError as error:
            raise IdentityError(f"cannot read the admission {admission}: {error.strerror}") from error
        member = accept_admission(folder, answer, time.time(), root=root)
        typer.echo(f"{member.name} is admitted to {member.membership.consortium}; next: confide console start {folder}")
        return
    make_request(folder, name, Role.CONSOLE)
    typer.echo(f"keys made in {folder}; request: {folder / 'request.json'}")
    typer.echo("next: have the root's administrator run `confide consortium admit request.json`, then")
    typer.echo(f"      confide console init {folder} --admission admission.json")


@app.command(cls=StateFirst)
def start(
    folder: Folder,
    bind: Annotated[str | None, typer.Option(help="IP address to listen on; any but loopback needs TLS.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0 takes a free one.")] = None,
    host: Annotated[list[str] | None, typer.Option(help="Name in browsers' address line; may be repeated.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="PEM certificate, for TLS.", dir_okay=False)] = None,
    key: Annotated[Path | None, typer.Option(help="Its private key.", dir_okay=False)] = None,
    coordinator: Annotated[str | None, typer.Option(help="host:port of the control service.")] = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C. Prints a one-time link while nobody has an account."""
    from confide_server.console.settings import read_settings, write_settings

    _check(folder)
    private_process()
    log_to_stderr(logging.WARNING, "%(asctime)s %(levelname)s %(name)s: %(message)s")
    changes = {
        "bind": bind, "port": port, "hosts": tuple(host) if host else None, "coordinator": coordinator,
        "certificate": None if certificate is None else str(certificate.resolve()),
        "key": None if key is None else str(key.resolve()),
    }  # fmt: skip
    settings = read_settings(folder).model_copy(update={name: new for name, new in changes.items() if new is not None})
    write_settings(folder, settings)
    serve(folder, settings)


@app.command("link", cls=StateFirst)
def link(folder: Folder) -> None:
    """Print a one-time link that makes another administrator: for when nobody can sign in any more."""
    from confide_server.console.accounts.limits import Limits
    from confide_server.console.accounts.people import People
    from confide_server.console.accounts.store import AccountStore
    from confide_server.console.roles import Role as Person
    from confide_server.console.settings import read_settings
    from confide_server.console.web.app import addresses

    _check(folder)
    settings = read_settings(folder)
    with contextlib.closing(AccountStore(folder / "console.db")) as store:
        handed = People(store, Limits(store)).invite(Person.ADMINISTRATOR)
    # A port that was taken by chance is known to whoever reads what `start` printed.
    address = addresses(settings, settings.port)[0] if settings.port else "under the console's address: "
    typer.echo(f"{address}/welcome?link={handed}")


@app.command("try-alerts", cls=StateFirst)
def try_alerts(folder: Folder) -> None:
    """Send a trial over each channel of `alerts` in console.json. Exit status 1 when one failed."""
    from confide_server.alerts.service import try_channels
    from confide_server.alerts.settings import Alerts
    from confide_server.console.federation.silence import names
    from confide_server.console.settings import read_settings

    settings, member = read_settings(folder), load_member(folder)
    results = try_channels(settings.alerts or Alerts(), names(member), member.name)
    for channel, why in results.items():
        typer.echo(f"{channel}: {paragraph(why) if why else 'sent'}")
    if any(results.values()):
        raise typer.Exit(1)


def serve(folder: Path, settings: "Settings") -> None:
    """Until a signal comes."""
    from confide.web.serving import configured, is_loopback, listening, tls_context

    from confide_server.bounded_http import BoundedServer
    from confide_server.console.federation.connection import Connection
    from confide_server.console.federation.silence import alerting
    from confide_server.console.web.app import Console
    from confide_server.quota import Quota, room_for

    member = load_member(folder)
    tls = tls_context(Path(settings.certificate), Path(settings.key)) if settings.certificate else None
    with contextlib.ExitStack() as opened:
        listener = opened.enter_context(listening(settings.bind, settings.port))
        connection = opened.enter_context(contextlib.closing(Connection(member, settings.coordinator)))
        console = Console(
            folder, settings, connection, issuer=f"Confide {member.membership.consortium}",
            port=listener.getsockname()[1],
        )  # fmt: skip
        opened.callback(console.close)
        if settings.alerts is not None:
            alerts = alerting(folder, settings.alerts, connection, member)
            alerts.start()
            opened.callback(alerts.stop)
        typer.echo(f"ready: {console.address}")
        first = console.first_link()
        if first:
            typer.echo(f"make the first administrator's account, once, within 15 minutes: {first}")
        config = configured(console.app())
        room = room_for(CONNECTIONS)
        web = BoundedServer(config, Quota(most=room, of_one_address=room if is_loopback(settings.bind) else room // 4))
        if tls is not None:
            config.load()
            config.ssl = tls

        def on_signal(number: int, frame: FrameType | None) -> None:
            web.should_exit = True

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, on_signal)
        web.run(sockets=[listener])


def _check(folder: Path) -> None:
    """Raise StateError where no console was made: nothing is put into another folder, nor into a mistyped one."""
    if not (folder / "identity.key").exists():
        raise StateError(f"{folder} is no console's folder; make one with `confide console init {folder}`")
