"""`confide node rag`: this organization's own index, and the questions that it answers.

confide node rag add clinic leaflets fees.pdf --embedder minilm
confide node rag serve clinic --embedder minilm
"""

import json
import logging
import signal
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from confide.errors import ConfideError, PolicyRefusal, StateError
from confide.secrecy import private_files, private_process
from confide.state_option import StateFirst
from confide.text import line, log_to_stderr

from confide_client.state import StateFolder

app = typer.Typer(
    callback=private_files, no_args_is_help=True, help="This organization's own index: add, erase, answer questions."
)

Folder = Annotated[Path, typer.Argument(help="the node's state folder; --state FOLDER says the same", file_okay=False)]
Name = Annotated[str, typer.Argument(help="the collection's name")]
Model = Annotated[Path, typer.Option("--embedder", help="the model folder that embeds", exists=True, file_okay=False)]


def _say(text: str) -> None:
    typer.echo(line(text))


def _opened(folder: Path) -> tuple[StateFolder, Any, Any]:
    from confide_client.retrieval.index import own_caller, own_library

    state = StateFolder.at(folder)
    return state, own_library(state), own_caller(state)


@app.command(cls=StateFirst)
def add(
    folder: Folder,
    collection: Name,
    files: Annotated[list[Path], typer.Argument(help="pdf, docx, html, md, txt or jsonl")],
    embedder: Model,
    personal_data: Annotated[
        str | None, typer.Option(help="mask, refuse or keep: of a new collection; default: mask")
    ] = None,
    region: Annotated[
        str | None, typer.Option(help="country whose national telephone numbers are meant, as DE; of a new collection")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="also files that were erased before")] = False,
) -> None:
    """Add files. One that cannot be read is named and the rest goes on; exit status 1 says that there was one."""
    from confide.rag.embedder import Embedder
    from confide.rag.library import settings_for
    from confide.rag.personal_data import HANDLINGS

    if personal_data not in {*HANDLINGS, None}:
        raise StateError(f"--personal-data is {line(personal_data, 40)!r}; use one of {', '.join(HANDLINGS)}")
    _, library, caller = _opened(folder)
    model = Embedder(embedder)
    settings = settings_for(model, personal_data=personal_data, region=region)
    report = library.add(caller, collection, files, model, settings, _say, again=again)
    for name, reason in report.failed:
        typer.secho(line(f"{name}: {reason}", 1000), fg=typer.colors.RED, err=True)
    _say(report.summary())
    if report.failed:
        raise typer.Exit(1)


@app.command(name="list", cls=StateFirst)
def list_(
    folder: Folder,
    collection: Annotated[str, typer.Argument(help="the collection; without it, all are named")] = "",
    quarantine: Annotated[bool, typer.Option("--quarantine", help="passages that are kept back, and why")] = False,
) -> None:
    """Name collections, or a collection's documents in every state."""
    _, library, caller = _opened(folder)
    if not collection:
        for name in library.collections(caller):
            _say(name.collection)
        return
    for one in library.documents(caller, collection):
        day = time.strftime("%Y-%m-%d", time.gmtime(one.added))
        _say(f"{one.id}  {one.state.value:9} v{one.version} {day} {one.passages:6} passages  {one.source}")
        for kept in one.quarantined if quarantine else ():
            _say(f"    passage {kept.ordinal}: {kept.reason}")


@app.command(cls=StateFirst)
def erase(
    folder: Folder,
    collection: Name,
    document: Annotated[str, typer.Argument(help="a file's name (all versions), a SHA-256 or an identifier")],
) -> None:
    """Erase a document for good, with a signed receipt. What was quoted before stays with who asked."""
    _, library, caller = _opened(folder)
    for receipt in library.erase(caller, collection, document, _say):
        _say(f"receipt: {receipt}")


@app.command(cls=StateFirst)
def outline(
    folder: Folder,
    embedder: Model,
    epsilon: Annotated[
        float, typer.Option(help="privacy that it costs, of each document or jsonl record", min=0.01)
    ] = 1.0,
) -> None:
    """Tell askers, with noise, what the documents are about, so that fewer questions come. Charged once a version."""
    from confide.privacy import LEDGER_NAME
    from confide.privacy.ledger import Ledger
    from confide.rag.embedder import Embedder

    from confide_client.policy.policy import load_policy
    from confide_client.retrieval.outlines import make_outline

    state, library, caller = _opened(folder)
    ledger = Ledger(state.root / LEDGER_NAME)  # StateError while the agent holds it: stop that for the moment
    try:
        policy = load_policy(state.policy)
        made, charged = make_outline(state.root, library, caller, Embedder(embedder), policy, ledger, epsilon)
    finally:
        ledger.close()
    what = f"epsilon {made.epsilon:g} was charged" if charged else "nothing was charged: the documents are the same"
    _say(f"{len(made.centroids)} collections outlined; {what}. It goes out when `confide node rag serve` starts")


@app.command(cls=StateFirst)
def serve(folder: Folder, embedder: Model) -> None:
    """Answer questions as policy.toml allows, until Ctrl-C or SIGTERM."""
    from confide.rag.embedder import Embedder

    from confide_client.policy.policy import load_policy
    from confide_client.retrieval.desk import Desk
    from confide_client.retrieval.finding import Finder
    from confide_client.retrieval.listening import Listener
    from confide_client.retrieval.log import NAME, InquiryLog
    from confide_client.retrieval.outlines import told_outline

    state, library, caller = _opened(folder)
    if load_policy(state.policy).retrieval is None:
        raise PolicyRefusal(
            "policy.toml has no section [retrieval], so that no question is answered; write it, as "
            "docs/federated-retrieval.md shows"
        )
    private_process()
    log_to_stderr(logging.WARNING)
    member, model, journal = state.member(), Embedder(embedder), InquiryLog(state.root / NAME)
    model.embed(["load the model before the first question comes"])
    desk = Desk(
        member.name,
        member.identity,
        lambda: member.roster.current,
        lambda: load_policy(state.policy),
        Finder(library, caller, model),
        journal,
    )

    def told() -> Any:
        try:
            policy = load_policy(state.policy)
        except ConfideError:  # an unclear policy allows nothing; the desk says so
            return None
        return told_outline(state.root, policy, model)

    listener = Listener(state.member, desk, model, told, proxy=state.settings.proxy, said=_say)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: listener.stop())
    try:
        listener.run()
    finally:
        library.close()
        journal.close()


@app.command(cls=StateFirst)
def log(
    folder: Folder, as_json: Annotated[bool, typer.Option("--json", help="one JSON document a line")] = False
) -> None:
    """Show what was asked and answered."""
    from confide.journal import read

    from confide_client.retrieval.log import NAME

    entries, _ = read(StateFolder.at(folder).root / NAME)
    for one in entries:
        if as_json:
            typer.echo(json.dumps(one))
            continue
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(one["time"]))
        told = f"for {one['purpose']}" if one["event"] == "asked" else f"{one['quotes']} quotes {one['code']}"
        _say(f"{when}  {one['id'][:8]}  {one['event']:8} {one['asker']}  {told}")


@app.command(cls=StateFirst)
def check(
    folder: Folder, answer: Annotated[Path, typer.Argument(help="a signed answer, as an asker kept it", dir_okay=False)]
) -> None:
    """Check a signed answer of this node against its documents: the signature, and every quotation word for word."""
    from confide.inquiries.checking import NODES, check_stands
    from confide.inquiries.documents import Answer, opened
    from confide.rag.catalogue import State

    state, library, caller = _opened(folder)
    found = opened(Answer, answer.read_bytes(), state.member().roster.current, "node", NODES)
    if found.node != state.member().name:
        raise StateError(f"the answer is of {found.node}, and this is {state.member().name}; ask there")
    for quote in found.quotes:
        collection, _ = library.opened(caller, quote.collection)
        document = collection.catalogue().get(quote.document)
        gone = document is None or document.state in (State.ERASING, State.ERASED)
        if document is None or gone or document.text_sha256 != quote.text_sha256:
            raise StateError(f"document {quote.document} is not here any more, or in another version")
        check_stands(quote, collection.content(document).text)
    library.close()
    _say(f"{len(found.quotes)} quotations stand in the documents that they name")
