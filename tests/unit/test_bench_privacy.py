"""The privacy benchmark's parts on a tiny model: reading the plays, federations with and without privacy, figures."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from confide_client.data.datasets import LocalData
from confide_simulations.benchmarks.privacy.command import _faq_plans
from confide_simulations.benchmarks.privacy.plot import plot
from confide_simulations.benchmarks.privacy.speed import measure_speed
from confide_simulations.benchmarks.privacy.task import (
    FULL,
    QUICK,
    Size,
    Task,
    run_federation,
    specification,
    speeches,
)

from tests.tiny_models import tiny_llama

# Two spaces at the end of a line are the plays' line breaks.
PLAY = "\n".join(
    (
        "# A Play",
        "",
        "_Enter two_",
        "",
        "**FIRST WITCH**  ",
        "When shall we three meet again  ",
        "In thunder, lightning, or in rain?",
        "",
        "_Exit_",
        "",
        "**SECOND WITCH** _Aside_  ",
        "When the hurlyburly's done,  ",
        "_She turns_  ",
        "When the battle's lost and won.",
        "",
    )
)
SIZE = replace(QUICK, records=20, batch_size=4, epsilons=(0.5,), delta=1e-3)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    base = tiny_llama(tmp_path_factory.mktemp("llama"), chat=False)
    records = [{"prompt": f"ROLE {n}: ", "completion": f"The client pays for wall {n}."} for n in range(24)]
    return Task(base, {node: LocalData(records[:20], records[20:]) for node in ("one", "two")})


def test_speeches_are_read_with_their_role_and_without_stage_directions(tmp_path: Path) -> None:
    (tmp_path / "a-play.md").write_text(PLAY)
    found = speeches(tmp_path)
    assert [record["prompt"] for record in found] == ["FIRST WITCH: ", "SECOND WITCH: "]
    assert found[0]["completion"] == "When shall we three meet again\nIn thunder, lightning, or in rain?"
    assert found[1]["completion"] == "When the hurlyburly's done,\nWhen the battle's lost and won."
    assert {record["play"] for record in found} == {"a-play"}


@pytest.mark.parametrize("epsilon", [None, 0.5])
def test_a_federation_trains_and_is_scored_on_held_out_speeches(task: Task, epsilon: float | None) -> None:
    before, after = run_federation(task, SIZE, epsilon, seed=1)
    assert 0 < after != before
    assert run_federation(task, SIZE, None, seed=1)[0] == before


@pytest.mark.parametrize("size", [FULL, QUICK])
def test_every_epsilon_is_a_valid_run(size: Size) -> None:
    for epsilon in (None, *size.epsilons):
        spec = specification(size, epsilon, 1)
        assert spec.privacy.epsilon == epsilon
        assert epsilon is None or (spec.privacy.delta or 1) * size.records < 1


def test_speed_and_memory_of_both_kinds(task: Task) -> None:
    found = measure_speed(specification(SIZE, None, 0), task.base, list(task.nodes["one"].train), repetitions=2)
    assert set(found) == {"tokens_per_s", "peak_mib"}
    for values in found.values():
        assert set(values) == {"plain", "private"}
    assert min(found["tokens_per_s"].values()) > 0


def test_the_construction_faq_has_too_few_records() -> None:
    said = _faq_plans()
    assert len(said) == 4
    for plan in said.values():
        assert plan["usefulness"] == "useless"
        assert plan["warnings"][0].startswith("too few records")


def test_the_figure_is_drawn(tmp_path: Path) -> None:
    losses = {name: {"mean": 3.0 + 1 / n, "std": 0.01} for n, name in enumerate(("inf", "8", "3", "1"), start=1)}
    result: dict[str, Any] = {"nll": losses, "meta": {"config": {"nll_public_model": 4.2, "delta": 1e-5}}}
    plot(result, tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").read_text().count("<svg") == 1
