"""The private step: clipping by record and by user, noise, division, micro-batches, empty batches."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from confide.errors import ConfideError, ModelError
from confide.methods import base as methods
from confide.methods.base import Batch, Method
from confide.models.architecture import load_tokenizer
from confide.models.trainable import build, initial_state, load_trainable
from confide.privacy.dpsgd import (
    ClippedGaussian,
    RecordLoss,
    RowLosses,
    clip_factors,
    private_gradients,
)
from confide.privacy.dpsgd import clipped_sum as integer_sum
from confide.privacy.noise.lattice import Lattice
from confide.privacy.noise.randomness import SecureRandom
from confide.privacy.per_sample import PerSampleGradients
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny_models import tiny_bert, tiny_llama
from tests.training_specs import specification
from tests.unit.test_privacy_randomness import fixed

CLIP = 0.05
RECORDS = [
    {"prompt": "How thick must the wall be?", "completion": "Twelve centimetres."},
    {"prompt": "Who pays?", "completion": "The client pays for the scaffold, and for the permit, and the mortar."},
    {"prompt": "Permit?", "completion": "Yes."},
    {"prompt": "Which mortar is right for an old brick wall?", "completion": "A lime mortar is right."},
]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Method, list[Any]]:
    """(LoRA model with an effect, method, examples)."""
    folder = tiny_llama(tmp_path_factory.mktemp("llama"))
    spec = specification()
    model = build(spec, folder)
    state = initial_state(spec, folder)
    torch.manual_seed(1)
    load_trainable(model, {name: torch.randn(tensor.shape) * 0.2 for name, tensor in state.items()})
    method = methods.create(spec, load_tokenizer(folder))
    return model, method, list(method.prepare(RECORDS))


def one_by_one(model: Any, method: Method, units: Sequence[Sequence[Any]], clip: float) -> list[torch.Tensor]:
    """The clipped sum, unit by unit and row by row through plain autograd, in float64."""
    model.eval()
    parameters = [p for p in model.parameters() if p.requires_grad]
    sums = [torch.zeros(p.shape, dtype=torch.float64) for p in parameters]
    for unit in units:
        whole = [torch.zeros(p.shape, dtype=torch.float64) for p in parameters]
        for example in unit:
            batch = method.collate([example], seed=0)
            gradients = torch.autograd.grad(method.loss(model, batch) / batch.count, parameters, allow_unused=True)
            for total, gradient in zip(whole, gradients, strict=True):
                total += 0.0 if gradient is None else gradient.double()
        norm = math.sqrt(sum(float(w.square().sum()) for w in whole))
        for total, w in zip(sums, whole, strict=True):
            total += w * min(1.0, clip / norm) if norm else w
    return sums


OTHERS = 1 - 2.0**-7
"""Of the clip, what is left to a unit that shares its micro-batch."""


def clipped_sum(per_sample: Any, units: Any, *, loss: Any, clip: float, micro_batch_size: int) -> list[torch.Tensor]:
    """The sum of integers in the gradients' own units, float64."""
    lattice = Lattice(clip=clip, noise_multiplier=1.0)
    sums = integer_sum(per_sample, units, loss=loss, lattice=lattice, micro_batch_size=micro_batch_size)
    assert {total.dtype for total in sums} <= {torch.int64}
    return [total.double() * lattice.granularity for total in sums]


def difference(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    error = math.sqrt(
        sum(float((f.double() - e.double()).square().sum()) for f, e in zip(found, expected, strict=True))
    )
    return error / math.sqrt(sum(float(e.double().square().sum()) for e in expected))


@pytest.mark.parametrize("micro_batch_size", [1, 3, 8])
@pytest.mark.parametrize("clip", [CLIP, 10.0], ids=["all clipped", "none clipped"])
def test_record_level_equals_one_record_at_a_time(task: Any, micro_batch_size: int, clip: float) -> None:
    model, method, examples = task
    units = [[example] for example in examples]
    with PerSampleGradients(model) as per_sample:
        found = clipped_sum(
            per_sample, units, loss=RecordLoss(model, method), clip=clip, micro_batch_size=micro_batch_size
        )
    kept = clip if micro_batch_size == 1 else clip * OTHERS
    assert difference(found, one_by_one(model, method, units, kept)) < 1e-4


@pytest.mark.parametrize("micro_batch_size", [1, 2, 8])
def test_a_user_is_summed_before_clipping(task: Any, micro_batch_size: int) -> None:
    model, method, examples = task
    units = [[examples[0], examples[1], examples[2]], [], [examples[3]]]
    with PerSampleGradients(model) as per_sample:
        found = clipped_sum(
            per_sample, units, loss=RecordLoss(model, method), clip=CLIP, micro_batch_size=micro_batch_size
        )
    kept = CLIP if micro_batch_size == 1 else CLIP * OTHERS
    assert difference(found, one_by_one(model, method, units, kept)) < 1e-4
    alone = one_by_one(model, method, [[e] for e in examples], CLIP)
    assert difference(found, alone) > 0.1


def test_one_record_moves_the_sum_by_at_most_the_clip(task: Any) -> None:
    model, method, examples = task
    with PerSampleGradients(model) as per_sample:
        loss = RecordLoss(model, method)
        whole = clipped_sum(per_sample, [[e] for e in examples], loss=loss, clip=CLIP, micro_batch_size=2)
        less = clipped_sum(per_sample, [[e] for e in examples[1:]], loss=loss, clip=CLIP, micro_batch_size=3)
    moved = math.sqrt(sum(float((w - x).double().square().sum()) for w, x in zip(whole, less, strict=True)))
    assert CLIP * 0.99 < moved <= CLIP


def test_one_by_one_a_unit_adds_the_same_integers_in_any_company(task: Any) -> None:
    """micro_batch_size 1: what the sum changes by is the unit's own vector, to the last bit, whoever else is there."""
    model, method, examples = task
    lattice = Lattice(clip=CLIP, noise_multiplier=1.0)
    with PerSampleGradients(model) as per_sample:
        loss = RecordLoss(model, method)

        def total(units: Any) -> torch.Tensor:
            sums = integer_sum(per_sample, units, loss=loss, lattice=lattice, micro_batch_size=1)
            return torch.cat([part.flatten() for part in sums])

        company = [[examples[0], examples[3]], [examples[1]], []]
        alone = total([[examples[2]]])
        assert (total([*company, [examples[2]]]) - total(company) == alone).all()
        assert (total([[examples[2]], *company[1:]]) - total(company[1:]) == alone).all()
        assert 0 < sum(int(value) ** 2 for value in alone) <= lattice.bound**2


def test_long_and_short_records_weigh_alike(task: Any) -> None:
    """The loss of a record is a mean over its tokens: the same answer said five times keeps its gradient's size."""
    model, method, _ = task
    once, often = method.prepare([{"prompt": "Who pays?", "completion": "The client. " * n} for n in (1, 5)])
    with PerSampleGradients(model) as per_sample:
        loss = RecordLoss(model, method)
        norms = []
        for example in (once, often):
            total = clipped_sum(per_sample, [[example]], loss=loss, clip=10.0, micro_batch_size=1)
            norms.append(math.sqrt(sum(float(t.square().sum()) for t in total)))
    assert norms[1] < 2 * norms[0]


def _step(
    model: Any, method: Method, units: Sequence[Sequence[Any]], random: SecureRandom, **changes: float
) -> list[torch.Tensor]:
    mechanism = ClippedGaussian(**{"clip": CLIP, "noise_multiplier": 2.0, "expected_batch": 4.0, **changes})
    with PerSampleGradients(model) as per_sample:
        private_gradients(
            per_sample,
            units,
            loss=RecordLoss(model, method),
            mechanism=mechanism,
            micro_batch_size=2,
            random=random,
        )
    gradients = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    model.zero_grad(set_to_none=True)
    return gradients


def test_an_empty_batch_gives_noise_of_the_stated_size(task: Any) -> None:
    model, method, _ = task
    values = torch.cat([g.flatten() for g in _step(model, method, [], fixed(1))]).numpy()
    # 2.0 * CLIP / 4: over n values the standard deviation is within 5 / sqrt(2 n) of it.
    assert abs(values.std() / (2.0 * CLIP / 4.0) - 1) < 5 / math.sqrt(2 * values.size)
    assert abs(values.mean()) < 5 * values.std() / math.sqrt(values.size)


def test_noise_has_the_same_size_in_every_batch(task: Any) -> None:
    model, method, examples = task
    units = [[e] for e in examples]
    clean = one_by_one(model, method, units, CLIP)
    noised = _step(model, method, units, fixed(2), expected_batch=7.0)
    noise = torch.cat([(n.double() - c / 7.0).flatten() for n, c in zip(noised, clean, strict=True)]).numpy()
    assert abs(noise.std() / (2.0 * CLIP / 7.0) - 1) < 5 / math.sqrt(2 * noise.size)


def test_two_steps_never_share_noise(task: Any) -> None:
    model, method, _ = task
    first, second = (_step(model, method, [], SecureRandom()) for _ in range(2))
    a, b = (torch.cat([g.flatten() for g in gradients]).numpy() for gradients in (first, second))
    # Really drawn, here alone: seven standard deviations, which chance exceeds once in 4 * 10^11 runs.
    assert abs(np.corrcoef(a, b)[0, 1]) < 7 / math.sqrt(a.size)


def test_division_is_by_the_expected_batch_and_not_by_the_batch_at_hand(task: Any) -> None:
    model, method, examples = task
    units = [[e] for e in examples[:2]]
    found = _step(model, method, units, fixed(3), noise_multiplier=1e-6, expected_batch=100.0)
    assert difference([f * 100.0 for f in found], one_by_one(model, method, units, CLIP * OTHERS)) < 1e-4


def test_a_record_without_a_finite_gradient_contributes_nothing(task: Any) -> None:
    model, method, examples = task

    class Poisoned(RecordLoss):
        def __call__(self, chosen: Sequence[Any]) -> RowLosses:
            losses = super().__call__(chosen)
            bad = torch.tensor([float("nan") if e is examples[1] else 1.0 for e in chosen])
            return RowLosses(losses.total, losses.scale_B * bad)

    with PerSampleGradients(model) as per_sample:
        found = clipped_sum(
            per_sample, [[e] for e in examples], loss=Poisoned(model, method), clip=CLIP, micro_batch_size=4
        )
        users = clipped_sum(
            per_sample, [examples[:2], examples[2:]], loss=Poisoned(model, method), clip=CLIP, micro_batch_size=4
        )
    others = [[e] for e in examples if e is not examples[1]]
    assert difference(found, one_by_one(model, method, others, CLIP * OTHERS)) < 1e-4
    assert difference(users, one_by_one(model, method, [examples[2:]], CLIP * OTHERS)) < 1e-4


@given(
    norms=st.lists(st.floats(0, 1e18), min_size=1, max_size=5),
    scale=st.floats(1e-3, 1.0),
    clip=st.floats(1e-3, 1e3),
)
def test_clipped_norms_never_exceed_the_clip(norms: list[float], scale: float, clip: float) -> None:
    gradients = [torch.tensor(norms)[:, None] * torch.tensor([0.6, -0.8])]
    factors = clip_factors(gradients, clip, torch.full((len(norms),), scale))
    clipped = (gradients[0].double() * factors.double()[:, None]).norm(dim=1)
    assert bool((clipped <= clip).all())
    small = torch.tensor(norms) * scale < 0.99 * clip
    assert torch.allclose(factors[small], torch.full_like(factors[small], scale), rtol=1e-4)


def test_infinite_gradients_get_no_weight() -> None:
    gradients = [torch.tensor([[1.0], [float("inf")], [float("nan")], [1e30]]).expand(4, 300)]
    assert clip_factors(gradients, 1.0)[1:].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["clip", "noise_multiplier", "expected_batch"])
def test_a_meaningless_mechanism_is_refused(field: str, value: float) -> None:
    with pytest.raises(ConfideError, match=f"{field} .* must be positive"):
        ClippedGaussian(**{"clip": 1.0, "noise_multiplier": 1.0, "expected_batch": 8.0, field: value})


def test_a_loss_over_the_whole_batch_is_refused(task: Any) -> None:
    model, method, _ = task

    class Contrasting:
        name = "contrastive"
        whole_batch = True

    with pytest.raises(ModelError, match=r"'contrastive' compares the records.*organization"):
        RecordLoss(model, Contrasting())  # type: ignore[arg-type]
    assert not method.whole_batch


@pytest.mark.parametrize("make", [tiny_bert, tiny_llama])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_classification_equals_one_record_at_a_time(make: Any, kind: str, tmp_path: Path) -> None:
    folder = make(tmp_path)
    targets = ["query", "value"] if make is tiny_bert else ["q_proj", "v_proj"]
    labels = {"name": "classification", "labels": ["yes", "no"], "max_length": 32}
    spec = specification(method=labels, adapter={"kind": kind, "target_modules": targets})
    model = build(spec, folder)
    load_trainable(model, initial_state(spec, folder))
    method = methods.create(spec, load_tokenizer(folder))
    texts = ("Who pays?", "The client pays for the scaffold, and for the permit.", "A lime mortar.")
    units = [[e] for e in method.prepare([{"text": t, "label": ("yes", "no")[len(t) % 2]} for t in texts])]
    with PerSampleGradients(model) as per_sample:
        found = clipped_sum(per_sample, units, loss=RecordLoss(model, method), clip=CLIP, micro_batch_size=2)
    expected = {id(p) for p in per_sample.parameters}
    assert expected == {id(p) for p in model.parameters() if p.requires_grad}
    assert difference(found, one_by_one(model, method, units, CLIP * OTHERS)) < 1e-4


def test_masked_language_model_draws_masks_from_secret_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_bert(tmp_path)
    spec = specification(method={"name": "masked_lm"}, adapter={"kind": "full"})
    model = build(spec, folder)
    method = methods.create(spec, load_tokenizer(folder))
    examples = method.prepare([{"text": "A lime mortar is right for an old brick wall, and the client pays."}])
    seen: list[Batch] = []
    collate = method.collate
    monkeypatch.setattr(method, "collate", lambda e, seed: seen.append(collate(e, seed)) or seen[-1])
    with PerSampleGradients(model) as per_sample:
        loss = RecordLoss(model, method)
        for _ in range(8):
            clipped_sum(per_sample, [examples], loss=loss, clip=1.0, micro_batch_size=4)
    assert len({tuple(batch.labels.flatten().tolist()) for batch in seen}) > 1
