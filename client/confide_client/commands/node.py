"""`confide node`: an organization's node, from its keys to its daily running. Every command names the state folder."""

import getpass
import json
import logging
import os
import threading
import time
from pathlib import Path
from typing import Annotated

import typer
from confide.errors import IdentityError, StateError, TransportError
from confide.files import write_atomic
from confide.identity.enrolment import accept_admission, check_name, make_renewal, make_request
from confide.identity.expiry import Notice, exit_status
from confide.identity.member import LocalMember, load_member, read_membership
from confide.secrecy import PrivateLogFile, private_files, private_process
from confide.state_option import StateFirst
from confide.text import Formatter, cleaned, log_to_stderr, paragraph
from rich.console import Console

from confide_client.agent.notifying import parse_command
from confide_client.commands import retrieval
from confide_client.policy.policy import TEMPLATE
from confide_client.runs import approvals
from confide_client.state import Settings, StateFolder

app = typer.Typer(
    callback=private_files,
    no_args_is_help=True,
    add_completion=False,
    help="Run this organization's node beside its data.",
)
app.add_typer(retrieval.app, name="rag")

Folder = Annotated[Path, typer.Argument(help="the node's state folder; --state FOLDER says the same", file_okay=False)]
Run = Annotated[str, typer.Argument(help="the run's id, or its first characters; none: the only one that waits")]


@app.command(cls=StateFirst)
def init(
    folder: Folder,
    name: Annotated[str, typer.Option(help="the node's name in the consortium")] = "",
    admission: Annotated[
        Path | None, typer.Option(help="admission.json, the consortium's answer", dir_okay=False)
    ] = None,
    invitation: Annotated[
        Path | None, typer.Option(help="invitation.json: ask and answer by network instead of by file", dir_okay=False)
    ] = None,
    root: Annotated[str | None, typer.Option(help="the consortium root's key, as you learned it elsewhere")] = None,
    coordinator: Annotated[str | None, typer.Option(help="host:port of the fleet port, if not the admission's")] = None,
    models: Annotated[Path | None, typer.Option(help="folder of base models, to share one between nodes")] = None,
    proxy: Annotated[str | None, typer.Option(help="outbound proxy, http://host:port")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads for training", min=1)] = None,
    max_rank: Annotated[int | None, typer.Option(help="largest LoRA rank that this machine trains", min=1)] = None,
    precision: Annotated[
        str | None, typer.Option(help="auto, float32 or bfloat16: what to compute in; auto measures which is faster")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(help="processes that share a local step; default: one per GPU", min=1)
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="answer this organization's own Prometheus on 127.0.0.1", min=0, max=65535)
    ] = None,
    log_file: Annotated[
        str | None, typer.Option(help="the agent's log, rotated, instead of standard error; '' for that again")
    ] = None,
    notify: Annotated[
        str | None,
        typer.Option(
            help="a command to run when a run waits for a person, such as 'mail -s {text} ops@example.org'; no shell. "
            "'' for none"
        ),
    ] = None,
) -> None:
    """Make keys and request.json; later take the admission. Run again to change a setting."""
    if name:
        check_name(name)
    state = StateFolder.create(folder)
    _change_settings(
        state,
        coordinator=coordinator,
        models=models,
        proxy=proxy,
        threads=threads,
        max_rank=max_rank,
        precision=precision,
        processes=processes,
        metrics_port=metrics_port,
        log_file=log_file,
        notify=None if notify is None else tuple(parse_command(notify)),
    )
    if not state.policy.exists():
        write_atomic(state.policy, TEMPLATE.format(root=root or "").encode())
        typer.echo(f"wrote {state.policy}: it denies everything until you edit it")
    if not (state.root / "identity.key").exists():
        _ask(state, name)
    if invitation is not None:
        _enrol(state, invitation)
    elif admission is not None:
        _accept(state, _read(admission), root)


def _change_settings(state: StateFolder, *, models: Path | None, **changes: object) -> None:
    changes["models"] = None if models is None else str(models.expanduser().resolve())
    given = {key: value for key, value in changes.items() if value is not None}
    if given or not (state.root / "node.json").exists():
        state.save_settings(Settings.model_validate({**state.settings.model_dump(), **given}))


def _ask(state: StateFolder, name: str) -> None:
    if not name:
        raise IdentityError(f"{state.root} has no keys yet; give the node a name: --name hospital-a")
    make_request(state.root, name, "node")
    request = json.loads((state.root / "request.json").read_bytes())["document"]
    typer.echo(f"made the keys of {name} and {state.root / 'request.json'}")
    typer.echo(f"identity key {request['identity_key']}: read it to the consortium's administrator over the telephone")


def _enrol(state: StateFolder, path: Path) -> None:
    from confide.identity.invitation import read_invitation
    from confide.transport.control import ControlClient

    invitation = read_invitation(_read(path))
    with ControlClient.of_invitation(invitation, proxy=state.settings.proxy) as client:
        admission = client.fetch_admission()
        if admission is None:
            client.enrol((state.root / "request.json").read_bytes())
            typer.echo("the request is with the coordinator; run the same command again when you were admitted")
            return
    _accept(state, admission, invitation.root_public)


def _accept(state: StateFolder, admission: bytes, root: str | None) -> None:
    member = accept_admission(state.root, admission, time.time(), root=root)
    key = member.membership.root_public
    typer.echo(f"{member.name} is a member of {member.membership.consortium}, whose root key is {key}")
    if key not in state.policy.read_text(encoding="utf-8"):
        typer.echo(f"compare that key with the consortium, then set consortium_root in {state.policy}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise IdentityError(f"cannot read {path}: {error.strerror}; give the file that you received") from error


@app.command()
def join(
    kit: Annotated[Path, typer.Argument(help="NAME.kit.json, as the consortium handed it over", dir_okay=False)],
    folder: Annotated[
        Path | None, typer.Argument(help="the node's state folder; default: the kit's name", file_okay=False)
    ] = None,
    root: Annotated[str, typer.Option(help="the consortium root's key, as it was read to you by telephone")] = "",
    data: Annotated[list[str] | None, typer.Option(help="a data file, NAME=FILE or FILE; may be repeated")] = None,
    model: Annotated[list[str] | None, typer.Option(help="a base model's folder; may be repeated")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads for training", min=1)] = None,
    start: Annotated[bool, typer.Option("--start", help="run the agent when everything is ready")] = False,
    wait: Annotated[float, typer.Option(help="seconds to wait for the admission", min=0)] = 86400.0,
    state_folder: Annotated[Path | None, typer.Option("--state", help="the same as FOLDER", file_okay=False)] = None,
) -> None:
    """Join a consortium with its start kit: keys, admission, model, data, policy. Run again to go on."""
    from confide.identity.kit import read_kit

    from confide_client.agent import joining

    parsed = read_kit(_read(kit))
    if root and root.strip().lower() != parsed.invitation.root_public:
        raise IdentityError(
            f"the kit is of the root {parsed.invitation.root_public}, and {root} was expected; compare the root's key "
            "with the consortium's administrator, and ask for the kit again"
        )
    files = tuple(_named_file(text, parsed.policy.data_sets) for text in data or ())
    for _, path in files:
        _check_there(path)
    for source in model or ():
        if os.sep in source or "." in source:
            _check_there(Path(source))
    state = StateFolder.create(folder or state_folder or Path(parsed.invitation.name))
    _change_settings(state, models=None, threads=threads)
    wish = joining.Wish(data=files, models=tuple(model or ()), wait_s=wait)
    joining.join(state, parsed, wish, typer.echo)
    if start:
        _run_agent(state, quiet=False)
    else:
        typer.echo(f"next: confide node start {state.root}")


def _named_file(text: str, proposed: tuple[str, ...]) -> tuple[str, Path]:
    """NAME=FILE; a FILE alone takes the name that the consortium proposes."""
    name, separator, path = text.partition("=")
    return (name, Path(path)) if separator else (proposed[0] if proposed else Path(text).stem, Path(text))


def _check_there(path: Path) -> None:
    if not path.exists():
        raise IdentityError(f"{path} is not there; give the path as this machine sees it")


@app.command(cls=StateFirst)
def renew(
    folder: Folder,
    admission: Annotated[Path | None, typer.Option(help="the answer, when it came as a file", dir_okay=False)] = None,
) -> None:
    """Ask for a new TLS certificate over a fresh key, or take the answer. Restart the agent afterwards."""
    state = StateFolder.at(folder)
    if admission is not None:
        _accept(state, _read(admission), None)
        return
    membership = read_membership(state.root)
    if not (state.root / "tls.key.next").exists():
        make_renewal(state.root)
    try:
        answer = _ask_renewal(state, state.member()) if membership.control_address else None
    except (IdentityError, TransportError) as error:
        # With an expired certificate nobody answers: the request then goes by file.
        typer.echo(f"the coordinator could not be asked: {paragraph(error)}", err=True)
        membership = membership.model_copy(update={"control_address": ""})
        answer = None
    if not membership.control_address:
        typer.echo(f"send {state.root / 'request.json'} to the consortium, then run this with --admission")
        return
    if answer is None:
        typer.echo("the request is with the coordinator; run the same command again when it was answered")
        return
    _accept(state, answer, None)


def _ask_renewal(state: StateFolder, member: LocalMember) -> bytes | None:
    from confide.transport.control import ControlClient

    with ControlClient.of_member(member, proxy=state.settings.proxy) as client:
        client.enrol((state.root / "request.json").read_bytes())
        return client.fetch_admission()


@app.command(cls=StateFirst)
def start(folder: Folder, quiet: Annotated[bool, typer.Option("--quiet", help="write warnings only")] = False) -> None:
    """Run the agent until Ctrl-C or SIGTERM. It waits by itself for a coordinator that is away."""
    _run_agent(StateFolder.at(folder), quiet=quiet)


def _run_agent(state: StateFolder, *, quiet: bool) -> None:
    from confide_client.agent.agent import Agent
    from confide_client.agent.metrics import serving
    from confide_client.runs.loading import LOADER

    level = logging.WARNING if quiet else logging.INFO
    private_process()
    log_to(state.settings.log_file, logging.WARNING)
    # The second says what this machine computes in, once.
    for name in ("confide_client", "confide.models"):
        logging.getLogger(name).setLevel(level)
    with serving(state):
        Agent(state).run()
    if any(thread.name == LOADER for thread in threading.enumerate()):
        # A model is still being loaded in a thread that cannot be interrupted; everything else was closed.
        logging.shutdown()
        os._exit(0)


def log_to(path: str, level: int) -> None:
    """The agent's log: a file of mode 0600, rotated at 16 MiB with eight older ones, or standard error."""
    if not path:
        log_to_stderr(level)
        return
    try:
        handler = PrivateLogFile(Path(path).expanduser(), max_bytes=16 << 20, kept=8)
    except OSError as error:
        raise StateError(f"the log {path} cannot be written: {error.strerror}; name another with --log-file") from error
    handler.setFormatter(Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])


@app.command(cls=StateFirst)
def status(
    folder: Folder,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
    entries: Annotated[int, typer.Option(help="audit entries to show", min=0)] = 20,
    waiting: Annotated[bool, typer.Option("--waiting", help="print the ids of runs that wait for approval")] = False,
) -> None:
    """Show the agent, its runs and data, and what was asked, allowed, refused and sent.

    Exit status 1: the folder is no member's yet; 4: roster or certificate end within two weeks; 5: one has ended, or
    the node was revoked.
    """
    from confide_client.agent.status import gather, show

    document = gather(StateFolder.at(folder), entries=entries)
    if waiting:
        for run in document["runs"]:
            if run.get("status") == "waiting":
                typer.echo(run["run"])
        return
    if as_json:
        typer.echo(json.dumps(cleaned(document), indent=1, ensure_ascii=False))
    else:
        show(document, Console())
    due = exit_status(Notice(**notice) for notice in document["notices"])
    raise typer.Exit(due or int("error" in document["membership"]))


@app.command(cls=StateFirst)
def plan(
    folder: Folder, what: Annotated[str, typer.Argument(help="a specification's TOML file, or a run's id")]
) -> None:
    """Say what a run would do on this node and its data, and whether the policy allows it."""
    from confide_client.runs.plan import plan_of, show

    lines = plan_of(StateFolder.at(folder), what)
    if not show(lines, Console()):
        raise typer.Exit(1)


@app.command(cls=StateFirst)
def approve(
    folder: Folder,
    run: Run = "",
    wait: Annotated[float, typer.Option(help="seconds to wait for a run to be offered", min=0)] = 0.0,
) -> None:
    """Approve a run that waits, exactly as it was offered."""
    deadline = time.monotonic() + wait
    while not run and not _waiting(StateFolder.at(folder)) and time.monotonic() < deadline:
        time.sleep(0.5)
    _decide(folder, run, "approved", "")


@app.command(cls=StateFirst)
def refuse(
    folder: Folder, run: Run = "", reason: Annotated[str, typer.Option(help="for your own records")] = ""
) -> None:
    """Refuse a run that waits."""
    _decide(folder, run, "refused", reason)


def _decide(folder: Path, run: str, answer: approvals.Decision, reason: str) -> None:
    from confide_client.runs.offers import load_offer

    state = StateFolder.at(folder)
    run_id = state.find_run(run) if run else _only_waiting(state)
    offer = load_offer(state.run(run_id), load_member(state.root))
    if answer == "approved":
        from confide_client.data.fitness import check_worth_approving

        for warning in check_worth_approving(state, offer.specification):
            typer.echo(f"! {warning}", err=True)
    approvals.decide(state.run(run_id), offer.sha256, answer, reason)
    name, digest = offer.specification.name, offer.specification.digest
    typer.echo(f"{answer} run {run_id[:8]} ({name}, specification {digest[:16]}…) of {offer.administrator}")


def _waiting(state: StateFolder) -> list[str]:
    from confide_client.agent.status import gather

    return [str(run["run"]) for run in gather(state, entries=0)["runs"] if run.get("status") == "waiting"]


def _only_waiting(state: StateFolder) -> str:
    waiting = _waiting(state)
    if len(waiting) != 1:
        shown = ", ".join(run_id[:8] for run_id in waiting) or "none"
        raise StateError(
            f"{len(waiting)} runs wait for a person ({shown}); name one, as `confide node status` shows it"
        )
    return waiting[0]


@app.command(cls=StateFirst)
def pause(
    folder: Folder, reason: Annotated[str, typer.Option(help="for your own records and your status")] = ""
) -> None:
    """Take no further instruction; what is under way ends first. Runs that need this node wait."""
    state = StateFolder.at(folder)
    state.note_pause(at=time.time(), by=getpass.getuser(), reason=reason)
    typer.echo(f"paused; `confide node resume {folder}` goes on")


@app.command(cls=StateFirst)
def resume(folder: Folder) -> None:
    """Take instructions again."""
    StateFolder.at(folder).end_pause()
    typer.echo("the node goes on")


@app.command(cls=StateFirst)
def page(
    folder: Folder,
    port: Annotated[int, typer.Option(help="on 127.0.0.1; 0 takes a free one", min=0, max=65535)] = 9445,
) -> None:
    """Show this node in a browser on this machine: asked, allowed, refused, sent, spent. Prints a one-time link."""
    from confide_client.page.app import serve

    state = StateFolder.at(folder)
    private_process()
    log_to_stderr(logging.WARNING)
    serve(state, port, typer.echo)


@app.command("seal-log", cls=StateFirst)
def seal_log(folder: Folder, run: Annotated[str, typer.Argument(help="a run's id; none: every run")] = "") -> None:
    """Show per slot what this node signed and revealed."""
    from confide_client.agent.status import show_seal_log

    state = StateFolder.at(folder)
    for run_id in [state.find_run(run)] if run else state.run_ids():
        show_seal_log(state.run(run_id), Console())


@app.command("verify-run", cls=StateFirst)
def verify_run(
    folder: Folder,
    run: Annotated[str, typer.Argument(help="the run's id, or its first characters")],
    round: Annotated[int | None, typer.Option(help="whose outer step to follow; 0: none; default: the newest")] = None,
) -> None:
    """Hold the coordinator's log of a run's rounds against what this node sent, and follow a round's outer step.

    Exits non-zero with the name of what does not hold.
    """
    from confide.transport.control import ControlClient

    from confide_client.runs import proving

    state = StateFolder.at(folder)
    member, run_id = state.member(), state.find_run(run)
    with ControlClient.of_member(member, proxy=state.settings.proxy) as client:
        found = proving.verify_run(state, member, client.prove, run_id, round)
    for line in proving.told(found):
        typer.echo(line)
    if not found.sealed:
        typer.secho("unsealed: nobody committed to what was summed", fg="red", err=True)
