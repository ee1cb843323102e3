"""Every recipe from packaged text to its figures: sealed, on virtual nodes, tiny models in place of the packaged."""

import json
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from confide.codec.tensors import model_digest
from confide.errors import StateError
from confide.models.store import folder_digest
from confide.runs.specification import parse_toml
from confide_simulations import assets
from confide_simulations.recipes import outcome, running
from confide_simulations.recipes.catalogue import RECIPES, Recipe, find
from confide_simulations.simulate.engine import Engine, Resources
from rich.console import Console

from tests.ray_marks import RAY
from tests.tiny_models import tiny_bert, tiny_llama

pytestmark = RAY

NODES = 3
EXPECTED = {
    "answers": {"eval_loss", "perplexity", "eval_bits_per_byte", "eval_exact_match"},
    "retriever": {"eval_ndcg_at_10", "eval_recall_at_10"},
    "pretraining": {"eval_loss", "perplexity", "eval_bits_per_byte"},
    "summaries": {"eval_loss", "perplexity", "eval_bits_per_byte", "eval_exact_match"},
    "sentiment": {"eval_loss", "eval_accuracy", "eval_macro_f1"},
    "zero-shot": {"eval_exact_match", "eval_accuracy", "eval_macro_f1"},
    "few-shot": {"eval_exact_match", "eval_accuracy", "eval_macro_f1"},
    "categories": {"eval_loss", "eval_accuracy", "eval_macro_f1"},
    "functions": {"eval_loss", "perplexity", "eval_bits_per_byte", "eval_exact_match"},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        "smollm2": tiny_llama(tmp_path_factory.mktemp("llama")),
        "minilm": tiny_bert(tmp_path_factory.mktemp("bert"), head=False),
    }


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(Resources(workers=1, cpus=1.0), nodes=NODES) as made:
        yield made


def write(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(dict(record)) + "\n" for record in records))
    return path


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_recipe_runs_on_a_file_in_its_format(
    recipe: Recipe, engine: Engine, bases: dict[str, Path], tmp_path: Path
) -> None:
    """The file is of the packaged text, as a user's own would be: only --data differs."""
    records = list(recipe.packaged(print))
    lengths = [len(json.dumps(dict(record))) for record in records]
    # Of the shorter half: however they are dealt, each node has some whose answer begins within what the method reads.
    short = [record for record, length in zip(records, lengths, strict=True) if length <= statistics.median(lengths)]
    file = write(tmp_path / "mine.jsonl", short[:36])
    for stage in recipe.stages:
        options = running.Options(
            recipe=recipe,
            output=tmp_path / "out",
            data=file,
            stage=stage.name,
            model=bases[stage.base],
            nodes=NODES,
            rounds=1,
        )
        results = running.run(options, Console(quiet=True), engine)
        outcome.write(options, results)
        document = json.loads((tmp_path / "out" / "recipe.json").read_text())
        found = document["stages"][stage.name]
        assert set(found["metrics"]) == EXPECTED[stage.name]
        assert document["meta"]["config"]["sealing"] == "sealed"
        (result,) = results
        assert result.report.manifest["rounds"][0]["promise"]["kind"] == "sealed"
        if not stage.held_out:  # nothing is trained: the uploads are sealed metrics alone, of one size for every node
            assert result.report.manifest["model_sha256"] == model_digest(b"").hex()
            assert 0 < result.report.rows[1]["upload_bytes"] < NODES * 4096
        else:
            assert found["records"] >= 3 and sum(found["nodes"].values()) == 36 - found["records"]
            assert (tmp_path / "out" / stage.name / "model" / "manifest.json").exists()
            loss = found["metrics"].get("eval_loss")
            assert loss is None or loss["before"] != loss["after"]
        assert (tmp_path / "out" / "recipe.png").stat().st_size > 1000
        assert outcome.table(options, results).row_count == len(EXPECTED[stage.name])


@pytest.mark.full
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_the_packaged_recipe_on_the_packaged_models(recipe: Recipe, tmp_path: Path) -> None:
    """As `confide recipe run NAME` does, with one round; the specifications name the packaged models' own hashes."""
    options = running.Options(recipe=recipe, output=tmp_path, nodes=NODES, rounds=1, workers=2)
    results = running.run(options, Console(quiet=True))
    packaged = {"smollm2": assets.smollm2(print), "minilm": assets.minilm(print)}
    for result in results:
        written = parse_toml(recipe.toml(result.stage).read_text())
        assert written.model.sha256 == folder_digest(packaged[result.stage.base])
        metrics = outcome.metrics_of(result)
        if "eval_loss" in metrics and result.specification.method.name != "classification":
            assert metrics["eval_loss"]["after"] < metrics["eval_loss"]["before"]


def test_records_without_the_field_are_dealt_at_random(bases: dict[str, Path], engine: Engine, tmp_path: Path) -> None:
    records = [{"question": f"q {number}", "answer": f"the answer is {number}"} for number in range(30)]
    options = running.Options(
        recipe=find("support-chatbot"),
        output=tmp_path / "out",
        data=write(tmp_path / "mine.jsonl", records),
        stage="answers",
        model=bases["smollm2"],
        nodes=NODES,
        rounds=1,
    )
    (result,) = running.run(options, Console(quiet=True), engine)
    assert result.report.partition == "iid"
    held = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(StateError, match=r"began differently \(--nodes was 3, now 2; --rounds was 1, now 2;"):
        running.run(replace(options, nodes=2, rounds=2), Console(quiet=True), engine)
    with pytest.raises(StateError, match="another --model"):
        running.run(replace(options, model=tiny_llama(tmp_path / "other", seed=1)), Console(quiet=True), engine)
    write(tmp_path / "mine.jsonl", records[:-1])
    with pytest.raises(StateError, match="--data has other records"):
        running.run(options, Console(quiet=True), engine)
    assert held == {path: path.read_bytes() for path in held}, "nothing of the first was overwritten"
    write(tmp_path / "mine.jsonl", records)
    (again,) = running.run(options, Console(quiet=True), engine)
    assert again.report.manifest["run_id"] == result.report.manifest["run_id"], "the same again goes on"
