"""The RAG demo on small sets and an embedder of random weights: from files to the table and the JSON."""

import json
from pathlib import Path

import peft
import transformers
from confide.rag.library import Library
from confide_simulations.demo.rag import models, run
from confide_simulations.demo.rag.sets import QuestionSet, _written
from rich.console import Console

from tests.rag_worlds import embedder
from tests.tiny_models import tiny_llama

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


def test_base_adapter_and_quotation_are_compared(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "llama")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    model = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base), config)
    model.save_pretrained(tmp_path / "adapter")
    one = small_set(tmp_path, "builders", "fees")
    asked = one.questions[:3]
    known = {question.question: str(question.answer) for question in asked}
    found = models.compared(base, tmp_path / "adapter", asked, known.__getitem__)
    assert found["f1"]["quoted"] == 1.0 and 0 <= found["f1"]["adapter"] <= 1 and found["questions"] == 3
    assert found["example"]["quoted"] == asked[0].answer
