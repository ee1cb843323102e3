"""Recipes of reproduced results: every one that is there parses, and their figures are summed up right."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from confide.errors import SpecificationError, StateError
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
        ("local_steps = 20", "local_step = 20", "unknown field; did you mean local_steps"),
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


BASE, DATA = "ab" * 32, "cd" * 32


def runner_of(loaded: Recipe, folder: Path, data: str = DATA) -> Runner:
    made = Made(folder / "records.jsonl", folder / "base")
    return Runner(loaded, made, BASE, data, folder, engine=None, say=print)  # type: ignore[arg-type]


def kept(folder: Path, run: recipe.Run, seed: int, loaded: Recipe, loss: float) -> None:
    found = Outcome(
        run=run.name, seed=seed, final={"held_out_eval_loss": loss}, curve=[(0, loss)], upload_bytes=1, seconds=1.0
    )
    key = runner_of(loaded, folder).key(run, loaded.build(run, BASE, seed))
    folder.mkdir(parents=True)
    (folder / "outcome.json").write_text(json.dumps({"key": key, "outcome": asdict(found)}))


def test_a_rate_is_chosen_under_the_tuning_seed_and_all_others_are_run_with_it(tmp_path: Path) -> None:
    text = TEXT.replace("seeds = [1, 2, 3]", "seeds = [1, 2]\ntuning_seed = 9")
    loaded = recipe.parse(text.replace("nodes = 6", "nodes = 6\nrates = [0.5, 0.25, 0.125]", 1), "result.toml")
    one = next(run for run in loaded.run if run.rates)
    runner = runner_of(loaded, tmp_path)
    place = tmp_path / "runs" / one.name
    for rate, loss in ((0.5, 4.0), (0.25, 3.0), (0.125, 3.5)):
        assert list(runner.outcomes(one, begins=False)) == []
        kept(place / f"rate-{rate:g}", one.at(rate, 9), 9, loaded, loss)
    kept(place / "seed-2", one.at(0.25), 2, loaded, 2.0)
    (found,) = runner.outcomes(one, begins=False)
    assert (found.seed, found.final["held_out_eval_loss"]) == (2, 2.0)
    row = outcome.summary(loaded, [found])[0]
    assert row["tuning"] == [[0.5, 4.0], [0.25, 3.0], [0.125, 3.5]] and row["set"]["training.learning_rate"] == 0.25
    with pytest.raises(SpecificationError, match="set it to a seed that is not reported"):
        recipe.parse(TEXT.replace("nodes = 6", "nodes = 6\nrates = [0.5]", 1), "result.toml")


def test_a_finished_run_is_known_by_what_its_outcome_follows_from(tmp_path: Path) -> None:
    one = recipe.load("arms").run[1]
    place = tmp_path / "runs" / one.name / "seed-2"
    loaded = recipe.parse(TEXT, "result.toml")
    kept(place, one, 2, loaded, 2.0)
    # As it was written before specifications had the field, whose default means what was done then.
    file = place / "outcome.json"
    document = json.loads(file.read_text())
    assert document["key"]["specification"]["federation"].pop("clip_schedule") == "constant"
    file.write_text(json.dumps(document))
    relabelled = recipe.parse(TEXT.replace("seeds = [1, 2, 3]", "seeds = [2, 4]"), "result.toml")
    for same in (loaded, relabelled):
        assert [found.seed for found in runner_of(same, tmp_path).outcomes(one, begins=False)] == [2]
    changed = recipe.parse(TEXT.replace("held_out = 0.1", "held_out = 0.2"), "result.toml")
    assert changed.held_out != loaded.held_out
    slower = one.model_copy(update={"set": {**one.set, "training.learning_rate": 1e-5}})
    for other, run in (
        (runner_of(changed, tmp_path), one),
        (runner_of(loaded, tmp_path, data="ef" * 32), one),
        (runner_of(loaded, tmp_path), slower),
    ):
        with pytest.raises(StateError, match="holds a run of another recipe"):
            list(other.outcomes(run, begins=False))
    for damaged in ("{", "{}", json.dumps({**document, "key": {"specification": 1}})):
        file.write_text(damaged)
        with pytest.raises(StateError, match="cannot be read"):
            list(runner_of(loaded, tmp_path).outcomes(one, begins=False))


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
