"""The private local step inside LocalTrainer: units, noise from the promise, and what may not leave."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from confide.errors import ConfideError, DataError, ModelError
from confide.methods import base as methods
from confide.models.aggregation import rank_mask
from confide.models.architecture import load_tokenizer
from confide.models.arithmetic import precision
from confide.models.trainable import initial_state
from confide.privacy.dpsgd import RecordLoss
from confide.privacy.events import SampledGaussian
from confide.privacy.noise.randomness import SecureRandom
from confide.privacy.plan import unit_plan
from confide.proto import fleet_pb2
from confide_client.training import LocalTrainer
from confide_client.training.private import PrivateSteps, mechanism_of, units_of

from tests.private_federation import fixed_noise
from tests.tiny_models import tiny_gpt2, tiny_llama
from tests.training_specs import specification

__all__ = ["fixed_noise"]
RECORDS = [
    {"prompt": f"Who pays for wall {n}?", "completion": f"The client of wall {n} pays.", "author": f"author-{n % 3}"}
    for n in range(12)
]
# A strong promise: privacy loss distributions with much noise are quick to compute.
PRIVATE = {"unit": "record", "epsilon": 0.5, "delta": 1e-3, "clip": 0.5}
USER = {**PRIVATE, "unit": "user", "user_key": "author"}
SLOT = fleet_pb2.SlotOpen(slot=1, round=1, attempt=1)


@dataclass(frozen=True)
class Shard:
    train: Any
    evaluation: Any = field(default_factory=list)
    digest: str = ""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


def trainer(base: Path, folder: Path, **sections: dict[str, Any]) -> LocalTrainer:
    return LocalTrainer(specification(**sections), base, node="hospital-a", folder=folder)


def start(base: Path, spec: Any, local: LocalTrainer) -> Any:
    return local.schema.flatten(initial_state(spec, base))


@pytest.mark.parametrize("privacy", [PRIVATE, USER], ids=["record", "user"])
def test_a_private_step_moves_the_model_and_reports_no_metric(base: Path, tmp_path: Path, privacy: Any) -> None:
    local = trainer(base, tmp_path, privacy=privacy)
    model = start(base, specification(privacy=privacy), local)
    contribution = local.contribute(model, Shard(RECORDS[:9], RECORDS[9:]), SLOT)
    assert contribution.metrics == {}
    assert contribution.weight == 1.0
    assert contribution.update.shape == model.shape
    assert float(np.abs(contribution.update).max()) > 0
    only = fleet_pb2.SlotOpen(slot=2, round=1, attempt=1, evaluate_only=True)
    assert local.contribute(model, Shard(RECORDS[:9], RECORDS[9:]), only).metrics == {}


def test_organization_level_reports_no_metric_either(base: Path, tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "privacy": {**PRIVATE, "unit": "organization"},
        "sealing": {"kind": "sealed"},
        "federation": {"clip_norm": 0.5},
    }
    local = trainer(base, tmp_path, **sections)
    model = start(base, specification(**sections), local)
    assert local.contribute(model, Shard(RECORDS[:9], RECORDS[9:]), SLOT).metrics == {}


def test_fresh_noise_in_every_attempt(base: Path, tmp_path: Path) -> None:
    local = trainer(base, tmp_path, privacy=PRIVATE)
    model = start(base, specification(privacy=PRIVATE), local)
    first, second = (local.contribute(model, Shard(RECORDS), SLOT).update for _ in range(2))
    assert not np.array_equal(first, second)


@pytest.mark.usefixtures("fixed_noise")
def test_noise_of_the_update_is_what_the_promise_needs(base: Path, tmp_path: Path) -> None:
    """SGD, one step, nothing to learn (every record is left out): the update is -lr * noise."""
    sections: dict[str, Any] = {
        "privacy": PRIVATE,
        "training": {"optimizer": "sgd", "learning_rate": 1.0, "local_steps": 1},
    }
    spec = specification(**sections)
    local = trainer(base, tmp_path, **sections)
    model = start(base, spec, local)
    records = [RECORDS[0], *[None] * 9]
    mechanism = mechanism_of(unit_plan(spec, len(records)))
    stddev = mechanism.noise_stddev / spec.training.batch_size
    update = local.contribute(model, Shard(records), SLOT).update
    # The one record may add at most clip / batch in norm.
    signal = 0.5 / 4 / math.sqrt(update.size)
    assert abs(float(update.std()) / stddev - 1) < 5 / math.sqrt(2 * update.size) + signal / stddev


@pytest.mark.usefixtures("fixed_noise")
@pytest.mark.parametrize("scheme", ["average", "ffa", "fedsb"])
def test_a_smaller_rank_is_clipped_and_noised_where_it_trains_and_nowhere_else(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """One record whose gradient is cut: without noise the update is as long as the clip, in the trained entries."""
    sections: dict[str, Any] = {
        "privacy": {**PRIVATE, "clip": 1e-3}, "adapter": {"aggregation": scheme},
        "training": {"optimizer": "sgd", "learning_rate": 1.0, "local_steps": 1, "weight_decay": 0.5},
    }  # fmt: skip
    spec = specification(**sections)
    local = LocalTrainer(spec, base, node="hospital-a", folder=tmp_path, rank=2)
    model = start(base, spec, local) + np.float32(0.01)
    masks = [rank_mask(name, shape, 2).flatten() for name, shape in local.schema.entries]
    trained = torch.cat(masks).numpy()
    noised = local.contribute(model, Shard(RECORDS[:1]), SLOT).update
    assert not noised[~trained].any() and noised[trained].all()
    decay = 0.5 * model
    stddev = mechanism_of(unit_plan(spec, 1)).noise_stddev / spec.training.batch_size
    part = (noised + decay)[trained]
    assert abs(float(part.std()) / stddev - 1) < 6 / math.sqrt(2 * part.size) + 0.05
    monkeypatch.setattr(
        SecureRandom, "rounded_gaussian", lambda self, count, *, stddev: np.zeros(count, dtype=np.int64)
    )
    silent = (local.contribute(model, Shard(RECORDS[:1]), SLOT).update + decay)[trained]
    # A hundredth or so is kept for what a record changes in the others' last bits.
    assert float(np.linalg.norm(silent)) == pytest.approx((1 - 2**-7) * 1e-3 / spec.training.batch_size, rel=1e-3)


@pytest.mark.parametrize(
    ("sections", "arithmetic", "largest"),
    [
        ({}, "bfloat16", 3),
        ({"training": {"autocast": True}}, "bfloat16", 1),
        ({"training": {"autocast": True}}, "float32", 3),
        ({"model": {"dtype": "bfloat16"}}, "bfloat16", 1),
        ({"model": {"dtype": "bfloat16"}}, "float32", 3),
    ],
)
def test_units_share_a_micro_batch_in_float32_alone(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sections: Any, arithmetic: Any, largest: int
) -> None:
    """In bfloat16 a record would change its neighbours' gradients by half a percent: more than the clip leaves."""
    monkeypatch.setattr(precision, "_chosen", precision._Chosen())
    monkeypatch.delenv(precision.VARIABLE, raising=False)
    precision.prefer(arithmetic)
    sizes: list[int] = []
    whole = RecordLoss.__call__
    monkeypatch.setattr(RecordLoss, "__call__", lambda self, part: sizes.append(len(part)) or whole(self, part))
    training = {"micro_batch_size": 3, "local_steps": 1, **sections.get("training", {})}
    changes = {"privacy": PRIVATE, **sections, "training": training}
    local = trainer(base, tmp_path, **changes)
    local.contribute(start(base, specification(**changes), local), Shard(RECORDS[:4]), SLOT)
    assert (max(sizes), sum(sizes)) == (largest, 4)


def test_the_step_is_the_one_that_the_plan_and_the_ledger_charge() -> None:
    plan = unit_plan(specification(privacy=PRIVATE), 40)
    mechanism = mechanism_of(plan)
    (event,) = plan.cost.slot
    assert isinstance(event, SampledGaussian)
    assert (mechanism.noise_multiplier, mechanism.clip) == (event.noise_multiplier, 0.5)
    assert mechanism.expected_batch == event.sampling_rate * 40 == 4.0


def test_fewer_units_than_a_batch_take_part_in_every_step() -> None:
    plan = unit_plan(specification(privacy=PRIVATE), 3)
    assert plan.sampling_rate == 1.0
    assert mechanism_of(plan).expected_batch == 4.0


def _method(base: Path, **sections: dict[str, Any]) -> tuple[Any, Any]:
    spec = specification(**sections)
    return spec, methods.create(spec, load_tokenizer(base))


def test_units_are_records_or_users(base: Path) -> None:
    spec, method = _method(base, privacy=PRIVATE)
    assert [len(unit) for unit in units_of(spec, method, RECORDS)] == [1] * 12
    spec, method = _method(base, privacy=USER)
    assert [len(unit) for unit in units_of(spec, method, RECORDS)] == [4, 4, 4]


def test_records_left_out_are_counted_but_empty(base: Path) -> None:
    spec, method = _method(base, privacy=PRIVATE)
    assert [len(unit) for unit in units_of(spec, method, [RECORDS[0], None, RECORDS[1], None])] == [1, 0, 1, 0]
    spec, method = _method(base, privacy=USER)
    assert sorted(len(unit) for unit in units_of(spec, method, [*RECORDS, None, None])) == [0, 0, 4, 4, 4]


def test_a_long_document_stays_one_unit(base: Path) -> None:
    spec, method = _method(base, privacy=PRIVATE, method={"name": "causal_lm", "max_length": 16})
    units = units_of(spec, method, [{"text": "The client pays. " * 20}, {"text": "Short."}])
    assert len(units) == 2
    assert len(units[0]) > 3


def test_a_record_that_teaches_nothing_is_still_a_unit(base: Path) -> None:
    spec, method = _method(base, privacy=PRIVATE, method={"max_length": 32})
    long = {"prompt": "How thick must the wall be? " * 20, "completion": "Twelve."}
    assert [len(unit) for unit in units_of(spec, method, [RECORDS[0], long])] == [1, 0]


def test_a_missing_user_key_is_refused_by_name(base: Path) -> None:
    spec, method = _method(base, privacy=USER)
    with pytest.raises(DataError, match=r"user_key is 'author'.*lacks that field"):
        units_of(spec, method, [RECORDS[0], {"prompt": "Who?", "completion": "Me."}])


def test_an_empty_shard_is_refused(base: Path) -> None:
    spec, method = _method(base, privacy=PRIVATE)
    for records in ([], [None, None]):
        with pytest.raises(DataError, match="shard is empty"):
            units_of(spec, method, records)


def test_an_untested_family_is_refused_before_training(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from confide.privacy.families import FAMILIES

    monkeypatch.delitem(FAMILIES, "llama")
    with pytest.raises(ModelError, match="'llama' model were never compared"):
        trainer(base, tmp_path, privacy=PRIVATE)


@pytest.mark.usefixtures("fixed_noise")
@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_with_hardly_any_noise_it_learns(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full fine-tuning through the whole path: the loss on the training records falls as without privacy."""
    sections: dict[str, Any] = {
        "adapter": {"kind": "full"},
        "privacy": {**PRIVATE, "clip": 10.0},
        "training": {"local_steps": 12, "batch_size": 12, "learning_rate": 3e-3, "micro_batch_size": 5},
    }
    folder = make(tmp_path / "base")
    spec = specification(**sections)
    local = trainer(folder, tmp_path, **sections)
    model = start(folder, spec, local)
    weak = replace(unit_plan(spec, 12), noise_multiplier=1e-3)
    monkeypatch.setattr(PrivateSteps, "plan", lambda self, units: weak)
    update = local.contribute(model, Shard(RECORDS), SLOT).update
    plain = LocalTrainer(
        specification(**{**sections, "privacy": {}}), folder, node="hospital-a", folder=tmp_path / "plain"
    )
    only = fleet_pb2.SlotOpen(slot=2, round=1, attempt=1, evaluate_only=True)
    losses = [
        next(iter(plain.contribute(state, Shard(RECORDS, RECORDS), only).metrics.values()))
        for state in (model, model + update)
    ]
    assert losses[1] < 0.8 * losses[0]


def test_errors_are_named(base: Path, tmp_path: Path) -> None:
    local = trainer(base, tmp_path, privacy=PRIVATE)
    model = start(base, specification(privacy=PRIVATE), local)
    with pytest.raises(ConfideError, match="shard is empty"):
        local.contribute(model, Shard([]), SLOT)
