"""`confide release`: a run's model under a name, signed by administrators, published, and rolled back.

confide release create support --run 1f2e --admin admin --notes "first for the wards"
confide release sign support 1 --admin admin
confide release publish support 1 --admin admin
"""

import json
from pathlib import Path
from typing import Annotated

import typer
from confide.errors import ModelError, StateError
from confide.proto import admin_pb2 as pb
from confide.text import paragraph, table
from confide.transport.admin import AdminClient, check_document
from google.protobuf.json_format import MessageToDict

from confide_server.admin_cli.papers import load_member
from confide_server.admin_cli.run_options import Admin, AsJson, Coordinator, console, resolve
from confide_server.admin_cli.run_view import plain
from confide_server.state.release_subject import FILE_NAME, AlignedModel, read_aligned

app = typer.Typer(no_args_is_help=True, help="Releases: name a run's model, sign, publish, roll back.")
Name = Annotated[str, typer.Argument(help="The release's name, for example support.")]
Number = Annotated[int, typer.Argument(min=1, help="Its number, as `confide release list` shows.")]


@app.command("list")
def list_releases(
    admin: Admin,
    name: Annotated[str, typer.Argument(help="Only of this name.")] = "",
    coordinator: Coordinator = "",
    as_json: AsJson = False,
) -> None:
    """Show releases, newest first; the published one is what a name stands for."""
    with AdminClient.of_member(load_member(admin), coordinator) as client:
        releases = list(client.list_releases(name, limit=200).releases)
    if as_json:
        for one in releases:
            typer.echo(json.dumps(MessageToDict(one, preserving_proto_field_name=True)))
        return
    shown = table("release", "status", "run", "round", "model", "signed by", "gate", keys={"run": 8, "model": 16})
    for one in releases:
        signed = ", ".join(signature.administrator for signature in one.signatures)
        model = one.model_sha256[:16]
        cells = (
            f"{one.name}/{one.number}", one.status, one.run_id[:8] or "aligned", str(one.round or ""), model, signed,
            one.gate.replace("_", " "),
        )  # fmt: skip
        shown.add_row(*map(plain, cells))
    console.print(shown)


@app.command()
def create(
    name: Name,
    admin: Admin,
    run: Annotated[str, typer.Option("--run", help="Run id or its beginning; default: the newest run.")] = "",
    round: Annotated[int, typer.Option(min=0, help="A committed round; 0 is the newest.")] = 0,
    aligned: Annotated[
        Path | None,
        typer.Option(help="In place of a run: a folder of `confide rlhf train` or `merge`.", file_okay=False),
    ] = None,
    notes: Annotated[str, typer.Option(help="What people should know of it; signed with it.")] = "",
    coordinator: Coordinator = "",
) -> None:
    """Name the model of a run's round, or one of `confide rlhf train`. It counts once administrators signed."""
    if aligned is not None and (run or round):
        raise typer.BadParameter("a release is of a run's round or of an aligned model; name one of the two")
    document, model = (None, None) if aligned is None else _aligned(aligned)
    with AdminClient.of_member(load_member(admin), coordinator) as client:
        if document is None:
            made = client.create_release(name, resolve(client, run), round, notes)
        else:
            made = client.create_aligned_release(name, document, notes)
    kind = "merged model" if model is not None and model.merged_sha256 else "adapter"
    what = f"round {made.round} of run {made.run_id}" if made.run_id else f"the {kind} {made.model_sha256}"
    console.print(plain(f"release {made.name}/{made.number}: {what}"), soft_wrap=True)
    console.print(plain(f"next: confide release sign {made.name} {made.number}"))


@app.command()
def sign(
    name: Name,
    number: Number,
    admin: Admin,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    coordinator: Coordinator = "",
) -> None:
    """Sign exactly the document that is shown."""
    member = load_member(admin)
    with AdminClient.of_member(member, coordinator) as client:
        release = _found(client, name, number)
        for key, value in check_document(release).items():
            typer.echo(f"{key:22} {paragraph(value)}")
        if not yes:
            typer.confirm("sign this?", abort=True)
        signed = client.sign_release(release, member.identity)
    console.print(
        plain(f"release {name}/{number} has {len(signed.signatures)} of {signed.signatures_needed} signatures")
    )


@app.command()
def attach(
    name: Name,
    number: Number,
    evidence: Annotated[
        Path, typer.Argument(help="evidence.json of `confide rlhf evaluate`.", exists=True, dir_okay=False)
    ],
    admin: Admin,
    signer: Annotated[str, typer.Option(help="Who signed it; default: the administrator who hands it over.")] = "",
    coordinator: Coordinator = "",
) -> None:
    """Hand over the gate's evidence for a release, where the consortium's rules ask for it."""
    with AdminClient.of_member(load_member(admin), coordinator) as client:
        told = client.attach_evidence(name, number, evidence.read_bytes(), signer=signer)
    console.print(plain(f"release {name}/{number}: evidence {told.evidence_sha256[:16]} of {told.evidence_by}"))


@app.command()
def override(
    name: Name,
    number: Number,
    reason: Annotated[str, typer.Option(help="Kept in the audit log for ever.")],
    admin: Admin,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    coordinator: Coordinator = "",
) -> None:
    """Sign that a release goes without the gate's evidence; two different administrators have to."""
    member = load_member(admin)
    with AdminClient.of_member(member, coordinator) as client:
        release = _found(client, name, number)
        for key, value in check_document(release).items():
            typer.echo(f"{key:22} {paragraph(value)}")
        if not yes:
            typer.confirm("let this model out without evidence that it passed the gate?", abort=True)
        told = client.override_gate(release, reason, member.identity)
    console.print(plain(f"release {name}/{number}: gate {told.gate}, overridden by {', '.join(told.overridden_by)}"))


@app.command()
def publish(name: Name, number: Number, admin: Admin, coordinator: Coordinator = "") -> None:
    """Let the name stand for this release; the one before is superseded."""
    with AdminClient.of_member(load_member(admin), coordinator) as client:
        client.publish_release(name, number)
    console.print(plain(f"{name} stands for release {number}"))


@app.command("roll-back")
def roll_back(
    name: Name,
    number: Number,
    admin: Admin,
    reason: Annotated[str, typer.Option(help="Kept in the audit log.")] = "",
    coordinator: Coordinator = "",
) -> None:
    """Let the name stand for an earlier release again; the published one is withdrawn for good."""
    with AdminClient.of_member(load_member(admin), coordinator) as client:
        client.roll_back_release(name, number, reason)
    console.print(plain(f"{name} stands for release {number} again"))


def _aligned(folder: Path) -> tuple[bytes, AlignedModel]:
    """The document of the folder's model. Raises ModelError when the model is another than it names."""
    from confide.models.adapter_hash import content_hash
    from confide.models.store import folder_digest

    path = folder / FILE_NAME
    if not path.is_file():
        raise ModelError(
            f"{folder} holds no {FILE_NAME}; name a folder of `confide rlhf train` or `confide rlhf merge`"
        )
    data = path.read_bytes()
    model = read_aligned(data)
    named, found = model.adapter_sha256, content_hash(folder / "adapter")
    if named != found:
        raise ModelError(f"{path} is of the adapter {named[:16]}, and {found[:16]} is there; train again")
    if model.merged_sha256 and model.merged_sha256 != (whole := folder_digest(folder)):
        raise ModelError(f"{path} is of the model {model.merged_sha256[:16]}, and {whole[:16]} is there; merge again")
    return data, model


def _found(client: AdminClient, name: str, number: int) -> pb.Release:
    cursor = ""
    while True:
        page = client.list_releases(name, limit=200, cursor=cursor)
        for release in page.releases:
            if release.number == number:
                return release
        cursor = page.next_cursor
        if not cursor:
            raise StateError(f"there is no release {name}/{number}; `confide release list` shows those there are")
