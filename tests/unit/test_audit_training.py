"""The audit of real training: it contradicts planted bugs, and does not contradict the honest step.

The bugs are trainers of this test alone: one forgets to clip, one forgets the noise. Nothing in the product can.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from confide.errors import ConfideError, StateError
from confide.methods import base as methods
from confide.methods.base import Method
from confide.models.architecture import load_tokenizer
from confide.models.trainable import build
from confide.privacy.audit.canaries import CanarySet, make_canaries
from confide.privacy.audit.scoring import AuditResult, audit, canary_losses, extract
from confide.privacy.dpsgd import ClippedGaussian, RecordLoss, clipped_sum, private_gradients
from confide.privacy.noise.lattice import Lattice
from confide.privacy.noise.randomness import SecureRandom
from confide.privacy.per_sample import PerSampleGradients
from confide.runs.specification import Specification
from hypothesis import given
from hypothesis import strategies as st

from tests.fixed_canaries import fix_canaries
from tests.private_federation import fixed_noise
from tests.tiny_models import tiny_llama
from tests.training_specs import specification

__all__ = ["fixed_noise"]
CANARIES, STEPS, EPSILON, DELTA = 120, 60, 1.0, 1e-5
# Gaussian mechanism with every canary in each of STEPS steps: far more noise than this is not needed at epsilon 1.
NOISE_MULTIPLIER = 4.0 * math.sqrt(STEPS)
CLIP = 0.01
Step = Callable[[PerSampleGradients, Sequence[Sequence[Any]], RecordLoss], None]


def honest(per_sample: PerSampleGradients, units: Sequence[Sequence[Any]], loss: RecordLoss) -> None:
    mechanism = ClippedGaussian(clip=CLIP, noise_multiplier=NOISE_MULTIPLIER, expected_batch=CANARIES)
    private_gradients(per_sample, units, loss=loss, mechanism=mechanism, micro_batch_size=64, random=SecureRandom())


def clipped(per_sample: PerSampleGradients, units: Any, loss: RecordLoss, clip: float) -> list[torch.Tensor]:
    lattice = Lattice(clip=clip, noise_multiplier=1.0)
    sums = clipped_sum(per_sample, units, loss=loss, lattice=lattice, micro_batch_size=64)
    return [(total.double() * lattice.granularity).float() for total in sums]


def without_clipping(per_sample: PerSampleGradients, units: Sequence[Sequence[Any]], loss: RecordLoss) -> None:
    sums = clipped(per_sample, units, loss, 1e3)
    for parameter, total in zip(per_sample.parameters, sums, strict=True):
        parameter.grad = (total + torch.randn_like(total) * NOISE_MULTIPLIER * CLIP) / CANARIES


def without_noise(per_sample: PerSampleGradients, units: Sequence[Sequence[Any]], loss: RecordLoss) -> None:
    sums = clipped(per_sample, units, loss, CLIP)
    for parameter, total in zip(per_sample.parameters, sums, strict=True):
        parameter.grad = total / CANARIES


@dataclass
class Task:
    spec: Specification
    folder: Path
    tokenizer: Any
    method: Method
    canaries: CanarySet


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = tiny_llama(tmp_path_factory.mktemp("llama"), layers=1, width=96, chat=False)
    privacy = {"unit": "record", "epsilon": EPSILON, "delta": DELTA, "clip": CLIP}
    spec = specification(adapter={"kind": "full"}, method={"name": "causal_lm", "max_length": 24}, privacy=privacy)
    tokenizer = load_tokenizer(folder)
    with pytest.MonkeyPatch.context() as patch:
        fix_canaries(patch)
        canaries = make_canaries(spec, tokenizer, CANARIES, tokens=12)
    return Task(spec, folder, tokenizer, methods.create(spec, tokenizer), canaries)


def audited(task: Task, step: Step, *, steps: int = STEPS, learning_rate: float = 1e-2) -> tuple[AuditResult, Any]:
    torch.manual_seed(1)
    model = build(task.spec, task.folder)
    before = canary_losses(task.method, model, task.canaries)
    records = task.canaries.records(counted=True)
    units = [[] if record is None else list(task.method.prepare([record])) for record in records]
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    with PerSampleGradients(model) as per_sample:
        loss = RecordLoss(model, task.method)
        for _ in range(steps):
            step(per_sample, units, loss)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    result = audit(
        task.canaries,
        base_losses=before,
        trained_losses=canary_losses(task.method, model, task.canaries),
        extraction=extract(model, task.tokenizer, task.canaries),
        claimed_epsilon=EPSILON,
        claimed_delta=DELTA,
    )
    return result, model


@pytest.mark.usefixtures("fixed_noise")
def test_the_honest_step_is_not_contradicted(task: Task) -> None:
    result, _ = audited(task, honest)
    assert not result.contradicted
    assert result.bound.epsilon <= EPSILON < result.detectable_epsilon
    assert result.extraction is not None
    assert result.extraction.included_extracted == 0


@pytest.mark.parametrize("bug", [without_clipping, without_noise])
def test_planted_bugs_are_contradicted(task: Task, bug: Step) -> None:
    result, _ = audited(task, bug)
    assert result.bound.epsilon > EPSILON
    assert result.contradicted
    assert result.calibrated_attack.auc > 0.9
    assert result.document()["contradicted"] is True


def test_memorized_canaries_are_extracted(task: Task) -> None:
    few = CanarySet(method="causal_lm", canaries=task.canaries.canaries[:6])
    included = [canary.model_copy(update={"included": number % 2 == 0}) for number, canary in enumerate(few.canaries)]
    small = Task(
        task.spec, task.folder, task.tokenizer, task.method, few.model_copy(update={"canaries": tuple(included)})
    )
    result, model = audited(small, without_noise, steps=120)
    assert result.extraction is not None
    assert result.extraction.included_extracted > 0
    assert result.extraction.left_out_extracted == 0
    assert not model.training


def test_coins_are_fair_and_canaries_differ(task: Task) -> None:
    many = make_canaries(task.spec, task.tokenizer, 2000, tokens=12)
    heads = sum(canary.included for canary in many.canaries)
    assert abs(heads - 1000) < 7 * math.sqrt(500)  # of fair coins once in 4 * 10^11 runs
    assert len({canary.fields["text"] for canary in many.canaries}) > 1990
    assert len(many.records(counted=True)) == 2000
    assert len(many.records(counted=False)) == heads


@pytest.mark.parametrize(
    ("sections", "names"),
    [
        ({"method": {"name": "sft"}}, {"prompt", "completion"}),
        ({"method": {"name": "masked_lm"}}, {"text"}),
        ({"method": {"name": "classification", "labels": ["good", "bad"]}}, {"text", "label"}),
        (
            {
                "method": {"name": "sft"},
                "privacy": {"unit": "user", "epsilon": 1.0, "delta": 1e-5, "clip": 1.0, "user_key": "author"},
            },
            {"prompt", "completion", "author"},
        ),
    ],
)
def test_canaries_have_the_record_format_of_the_method(task: Task, sections: Any, names: set[str]) -> None:
    made = make_canaries(specification(**sections), task.tokenizer, 6)
    assert all(set(canary.fields) == names for canary in made.canaries)
    if "author" in names:
        assert len({canary.fields["author"] for canary in made.canaries}) == 6


def test_methods_without_canaries_and_silly_counts_are_refused(task: Task) -> None:
    contrastive = specification(method={"name": "contrastive"})
    with pytest.raises(ConfideError, match=r"'contrastive'.*sft, causal_lm"):
        make_canaries(contrastive, task.tokenizer, 10)
    with pytest.raises(ConfideError, match="choose 2 to 20000"):
        make_canaries(task.spec, task.tokenizer, 1)


def test_canaries_are_read_back(task: Task) -> None:
    assert CanarySet.from_bytes(task.canaries.to_bytes(), "canaries.json") == task.canaries


@given(st.binary(max_size=200))
def test_damaged_canaries_are_a_named_error(data: bytes) -> None:
    with pytest.raises(StateError, match=r"canaries.json is damaged"):
        CanarySet.from_bytes(data, "canaries.json")


def test_a_broken_model_is_not_audited(task: Task) -> None:
    model = build(task.spec, task.folder)
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    with pytest.raises(ConfideError, match="NaN for a canary"):
        canary_losses(task.method, model, task.canaries)
    assert np.isfinite(canary_losses(task.method, build(task.spec, task.folder), task.canaries)).all()
