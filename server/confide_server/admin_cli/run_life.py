"""`confide run show | pause | resume | priority | retry | clone | delete`: what people do with runs that are there."""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from confide.errors import SpecificationError
from confide.identity.submission import VALID_S
from confide.proto import admin_pb2 as pb
from confide.runs.specification import Specification, parse_canonical, parse_document, parse_toml
from confide.runs.toml_text import to_toml
from confide.text import paragraph
from confide.transport.admin import AdminClient
from google.protobuf.json_format import MessageToDict
from rich.table import Table

from confide_server.admin_cli.papers import load_member
from confide_server.admin_cli.progress_lines import duration
from confide_server.admin_cli.run_options import Admin, AsJson, Coordinator, Run, ValidDays, console, resolve
from confide_server.admin_cli.run_view import plain, sealing_markup

ENDED = ("finished", "finished_with_fewer", "failed", "stopped")
Named = Annotated[str, typer.Argument(help="Run id or its beginning.")]
Rounds = Annotated[int, typer.Option(min=0, help="Rounds of the new run; 0: as many as were left.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (show, cosign, pause, resume, priority, retry, clone, delete):
        app.command()(command)


def show(admin: Admin, run: Run = "", coordinator: Coordinator = "", as_json: AsJson = False) -> None:
    """Say how a run stands and how it went: for whom it waits, who took part in each round, what was spent."""
    with AdminClient.of_member(load_member(admin), coordinator) as client:
        run_id = resolve(client, run)
        detail, rounds = client.get_run(run_id), client.all_rounds(run_id)
    if as_json:
        said = MessageToDict(detail, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        said["rounds"] = [MessageToDict(one, preserving_proto_field_name=True) for one in rounds]
        typer.echo(json.dumps(said))
        return
    _print_line(detail)
    console.print(_rounds_table(rounds))
    for offer in detail.offers:
        if offer.answer != "accepted":
            answer = offer.answer or "has not answered"
            console.print(plain(f"{offer.node}: {answer}{f': {offer.reason}' if offer.reason else ''}"), soft_wrap=True)
    for spent in detail.spent:
        at_most = f", epsilon at most {spent.epsilon_spent_at_most:g} at delta {spent.delta:g}"
        slots = f"{spent.organization} spent {spent.spent_slots} of {spent.approved_slots} slots on {spent.group}"
        console.print(plain(slots + (at_most if spent.epsilon_spent_at_most else "")), soft_wrap=True)


def _print_line(detail: pb.RunDetail) -> None:
    run = detail.run
    console.print(plain(f"run {run.run_id}: {run.name}, {run.status}, round {run.round} of {run.rounds}"))
    console.print(f"sealing {sealing_markup(run.sealing)}, privacy {plain(detail.privacy.unit)}")
    for words, moment in (("submitted", run.submitted_at), ("started", run.started_at), ("ended", run.ended_at)):
        if moment:
            by = f" by {run.administrator}" if words == "submitted" else ""
            console.print(plain(f"{words} {_moment(moment)}{by}"))
    if run.parent_run_id:
        console.print(plain(f"began with the model of round {run.parent_round} of run {run.parent_run_id}"))
    if run.paused_by:
        reason = f": {run.pause_reason}" if run.pause_reason else ""
        console.print(plain(f"paused by {run.paused_by} since {_moment(run.paused_at)}{reason}"), soft_wrap=True)
    if run.waits_reason:
        since = duration(max(0.0, detail.clock - run.waiting_since))
        console.print(plain(f"{run.waits_reason} (for {since})"), soft_wrap=True)
    if run.detail and run.detail != run.waits_reason:
        console.print(plain(run.detail), soft_wrap=True)
    if detail.children:
        console.print(plain(f"goes on as {', '.join(detail.children)}"), soft_wrap=True)


def _rounds_table(rounds: list[pb.RoundLine]) -> Table:
    names = sorted({name for one in rounds for name in one.metrics})
    table = Table("round", "contributed", *names, "seconds", "dropped")
    for one in rounds:
        means = [f"{one.metrics[name].mean:.4f}" if name in one.metrics else "" for name in names]
        lost = [f"{part.organization}: {part.code}" for part in one.participation if part.state == "dropped"]
        table.add_row(
            str(one.round),
            f"{one.contributors}/{len(one.participation)}",
            *means,
            f"{one.seconds:.1f}",
            plain(", ".join(lost)),
        )
    return table


def cosign(
    run: Named,
    admin: Admin,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    coordinator: Coordinator = "",
) -> None:
    """Sign a run that another administrator submitted, where the roster's rules ask for two."""
    member = load_member(admin)
    with AdminClient.of_member(member, coordinator) as client:
        detail = client.get_run(resolve(client, run))
        specification = parse_canonical(detail.specification)  # what is shown is what is signed
        typer.echo(to_toml(specification))
        typer.echo(paragraph(detail.plan, 1 << 20))
        if not yes:
            typer.confirm(f"sign run {detail.run.run_id}, submitted by {detail.run.administrator}?", abort=True)
        line = client.cosign_run(detail, member.identity, member.roster.current)
    console.print(plain(f"run {line.run_id} is signed by {member.name} too: {line.status}"), soft_wrap=True)


def pause(
    run: Named,
    admin: Admin,
    reason: Annotated[str, typer.Option(help="Said to whoever looks at the run.")] = "",
    coordinator: Coordinator = "",
) -> None:
    """Let a run rest once its open round has ended: nothing that was computed is lost."""
    with AdminClient.of_member(load_member(admin), coordinator) as client:
        line = client.pause_run(resolve(client, run), reason)
    console.print(plain(f"run {line.run_id}: {line.detail}; `confide run resume` lets it go on"), soft_wrap=True)


def resume(run: Named, admin: Admin, coordinator: Coordinator = "") -> None:
    """Let a paused run go on where it was."""
    with AdminClient.of_member(load_member(admin), coordinator) as client:
        line = client.resume_run(resolve(client, run))
    console.print(plain(f"run {line.run_id} goes on after round {line.round}: {line.status}"))


def priority(
    run: Named,
    value: Annotated[int, typer.Argument(min=-100, max=100, help="Higher goes first; 0 is the usual one.")],
    admin: Admin,
    coordinator: Coordinator = "",
) -> None:
    """Say which run goes first where several want the same organizations."""
    with AdminClient.of_member(load_member(admin), coordinator) as client:
        line = client.set_priority(resolve(client, run), value)
    console.print(f"run {line.run_id} has the priority {line.priority}")


def retry(
    run: Named,
    admin: Admin,
    rounds: Rounds = 0,
    coordinator: Coordinator = "",
    valid_days: ValidDays = VALID_S / 86400,
) -> None:
    """Go on with a failed or stopped run from its last round, as a new run that names it.

    The organizations are asked again. An outer optimizer's momentum and learning-rate schedules begin anew.
    """
    with AdminClient.of_member(load_member(admin), coordinator) as client:
        detail = client.get_run(resolve(client, run))
        if detail.run.status not in ENDED:
            raise SpecificationError(f"run {detail.run.run_id[:8]} is {detail.run.status}; stop it first, or resume it")
        left = rounds or detail.run.rounds - detail.run.round
        if left < 1:
            raise SpecificationError(
                f"run {detail.run.run_id[:8]} has committed all its {detail.run.rounds} rounds; say how many more with "
                "--rounds"
            )
        _continue(client, admin, detail, _with_rounds(parse_canonical(detail.specification), left), None, valid_days)


def clone(
    run: Named,
    admin: Admin,
    specification: Annotated[
        Path | None, typer.Option("--specification", help="Another one; default: the run's own.", dir_okay=False)
    ] = None,
    round: Annotated[int | None, typer.Option(min=0, help="Whose model it begins with; default: the newest.")] = None,
    rounds: Rounds = 0,
    coordinator: Coordinator = "",
    valid_days: ValidDays = VALID_S / 86400,
) -> None:
    """Submit a new run that begins with the model of another one's round, and names it."""
    with AdminClient.of_member(load_member(admin), coordinator) as client:
        detail = client.get_run(resolve(client, run))
        wanted = parse_canonical(detail.specification) if specification is None else _read(specification)
        if rounds:
            wanted = _with_rounds(wanted, rounds)
        _continue(client, admin, detail, wanted, round, valid_days)


def _continue(
    client: AdminClient,
    admin: Path,
    detail: pb.RunDetail,
    specification: Specification,
    round: int | None,
    valid_days: float,
) -> None:
    number = detail.run.round if round is None else round
    page = client.list_checkpoints(detail.run.run_id, after=max(0, number - 1), from_first=number == 0, limit=1)
    found = page.checkpoints
    if not found or found[0].round != number:
        raise SpecificationError(f"run {detail.run.run_id[:8]} has no round {number}; it has {detail.run.round}")
    line = client.continue_run(
        specification,
        load_member(admin).identity,
        parent_run_id=detail.run.run_id,
        parent_round=number,
        model_sha256=bytes.fromhex(found[0].model_sha256),
        valid_s=int(valid_days * 86400),
    )
    begins = f"begins with the model of round {number} of run {detail.run.run_id[:8]}"
    console.print(plain(f"run {line.run_id} submitted: {line.name}, {line.rounds} rounds, {begins}"), soft_wrap=True)


def _with_rounds(specification: Specification, rounds: int) -> Specification:
    document: dict[str, Any] = specification.model_dump(mode="json")
    document["federation"]["rounds"] = rounds
    return parse_document(document, "the continued run")


def _read(path: Path) -> Specification:
    try:
        return parse_toml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise SpecificationError(f"cannot read the specification {path}: {error}") from error


def delete(
    run: Named,
    admin: Admin,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    coordinator: Coordinator = "",
) -> None:
    """Remove events, rounds and models of a run that has ended. The audit log and receipts stay."""
    with AdminClient.of_member(load_member(admin), coordinator) as client:
        run_id = resolve(client, run)
        if not yes:
            typer.confirm(f"remove everything of run {run_id}, its models too?", abort=True)
        client.delete_run(run_id)
    console.print(f"run {run_id} is deleted")


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
