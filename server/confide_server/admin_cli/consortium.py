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
from confide.identity.consortium import ROSTER_DAYS, Consortium, approve_revocation, has_root
from confide.identity.enrolment import accept_admission, make_request, read_admission, read_request
from confide.identity.expiry import roster_notices
from confide.identity.member import read_text
from confide.identity.roster import GateRule, Role, Roster, RosterStore, Rules, verify_roster
from confide.secrecy import private_files
from confide.text import table
from confide.transport.admin import AdminClient
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from confide_server.admin_cli import start_kit as kits
from confide_server.admin_cli.papers import load_member, say
from confide_server.admin_cli.root_keys import (
    NoPassphrase,
    PassphraseFile,
    TokenLabel,
    TokenModule,
    new_passphrase,
    open_root,
    token_place,
)

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
Hours = Annotated[float, typer.Option(min=0.1, max=720, help="Hours that an invitation holds.")]
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
    passphrase_file: PassphraseFile = None,
    no_passphrase: NoPassphrase = False,
    token: TokenLabel = "",
    module: TokenModule = None,
) -> None:
    """Make the root key, the certificate authority and the first roster; keys under a passphrase, or in a token."""
    place = token_place(token, module)
    made = Consortium.create(
        folder,
        name,
        demo=demo,
        control_address=control_address,
        fleet_address=fleet_address,
        roster_days=roster_days,
        passphrase=new_passphrase(passphrase_file, demo=demo, none=no_passphrase, pin_of=place),
        token=place,
    )
    console.print(f"consortium {name} made in {folder}" + (" [red](demo: one trust domain)[/red]" if demo else ""))
    console.print("root public key, to be compared by telephone and pinned by every member:", soft_wrap=True)
    console.print(f"  {made.root.public.hex()}", soft_wrap=True)
    if admin is not None:
        admission = made.admit(make_request(admin, admin_name, Role.ADMINISTRATOR), roster_days=roster_days)
        accept_admission(admin, admission, time.time(), root=made.root.public.hex())
        console.print(f"administrator {admin_name} made in {admin}")


@app.command("start-kit")
def start_kit(
    folder: Annotated[Path, typer.Argument(help="New folder: root, administrator, coordinator and kits.")],
    name: Annotated[str, typer.Option(help="The consortium's name: lower-case letters, digits, dashes.")],
    organization: Annotated[list[str], typer.Option(help="An organization's name; once for each.")],
    address: Annotated[str, typer.Option(help="Host name or IP address of the coordinator.")] = "127.0.0.1",
    fleet_port: Annotated[int, typer.Option(min=1, max=65535, help="Nodes connect here.")] = 9442,
    control_port: Annotated[int, typer.Option(min=1, max=65535, help="Control service (gRPC, mTLS).")] = 9443,
    demo: Annotated[bool, typer.Option(help="For trying things out: production nodes refuse such a root.")] = False,
    method: Annotated[list[str] | None, typer.Option(help="Proposed for the policies; may be repeated.")] = None,
    data: Annotated[str, typer.Option(help="Proposed for the policies: the data set's name.")] = "records",
    privacy: Annotated[
        list[str] | None, typer.Option(help="Proposed units of privacy; `none` allows runs without.")
    ] = None,
    hours: Hours = 168.0,
    passphrase_file: PassphraseFile = None,
    no_passphrase: NoPassphrase = False,
    token: TokenLabel = "",
    module: TokenModule = None,
) -> None:
    """Make a consortium with its administrator and coordinator, and one file for each organization to join with."""
    place = token_place(token, module)
    policy = kits.proposal(methods=method, data=data, privacy=privacy, organizations=len(organization))
    made = kits.make(
        kits.Plan(
            folder=folder,
            name=name,
            organizations=tuple(organization),
            address=address,
            fleet_port=fleet_port,
            control_port=control_port,
            demo=demo,
            passphrase=new_passphrase(passphrase_file, demo=demo, none=no_passphrase, pin_of=place),
            token=place,
            hours=hours,
            policy=policy,
        )
    )
    console.print(f"root public key: {made.root.public.hex()}", soft_wrap=True, highlight=False)
    for line in kits.next_steps(folder, organization, demo=demo, hours=hours):
        console.print(line, soft_wrap=True, highlight=False)


@app.command()
def admit(
    request: Annotated[Path | None, typer.Argument(help="request.json of the new member.")] = None,
    out: Annotated[Path, typer.Option(help="Where the admission goes.")] = Path("admission.json"),
    waiting: Annotated[
        bool,
        typer.Option("--waiting", help="Everyone who waits at the coordinator and proves an invitation."),
    ] = False,
    wait: Annotated[float, typer.Option(min=0, help="With --waiting: seconds to wait for all who were invited.")] = 0.0,
    key: Annotated[str, typer.Option(help="The identity key that the member told you; another one is refused.")] = "",
    folder: Root = DEFAULT_ROOT,
    admin: Admin = None,
    coordinator: Coordinator = "",
    days: Days = MEMBER_DAYS,
    roster_days: RosterDays = ROSTER_DAYS,
    group: Annotated[str, typer.Option(help="Of a node: with whose other nodes it is summed, for good.")] = "",
    passphrase_file: PassphraseFile = None,
    block: Annotated[
        str, typer.Option(help="Of a node: within its group, without whose other nodes it is never summed, for good.")
    ] = "",
) -> None:
    """Take a member into the roster and certify its key."""
    if waiting:
        _admit_waiting(open_root(folder, passphrase_file), admin, coordinator, wait, days=days, roster_days=roster_days)
        return
    if request is None:
        raise IdentityError("give a request's file, or --waiting for those that wait at the coordinator")
    consortium, data = open_root(folder, passphrase_file), _read(request)
    asked = read_request(data)
    if key and key.strip().lower() != asked.identity_key:
        raise IdentityError(f"{request} has the identity key {asked.identity_key}; {key} was expected. Not admitted.")
    admission = consortium.admit(data, days=days, roster_days=roster_days, group=group, block=block)
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
    passphrase_file: PassphraseFile = None,
) -> None:
    """Certify a member's fresh TLS key, or (without a request) sign the roster again before it expires."""
    consortium = open_root(folder, passphrase_file)
    if request is not None:
        admission = consortium.renew(_read(request), days=days, roster_days=roster_days)
        _answered(consortium, admission, out, admin, coordinator)
        return
    roster = consortium.refresh(roster_days=roster_days)
    console.print(f"roster version {roster.version} holds until {_date(roster.expires_at)}")
    _publish(consortium, admin, coordinator)


@app.command()
def rules(
    submission: Annotated[int, typer.Option(min=1, max=2, help="Administrators who sign a run.")] = 1,
    release: Annotated[int, typer.Option(min=1, max=2, help="Administrators who sign a release.")] = 1,
    revocation: Annotated[int, typer.Option(min=1, max=2, help="2: two administrators approve a revocation.")] = 1,
    release_gate: Annotated[
        GateRule | None,
        typer.Option(help="Releases that need the gate's evidence: off, aligned, required; default: as it is."),
    ] = None,
    folder: Root = DEFAULT_ROOT,
    admin: Admin = None,
    coordinator: Coordinator = "",
    roster_days: RosterDays = ROSTER_DAYS,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Say how many different administrators have to sign what, which nodes check of runs; and who passes the gate."""
    consortium = open_root(folder, passphrase_file)
    gate = release_gate or consortium.roster.current.rules.release_gate
    wanted = Rules(submission=submission, release=release, revocation=revocation, release_gate=gate)
    roster = consortium.set_rules(wanted, roster_days=roster_days)
    console.print(f"version {roster.version} of the roster asks for {submission} for a run, {release} for a release, ")
    console.print(f"{revocation} for a revocation; the gate before a release: {gate.value}")
    _publish(consortium, admin, coordinator)


@app.command("approve-revocation")
def approve(
    name: str,
    admin: AdminNeeded,
    out: Annotated[Path, typer.Option(help="Where the approval goes, for the root.", dir_okay=False)],
) -> None:
    """Say as an administrator that a member is to be revoked, where the roster's rules ask for two."""
    member = load_member(admin)
    roster = member.roster.current
    roster.member(name)
    write_atomic(out, approve_revocation(member.identity, member.name, name, roster))
    console.print(
        f"{member.name} approves the revocation of {name} under version {roster.version}: {out}", soft_wrap=True
    )


@app.command()
def revoke(
    name: str,
    approval: Annotated[
        list[Path] | None, typer.Option(help="An administrator's `approve-revocation`; once for each.")
    ] = None,
    folder: Root = DEFAULT_ROOT,
    admin: Admin = None,
    coordinator: Coordinator = "",
    roster_days: RosterDays = ROSTER_DAYS,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Put a member out, for good. It takes effect wherever the new roster arrives: publish it."""
    consortium = open_root(folder, passphrase_file)
    roster = consortium.revoke(name, roster_days=roster_days, approvals=[_read(path) for path in approval or ()])
    console.print(f"{name} is revoked in version {roster.version} of the roster")
    _publish(consortium, admin, coordinator)


@app.command()
def invite(
    name: str,
    out: Annotated[Path, typer.Option(help="Where the invitation goes: a secret, for this member only.")],
    folder: Root = DEFAULT_ROOT,
    hours: Hours = 48.0,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make a one-time invitation, with which a new member can enrol by gRPC instead of by file."""
    write_atomic(out, open_root(folder, passphrase_file).invite(name, hours=hours).to_bytes())
    console.print(f"invitation for {name} written to {out}: hand it over as a secret, it holds {hours:g} hours")


@app.command()
def requests(
    admin: AdminNeeded,
    out: Annotated[Path | None, typer.Option(help="Save the requests into this folder.")] = None,
    coordinator: Coordinator = "",
) -> None:
    """Show (and save) the enrolment requests that wait at the coordinator."""
    with AdminClient.of_member(load_member(admin), coordinator) as client:
        waiting = [line.request for line in client.all_enrolments()]
    shown = table("name", "role", "identity key", "asked", title=f"{len(waiting)} waiting")
    for data in waiting:
        asked = read_request(data)
        shown.add_row(asked.name, asked.role.value, asked.identity_key, _date(asked.created_at))
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            write_atomic(out / f"{asked.name}.request.json", data)
    console.print(shown)


@roster_app.command()
def show(folder: Root = DEFAULT_ROOT) -> None:
    """Print the members of the newest roster. Any member's folder will do too."""
    roster = _any_roster(folder)
    console.print(roster_table(roster))
    if has_root(folder):
        say(roster_notices(roster, time.time()))


@roster_app.command()
def publish(
    admin: AdminNeeded,
    file: Annotated[
        Path | None, typer.Argument(help="A roster that `export` wrote: the root's folder stays where it is.")
    ] = None,
    folder: Root = DEFAULT_ROOT,
    coordinator: Coordinator = "",
) -> None:
    """Hand a signed roster to the coordinator. Needs no key of the root."""
    signed = _read(file) if file is not None else _signed_roster(folder).signed
    member = load_member(admin)
    version = verify_roster(signed, member.root_public, time.time()).version
    with AdminClient.of_member(member, coordinator) as client:
        client.publish(signed)
        console.print(f"roster version {version} published to {client.address}")


@roster_app.command()
def export(out: Path, folder: Root = DEFAULT_ROOT) -> None:
    """Write the newest signed roster to a file, for `publish` on a machine that is not the root's."""
    roster = _signed_roster(folder)
    write_atomic(out, roster.signed, mode=0o644)
    console.print(f"roster version {roster.current.version} written to {out}")


def roster_table(roster: Roster) -> Table:
    """The members for a person to read; a demo root and an expired roster are marked."""
    title = f"{roster.consortium}, roster version {roster.version}, holds until {_date(roster.expires_at)}"
    if roster.expires_at <= time.time():
        title += " [red]EXPIRED[/red]"
    if roster.demo:
        title += " [red]DEMO[/red]"
    shown = table(
        "name", "role", "group", "block", "identity key", "admitted", "standing", keys={"identity key": 16}, title=title
    )
    for member in roster.members:
        standing = "member" if member.revoked_at is None else f"[red]revoked {_date(member.revoked_at)}[/red]"
        key, admitted = member.identity_key[:16], _date(member.admitted_at)
        shown.add_row(member.name, member.role.value, member.group, member.block, key, admitted, standing)
    return shown


def _any_roster(folder: Path) -> Roster:
    if has_root(folder):
        return _signed_roster(folder).current
    return load_member(folder).roster.current


def _signed_roster(folder: Path) -> RosterStore:
    """The root's newest roster, by its public key alone."""
    return RosterStore(folder / "roster.json", bytes.fromhex(read_text(folder / "root.pub")))


def _admit_waiting(
    consortium: Consortium, admin: Path | None, coordinator: str, wait_s: float, *, days: int, roster_days: int
) -> None:
    """Admit whoever proves its invitation; name the others. Raises IdentityError when nobody could be."""
    if admin is None:
        raise IdentityError("--waiting asks the coordinator, as an administrator: give --admin FOLDER")
    deadline, admitted, refused = time.monotonic() + wait_s, 0, set[bytes]()
    while True:
        with AdminClient.of_member(load_member(admin), coordinator) as client:
            for data in [line.request for line in client.all_enrolments()]:
                if data in refused:
                    continue
                if _admit_proven(consortium, client, data, days=days, roster_days=roster_days):
                    admitted += 1
                else:
                    refused.add(data)
        away = consortium.invited()
        if not away or time.monotonic() > deadline:
            break
        time.sleep(1.0)
    if away:
        console.print(f"invited and not here yet: {', '.join(away)}", soft_wrap=True)
    if not admitted:
        raise IdentityError("nobody was admitted: no request with a valid invitation waits at the coordinator")


def _admit_proven(consortium: Consortium, client: AdminClient, data: bytes, *, days: int, roster_days: int) -> bool:
    try:
        asked = consortium.check_invited(data)
        admission = consortium.admit(data, days=days, roster_days=roster_days)
    except IdentityError as error:
        console.print(f"[red]not admitted:[/red] {escape(str(error))}", soft_wrap=True)
        return False
    client.publish(consortium.roster.signed)
    client.admit_member(admission)
    console.print(f"{asked.name} is admitted: it holds the key of its invitation", soft_wrap=True)
    return True


def _answered(consortium: Consortium, admission: bytes, out: Path, admin: Path | None, coordinator: str) -> None:
    parsed, roster = read_admission(admission, time.time(), root=consortium.root.public.hex())
    write_atomic(out, admission)
    name = parsed.membership.name
    console.print(f"{name} is a member in version {roster.version} of the roster; send it {out}")
    _publish(consortium, admin, coordinator, admission)


def _publish(consortium: Consortium, admin: Path | None, coordinator: str, admission: bytes = b"") -> None:
    version = consortium.roster.current.version
    if admin is None:
        console.print(f"to publish version {version}: confide consortium roster publish --admin FOLDER", soft_wrap=True)
        return
    with AdminClient.of_member(load_member(admin), coordinator) as client:
        client.publish(consortium.roster.signed)
        if admission:
            client.admit_member(admission)
        console.print(f"roster version {version} published to {client.address}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise IdentityError(f"cannot read {path}: {error.strerror}") from error


def _date(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M} UTC"
