"""Is the mean of what travels the mean of the products BA? Exactly so for every scheme but plain averaging."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from confide.models.aggregation import (
    after_round,
    rank_mask,
    refactor,
)
from confide.models.sent_coordinates import SentCoordinates, is_active
from confide.models.trainable import build, initial_state, load_trainable, lora_matrices, schema_of
from confide.proto import fleet_pb2
from confide.runs.specification import Specification
from confide_client.training import LocalTrainer

from tests.tiny_models import TEXT, tiny_llama
from tests.training_specs import specification

EXACT = ["ffa", "rolora", "fedsvd", "fedsb"]
NODES = 4


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


def products(spec: Specification, base: Path, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: b.double() @ a.double() for name, (a, b) in lora_matrices(spec, base, tensors).items()}


def random_update(
    spec: Specification, state: dict[str, torch.Tensor], node: int, round: int, rank: int | None = None
) -> dict[str, torch.Tensor]:
    """What a node could have trained: noise where the scheme lets it train."""
    noise = torch.Generator().manual_seed(100 * round + node)
    update = {}
    for name, tensor in state.items():
        step = 0.05 * torch.randn(tensor.shape, generator=noise) * is_active(spec, name, round)
        update[name] = step if rank is None else step * rank_mask(name, tuple(tensor.shape), rank)
    return update


def error_after(spec: Specification, base: Path, rounds: int, ranks: list[int] | None = None) -> float:
    """Largest relative error, over rounds and layers, of the averaged model's product against the mean of products."""
    state = initial_state(spec, base)
    worst = 0.0
    for round in range(1, rounds + 1):
        updates = [random_update(spec, state, node, round, ranks and ranks[node]) for node in range(NODES)]
        local = [products(spec, base, {name: state[name] + u[name] for name in state}) for u in updates]
        state = {name: state[name] + torch.stack([u[name] for u in updates]).mean(0) for name in state}
        state = after_round(spec, state)
        for name, product in products(spec, base, state).items():
            true = torch.stack([p[name] for p in local]).mean(0)
            worst = max(worst, float((product - true).norm() / true.norm()))
    return worst


@pytest.mark.parametrize("scheme", EXACT)
@pytest.mark.parametrize("ranks", [None, [4, 2, 1, 3]])
def test_the_mean_of_what_travels_is_the_mean_of_the_products(
    llama: Path, scheme: str, ranks: list[int] | None
) -> None:
    assert error_after(specification(adapter={"aggregation": scheme}), llama, 4, ranks) < 1e-5


def test_plain_averaging_is_wrong_and_says_by_how_much(llama: Path) -> None:
    assert error_after(specification(adapter={"aggregation": "average"}), llama, 4) > 0.05


@pytest.mark.parametrize("scheme", [*EXACT, "average"])
def test_real_training_rounds_agree_with_the_random_ones(llama: Path, tmp_path: Path, scheme: str) -> None:
    """The same property with updates that nodes really trained, and the same model after the refactoring."""
    spec = specification(adapter={"aggregation": scheme}, training={"learning_rate": 5e-2, "local_steps": 5})

    class Shard:
        def __init__(self, node: int) -> None:
            words = TEXT.split()[node * 6 :]
            self.train = [{"question": word, "answer": " ".join(words[i : i + 5])} for i, word in enumerate(words[:8])]
            self.evaluation: list[dict[str, Any]] = []
            self.digest = ""

    trainers = [LocalTrainer(spec, llama, node=f"hospital-{n}", folder=tmp_path, threads=1) for n in range(3)]
    schema = schema_of(spec, llama)
    flat = schema.flatten(initial_state(spec, llama)).astype(np.float64)
    error = 0.0
    for round in (1, 2):
        slot = fleet_pb2.SlotOpen(slot=round, round=round, attempt=1)
        model = flat.astype(np.float32)
        updates = [t.contribute(model, Shard(n), slot).update.astype(np.float64) for n, t in enumerate(trainers)]
        outside = SentCoordinates(spec, schema).rest(round, 1)
        assert not any(update[start:stop].any() for update in updates for start, stop in outside)
        local = [products(spec, llama, schema.unflatten(model.astype(np.float64) + update)) for update in updates]
        flat = model + np.mean(updates, axis=0)
        averaged = products(spec, llama, schema.unflatten(flat))
        for name, product in averaged.items():
            true = torch.stack([p[name] for p in local]).mean(0)
            if true.norm() > 0:
                error = max(error, float((product - true).norm() / true.norm()))
        flat = schema.flatten(after_round(spec, schema.unflatten(flat.astype(np.float32)))).astype(np.float64)
    assert (error > 1e-3) if scheme == "average" else (error < 1e-5)


def test_refactoring_keeps_the_product_and_makes_rows_orthonormal() -> None:
    noise = torch.Generator().manual_seed(0)
    a, b = torch.randn(4, 32, generator=noise), torch.randn(16, 4, generator=noise)
    new_a, new_b = refactor(a, b)
    torch.testing.assert_close(new_b.double() @ new_a.double(), b.double() @ a.double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(new_a @ new_a.T, torch.eye(4), rtol=0, atol=1e-6)
    again_a, again_b = refactor(new_a, new_b)
    torch.testing.assert_close(again_a, new_a, rtol=0, atol=1e-5)
    torch.testing.assert_close(again_b, new_b, rtol=0, atol=1e-4)
    singular = new_b.norm(dim=0)
    assert torch.equal(singular, singular.sort(descending=True).values)


def test_refactoring_of_a_zero_product_keeps_the_row_space() -> None:
    a, b = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)), torch.zeros(16, 4)
    new_a, new_b = refactor(a, b)
    assert not new_b.any()
    torch.testing.assert_close(new_a @ new_a.T, torch.eye(4), rtol=0, atol=1e-6)
    torch.testing.assert_close(a @ new_a.T @ new_a, a, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheme", ["fedsvd", "fedsb"])
def test_initial_matrices_are_orthonormal(llama: Path, scheme: str) -> None:
    spec = specification(adapter={"aggregation": scheme})
    for a, b in lora_matrices(spec, llama, initial_state(spec, llama)).values():
        torch.testing.assert_close(a @ a.T, torch.eye(4), rtol=0, atol=1e-6)
        assert not b.any()


def test_the_refactored_model_computes_the_same(llama: Path) -> None:
    spec = specification(adapter={"aggregation": "fedsvd"})
    state = initial_state(spec, llama)
    state = {name: state[name] + u for name, u in random_update(spec, state, 1, 1).items()}
    ids = torch.arange(5, 25).reshape(2, 10)
    outputs = []
    for tensors in (state, after_round(spec, state)):
        model = build(spec, llama)
        load_trainable(model, tensors)
        with torch.no_grad():
            outputs.append(model(input_ids=ids).logits)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)


def test_other_schemes_change_nothing_after_a_round(llama: Path) -> None:
    for scheme in ("average", "ffa", "rolora", "fedsb"):
        spec = specification(adapter={"aggregation": scheme})
        state = initial_state(spec, llama)
        after = after_round(spec, state)
        assert all(after[name] is state[name] for name in state)
