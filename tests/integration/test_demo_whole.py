"""`confide demo whole`: with tiny models, every stage in real processes; and as a person runs it."""

import json
from pathlib import Path

import numpy as np
import pytest
from confide_simulations.commands.demo import app
from confide_simulations.rlhf.comparisons import Snippet
from confide_simulations.whole.run import Material, stages
from typer.testing import CliRunner

from tests.tiny_models import tiny_bert, tiny_llama


def snippets(count: int) -> list[Snippet]:
    """Made up: half are liked by everybody, half by nobody."""
    noise = np.random.default_rng(0).normal(size=(count, 8))
    return [
        Snippet(
            "tweets", f"The {n}th film is {'good' if n % 2 else 'bad'}.", tuple((2.5 if n % 2 else -2.5) + 0.1 * row)
        )
        for n, row in enumerate(noise)
    ]


def test_every_stage_with_tiny_models(tmp_path: Path) -> None:
    records = [
        {
            "category": f"{n % 8}",
            "question": f"How thick must wall {n} be?",
            "answer": f"Wall {n} must be {n} feet thick.",
        }
        for n in range(88)
    ]
    material = Material(
        base=tiny_llama(tmp_path / "llama"), reward_base=tiny_bert(tmp_path / "bert", head=False), records=records,
        found=snippets(300), held_out=8, snippets_each=40, pairs_each=60, judge_snippets=60, unused_snippets=40,
        unused_pairs=10,
    )  # fmt: skip
    work = tmp_path / "work"
    work.mkdir()
    said: list[str] = []
    figures = stages(material, work, tmp_path / "page", said.append).to_json()
    assert figures["asked"]["others_refused"] and len(figures["ledgers"]) == 8
    assert figures["served"]["aligned"] == figures["gate"]["passed"]
    text = Path(figures["lineage"]).read_text()
    assert figures["runs"]["reward"]["run"][:16] in text and figures["served"]["adapter"][:24] in text


@pytest.mark.full
def test_from_two_sealed_private_runs_to_a_served_answer(tmp_path: Path) -> None:
    out = tmp_path / "whole.json"
    result = CliRunner().invoke(app, ["whole", "--json", str(out), "--output", str(tmp_path / "page")])
    assert result.exit_code == 0, result.output
    figures = json.loads(out.read_text())
    for run in figures["runs"].values():
        assert run["sealing"] == "sealed" and run["epsilon"] == 8.0
    assert len(figures["ledgers"]) == 8  # two groups of data at each of four organizations
    assert figures["served"]["aligned"] == figures["gate"]["passed"]
    asked = figures["asked"]
    assert asked["others_refused"] and asked["answer"]
    assert asked["citations"] or "I don't know" in asked["quoted"]
    page = Path(figures["lineage"]).read_text()
    for run in figures["runs"].values():
        assert run["run"][:16] in page
    assert figures["served"]["adapter"][:24] in page
