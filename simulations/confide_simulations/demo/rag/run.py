"""The RAG demo from end to end, over the product's own library. What it claims is checked by code of the demo's own."""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confide.errors import ConfideError, DataError
from confide.files import write_atomic
from confide.rag.access import AccessRefused, Caller
from confide.rag.embedder import Embedder
from confide.rag.library import Library, settings_for
from confide.rag.parsing.child import parse
from confide.rag.sentences_near import SentenceVectors
from confide.rag.verifying import Citation
from confide_server.rag.answering import Answerer
from confide_server.rag.calibrating import calibrate
from confide_server.rag.evaluating import evaluate
from confide_server.rag.questions import Question, resolved
from rich.console import Console
from rich.table import Table

from confide_simulations import assets
from confide_simulations.demo.rag import models, sets
from confide_simulations.demo.rag.sets import QuestionSet

_MOST_CHARS = 20_000_000
_PIECES = 64
_ASKED = 12
_PIECE_CHARS = 40


@dataclass
class Result:
    """What was measured; `to_json` says what the keys of `confide demo rag --json` hold."""

    seconds: float = 0.0
    sets: dict[str, dict[str, Any]] = field(default_factory=dict)
    citations: int = 0
    citations_valid: int = 0
    erased_found: int | None = None
    cross_reads: int = 0
    cross_tries: int = 0
    policy: dict[str, float] = field(default_factory=dict)
    models: dict[str, Any] = field(default_factory=dict)
    """models.compared: base, adapter and quotation on the same questions; empty without an adapter."""
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """recall_at_5, ndcg_at_10: {set: {bm25, dense, hybrid}} on questions that calibration did not see.

        citations: given by the answers to them; citation_validity: share that the demo's own reader finds at its place.
        abstention_auroc: the sets' mean, of questions whose passage is there against the same with it taken away;
        answer_auroc: of right answers against wrong ones and those. erased_found: pieces of an erased document on disk.
        cross_reads: of `cross_tries` by another organization, how many got anything.
        """

        def table(measure: str) -> dict[str, dict[str, float]]:
            return {
                name: {part: round(one[measure]["mean"], 4) for part, one in found["retrieval"].items()}
                for name, found in self.sets.items()
            }

        def mean(key: str) -> float:
            values: list[float] = [found["answers"][key] for found in self.sets.values()]
            return round(sum(values) / len(values), 4)

        return {
            "seconds": round(self.seconds, 1),
            "recall_at_5": table("recall_at_5"),
            "ndcg_at_10": table("ndcg_at_10"),
            "citations": self.citations,
            "citation_validity": self.citations_valid / self.citations if self.citations else None,
            "abstention_auroc": mean("abstention_auroc_removed"),
            "answer_auroc": mean("abstention_auroc"),
            "erased_found": self.erased_found,
            "cross_reads": self.cross_reads,
            "cross_tries": self.cross_tries,
            "policy": self.policy,
            "models": self.models,
            "sets": self.sets,
            "notes": self.notes,
        }


def run(console: Console, *, keep: bool = False, adapter: Path | None = None) -> Result:
    """Everything; raises ConfideError when a part failed. adapter: of SmolLM2; it answers beside the base."""

    def say(text: str) -> None:
        console.print(f"[dim]{text}[/dim]", highlight=False)

    embedder = Embedder(assets.minilm(say))
    work = Path(tempfile.mkdtemp(prefix="confide-demo-rag-"))
    result = Result()
    try:
        chosen = _sets(work, say, result)
        started = time.monotonic()
        library = Library(work / "library")
        for one in chosen:
            _one_set(library, embedder, one, result, say)
        _policy(library, embedder, work, result, say)
        _keep_apart(library, embedder, chosen, result)
        _models(library, embedder, chosen[0], adapter, result, say)
        result.seconds = time.monotonic() - started
    finally:
        if keep:
            say(f"the library is kept in {work}")
        else:
            shutil.rmtree(work, ignore_errors=True)
    return result


def _sets(work: Path, say: Callable[[str], None], result: Result) -> list[QuestionSet]:
    chosen = [sets.construction(work, say), sets.phenotypes(work, say)]
    try:
        chosen.append(sets.python_faq(work, say))
    except DataError as error:
        result.notes.append(f"without Python's FAQ: {error}")
    return chosen


def _one_set(
    library: Library, embedder: Embedder, one: QuestionSet, result: Result, say: Callable[[str], None]
) -> None:
    operator = Caller.operator(one.organization)
    begun = time.monotonic()
    library.add(operator, one.collection, [one.file], embedder, settings_for(embedder), say)
    ingest_s = time.monotonic() - begun
    collection, searcher = library.opened(operator, one.collection)
    for_calibration, for_test = one.halves()
    asked = resolved(collection, for_calibration)
    sentences = SentenceVectors(embedder)
    calibrated = calibrate(collection, searcher, embedder, asked, operator, most_risk=None, sentences=sentences)
    calibrated.calibration.save(collection.calibration_folder)
    say(f"{one.organization}: calibrated on {len(asked)} questions, now {len(for_test)} others")
    test = resolved(collection, for_test)
    found = evaluate(collection, searcher, embedder, test, operator, library.root, sentences=sentences)
    result.sets[one.collection] = {**found.figures, "ingest_s": ingest_s}
    _ask(library, embedder, one, for_test, result)


def _ask(library: Library, embedder: Embedder, one: QuestionSet, test: Sequence[Question], result: Result) -> None:
    """Through the door that the endpoint uses; each citation is looked up by `stands`."""
    reader = Caller(name="reader", organization=one.organization, collections=frozenset({one.collection}))
    answerer = Answerer(library, embedder)
    for question in test[:_ASKED]:
        answer = answerer.answer(question.question, reader, [one.collection])
        result.citations += len(answer.citations)
        result.citations_valid += sum(stands(citation, library.root) for citation in answer.citations)


def _models(
    library: Library, embedder: Embedder, one: QuestionSet, adapter: Path | None, result: Result,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """On questions that calibration did not see. The adapter may have been trained on some: they are its own set."""
    if adapter is None or not adapter.is_dir():
        result.notes.append("without answers by models: `confide demo` makes the adapter; --adapter names another")
        return
    reader = Caller(name="reader", organization=one.organization, collections=frozenset({one.collection}))
    answerer = Answerer(library, embedder)
    say("the base and the adapter answer the same questions from memory")
    result.models = models.compared(
        assets.smollm2(say), adapter, one.halves()[1][:_ASKED],
        lambda question: answerer.answer(question, reader, [one.collection]).text,
    )  # fmt: skip


def stands(citation: Citation, root: Path) -> bool:
    """Whether a citation's words stand at its offsets in the stored text: read here, with nothing of the product."""
    name = citation.collection
    folder = root / "organizations" / name.organization / name.collection
    text = (folder / "documents" / f"{citation.document}.txt").read_bytes().decode()
    return bool(citation.quote) and text[citation.start : citation.stop] == citation.quote


def _policy(library: Library, embedder: Embedder, work: Path, result: Result, say: Callable[[str], None]) -> None:
    """A long pdf: how fast, how complete against its own html, and gone without a trace when it is erased."""
    operator = Caller.operator("builders")
    try:
        pdf, pages = sets.policy(work, say)
    except DataError as error:
        result.notes.append(f"without Debian's policy: {error}")
        pdf = work / "erased.md"
        pdf.write_text("# Erased\n\nThe quarry at Ekeberg closes its northern gate on the ninth of March.\n")
        pages = []
    begun = time.monotonic()
    report = library.add(operator, "manuals", [pdf], embedder, settings_for(embedder, personal_data="keep"), say)
    seconds = time.monotonic() - begun
    [document] = report.added
    folder = library.root / "organizations" / "builders" / "manuals" / "documents"
    text = (folder / f"{document.id}.txt").read_text("utf-8")
    if pages:
        html = "\n".join(block.text for page in pages for block in parse("html", page, _MOST_CHARS).blocks)
        result.policy = {
            "pages": document.pages,
            "ingest_s": round(seconds, 2),
            "passages": document.passages,
            "word_recall_against_html": round(sets.word_recall(text, html), 4),
        }
    pieces = _pieces(text)
    if _on_disk(library.root, pieces) < len(pieces):
        raise ConfideError("the demo's own search does not see the document that it is to look for")
    library.erase(operator, "manuals", document.source, say)
    result.erased_found = _on_disk(library.root, pieces)
    left = library.search(operator, "manuals", "Where do packages keep their files?", embedder)
    result.erased_found += len(left.found)


def _pieces(text: str) -> list[bytes]:
    lines = [one for one in text.split("\n") if len(one) >= _PIECE_CHARS]
    return [one[:_PIECE_CHARS].encode() for one in lines[:: max(1, len(lines) // _PIECES)]]


def _on_disk(root: Path, pieces: Sequence[bytes]) -> int:
    """How many of the pieces stand in any file below a folder."""
    found: set[bytes] = set()
    for path in root.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            found |= {piece for piece in pieces if piece in data}
    return len(found)


def _keep_apart(library: Library, embedder: Embedder, chosen: Sequence[QuestionSet], result: Result) -> None:
    """Every organization tries every door to every other one's collection."""
    answerer = Answerer(library, embedder)
    for own in chosen:
        for other in chosen:
            if own is other:
                continue
            for caller in (
                Caller.operator(own.organization),
                Caller(name="x", organization=own.organization, collections=frozenset({other.collection})),
            ):
                for door in _doors(library, answerer, embedder, caller, other):
                    result.cross_tries += 1
                    try:
                        result.cross_reads += bool(door())
                    except AccessRefused:
                        continue


def _doors(
    library: Library, answerer: Answerer, embedder: Embedder, caller: Caller, other: QuestionSet
) -> list[Callable[[], object]]:
    name, question = other.collection, other.questions[0].question
    return [
        lambda: library.search(caller, name, question, embedder).found,
        lambda: answerer.answer(question, caller, [name]).citations,
        lambda: library.documents(caller, name),
        lambda: library.settings(caller, name),
        lambda: library.calibration(caller, name),
        lambda: library.opened(caller, name),
        lambda: library.erase(caller, name, other.file.name, print),
        lambda: library.add(caller, name, [], embedder, None, print),
        lambda: [one for one in library.collections(caller) if one.collection == name],
    ]


def print_report(console: Console, result: Result) -> None:
    """A table by set, and the rest in lines."""
    table = Table(title="questions that calibration did not see")
    for heading in ("set", "questions", "passages", "R@5 BM25", "R@5 embeddings", "R@5 both", "nDCG@10 both", "AUROC"):
        table.add_column(heading, justify="left" if heading == "set" else "right")
    for name, found in result.sets.items():
        parts: Mapping[str, Any] = found["retrieval"]
        recalls = [f"{parts[part]['recall_at_5']['mean']:.3f}" for part in ("bm25", "dense", "hybrid")]
        numbers = [str(found["questions"]), str(found["passages"]), *recalls]
        answers = found["answers"]
        both = f"{answers['abstention_auroc']:.3f} / {answers['abstention_auroc_removed']:.3f}"
        table.add_row(name, *numbers, f"{parts['hybrid']['ndcg_at_10']['mean']:.3f}", both)
    console.print(table)
    console.print("AUROC: right answers against all else / passage there against taken away", highlight=False)
    console.print(
        f"{result.citations} citations, of which {result.citations_valid} stand where they say", highlight=False
    )
    if result.policy:
        said = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in result.policy.items())
        console.print(f"Debian's policy as pdf: {said}", highlight=False)
    console.print(f"pieces of an erased document that were found: {result.erased_found}", highlight=False)
    console.print(
        f"tries to read another organization: {result.cross_tries}, read: {result.cross_reads}", highlight=False
    )
    for note in result.notes:
        console.print(f"[yellow]{note}[/yellow]", highlight=False)
    if result.models:
        shown = ", ".join(f"{name} {value:.3f}" for name, value in result.models["f1"].items())
        console.print(f"F1 of words against the known answers: {shown}", highlight=False)
    console.print(f"{result.seconds:.0f} s", highlight=False)


def write_json(path: Path, result: Result) -> None:
    """The document of `confide demo rag --json`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(result.to_json(), indent=2) + "\n").encode(), mode=0o644)
