"""`confide consortium`: the root's machine. It makes rosters and certificates offline; publishing is separate.

confide consortium init consortium --name hospitals --control-address coordinator.example.org:9443
confide consortium admit request.json --out admission.json
confide consortium roster show
"""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from confide.errors import IdentityError
from confide.files import write_atomic
from confide.identity.certificates import MEMBER_DAYS
from confide.identity.consortium import ROSTER_DAYS, Consortium
from confide.identity.enrolment import accept_admission, make_request, read_admission, read_request
from confide.identity.member import load_member
from confide.identity.roster import Role, Roster
from confide.secrecy import private_files
from confide.transport.control import ControlClient
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    callback=private_files,
    no_args_is_help=True,
    help="The consortium's root: who is a member. Keep its folder offline.",
)
roster_app = typer.Typer(no_args_is_help=True, help="Show, publish or export the signed roster.")
app.add_typer(roster_app, name="roster")
console = Console()

Root = Annotated[Path, typer.Option("--folder", envvar="CONFIDE_CONSORTIUM", help="The root's folder, made by `init`.")]
Admin = Annotated[
    Path | None, typer.Option("--admin", envvar="CONFIDE_ADMIN", help="An administrator's folder: publish at once.")
]
AdminNeeded = Annotated[Path, typer.Option("--admin", envvar="CONFIDE_ADMIN", help="An administrator's folder.")]
Coordinator = Annotated[
    str, typer.Option("--coordinator", envvar="CONFIDE_COORDINATOR", help="host:port; default: from the admission.")
]
Days = Annotated[int, typer.Option(min=1, max=825, help="Days that the certificate holds.")]
RosterDays = Annotated[int, typer.Option(min=1, max=365, help="Days that the roster holds.")]
DEFAULT_ROOT = Path("consortium")


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where root.key and ca.key will lie; keep it offline.")],
    name: Annotated[str, typer.Option(help="The consortium's name: lower-case letters, digits, dashes.")],
    demo: Annotated[bool, typer.Option(help="For trying things out: production nodes refuse such a root.")] = False,
    control_address: Annotated[str, typer.Option(help="host:port of the coordinator's control service.")] = "",
    fleet_address: Annotated[str, typer.Option(help="host:port of the coordinator's fleet port.")] = "",
    admin: Annotated[Path | None, typer.Option(help="Also make an administrator, in this folder.")] = None,
    admin_name: Annotated[str, typer.Option(help="That administrator's name.")] = "administrator",
    roster_days: RosterDays = ROSTER_DAYS,
) -> None:
    """Make the root key, the certificate authority and the first roster."""
    made = Consortium.create(
        folder,
        name,
        demo=demo,
        control_address=control_address,
        fleet_address=fleet_address,
        roster_days=roster_days,
    )
    console.print(f"consortium {name} made in {folder}" + (" [red](demo: one trust domain)[/red]" if demo else ""))
    console.print("root public key, to be compared by telephone and pinned by every member:", soft_wrap=True)
    console.print(f"  {made.root.public.hex()}", soft_wrap=True)
    if admin is not None:
        admission = made.admit(make_request(admin, admin_name, Role.ADMINISTRATOR), roster_days=roster_days)
        accept_admission(admin, admission, time.time(), root=made.root.public.hex())
        console.print(f"administrator {admin_name} made in {admin}")


@app.command()
def admit(
    request: Annotated[Path, typer.Argument(help="request.json of the new member.")],
    out: Annotated[Path, typer.Option(help="Where the admission goes.")] = Path("admission.json"),
    key: Annotated[str, typer.Option(help="The identity key that the member told you; another one is refused.")] = "",
    folder: Root = DEFAULT_ROOT,
    admin: Admin = None,
    coordinator: Coordinator = "",
    days: Days = MEMBER_DAYS,
    roster_days: RosterDays = ROSTER_DAYS,
    group: Annotated[str, typer.Option(help="Of a node: with whose other nodes it is summed, for good.")] = "",
) -> None:
    """Take a member into the roster and certify its key."""
    consortium, data = Consortium.open(folder), _read(request)
    asked = read_request(data)
    if key and key.strip().lower() != asked.identity_key:
        raise IdentityError(f"{request} has the identity key {asked.identity_key}; {key} was expected. Not admitted.")
    admission = consortium.admit(data, days=days, roster_days=roster_days, group=group)
    _answered(consortium, admission, out, admin, coordinator)
    console.print(f"identity key: {asked.identity_key}  (compare it with {asked.name})", soft_wrap=True)


@app.command()
def renew(
    request: Annotated[
        Path | None, typer.Argument(help="A member's renewal request; without it only the roster.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the admission goes.")] = Path("admission.json"),
    folder: Root = DEFAULT_ROOT,
    admin: Admin = None,
    coordinator: Coordinator = "",
    days: Days = MEMBER_DAYS,
    roster_days: RosterDays = ROSTER_DAYS,
) -> None:
    """Certify a member's fresh TLS key, or (without a request) sign the roster again before it expires."""
    consortium = Consortium.open(folder)
    if request is not None:
        admission = consortium.renew(_read(request), days=days, roster_days=roster_days)
        _answered(consortium, admission, out, admin, coordinator)
        return
    roster = consortium.refresh(roster_days=roster_days)
    console.print(f"roster version {roster.version} holds until {_date(roster.expires_at)}")
    _publish(consortium, admin, coordinator)


@app.command()
def revoke(
    name: str,
    folder: Root = DEFAULT_ROOT,
    admin: Admin = None,
    coordinator: Coordinator = "",
    roster_days: RosterDays = ROSTER_DAYS,
) -> None:
    """Put a member out, for good. It takes effect wherever the new roster arrives: publish it."""
    consortium = Consortium.open(folder)
    roster = consortium.revoke(name, roster_days=roster_days)
    console.print(f"{name} is revoked in version {roster.version} of the roster")
    _publish(consortium, admin, coordinator)


@app.command()
def invite(
    name: str,
    out: Annotated[Path, typer.Option(help="Where the invitation goes: a secret, for this member only.")],
    folder: Root = DEFAULT_ROOT,
    hours: Annotated[float, typer.Option(min=0.1, max=720, help="Hours that it holds.")] = 48.0,
) -> None:
    """Make a one-time invitation, with which a new member can enrol by gRPC instead of by file."""
    write_atomic(out, Consortium.open(folder).invite(name, hours=hours))
    console.print(f"invitation for {name} written to {out}: hand it over as a secret, it holds {hours:g} hours")


@app.command()
def requests(
    admin: AdminNeeded,
    out: Annotated[Path | None, typer.Option(help="Save the requests into this folder.")] = None,
    coordinator: Coordinator = "",
) -> None:
    """Show (and save) the enrolment requests that wait at the coordinator."""
    with ControlClient.of_member(load_member(admin), coordinator) as client:
        waiting = client.pending_requests()
    table = Table("name", "role", "identity key", "asked", title=f"{len(waiting)} waiting")
    for data in waiting:
        asked = read_request(data)
        table.add_row(asked.name, asked.role.value, asked.identity_key, _date(asked.created_at))
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            write_atomic(out / f"{asked.name}.request.json", data)
    console.print(table)


@roster_app.command()
def show(folder: Root = DEFAULT_ROOT) -> None:
    """Print the members of the newest roster. Any member's folder will do too."""
    roster = _any_roster(folder)
    console.print(roster_table(roster))


@roster_app.command()
def publish(admin: AdminNeeded, folder: Root = DEFAULT_ROOT, coordinator: Coordinator = "") -> None:
    """Hand the newest roster to the coordinator."""
    _publish(Consortium.open(folder), admin, coordinator)


@roster_app.command()
def export(out: Path, folder: Root = DEFAULT_ROOT) -> None:
    """Write the newest signed roster to a file."""
    consortium = Consortium.open(folder)
    write_atomic(out, consortium.roster.signed, mode=0o644)
    console.print(f"roster version {consortium.roster.current.version} written to {out}")


def roster_table(roster: Roster) -> Table:
    """The members for a person to read; a demo root and an expired roster are marked."""
    title = f"{roster.consortium}, roster version {roster.version}, holds until {_date(roster.expires_at)}"
    if roster.expires_at <= time.time():
        title += " [red]EXPIRED[/red]"
    if roster.demo:
        title += " [red]DEMO[/red]"
    table = Table("name", "role", "group", "identity key", "admitted", "standing", title=title)
    for member in roster.members:
        standing = "member" if member.revoked_at is None else f"[red]revoked {_date(member.revoked_at)}[/red]"
        key, admitted = member.identity_key[:16], _date(member.admitted_at)
        table.add_row(member.name, member.role.value, member.group, key, admitted, standing)
    return table


def _any_roster(folder: Path) -> Roster:
    if (folder / "root.key").exists():
        return Consortium.open(folder).roster.current
    return load_member(folder).roster.current


def _answered(consortium: Consortium, admission: bytes, out: Path, admin: Path | None, coordinator: str) -> None:
    parsed, roster = read_admission(admission, time.time(), root=consortium.root.public.hex())
    write_atomic(out, admission, mode=0o644)
    name = parsed.membership.name
    console.print(f"{name} is a member in version {roster.version} of the roster; send it {out}")
    _publish(consortium, admin, coordinator, admission)


def _publish(consortium: Consortium, admin: Path | None, coordinator: str, admission: bytes = b"") -> None:
    version = consortium.roster.current.version
    if admin is None:
        console.print(f"to publish version {version}: confide consortium roster publish --admin FOLDER", soft_wrap=True)
        return
    with ControlClient.of_member(load_member(admin), coordinator) as client:
        client.publish_roster(consortium.roster.signed)
        if admission:
            client.publish_admission(admission)
        console.print(f"roster version {version} published to {client.address}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise IdentityError(f"cannot read {path}: {error.strerror}") from error


def _date(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M} UTC"
