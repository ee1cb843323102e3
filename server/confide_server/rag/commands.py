"""`confide rag`: an organization's documents on this machine.

confide rag add leaflets fees.pdf rules.docx --organization clinic --embedder minilm
confide rag search leaflets "What does a visit cost?" --organization clinic --embedder minilm
confide rag ask leaflets "What does a visit cost?" --organization clinic --embedder minilm
confide rag erase leaflets fees.pdf --organization clinic
"""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from confide.errors import DataError, IdentityError, StateError
from confide.files import private_folder, write_atomic
from confide.rag.access import Caller
from confide.rag.personal_data import HANDLINGS
from confide.secrecy import private_files
from confide.text import line

from confide_server.rag import SUMMARIES

app = typer.Typer(callback=private_files, no_args_is_help=True, help=SUMMARIES["rag"])

Root = Annotated[Path, typer.Option("--library", help="The folder of all collections.", file_okay=False)]
Name = Annotated[str, typer.Argument(help="The collection's name.")]
Organization = Annotated[str, typer.Option(help="Whose documents they are.")]
Model = Annotated[
    Path | None, typer.Option("--embedder", help="The model folder that embeds.", exists=True, file_okay=False)
]
CrossEncoder = Annotated[
    Path | None, typer.Option("--reranker", help="A cross-encoder's folder.", exists=True, file_okay=False)
]
AsJson = Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.", dir_okay=False)]
_ROOT = Path("library")


def _say(text: str) -> None:
    typer.echo(line(text))


def _caller(organization: str) -> Caller:
    return Caller.operator(organization)


def _embedder(model: Path | None) -> Any:
    from confide.rag.embedder import Embedder

    if model is None:
        raise StateError("--embedder is missing: the folder of the model that embeds, for example all-MiniLM-L6-v2")
    return Embedder(model)


def _reranker(model: Path | None) -> Any:
    from confide.rag.reranker import Reranker

    return None if model is None else Reranker(model)


@app.command()
def add(
    collection: Name,
    files: Annotated[list[Path], typer.Argument(help="pdf, docx, html, md, txt or jsonl.")],
    organization: Organization,
    embedder: Model = None,
    library: Root = _ROOT,
    personal_data: Annotated[
        str | None, typer.Option(help=f"{', '.join(HANDLINGS)}: of a new collection. Default: mask.")
    ] = None,
    region: Annotated[
        str | None, typer.Option(help="Country whose national telephone numbers are meant, as DE; of a new collection.")
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            help="lancedb (default), postgresql://USER@HOST/DATABASE or qdrant+https://HOST:PORT; of a new collection."
        ),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Also files that were erased before.")] = False,
) -> None:
    """Add files. One that cannot be read is named and the rest goes on; exit status 1 says that there was one."""
    from confide.rag.library import Library, settings_for

    if personal_data not in {*HANDLINGS, None}:
        raise StateError(f"--personal-data is {line(personal_data, 40)!r}; use one of {', '.join(HANDLINGS)}")
    model = _embedder(embedder)
    settings = settings_for(model, personal_data=personal_data, region=region, store=store)
    report = Library(library).add(_caller(organization), collection, files, model, settings, _say, again=again)
    for name, reason in report.failed:
        typer.secho(line(f"{name}: {reason}", 1000), fg=typer.colors.RED, err=True)
    _say(report.summary())
    if report.failed:
        raise typer.Exit(1)


@app.command(name="list")
def list_(
    organization: Organization,
    collection: Annotated[str | None, typer.Argument(help="The collection; without it, all are named.")] = None,
    library: Root = _ROOT,
    quarantine: Annotated[bool, typer.Option("--quarantine", help="Passages that are kept back, and why.")] = False,
) -> None:
    """Name collections, or a collection's documents in every state."""
    from confide.rag.library import Library

    opened, caller = Library(library), _caller(organization)
    if collection is None:
        for name in opened.collections(caller):
            _say(str(name))
        return
    for one in opened.documents(caller, collection):
        day = time.strftime("%Y-%m-%d", time.gmtime(one.added))
        _say(
            f"{one.id}  {one.state.value:9} v{one.version} {day} {one.passages:6} passages  {one.source or one.receipt}"
        )
        for kept in one.quarantined if quarantine else ():
            _say(f"    passage {kept.ordinal}: {kept.reason}")


@app.command()
def search(
    collection: Name,
    question: Annotated[str, typer.Argument(help="What to look for.")],
    organization: Organization,
    embedder: Model = None,
    library: Root = _ROOT,
    limit: Annotated[int, typer.Option(help="Passages.", min=1, max=200)] = 5,
    since: Annotated[str, typer.Option(help="Only documents added on this day (YYYY-MM-DD, UTC) or later.")] = "",
    reranker: CrossEncoder = None,
    first: Annotated[int, typer.Option(help="Passages that the cross-encoder reads.", min=2, max=200)] = 20,
) -> None:
    """Show the best passages with their scores by part; with a cross-encoder, the first of them in its order."""
    from confide.rag.library import Library
    from confide.rag.reranker import reranked

    reads, most = _reranker(reranker), limit if reranker is None else max(limit, first)
    ranking = Library(library).search(
        _caller(organization), collection, question, _embedder(embedder), limit=most, since=_day(since)
    )
    if reads is not None:
        ranking = reranked(ranking, reads, first=first)
    for one in ranking.found[:limit]:
        page = f" page {one.passage.page}" if one.passage.page is not None else ""
        scores = f"{one.score:.3f} = embedding {one.dense:.3f}, words {one.lexical_part:.3f} (BM25 {one.lexical:.2f})"
        if one.cross is not None:
            scores = f"cross-encoder {one.cross:.3f}; {scores}"
        _say(f"{scores}  {one.passage.document.source}{page}  {' > '.join(one.passage.headings)}")
        _say(f"    {line(one.passage.text, 200)}")


def _day(text: str) -> int:
    import datetime

    if not text:
        return 0
    try:
        day = datetime.datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=datetime.UTC)
    except ValueError:
        raise StateError(f"--since is {line(text, 40)!r}; write a day as 2026-01-31") from None
    return int(day.timestamp())


@app.command()
def ask(
    collection: Annotated[list[str], typer.Argument(help="Collections, then the question as the last argument.")],
    organization: Organization,
    embedder: Model = None,
    library: Root = _ROOT,
    quotes: Annotated[int, typer.Option(help="Quotations at most.", min=1, max=5)] = 1,
    reranker: CrossEncoder = None,
) -> None:
    """Answer with checked quotations, or say that the documents do not say. Exit status 3 for the latter."""
    from confide.rag.library import Library

    from confide_server.rag.answering import Answerer

    if len(collection) < 2:
        raise StateError("name at least one collection, and then the question")
    *collections, question = collection
    answerer = Answerer(Library(library), _embedder(embedder), most_quotes=quotes, reranker=_reranker(reranker))
    answer = answerer.answer(question, _caller(organization), collections)
    typer.echo(answer.text)
    for one in answer.citations:
        _say(f"[{one.number}] {one.source} version {one.version}, page {one.page or '-'}: {one.url}")
    if answer.abstained:
        _say(f"({answer.reason})")
        raise typer.Exit(3)


@app.command()
def calibrate(
    collection: Name,
    questions: Annotated[Path, typer.Argument(help="A question file (docs/formats.md).", exists=True, dir_okay=False)],
    organization: Organization,
    embedder: Model = None,
    library: Root = _ROOT,
    most_risk: Annotated[
        float | None, typer.Option(help="Share of wrong answers aimed at. Default: a balance.", min=0.0, max=1.0)
    ] = None,
    reranker: CrossEncoder = None,
) -> None:
    """Find the weight of the search's parts, whether a cross-encoder helps, and when to answer, from known answers."""
    from confide.rag.library import Library

    from confide_server.rag.calibrating import calibrate as run
    from confide_server.rag.calibrating import plot
    from confide_server.rag.questions import read_questions, resolved

    caller = _caller(organization)
    target, searcher = Library(library).opened(caller, collection)
    model = _embedder(embedder)
    target.check_embedder(model)
    asked = resolved(target, read_questions(questions))
    done = run(target, searcher, model, asked, caller, most_risk=most_risk, reranker=_reranker(reranker))
    done.calibration.save(target.calibration_folder)
    plot(done, target.calibration_folder / "risk-coverage.png")
    kept = done.calibration
    _say(f"weight of the words' part: {kept.lexical_weight:g}")
    if reranker is not None:
        better = (
            "is used: it orders" if kept.reranker else "is not used: no better, beyond chance, than the fused order of"
        )
        _say(f"the cross-encoder {better} the first passages")
    _say(f"right answers against others: AUROC {kept.auroc:.3f}; answerable against not: {kept.auroc_removed:.3f}")
    _say(f"at the threshold {kept.coverage:.1%} of questions are answered, {kept.risk:.1%} of them wrongly")
    _say("(measured by cross-validation, half of the questions with their passage taken away)")
    _say(f"plot: {target.calibration_folder / 'risk-coverage.png'}")


@app.command()
def evaluate(
    collection: Name,
    questions: Annotated[Path, typer.Argument(help="A question file (docs/formats.md).", exists=True, dir_okay=False)],
    organization: Organization,
    embedder: Model = None,
    library: Root = _ROOT,
    out: AsJson = None,
    plot: Annotated[Path | None, typer.Option(help="Draw recall@5 by part.", dir_okay=False)] = None,
    reranker: CrossEncoder = None,
) -> None:
    """Measure retrieval, citations and abstention on questions that calibration did not see."""
    from confide.rag.library import Library

    from confide_server.rag import evaluating
    from confide_server.rag.questions import read_questions, resolved

    opened, caller = Library(library), _caller(organization)
    target, searcher = opened.opened(caller, collection)
    asked = resolved(target, read_questions(questions))
    reads = _reranker(reranker)
    found = evaluating.evaluate(target, searcher, _embedder(embedder), asked, caller, opened.root, reranker=reads)
    for part, table in found.figures["retrieval"].items():
        _say(f"{part:7} {', '.join(f'{name} {_shown(one)}' for name, one in table.items())}")
    for name, value in found.figures["answers"].items():
        _say(f"{name}: {_shown(value)}")
    for name, seconds in found.figures["latency_s"].items():
        _say(f"{name}: {seconds['median'] * 1000:.0f} ms, one question in twenty over {seconds['p95'] * 1000:.0f} ms")
    if out is not None:
        write_atomic(out, (json.dumps(found.figures, indent=2, allow_nan=False) + "\n").encode(), mode=0o644)
    if plot is not None:
        evaluating.plot(found, plot)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


@app.command()
def erase(
    collection: Name,
    document: Annotated[str, typer.Argument(help="A source's name or SHA-256 (all its versions), or an identifier.")],
    organization: Organization,
    library: Root = _ROOT,
) -> None:
    """Erase a document everywhere in the collection, search for what might be left, and write a signed receipt."""
    from confide.rag.library import Library

    for receipt in Library(library).erase(_caller(organization), collection, document, _say):
        _say(f"erased; receipt: {receipt}")


@app.command()
def receipt(
    file: Annotated[Path, typer.Argument(help="A receipt.", exists=True, dir_okay=False)],
    key: Annotated[str, typer.Option(help="The library's public key in hex, as you learned it elsewhere.")] = "",
    library: Root = _ROOT,
) -> None:
    """Check a receipt's signature and show it."""
    from confide.rag.erasure import read_receipt
    from confide.rag.library import Library

    try:
        if not key and not (library / "receipt-key.pem").exists():
            raise StateError(
                f"{library} has no key of receipts; name the library with --library, or the key with --key"
            )
        public = bytes.fromhex(key) if key else Library(library).receipt_key().public
        data = file.read_bytes()
    except ValueError:
        raise IdentityError("--key is no hex; it has 64 digits") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
    content = read_receipt(data, public)
    _say(f"signed by {public.hex()}")
    typer.echo(json.dumps(content, indent=2, ensure_ascii=True))


@app.command()
def inquire(
    question: Annotated[str, typer.Argument(help="What to ask the organizations.")],
    member: Annotated[Path, typer.Option(help="The folder of the member that asks.", exists=True, file_okay=False)],
    purpose: Annotated[str, typer.Option(help="What for: each node's policy says which purposes it answers.")],
    embedder: Model = None,
    quotes: Annotated[int, typer.Option(help="Quotations of each organization; 0 asks for counts.", min=0, max=10)] = 3,
    node: Annotated[list[str] | None, typer.Option(help="Ask this node; may be repeated.")] = None,
    everybody: Annotated[bool, typer.Option("--all", help="Ask every node that answers.")] = False,
    wait: Annotated[int, typer.Option(help="Seconds to wait for answers.", min=1, max=120)] = 30,
    keep: Annotated[Path | None, typer.Option(help="Keep the signed answers in this folder.", file_okay=False)] = None,
) -> None:
    """Ask the organizations' own indices; signed quotations come back. Exit status 3 when nobody has any."""
    from confide.identity.member import load_member
    from confide.inquiries.asking import Inquirer
    from confide.transport.inquiries import InquiryClient

    from confide_server.rag.inquiring import told

    own = load_member(member)
    with InquiryClient.of_member(own) as client:
        asking = Inquirer(
            own.name, own.identity, lambda: own.roster.current, client, _embedder(embedder), purpose=purpose,
            quotes=quotes,
        )  # fmt: skip
        found = asking.ask(question, nodes=node or (), everybody=everybody, deadline_s=wait)
    if keep is not None:
        for name, data in found.signed.items():
            write_atomic(private_folder(keep) / f"{name}.answer.json", data)
    for text in told(found):
        _say(text)
    if not any(answer.found for answer in found.answers):
        raise typer.Exit(3)
