"""The benchmark of answers from documents measures what it says, on a few passages."""

from pathlib import Path

from confide_simulations.benchmarks.rag.ingest import measure_ingest, measure_search
from confide_simulations.demo.rag.sets import word_recall

from tests.tiny_models import tiny_bert
from tests.unit.test_rag_parsing import pdf


def test_search_and_ingest_are_timed_by_step(tmp_path: Path) -> None:
    model = tiny_bert(tmp_path / "tiny", head=False)
    texts = [f"The speech of number {number} is about walls and fees." for number in range(30)]
    found = measure_search(tmp_path, model, texts, 12, 0)
    assert (found["passages"], found["questions"]) == (30, 12)
    assert 0 < found["search_ms"]["p50"] <= found["search_ms"]["p95"]
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf(["A visit costs forty crowns.", "Children pay nothing."]))
    steps = measure_ingest(tmp_path, model, path)
    assert steps["pages"] == 1 and steps["passages"] >= 1 and steps["whole_s"] >= steps["embed_s"]
    assert steps["command_s"] > 0 and steps["command_cpu_s"] > 0
    assert (tmp_path / "by-command" / "organizations" / "bench" / "manuals" / "catalogue.json").exists()


def test_word_recall_counts_words_as_often_as_they_come() -> None:
    assert word_recall("a b c", "a a b") == 2 / 3
    assert word_recall("", "a") == 0.0
