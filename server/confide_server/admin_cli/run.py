"""`confide run`: an administrator plans, submits, watches, stops and exports runs.

confide run submit spec.toml --admin admin --model-folder models/smollm2 --watch
confide run export adapter --admin admin --model-folder models/smollm2
"""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from confide import canonical
from confide.errors import ConfideError, IdentityError, ModelError, SpecificationError
from confide.identity.enrolment import NEXT_TLS_KEY, accept_admission, make_renewal, make_request
from confide.identity.roster import Role
from confide.identity.submission import VALID_S
from confide.runs.specification import Specification, parse_toml
from confide.sealing.differences import check_named, differences_kind
from confide.text import table
from confide.transport.admin import AdminClient
from rich.padding import Padding

from confide_server.admin_cli import run_life
from confide_server.admin_cli.papers import load_member
from confide_server.admin_cli.run_options import (
    Admin,
    AsJson,
    Coordinator,
    ModelFolder,
    Run,
    ValidDays,
    console,
    resolve,
)
from confide_server.admin_cli.run_view import ACCEPTED, plain, sealing_markup
from confide_server.admin_cli.run_watch import watch_run

if TYPE_CHECKING:
    from confide.codec.tensors import TensorSchema

NARROW = 80
"""Columns of a terminal below which a list is no table: an id stays whole, and so does what is said of it."""
app = typer.Typer(no_args_is_help=True, help="Runs: plan, submit, watch, pause, stop, continue, export.")


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where the keys will lie (0700).")],
    name: Annotated[str, typer.Option(help="The name in the roster; default: the role's.")] = "",
    role: Annotated[
        str, typer.Option(help="administrator, operator, auditor, annotator or console (docs/admin-api.md).")
    ] = Role.ADMINISTRATOR.value,
) -> None:
    """Make a person's keys and request.json, which the consortium's root admits with this role."""
    if role in (Role.NODE, Role.COORDINATOR):
        raise IdentityError(f"a {role} is made with `confide {'server' if role == Role.COORDINATOR else role} init`")
    make_request(folder, name or role, role)
    console.print(f"keys made in {folder}; have the root admit {folder / 'request.json'}", soft_wrap=True)


@app.command()
def accept(
    folder: Annotated[Path, typer.Argument(help="The administrator's folder.")],
    admission: Annotated[Path, typer.Argument(help="admission.json from the root.")],
    root: Annotated[
        str, typer.Option(help="The root's public key (hex), as told to you; another one is refused.")
    ] = "",
) -> None:
    """Take the root's admission."""
    try:
        data = admission.read_bytes()
    except OSError as error:
        raise IdentityError(f"cannot read {admission}: {error.strerror}") from error
    member = accept_admission(folder, data, time.time(), root=root or None)
    console.print(f"{member.name} is {member.membership.role.value} of {member.membership.consortium}")
    console.print(f"root public key: {member.membership.root_public}", soft_wrap=True)


@app.command()
def renew(
    folder: Annotated[Path, typer.Argument(help="The administrator's folder.")], coordinator: Coordinator = ""
) -> None:
    """Renew the administrator's certificate: the same command asks first, and fetches the answer later.

    With an expired certificate only the request is made: it then goes to the root as a file, and `accept` takes the
    answer.
    """
    if not (folder / NEXT_TLS_KEY).exists():
        make_renewal(folder)
    member = load_member(folder)
    with AdminClient.of_member(member, coordinator) as client:
        client.enrol((folder / "request.json").read_bytes())
        admission = client.fetch_admission()
    if admission is None:
        console.print("the request is with the coordinator; run the same command again when the root has answered")
        return
    renewed = accept_admission(folder, admission, time.time())
    console.print(f"the certificate of {renewed.name} is renewed until {renewed.claim.expires_on}")


@app.command()
def new(
    out: Annotated[Path, typer.Argument(help="The TOML file to write.", dir_okay=False)],
    recipe: Annotated[str, typer.Option(help="What the run is to do; `--recipe help` lists them.")] = "fine-tune",
    model_folder: Annotated[
        Path | None, typer.Option("--model-folder", help="The base model: its hash and layers go into the file.")
    ] = None,
    data: Annotated[str, typer.Option(help="The data set's name on the nodes.")] = "records",
    rounds: Annotated[int | None, typer.Option(min=1, help="In place of the recipe's.")] = None,
) -> None:
    """Write a commented specification to start from."""
    from confide.runs.starting_points import STARTING_POINTS, write

    if recipe == "help":
        for name, (about, _) in STARTING_POINTS.items():
            typer.echo(f"{name:20} {about}")
        return
    if out.exists():
        raise SpecificationError(f"{out} is there already; choose another name, or remove it")
    changes: dict[str, dict[str, Any]] = {"federation": {} if rounds is None else {"rounds": rounds}}
    sha256 = "0" * 64
    if model_folder is not None:
        sha256 = _describe_base(model_folder, recipe, changes)
    out.write_text(write(recipe, sha256=sha256, data=data, changes=changes), encoding="utf-8")
    missing = "" if model_folder is not None else " (put the base model's hash into model.sha256)"
    typer.echo(f"wrote {out}{missing}; next: confide run plan {out}")


def _describe_base(folder: Path, recipe: str, changes: dict[str, dict[str, Any]]) -> str:
    """The base's hash; what its configuration says goes into `changes`."""
    from confide.models.architecture import load_config
    from confide.models.store import folder_digest

    if not folder.is_dir():
        raise ModelError(f"{folder} is no folder; give a model in transformers' format")
    config = load_config(folder)
    changes["model"] = {"dtype": "bfloat16" if "bfloat16" in str(config.dtype) else "float32"}
    layers = int(getattr(config, "num_hidden_layers", 0))
    if recipe.startswith("fine-tune") and layers > 8:
        # The last 40 % of the layers: nearly as good as all of them, and what an ordinary processor trains in minutes.
        changes["adapter"] = {"first_layer": layers - round(0.4 * layers)}
    return folder_digest(folder)


@app.command()
def plan(
    specification: Path,
    nodes: Annotated[int, typer.Option(min=1, max=10_000, help="How many organizations are expected.")] = 4,
    groups: Annotated[int, typer.Option(min=1, help="Of the roster; each opens a sum of its own.")] = 1,
    model_folder: Annotated[
        Path | None, typer.Option("--model-folder", help="The base model: traffic, memory and time depend on it.")
    ] = None,
    admin: Annotated[
        Path | None, typer.Option(help="Administrator's folder: the nodes are checked against its newest roster.")
    ] = None,
) -> None:
    """Say in words and numbers what a run will do, and what it protects."""
    from confide.planning.run_plan import render

    parsed = _specification(specification)
    if admin is not None:
        check_named(parsed, load_member(admin).roster.current)
    if model_folder is not None:
        _check_base(parsed, model_folder)
    typer.echo(render(parsed, nodes=nodes, base=model_folder, groups=groups))
    _warn_differences(parsed)
    if model_folder is not None and parsed.trains_model and not parsed.asks_feedback:
        typer.echo(_measured_here(parsed, model_folder))


def _warn_differences(specification: Specification) -> None:
    if differences_kind(specification) == "accepted" and specification.sealed:
        console.print(f"differences of sums {ACCEPTED}", soft_wrap=True)


def _measured_here(specification: Specification, base: Path) -> str:
    """What a round takes this machine, and which deadline follows from that."""
    from confide.planning.timing import time_base
    from confide.runs.deadline import FLOOR_S

    federation = specification.federation
    try:
        measured = time_base(specification, base)
    except ConfideError as error:
        return f"a round cannot be timed on this machine: {error}"
    said = (
        f"measured on this machine: a round takes about {measured.round_s(specification, 0):.3g} s for records of "
        f"{specification.method.max_length} tokens, and {measured.evaluation_s:.3g} s more for each evaluation record"
    )
    if federation.step_deadline_s is not None:
        return f"{said}; every node has {federation.step_deadline_s:g} s"
    return (
        f"{said}; a node has {federation.deadline_factor:g} times what the slowest measures for itself, at least "
        f"{FLOOR_S:g} s and time for the traffic, at most {federation.longest_deadline_s:g} s"
    )


@app.command()
def submit(
    specification: Path,
    admin: Admin,
    model_folder: ModelFolder = None,
    coordinator: Coordinator = "",
    watch: Annotated[bool, typer.Option("--watch", help="Go on watching it.")] = False,
    from_run: Annotated[
        str, typer.Option("--from", help="Begin with the newest model of this run (id or its beginning).")
    ] = "",
    valid_days: ValidDays = VALID_S / 86400,
) -> None:
    """Sign a specification with its first model, a run id and an expiry, and submit it."""
    member, parsed = load_member(admin), _specification(specification)
    check_named(parsed, member.roster.current)
    initial, schema = _initial_model(parsed, model_folder)
    with AdminClient.of_member(member, coordinator) as client:
        if from_run:
            opinion = bytes(4 * parsed.feedback.numbers) if parsed.judges_pairs else b""
            initial = _model_of(client, from_run, len(initial) - len(opinion)) + opinion
        run_id = client.submit_run(parsed, initial, member.identity, schema, valid_s=int(valid_days * 86400))
        console.print(f"run {run_id} submitted: {parsed.name}, specification {parsed.digest[:16]}", soft_wrap=True)
        console.print(f"sealing {sealing_markup(parsed.sealing.kind.value)}")
        _warn_differences(parsed)
        if watch:
            watch_run(client, run_id, as_json=False)


@app.command("list")
def list_runs(
    admin: Admin,
    coordinator: Coordinator = "",
    as_json: AsJson = False,
    deleted: Annotated[bool, typer.Option("--deleted", help="What is left of deleted runs: who, and when.")] = False,
) -> None:
    """Show the coordinator's runs, newest first."""
    with AdminClient.of_member(load_member(admin), coordinator) as client:
        runs = list(client.all_runs(statuses=["deleted"] if deleted else ()))
    if as_json:
        fields = ["run_id", "name", "status", "round", "rounds", "sealing", "detail", "submitted_at"]
        fields += ["deleted_by", "deleted_at"] if deleted else []
        for run in runs:
            typer.echo(json.dumps({name: getattr(run, name) for name in fields}))
        return
    narrow = console.width < NARROW
    shown = table("run", "name", "status", "round", "sealing", "detail", keys={"run": 32})
    for run in runs:
        cells = (
            plain(run.name),
            plain(run.status),
            f"{run.round}/{run.rounds}",
            sealing_markup(run.sealing),
            plain(run.detail),
        )
        shown.add_row(plain(run.run_id), *cells)
        if narrow:
            console.print(plain(run.run_id), soft_wrap=True)
            console.print(Padding(", ".join(filter(None, cells)), (0, 0, 0, 2)))
    if not narrow:
        console.print(shown)


@app.command()
def watch(admin: Admin, run: Run = "", coordinator: Coordinator = "", as_json: AsJson = False) -> None:
    """Watch a run from its beginning until it ends, over restarts of the coordinator.

    Exit status 1 when it failed, 3 when it was stopped, 4 when the coordinator could not be reached any more.
    """
    with AdminClient.of_member(load_member(admin), coordinator) as client:
        watch_run(client, resolve(client, run), as_json=as_json)


@app.command()
def stop(
    run: Annotated[str, typer.Argument(help="Run id or its beginning.")], admin: Admin, coordinator: Coordinator = ""
) -> None:
    """End a run for good: its open round is given up, and the nodes are told. `pause` only lets it rest."""
    member = load_member(admin)
    with AdminClient.of_member(member, coordinator) as client:
        run_id = resolve(client, run)
        client.order_stop(run_id, member.identity)
    console.print(f"run {run_id} is told to stop")


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="Folder to write, new or empty.")],
    admin: Admin,
    model_folder: ModelFolder = None,
    run: Annotated[str, typer.Option(help="Run id or its beginning; default: the newest run.")] = "",
    round: Annotated[int, typer.Option(min=0, help="A committed round; 0 is the newest.")] = 0,
    merged: Annotated[bool, typer.Option("--merged", help="A whole model instead of an adapter.")] = False,
    gguf: Annotated[
        bool, typer.Option("--gguf", help="A whole model, and model.gguf beside it for llama.cpp and Ollama.")
    ] = False,
    base_name: Annotated[
        str, typer.Option(help="The base model's hub id for an adapter that is passed on; default: its folder's path.")
    ] = "",
    coordinator: Coordinator = "",
) -> None:
    """Write a run's adapter (PEFT's format), merged model or tokenizer, with its manifest."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ModelError(f"{out} is no empty folder; choose another one")
    with AdminClient.of_member(load_member(admin), coordinator) as client:
        manifest, model = client.export_run(resolve(client, run), round or None)
    write_export(out, manifest, model, model_folder, merged=merged, gguf=gguf, base_name=base_name or None)
    console.print(plain(f"round {manifest['round']} of run {manifest['run_id']} written to {out}"), soft_wrap=True)


def write_export(
    out: Path,
    manifest: dict[str, Any],
    model: bytes,
    model_folder: Path | None,
    *,
    merged: bool,
    gguf: bool = False,
    base_name: str | None = None,
) -> None:
    """Check a received checkpoint against its manifest, and write it. Raises ModelError when they do not agree."""
    from confide.codec.tensors import model_digest
    from confide.models import export
    from confide.models.store import folder_digest, require_base
    from confide.models.trainable import schema_of
    from confide.tokenizer.export import write_tokenizer_export

    specification = _from_manifest(manifest)
    if model_digest(model).hex() != manifest.get("model_sha256"):
        raise ModelError("the received model does not have the hash that its manifest names; export it again")
    if not specification.trains_model:
        write_tokenizer_export(out, model, manifest, specification)
        return
    base = require_base(specification, model_folder)
    found = folder_digest(base)
    if found != specification.model.sha256:
        raise ModelError(f"{base} has the hash {found}; the run's base model is {specification.model.sha256}")
    schema = schema_of(specification, base)
    tensors = schema.unflatten(schema.decode(model))
    if merged or gguf:
        export.write_merged(out, tensors, manifest, specification, base, gguf=gguf)
    else:
        export.write_export(out, tensors, manifest, specification, base, base_name=base_name)


def _from_manifest(manifest: dict[str, Any]) -> Specification:
    from confide.runs.specification import parse_canonical

    specification = parse_canonical(canonical.encode(manifest.get("specification")), "the manifest's specification")
    if specification.digest != manifest.get("specification_sha256"):
        raise ModelError("the manifest's specification does not have the hash that the manifest names")
    return specification


def _initial_model(specification: Specification, model_folder: Path | None) -> "tuple[bytes, TensorSchema]":
    from confide.methods.first_model import first_model
    from confide.models.store import require_base

    if specification.trains_model:
        _check_base(specification, require_base(specification, model_folder))
    return first_model(specification, model_folder)


def _model_of(client: AdminClient, run: str, size: int) -> bytes:
    """The newest committed model of a run, to go on from. Raises ModelError when it is of another form."""
    manifest, model = client.export_run(resolve(client, run))
    if len(model) != size:
        raise ModelError(
            f"run {manifest['run_id']} trains {len(model)} bytes and this specification {size}; they have to train the "
            "same parameters"
        )
    return model


def _check_base(specification: Specification, model_folder: Path) -> None:
    from confide.models.store import folder_digest

    if not specification.trains_model:
        return
    found = folder_digest(model_folder)
    if found != specification.model.sha256:
        raise ModelError(
            f"{model_folder} has the hash {found}; the specification asks for {specification.model.sha256}. "
            "Put the hash into model.sha256, or give the folder that has it."
        )
    from confide.planning.fitness import check

    check(specification, model_folder)


def _specification(path: Path) -> Specification:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecificationError(f"cannot read the specification {path}: {error}") from error
    return parse_toml(text, str(path))


run_life.register(app)
