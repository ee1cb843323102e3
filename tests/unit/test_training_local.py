"""The local step: repeatable to the bit, indifferent to micro batches, and silent about records when it fails."""

import math
import re
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from confide.errors import ConfideError, DataError, SpecificationError, TrainingError, UpdateError
from confide.models.arithmetic import precision
from confide.models.trainable import build, initial_state, load_trainable, trainable_tensors
from confide.proto import fleet_pb2
from confide.runs.contribution import Contribution
from confide.runs.fields import Record
from confide.runs.metrics import Metric
from confide.runs.schedule import learning_rate
from confide.runs.specification import Specification
from confide_client.training import LocalTrainer
from confide_client.training.draws import Draws
from confide_client.training.loop import batch_indices
from safetensors.torch import load_file

from tests.tiny_models import tiny_bert, tiny_gpt2, tiny_llama
from tests.training_specs import specification

RECORDS = [{"question": f"How thick is wall {i}?", "answer": f"It is {i * i} centimetres."} for i in range(10)]


@dataclass(frozen=True)
class Shard:
    train: list[Record] = field(default_factory=lambda: list(RECORDS))
    evaluation: list[Record] = field(default_factory=lambda: list(RECORDS[:3]))
    digest: str = ""


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


def slot(round: int = 1, attempt: int = 1, **rest: Any) -> fleet_pb2.SlotOpen:
    return fleet_pb2.SlotOpen(slot=round, round=round, attempt=attempt, **rest)


def trainer(spec: Specification, base: Path, folder: Path, node: str = "hospital-a") -> LocalTrainer:
    return LocalTrainer(spec, base, node=node, folder=folder, threads=1, device="cpu")


def first_model(spec: Specification, base: Path, local: LocalTrainer) -> np.ndarray:
    return local.schema.flatten(initial_state(spec, base))


def one_round(spec: Specification, base: Path, folder: Path, **kwargs: Any) -> Contribution:
    local = trainer(spec, base, folder)
    return local.contribute(first_model(spec, base, local), kwargs.pop("data", Shard()), slot(**kwargs))


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"model": {"dtype": "bfloat16"}},
        {"adapter": {"kind": "full"}, "training": {"optimizer": "sgd", "learning_rate": 0.1}},
        {"method": {"name": "causal_lm"}, "adapter": {"aggregation": "fedsb"}},
    ],
)
def test_same_inputs_same_bits(llama: Path, tmp_path: Path, sections: dict[str, Any]) -> None:
    spec = specification(**sections)
    data = Shard([{"text": r["answer"]} for r in RECORDS], []) if spec.method.name == "causal_lm" else Shard()
    torch.manual_seed(0)
    first = one_round(spec, llama, tmp_path / "a", data=data)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002 - global state must not matter
    second = one_round(spec, llama, tmp_path / "b", data=data)
    assert first.update.dtype == np.float32 and first.update.any()
    assert first.update.tobytes() == second.update.tobytes()
    assert first.metrics == second.metrics


def test_node_round_attempt_and_seed_change_the_update(llama: Path, tmp_path: Path) -> None:
    spec = specification()
    base = one_round(spec, llama, tmp_path).update
    others = [
        one_round(spec, llama, tmp_path, attempt=2).update,
        one_round(spec, llama, tmp_path, round=2).update,
        one_round(specification(seed=6), llama, tmp_path).update,
    ]
    local = trainer(spec, llama, tmp_path, node="hospital-b")
    others.append(local.contribute(first_model(spec, llama, local), Shard(), slot()).update)
    for other in others:
        assert not np.array_equal(base, other)


def test_rounds_of_one_trainer_equal_fresh_ones(llama: Path, tmp_path: Path) -> None:
    """Nothing of an earlier round, an evaluation or a failure lingers in the loaded model."""
    spec = specification()
    local = trainer(spec, llama, tmp_path)
    model = first_model(spec, llama, local)
    local.contribute(model, Shard(), slot(1, evaluate_only=True))
    local.contribute(model, Shard(), slot(1))
    with pytest.raises(DataError):
        local.contribute(model, Shard([], []), slot(2))
    later = local.contribute(model, Shard(), slot(2))
    assert later.update.tobytes() == one_round(spec, llama, tmp_path, round=2).update.tobytes()


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_micro_batches_change_only_rounding(llama: Path, tmp_path: Path, kind: str) -> None:
    """Records have different lengths, so that averaging per micro batch instead of per token would show."""
    uneven = [{"question": "q", "answer": "a " * (1 + 3 * i)} for i in range(10)]
    updates = []
    for size in (1, 3, 8):
        spec = specification(
            adapter={"kind": kind},
            training={"micro_batch_size": size, "batch_size": 8, "optimizer": "sgd", "learning_rate": 0.5},
        )
        updates.append(one_round(spec, llama, tmp_path, data=Shard(uneven, [])).update)
    for update in updates[1:]:
        assert np.linalg.norm(update - updates[0]) < 1e-4 * np.linalg.norm(updates[0])


def test_one_sgd_step_is_the_gradient_of_the_mean_token_loss(llama: Path, tmp_path: Path) -> None:
    """Oracle: a bare transformers model with labels, all tokens of the batch in one mean."""
    spec = specification(
        training={"local_steps": 1, "batch_size": 10, "optimizer": "sgd", "learning_rate": 0.25, "max_grad_norm": 0.0}
    )
    contribution = one_round(spec, llama, tmp_path)
    model: Any = build(spec, llama)
    load_trainable(model, initial_state(spec, llama))
    total, count = torch.zeros(()), 0
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    for record in RECORDS:
        prompt = [{"role": "user", "content": record["question"]}]
        whole = [*prompt, {"role": "assistant", "content": record["answer"]}]
        start = len(
            tokenizer(tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)).input_ids
        )
        ids = torch.tensor(tokenizer(tokenizer.apply_chat_template(whole, tokenize=False)).input_ids)[:64]
        labels = ids.clone()
        labels[:start] = -100
        learned = int((labels[1:] != -100).sum())
        total = total + model(input_ids=ids[None], labels=labels[None]).loss * learned
        count += learned
    (total / count).backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad for name, p in trainable_tensors(model).items() if p.grad is not None}
    local = trainer(spec, llama, tmp_path)
    expected = -0.25 * local.schema.flatten(gradients)
    assert np.linalg.norm(contribution.update - expected) < 1e-4 * np.linalg.norm(expected)
    assert contribution.metrics[Metric.TRAIN_LOSS] == pytest.approx(float((total / count).detach()), rel=1e-5)
    assert contribution.metrics[Metric.UPDATE_NORM] == pytest.approx(float(np.linalg.norm(expected)), rel=1e-4)


def test_gradient_checkpointing_changes_only_rounding(llama: Path, tmp_path: Path) -> None:
    plain = one_round(specification(), llama, tmp_path).update
    saved = one_round(specification(training={"gradient_checkpointing": True}), llama, tmp_path).update
    assert np.linalg.norm(saved - plain) < 1e-4 * np.linalg.norm(plain)


def test_training_lowers_the_loss_and_metrics_are_of_the_received_model(llama: Path, tmp_path: Path) -> None:
    spec = specification(training={"local_steps": 10})
    local = trainer(spec, llama, tmp_path)
    model = first_model(spec, llama, local)
    contribution = local.contribute(model, Shard(), slot())
    only = local.contribute(model, Shard(), slot(evaluate_only=True))
    assert only.update.size == 0
    assert set(only.metrics) == {Metric.EVAL_LOSS, Metric.EVAL_BITS_PER_BYTE, Metric.EVAL_EXACT_MATCH}
    assert only.metrics.items() <= contribution.metrics.items()
    after = local.contribute(model + contribution.update, Shard(), slot(2, evaluate_only=True))
    assert after.metrics[Metric.EVAL_LOSS] < only.metrics[Metric.EVAL_LOSS] - 0.05
    none = local.contribute(model, Shard(evaluation=[]), slot())
    assert set(none.metrics) == {Metric.TRAIN_LOSS, Metric.UPDATE_NORM}


def test_weights_by_examples(llama: Path, tmp_path: Path) -> None:
    spec = specification(federation={"weights": "examples", "max_examples": 40})
    assert one_round(spec, llama, tmp_path).weight == 10 / 40
    spec = specification(federation={"weights": "examples", "max_examples": 5})
    assert one_round(spec, llama, tmp_path).weight == 1.0
    assert one_round(specification(), llama, tmp_path).weight == 1.0


@pytest.mark.parametrize(
    ("scheme", "still"), [("rolora", {1: "lora_A", 2: "lora_B"}), ("fedsvd", {1: "lora_A", 2: "lora_A"})]
)
def test_the_inactive_half_does_not_move(llama: Path, tmp_path: Path, scheme: str, still: dict[int, str]) -> None:
    spec = specification(adapter={"aggregation": scheme})
    local = trainer(spec, llama, tmp_path)
    model = first_model(spec, llama, local)
    for round, kind in still.items():
        contribution = local.contribute(model, Shard(), slot(round))
        for name, part in local.schema.unflatten(contribution.update).items():
            assert bool(part.any()) != name.endswith(kind), (round, name)
        model = model + contribution.update


def test_optimizer_state_of_the_other_half_waits_for_its_turn(llama: Path, tmp_path: Path) -> None:
    """RoLoRA with kept state: B's moments of round 1 must be there in round 3, although round 2 trained A."""
    spec = specification(adapter={"aggregation": "rolora"}, training={"keep_optimizer_state": True})
    local = trainer(spec, llama, tmp_path)
    model = first_model(spec, llama, local)
    for round in (1, 2, 3):
        model = model + local.contribute(model, Shard(), slot(round)).update
    state = load_file(tmp_path / "optimizer-000003.safetensors")
    steps = {key.rsplit(".", 1)[-1]: float(value) for key, value in state.items() if key.startswith("step/")}
    assert steps == {"lora_A": 3.0, "lora_B": 6.0}


def test_a_warm_start_takes_fewer_steps_and_the_schedule_counts_them() -> None:
    spec = specification(
        training={"local_steps": 5, "schedule": "cosine", "learning_rate": 1.0, "batch_size": 2},
        federation={"rounds": 3, "warm_start_rounds": 2, "warm_start_steps": 1},
    )
    steps = [list(batch_indices(spec, 14, Draws(spec, "hospital-a"), slot(number))) for number in (1, 2, 3)]
    assert list(map(len, steps)) == [1, 1, 5]
    assert sorted(index for part in steps for step in part for index in step) == list(range(14))
    assert learning_rate(spec, 6) > 0 and learning_rate(spec, 7) == 0.0


def test_batches_cover_the_shard_evenly_across_rounds() -> None:
    spec = specification(training={"local_steps": 3, "batch_size": 4})
    seen = [
        i for r in range(1, 6) for step in batch_indices(spec, 10, Draws(spec, "hospital-a"), slot(r)) for i in step
    ]
    counts = np.bincount(seen, minlength=10)
    assert counts.min() >= 5 and counts.max() <= 6
    for step in batch_indices(spec, 3, Draws(spec, "hospital-a"), slot()):
        assert sorted(step) == [0, 1, 2]


def test_a_round_over_a_large_shard_holds_one_shuffle_of_it() -> None:
    count = 200_000
    spec = specification(training={"local_steps": 3 * count // 4096, "batch_size": 4096})
    tracemalloc.start()
    try:
        steps = sum(1 for _ in batch_indices(spec, count, Draws(spec, "hospital-a"), slot(2)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert steps == 146
    assert peak < 3 * 8 * count, "two shuffles of eight bytes an example, and one batch"


def test_schedule_by_global_step() -> None:
    spec = specification(
        training={"local_steps": 5, "schedule": "cosine", "warmup_steps": 4, "learning_rate": 1.0},
        federation={"rounds": 4},
    )
    rates = [learning_rate(spec, step) for step in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0 and rates[12] == pytest.approx(0.5) and 0 < rates[19] < 0.02
    assert rates[4:] == sorted(rates[4:], reverse=True)
    flat = specification(training={"learning_rate": 0.5})
    assert {learning_rate(flat, step) for step in range(9)} == {0.5}


def test_optimizer_state_survives_a_restart_and_a_retry(llama: Path, tmp_path: Path) -> None:
    spec = specification(training={"keep_optimizer_state": True})
    folder = tmp_path / "state"
    local = trainer(spec, llama, folder)
    model = first_model(spec, llama, local)
    model = model + local.contribute(model, Shard(), slot(1)).update
    second = local.contribute(model, Shard(), slot(2)).update
    restarted = trainer(spec, llama, folder).contribute(model, Shard(), slot(2)).update
    assert restarted.tobytes() == second.tobytes()
    forgetful = trainer(spec, llama, tmp_path / "other").contribute(model, Shard(), slot(2)).update
    assert not np.array_equal(forgetful, second)
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())
    local.contribute(model, Shard(), slot(4))
    assert [path.name for path in sorted(folder.iterdir())] == ["optimizer-000004.safetensors"]
    (folder / "optimizer-000004.safetensors").write_bytes(b"damaged")
    with pytest.raises(TrainingError, match="delete it"):
        local.contribute(model, Shard(), slot(5))


def test_the_resting_half_keeps_its_optimizer_state(llama: Path, tmp_path: Path) -> None:
    """RoLoRA trains A and B in turn: what the optimizer knows of the one must outlast a round of the other."""
    spec = specification(adapter={"aggregation": "rolora"}, training={"keep_optimizer_state": True})
    local = trainer(spec, llama, tmp_path)
    model = first_model(spec, llama, local)
    for round in (1, 2, 3):
        model = model + local.contribute(model, Shard(), slot(round)).update
    kept = load_file(tmp_path / "optimizer-000003.safetensors")
    steps = {key.rsplit(".", 1)[-1]: float(value) for key, value in kept.items() if key.startswith("step/")}
    assert steps == {"lora_B": 6.0, "lora_A": 3.0}


@pytest.fixture
def bfloat16() -> Iterator[None]:
    """Computed in bfloat16 on every machine, as slow as that may be."""
    precision.prefer("bfloat16")
    yield
    precision.prefer("auto")


@pytest.mark.full
@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("method", ["sft", "causal_lm"])
def test_compiled_bfloat16_trains_close_to_float32(llama: Path, tmp_path: Path, method: str) -> None:
    """Batches of several shapes, with padding or several documents in a sequence."""
    sgd = {"optimizer": "sgd", "learning_rate": 1.0, "batch_size": 3, "micro_batch_size": 2}
    data = (
        Shard([{"text": f"wall {number} is {number} thick"} for number in range(40)], [])
        if method != "sft"
        else Shard()
    )
    updates = []
    for training in (sgd, {**sgd, "autocast": True, "compile": True}):
        spec = specification(method={"name": method, "max_length": 96}, training=training)
        updates.append(one_round(spec, llama, tmp_path, data=data).update)
    plain, fast = updates
    assert 0 < np.linalg.norm(fast - plain) < 0.1 * np.linalg.norm(plain)


@pytest.mark.usefixtures("bfloat16")
def test_autocast_trains_close_to_float32(llama: Path, tmp_path: Path) -> None:
    plain = one_round(specification(training={"optimizer": "sgd", "learning_rate": 1.0}), llama, tmp_path).update
    cast = specification(training={"optimizer": "sgd", "learning_rate": 1.0, "autocast": True})
    fast = one_round(cast, llama, tmp_path).update
    assert 0 < np.linalg.norm(fast - plain) < 0.1 * np.linalg.norm(plain)


@pytest.mark.parametrize(
    ("sections", "data", "error", "message"),
    [
        ({}, Shard([], []), DataError, "shard is empty"),
        ({"training": {"local_steps": 3000}}, Shard(), DataError, "passes over this node's shard"),
        ({}, Shard([{"secret": "secret"}]), DataError, "lacks the fields"),
        (
            {"training": {"learning_rate": 1e6, "local_steps": 20, "optimizer": "sgd", "max_grad_norm": 0.0}},
            Shard(),
            TrainingError,
            r"exploded|NaN",
        ),
        ({"training": {"learning_rate": 1e30}, "adapter": {"kind": "full"}}, Shard(), TrainingError, "NaN or infin"),
    ],
)
def test_failures_have_names_and_tell_nothing(
    llama: Path, tmp_path: Path, sections: dict[str, Any], data: Shard, error: type[ConfideError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        one_round(specification(**sections), llama, tmp_path, data=data)
    assert not re.search(r"secret|centimetres|/tmp", str(caught.value))


def test_out_of_memory_is_named(llama: Path, tmp_path: Path) -> None:
    """A real allocation failure: the model is fed more tokens than any address space holds."""
    spec = specification()
    local = trainer(spec, llama, tmp_path)
    model = first_model(spec, llama, local)

    class Huge(list[Record]):
        def __getitem__(self, key: Any) -> Any:
            torch.empty(2**60, dtype=torch.uint8)
            return super().__getitem__(key)

        def __iter__(self) -> Any:
            torch.empty(2**60, dtype=torch.uint8)
            return super().__iter__()

    with pytest.raises(TrainingError, match=r"out of memory with training\.micro_batch_size = 8"):
        local.contribute(model, Shard(Huge(RECORDS), []), slot())


def test_bad_models_are_refused(llama: Path, tmp_path: Path) -> None:
    spec = specification()
    local = trainer(spec, llama, tmp_path)
    model = first_model(spec, llama, local)
    with pytest.raises(UpdateError):
        local.contribute(model[:-1], Shard(), slot())
    with pytest.raises(TrainingError, match="received model evaluates to NaN"):
        local.contribute(np.full_like(model, math.nan), Shard(), slot())


@pytest.mark.parametrize("scheme", ["ffa", "fedsb", "average"])
def test_a_node_of_smaller_rank_trains_only_its_part(llama: Path, tmp_path: Path, scheme: str) -> None:
    spec = specification(adapter={"aggregation": scheme}, training={"weight_decay": 0.5})
    local = LocalTrainer(spec, llama, node="hospital-a", folder=tmp_path, threads=1, device="cpu", rank=2)
    model = first_model(spec, llama, local) + np.float32(0.01)
    for name, part in local.schema.unflatten(local.contribute(model, Shard(), slot()).update).items():
        rows, columns = name.endswith(("lora_A", "lora_core")), name.endswith(("lora_B", "lora_core"))
        assert not (rows and part[2:].any()) and not (columns and part[:, 2:].any())
        assert part[:2, :2].any()
    whole = LocalTrainer(spec, llama, node="hospital-a", folder=tmp_path, threads=1, device="cpu", rank=4)
    assert np.array_equal(whole.contribute(model, Shard(), slot()).update, one(spec, llama, tmp_path, model))
    with pytest.raises(SpecificationError, match="at least 1"):
        LocalTrainer(spec, llama, node="hospital-a", folder=tmp_path, rank=0)


def one(spec: Specification, base: Path, folder: Path, model: np.ndarray) -> np.ndarray:
    return trainer(spec, base, folder).contribute(model, Shard(), slot()).update


def test_fragments_carry_their_whole_way_since_they_were_last_exchanged(llama: Path, tmp_path: Path) -> None:
    """One node, two fragments, outer SGD with lr 1: exchanging in turns must end where local training alone ends."""
    spec = specification(
        training={"optimizer": "sgd", "learning_rate": 0.1, "local_steps": 2}, federation={"fragments": 2, "rounds": 4}
    )
    plain = specification(
        training={"optimizer": "sgd", "learning_rate": 0.1, "local_steps": 2}, federation={"fragments": 1, "rounds": 4}
    )
    streaming, whole = trainer(spec, llama, tmp_path / "s"), trainer(plain, llama, tmp_path / "w")
    half = streaming.schema.size // 2
    shared = alone = first_model(spec, llama, streaming)
    for round in range(1, 5):
        update = streaming.contribute(shared, Shard(), slot(round)).update
        retried = trainer(spec, llama, tmp_path / "s").contribute(shared, Shard(), slot(round)).update
        assert update.tobytes() == retried.tobytes()
        frozen = slice(half, None) if round % 2 == 1 else slice(0, half)
        assert not update[frozen].any() and update.any()
        shared = shared + update
        alone = alone + whole.contribute(alone, Shard(), slot(round)).update
        moved = slice(0, half) if round % 2 == 1 else slice(half, None)
        np.testing.assert_allclose(shared[moved], alone[moved], rtol=1e-4, atol=1e-6)
    assert [path.name for path in sorted((tmp_path / "s").iterdir())] == ["values-000003.f32", "values-000004.f32"]
    (tmp_path / "s" / "values-000004.f32").write_bytes(b"damaged")
    with pytest.raises(TrainingError, match="delete it"):
        streaming.contribute(shared, Shard(), slot(5))


@pytest.mark.parametrize(("make", "target"), [(tiny_gpt2, "c_attn"), (tiny_bert, "query")])
def test_other_families_train(tmp_path: Path, make: Any, target: str) -> None:
    base = make(tmp_path / "model")
    name = "masked_lm" if make is tiny_bert else "causal_lm"
    spec = specification(method={"name": name}, adapter={"target_modules": [target]}, training={"local_steps": 8})
    data = Shard([{"text": r["answer"]} for r in RECORDS], [{"text": RECORDS[0]["answer"]}])
    local = trainer(spec, base, tmp_path)
    model = first_model(spec, base, local)
    contribution = local.contribute(model, data, slot())
    after = local.contribute(model + contribution.update, data, slot(2, evaluate_only=True))
    assert after.metrics[Metric.EVAL_LOSS] < contribution.metrics[Metric.EVAL_LOSS]
