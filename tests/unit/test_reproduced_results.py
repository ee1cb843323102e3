"""Recipes of reproduced results: every one that is there parses, and their figures are summed up right."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from confide.errors import SpecificationError
from confide_simulations.results import outcome, recipe
from confide_simulations.results.material import Made
from confide_simulations.results.recipe import Recipe
from confide_simulations.results.running import Outcome, Runner

TEXT = (recipe.folder_of("arms") / "result.toml").read_text()


@pytest.mark.parametrize("name", recipe.names())
def test_every_result_has_a_recipe_that_parses_and_a_page(name: str) -> None:
    loaded = recipe.load(name)
    folder = recipe.folder_of(name)
    assert f"confide reproduce {name}" in (folder / "README.md").read_text()
    for run in loaded.run:
        specification = loaded.build(run, "ab" * 32, 7)
        assert (specification.model.sha256, specification.seed, specification.name) == ("ab" * 32, 7, run.name)
    if (folder / "results.json").exists():
        document = json.loads((folder / "results.json").read_text())
        assert {"date", "hardware", "versions", "seed", "config"} <= set(document["meta"])
        assert {row["run"] for row in document["runs"]} | set(document["not_run"]) == {run.name for run in loaded.run}
        assert document["meta"]["config"]["specification"] == loaded.specification


def test_equal_tokens_in_the_diloco_grid() -> None:
    loaded = recipe.load("diloco")
    tokens = set()
    for run in loaded.run:
        spec = loaded.build(run, "0" * 64, 0)
        nodes = run.synchronous_nodes or run.nodes
        steps = spec.training.local_steps * spec.federation.rounds
        tokens.add(steps * spec.training.batch_size * run.nodes / nodes)
    assert tokens == {300 * 4}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "federated-iid"', 'name = "federated"', "two runs are called 'federated'"),
        ("local_steps = 20", "local_step = 20", "unknown field; remove it or correct its name"),
        ('records = "documents"', 'records = "poems"', "is not a valid result"),
        ("seeds = [1, 2, 3]", "seeds = 1", "is not a valid result"),
    ],
)
def test_wrong_recipes_are_named(old: str, new: str, message: str) -> None:
    assert old in TEXT
    with pytest.raises(SpecificationError, match=message):
        recipe.parse(TEXT.replace(old, new, 1), "result.toml")
    with pytest.raises(SpecificationError, match=r"there is no result 'nothing'; there are: adapters, arms"):
        recipe.load("nothing")


def kept(folder: Path, run: recipe.Run, seed: int, digest: str, loaded: Recipe, loss: float) -> None:
    found = Outcome(
        run=run.name, seed=seed, final={"held_out_eval_loss": loss}, curve=[(0, loss)], upload_bytes=1, seconds=1.0
    )
    key = {"specification": loaded.build(run, digest, seed).digest, "run": run.model_dump(mode="json")}
    folder.mkdir(parents=True)
    (folder / "outcome.json").write_text(json.dumps({"key": key, "outcome": asdict(found)}))


def test_a_rate_is_chosen_under_the_tuning_seed_and_all_others_are_run_with_it(tmp_path: Path) -> None:
    text = TEXT.replace("seeds = [1, 2, 3]", "seeds = [1, 2]\ntuning_seed = 9")
    loaded = recipe.parse(text.replace("nodes = 6", "nodes = 6\nrates = [0.5, 0.25, 0.125]", 1), "result.toml")
    one = next(run for run in loaded.run if run.rates)
    made = Made(tmp_path / "records.jsonl", tmp_path / "base")
    runner = Runner(loaded, made, "ab" * 32, tmp_path, engine=None, say=print)  # type: ignore[arg-type]
    place = tmp_path / "runs" / one.name
    for rate, loss in ((0.5, 4.0), (0.25, 3.0), (0.125, 3.5)):
        assert list(runner.outcomes(one, begins=False)) == []
        kept(place / f"rate-{rate:g}", one.at(rate, 9), 9, "ab" * 32, loaded, loss)
    kept(place / "seed-2", one.at(0.25), 2, "ab" * 32, loaded, 2.0)
    (found,) = runner.outcomes(one, begins=False)
    assert (found.seed, found.final["held_out_eval_loss"]) == (2, 2.0)
    row = outcome.summary(loaded, [found])[0]
    assert row["tuning"] == [[0.5, 4.0], [0.25, 3.0], [0.125, 3.5]] and row["set"]["training.learning_rate"] == 0.25
    with pytest.raises(SpecificationError, match="set it to a seed that is not reported"):
        recipe.parse(TEXT.replace("nodes = 6", "nodes = 6\nrates = [0.5]", 1), "result.toml")


def test_means_deviations_and_what_was_not_run(tmp_path: Path) -> None:
    loaded: Recipe = recipe.load("arms")
    found = [
        Outcome(
            run="federated",
            seed=seed,
            final={"held_out_eval_loss": loss},
            curve=[(0, 7.0), (10, loss)],
            upload_bytes=1000,
            seconds=1.0,
        )
        for seed, loss in ((1, 4.0), (2, 6.0))
    ]
    rows = outcome.write(loaded, found, tmp_path)
    assert rows[0]["final"]["held_out_eval_loss"] == {"mean": 5.0, "sd": 1.41421, "values": [4.0, 6.0]}
    assert rows[0]["curve"] == [(0, 7.0), (10, 5.0)]
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["not_run"] == ["local-only", "federated-iid", "centralised"]
    assert (tmp_path / "plot.png").stat().st_size > 1000
    assert outcome.summary(loaded, found[:1])[0]["final"]["held_out_eval_loss"]["sd"] is None
