"""The RAG demo on small sets and an embedder of random weights: from files to the table and the JSON."""

import json
from pathlib import Path

from confide.rag.library import Library
from confide_simulations.demo.rag import run
from confide_simulations.demo.rag.sets import QuestionSet, _written
from rich.console import Console

from tests.rag_worlds import embedder

WORDS = [
    first + second + third for first in "bdfg" for second in ("alo", "ine", "uru") for third in ("k", "m", "n", "s")
]


def small_set(folder: Path, organization: str, name: str) -> QuestionSet:
    rows = [
        (str(n), f"What does the {word} cost?", f"The {word} costs {n + 10} crowns.") for n, word in enumerate(WORDS)
    ]
    return _written(folder, organization, name, rows)


def test_the_demo_measures_and_reports(tmp_path: Path) -> None:
    library, result = Library(tmp_path / "library"), run.Result()
    chosen = [small_set(tmp_path, "builders", "fees"), small_set(tmp_path, "clinic", "prices")]
    for one in chosen:
        run._one_set(library, embedder(), one, result, lambda _: None)
    run._keep_apart(library, embedder(), chosen, result)
    result.erased_found = 0
    out = tmp_path / "rag.json"
    run.write_json(out, result)
    figures = json.loads(out.read_text())
    assert set(figures["recall_at_5"]) == {"fees", "prices"}
    assert set(figures["recall_at_5"]["fees"]) == {"bm25", "dense", "hybrid"}
    assert figures["citations"] == result.citations_valid > 0 and figures["citation_validity"] == 1.0
    assert (figures["cross_reads"], figures["cross_tries"]) == (0, 36)
    assert 0 <= figures["abstention_auroc"] <= 1
    console = Console(record=True, width=140)
    run.print_report(console, result)
    assert "tries to read another organization: 36, read: 0" in console.export_text()
