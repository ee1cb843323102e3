"""lm-evaluation-harness on a model folder: a local task file against log-likelihoods counted by hand, and refusals."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from confide.cli import app
from confide.errors import DataError, StateError
from confide.models.answering import load_answering
from confide_client.evaluation import harness
from typer.testing import CliRunner

from tests.tiny_models import tiny_llama

TASK = """
task: triage
dataset_path: json
dataset_kwargs:
  data_files:
    test: questions.jsonl
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list:
  - metric: acc
"""
QUESTIONS = [
    {"question": f"How thick must wall {i} be?", "choices": ["the client", "twelve", "a lime mortar"], "answer": i % 3}
    for i in range(7)
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def task(tmp_path: Path) -> Path:
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    path = tmp_path / "triage.yaml"
    path.write_text(TASK)
    return path


def likeliest(model: Any, tokenizer: Any, question: str, choices: list[str]) -> int:
    scores = []
    for choice in choices:
        context = tokenizer(f"Question: {question}\nAnswer:")["input_ids"]
        whole = tokenizer(f"Question: {question}\nAnswer: {choice}")["input_ids"]
        with torch.no_grad():
            log_p = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
        scores.append(sum(float(log_p[place - 1, whole[place]]) for place in range(len(context), len(whole))))
    return scores.index(max(scores))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::ResourceWarning")
def test_a_local_task_is_scored_as_by_hand(base: Path, task: Path, tmp_path: Path) -> None:
    model, tokenizer = load_answering(base)
    right = [likeliest(model, tokenizer, row["question"], row["choices"]) == row["answer"] for row in QUESTIONS]
    out = tmp_path / "figures.json"
    done = CliRunner().invoke(app, ["evaluate", "--base", str(base), "--tasks", str(task), "--json", str(out)])
    assert done.exit_code == 0, done.output
    written = json.loads(out.read_text())
    assert written["tasks"]["triage"]["acc"] == pytest.approx(sum(right) / len(right))
    limited = harness.run_tasks(model, tokenizer, [str(task)], limit=2)
    assert limited["triage"]["acc"] == pytest.approx(sum(right[:2]) / 2)
    with pytest.raises(DataError, match="no task 'nonsense'"):
        harness.run_tasks(model, tokenizer, ["nonsense"])
    with pytest.raises(DataError, match="nothing is fetched"):
        harness.run_tasks(model, tokenizer, ["arc_easy"], limit=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("doc_to_target: answer", "doc_to_target: !function helpers.target"), "code in task files is not run"),
        (("doc_to_target: answer", "doc_to_target: !!python/name:os.system"), "code in task files is not run"),
        (("task: triage", "task: triage\ninclude: other.yaml"), "'include', which is not taken"),
        (("dataset_path: json", "dataset_path: allenai/ai2_arc"), "'allenai/ai2_arc'; a task of one's own"),
        (("metric: acc", "metric: acc\n    hf_evaluate: true"), "hf_evaluate would fetch"),
        (("questions.jsonl", "elsewhere.jsonl"), "elsewhere.jsonl, is not there"),
        (("    test: questions.jsonl", "    - questions.jsonl"), "must name a local file"),
        (("task: triage", "name: triage"), "no field `task`"),
        (("task: triage", "task: [triage"), "no task file in YAML"),
    ],
)
def test_task_files_that_are_not_taken(task: Path, tmp_path: Path, change: tuple[str, str], message: str) -> None:
    task.write_text(TASK.replace(*change))
    with pytest.raises(DataError, match=message):
        harness.read_task(task, tmp_path)


def test_without_the_extra_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(StateError, match=r"confide\[evaluation\]"):
        harness.require()
