"""`confide bench aggregation` on a tiny model: every scheme trains, and held-out questions have no part in choices."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from confide_simulations.benchmarks.aggregation import command as aggregation
from confide_simulations.benchmarks.aggregation.command import ARMS, TUNING_SEED, Arm, Task, climb
from confide_simulations.commands.bench import app
from confide_simulations.demo.shards import split_by_category, write_jsonl
from typer.testing import CliRunner

from tests.tiny_models import tiny_llama

RECORDS = [
    {"category": "abcd"[n % 4], "question": f"How thick is wall {n}?", "answer": f"Wall {n} is a brick thick."}
    for n in range(48)
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"), width=32)


@pytest.fixture(scope="module")
def task(base: Path) -> Task:
    split = split_by_category(RECORDS, nodes=4, held_out=8)
    return Task(base, split.shards, split.held_out, rounds=2)


@pytest.mark.parametrize("arm", ARMS[:5], ids=lambda arm: arm.name)
def test_every_scheme_learns_and_all_but_one_average_exactly(task: Task, arm: Arm) -> None:
    found = task.run(arm, arm.rate, 1)
    assert found.nll < task.first_loss() and found.update_norm > 0
    assert (found.error < 1e-5) == (arm.scheme != "average")


def test_rates_are_chosen_and_everything_is_written(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = tuple(arm for arm in ARMS if arm.scheme in {"average", "ffa"})
    monkeypatch.setattr(aggregation, "ARMS", arms)
    data, path = tmp_path / "questions.jsonl", tmp_path / "aggregation.json"
    write_jsonl(data, RECORDS)
    command = ["aggregation", "--model", base, "--data", data, "--held-out", 8, "--rounds", 2, "--seeds", 2]
    command += ["--work", tmp_path / "work"]
    outcome = CliRunner().invoke(app, [*map(str, command), "--json", str(path)], catch_exceptions=False)
    assert outcome.exit_code == 0
    document = json.loads(path.read_text())
    assert list(document["schemes"]) == [arm.name for arm in arms] and document["meta"]["config"]["seeds"] == 2
    for arm in arms:
        row = document["schemes"][arm.name]
        assert len(row["nll"]["values"]) == len(row["beside_average"]["values"]) == 2
        assert row["nll"]["mean"] < document["nll_first_model"]
        assert min(row["bytes"].values()) > 0
        if arm.tuned:
            best = min(row["validation"], key=row["validation"].__getitem__)
            assert float(best) == pytest.approx(row["learning_rate"]) and len(row["validation"]) >= 3
    assert document["schemes"]["average"]["beside_average"] == {"mean": 0.0, "sd": 0.0, "values": [0.0, 0.0]}


def test_held_out_questions_have_no_part_in_the_choice(task: Task) -> None:
    other = replace(task, held_out=[{"question": "?", "answer": "something else"}])
    assert task.validation_loss(ARMS[0], 3e-3) == other.validation_loss(ARMS[0], 3e-3)


def test_a_seed_draws_splits_that_share_nothing(task: Task) -> None:
    first, second = task._split(TUNING_SEED), task._split(1)
    assert first == task._split(TUNING_SEED) and first != second
    for name, records in task.shards.items():
        apart = [record for record in first[1] if record in records]
        assert sorted(first[0][name] + apart, key=str) == sorted(records, key=str)
        assert not any(record in first[0][name] for record in apart)


def test_the_climb_goes_down_where_up_does_not_help() -> None:
    assert climb(4.0, lambda rate: abs(rate - 1.0)) == {4.0: 3.0, 8.0: 7.0, 2.0: 1.0, 1.0: 0.0, 0.5: 0.5}


def test_a_rate_at_which_training_fails_is_not_chosen(task: Task) -> None:
    assert task.validation_loss(ARMS[0], 1e30) == float("inf")


def test_finished_runs_are_kept_and_not_mixed_up(task: Task, tmp_path: Path) -> None:
    kept = replace(task, work=tmp_path)
    first = kept.run(ARMS[0], 3e-3, 1)
    (file,) = tmp_path.iterdir()
    file.write_text(json.dumps({**json.loads(file.read_text()), "nll": 1.5}))
    assert kept.run(ARMS[0], 3e-3, 1) == replace(first, nll=1.5)
    assert kept.run(ARMS[0], 3e-3, 2).nll != 1.5
    assert replace(kept, held_out=RECORDS[:2]).run(ARMS[0], 3e-3, 1).nll != 1.5
