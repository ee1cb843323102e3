"""Timing on made-up records: for every method, and the model is as before; and who is too slow for what."""

from pathlib import Path
from typing import Any

import pytest
import torch
from confide.methods.base import create
from confide.models.architecture import load_tokenizer
from confide.models.trainable import build, trainable_tensors
from confide.planning.timing import made_up, time_base, time_model
from confide.runs.deadline import Speed, TooSlow, claimed_s, refuse_too_slow, step_deadline_s
from confide.runs.specification import Specification, parse_canonical

from tests.tiny_models import tiny_bert, tiny_llama
from tests.training_specs import specification

PRIVATE = {"unit": "record", "epsilon": 8.0, "delta": 1e-3, "clip": 1.0}
METHODS: dict[str, dict[str, Any]] = {
    "sft": {},
    "private": {"privacy": PRIVATE},
    "full": {"adapter": {"kind": "full"}},
    "causal_lm": {"method": {"name": "causal_lm"}},
    "classification": {"method": {"name": "classification", "labels": ["yes", "no"]}},
    "contrastive": {"method": {"name": "contrastive"}},
    "in_context": {"method": {"name": "in_context"}, "training": {"local_steps": 0}},
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_timed_on_records_as_long_as_it_allows(llama: Path, name: str) -> None:
    spec = specification(**METHODS[name])
    tokenizer = load_tokenizer(llama)
    method, model = create(spec, tokenizer), build(spec, llama)
    if name != "in_context":
        examples = list(method.prepare(made_up(spec, tokenizer, 3)))
        assert len(examples) >= 3
        assert {method.length(example) for example in examples[:3]} == {spec.method.max_length}
    before = {key: value.detach().clone() for key, value in trainable_tensors(model).items()}
    speed = time_model(spec, model, method, tokenizer)
    assert speed.evaluation_s > 0
    assert (speed.step_s > 0) == (spec.training.local_steps > 0)
    for key, value in trainable_tensors(model).items():
        assert torch.equal(value, before[key]) and value.grad is None


def test_masked_language_modelling_is_timed_too(tmp_path: Path) -> None:
    assert time_base(specification(method={"name": "masked_lm"}, adapter={"kind": "full"}), tiny_bert(tmp_path)).step_s


def test_a_slow_machine_is_timed_on_one_record_once(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from confide.planning import timing

    spec, sizes = specification(), []
    tokenizer = load_tokenizer(llama)
    method, model = create(spec, tokenizer), build(spec, llama)
    collate = method.collate

    def noted(part: Any, seed: int) -> Any:
        sizes.append([method.length(example) for example in part])
        return collate(part, seed)

    monkeypatch.setattr(method, "collate", noted)
    monkeypatch.setattr(timing, "PATIENCE_S", 0.0)
    time_model(spec, model, method, tokenizer)
    (short,), (whole,) = sizes
    assert short < whole == spec.method.max_length


def test_a_round_is_its_steps_and_the_evaluation_which_a_private_run_has_not() -> None:
    speed = Speed(step_s=10.0, evaluation_s=2.0)
    assert speed.round_s(specification(), evaluation_records=5) == 3 * 10 + 5 * 2
    assert speed.round_s(specification(privacy=PRIVATE), evaluation_records=5) == 3 * 10


# --- what follows from it


def spec_with(**federation: Any) -> Specification:
    return specification(federation=federation)


@pytest.mark.parametrize(
    ("federation", "measured_s", "deadline_s"),
    [
        ({}, [100.0, 40.0, 7.0], 300.0),
        ({"deadline_factor": 5.0}, [100.0], 500.0),
        ({}, [0.01, 0.02], 60.0),
        ({}, [], 600.0),
        ({}, [0.0, 0.02], 600.0),
        ({}, [0.0, 400.0], 1200.0),
        ({}, [1e12, 1.0], 3600.0),
        ({"longest_deadline_s": 90.0}, [1e12, 1.0], 90.0),
        ({"step_deadline_s": 45.0}, [1e12, 1.0], 45.0),
    ],
    ids=str,
)
def test_the_deadline_follows_from_the_slowest_within_the_specifications_bound(
    federation: dict[str, float], measured_s: list[float], deadline_s: float
) -> None:
    assert step_deadline_s(spec_with(**federation), measured_s, model_bytes=0) == deadline_s


def test_a_large_model_has_time_to_travel() -> None:
    assert step_deadline_s(spec_with(), [1.0], model_bytes=540 * 2**20) == 60 + 2 * 540


@pytest.mark.parametrize("said", [float("nan"), float("inf"), -float("inf"), -3.0])
def test_what_is_no_time_counts_as_not_measured(said: float) -> None:
    assert claimed_s(said) == 0.0


def test_a_node_refuses_what_it_cannot_meet_and_names_what_would_do() -> None:
    refuse_too_slow(spec_with(), 3599.0)
    refuse_too_slow(spec_with(step_deadline_s=600.0), 600.0)
    with pytest.raises(TooSlow, match=r"about 840 s.* is 600 s\. federation\.step_deadline_s = 1260 would do") as error:
        refuse_too_slow(spec_with(step_deadline_s=600.0), 840.0)
    assert error.value.code == "TOO_SLOW"
    refuse_too_slow(spec_with(step_deadline_s=1260.0), 840.0)
    with pytest.raises(TooSlow, match=r"federation\.longest_deadline_s = 7500 would do"):
        refuse_too_slow(spec_with(), 5000.0)


def test_a_document_with_a_fixed_deadline_means_what_it_meant() -> None:
    fixed = spec_with(step_deadline_s=600.0)
    assert parse_canonical(fixed.canonical_bytes()).federation.step_deadline_s == 600.0
    assert fixed.federation.deadline_limit_s == 600.0
    assert spec_with().federation.deadline_limit_s == 3600.0
