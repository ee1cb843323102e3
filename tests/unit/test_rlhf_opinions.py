"""Nodes' feedback at the coordinator: the run that asks, and what is made of what came back."""

import json
from pathlib import Path
from typing import Any

import pytest
from confide.errors import DataError, ModelError, SpecificationError
from confide.models.opinions import write_opinions
from confide.models.store import folder_digest
from confide.runs.specification import Specification, parse_toml
from confide_server.rlhf import gate
from confide_server.rlhf.annotation.preferences import Candidate, append_line
from confide_server.rlhf.commands import app
from confide_server.rlhf.opinions_of_nodes import check_subject, faults, half_width, preferred, question, read_opinions
from typer.testing import CliRunner

from tests.tiny_models import tiny_bert

ADAPTER = "ab" * 32
ANSWERS = [
    Candidate(prompt=f"prompt {p}", text=f"{who or 'base'} says {p} {n}", model="0" * 64, adapter=who)
    for p in range(3)
    for who in (ADAPTER, "")
    for n in range(2)
]
SAID: dict[str, Any] = {"data": "preferences", "source": "made up", "privacy": (8.0, 1e-5)}


def exported(folder: Path, specification: Specification, values: list[float], organizations: int = 4) -> Path:
    """As `confide run export` writes it, without signatures."""
    manifest = {
        "specification": json.loads(specification.canonical_bytes()),
        "rounds": [{"contributors": [f"n{i}" for i in range(organizations)]}],
    }
    return write_opinions(folder, values, manifest, specification)


def test_a_question_about_scores_and_its_answer_as_pairs(tmp_path: Path) -> None:
    made = parse_toml(question(ANSWERS, "cd" * 32, purpose="scores", **SAID))
    assert made.feedback.numbers == len(ANSWERS) and made.privacy.unit == "organization"
    values = [0.1 * (number % 4) for number in range(len(ANSWERS))]
    said = read_opinions(exported(tmp_path / "out", made, values))
    rows = preferred(said)
    assert len(rows) == 3 and rows[0] == {
        "prompt": "prompt 0", "chosen": ANSWERS[3].text, "rejected": ANSWERS[0].text,
    }  # fmt: skip
    with pytest.raises(DataError, match="no prompt has two answers"):
        preferred({"scores": said["scores"][:1]})


def test_a_question_of_the_gate_pairs_answers_to_the_same_prompt(tmp_path: Path) -> None:
    made = parse_toml(question(ANSWERS, "cd" * 32, purpose="gate", candidate=ADAPTER, **SAID))
    assert made.feedback.prompts == ("prompt 0",) * 2 + ("prompt 1",) * 2 + ("prompt 2",) * 2
    assert made.feedback.answers[0] == ANSWERS[0].text and made.feedback.against[0] == ANSWERS[2].text
    assert (made.feedback.candidate_sha256, made.feedback.baseline_sha256) == (ADAPTER, "")
    for same in (ADAPTER, "ef" * 32):
        with pytest.raises(DataError, match="no prompt has an answer of both"):
            question(ANSWERS, "cd" * 32, purpose="gate", candidate="ef" * 32, baseline=same, **SAID)


def test_the_gate_passes_by_nodes_only_what_their_noise_lets_it_tell(tmp_path: Path) -> None:
    made = parse_toml(question(ANSWERS, "cd" * 32, purpose="gate", candidate=ADAPTER, **SAID))
    said = read_opinions(exported(tmp_path / "won", made, [0.45, -0.5, -0.5]))
    assert said["organizations"] == 4 and 0.1 < said["half_width"] < 1.0
    assert half_width(made, 4) > half_width(made, 16) > 0
    assert bool(faults(said)) == (0.95 - said["half_width"] <= 0.5)
    plain = parse_toml(question(ANSWERS, "cd" * 32, purpose="gate", candidate=ADAPTER, **SAID | {"privacy": None}))
    exact = read_opinions(exported(tmp_path / "plain", plain, [0.1, -0.5, -0.5]))
    assert exact["half_width"] == 0.0 and not faults(exact)
    lost = read_opinions(exported(tmp_path / "lost", plain, [-0.1, -0.5, 0.5]))
    assert len(faults(lost)) == 2
    check_subject(said, ADAPTER, "")
    for candidate, baseline in (("ef" * 32, ""), (ADAPTER, "ef" * 32)):
        with pytest.raises(ModelError, match="OPINIONS_OF_ANOTHER_MODEL"):
            check_subject(said, candidate, baseline)
    good = gate.Figures(
        prompts=48, answers=96, win_rate=0.7, interval=(0.6, 0.8), kl=0.5, perplexity=(1.0, 1.0), length_ratio=1.0,
        repetition=0.1,
    )  # fmt: skip
    assert gate.decide(good, gate.Thresholds(), said_by_nodes=exact).passed
    assert not gate.decide(good, gate.Thresholds(), said_by_nodes=lost).passed
    assert any("no node was asked" in one for one in gate.decide(good, gate.Thresholds()).unknown)


def test_opinions_that_are_not_what_they_say(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no opinions"):
        read_opinions(tmp_path)
    made = parse_toml(question(ANSWERS, "cd" * 32, purpose="scores", **SAID))
    folder = exported(tmp_path / "out", made, [0.0] * len(ANSWERS))
    said = json.loads((folder / "opinions.json").read_text())
    (folder / "opinions.json").write_text(json.dumps(said | {"specification_sha256": "0" * 64}))
    with pytest.raises(ModelError, match="of another run"):
        read_opinions(folder)


def test_the_commands(tmp_path: Path) -> None:
    run, base = CliRunner(), tiny_bert(tmp_path / "bert")
    for one in ANSWERS:
        append_line(tmp_path / "candidates.jsonl", one)
    out = tmp_path / "feedback.toml"
    asked = ["feedback", str(tmp_path / "candidates.jsonl"), "--base", str(base), "--source", "made up"]
    assert run.invoke(app, [*asked, "--out", str(out)], catch_exceptions=False).exit_code == 0
    made = parse_toml(out.read_text())
    assert made.model.sha256 == folder_digest(base) and made.federation.data == "preferences"
    with pytest.raises(SpecificationError, match="--purpose gate"):
        run.invoke(app, [*asked, "--purpose", "gate", "--out", str(out)], catch_exceptions=False)
    folder = exported(tmp_path / "opinions", made, [float(n) / 100 for n in range(len(ANSWERS))])
    rows = tmp_path / "rows.jsonl"
    assert run.invoke(app, ["pairs", str(folder), "--to", str(rows)], catch_exceptions=False).exit_code == 0
    assert len(rows.read_text().splitlines()) == 3
