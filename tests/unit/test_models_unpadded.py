"""Rows of a batch as one sequence, and kept states of frozen layers: the same losses and gradients, or not used."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from confide.methods import base as methods
from confide.methods import token_loss
from confide.models.architecture import load_tokenizer
from confide.models.arithmetic import frozen_prefix, unpadded
from confide.models.arithmetic.frozen_prefix import FrozenPrefix
from confide.models.trainable import build, initial_state, load_trainable, trainable_tensors
from confide.privacy.per_sample import PerSampleGradients
from confide.proto import fleet_pb2
from confide_client.data.datasets import LocalData
from confide_client.training import LocalTrainer

from tests.tiny_models import make_tokenizer, tiny_bert, tiny_gpt2, tiny_llama
from tests.training_specs import specification

RECORDS = [
    {"question": "How thick is " + "a very " * (i % 3) + f"old wall {i}?", "answer": f"It is {i} thick" + "!" * i}
    for i in range(8)
]
UPPER = {"adapter": {"first_layer": 1}}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"), layers=3)


@pytest.fixture
def padded(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Called, it leaves only the plain way."""
    return lambda: monkeypatch.setattr(token_loss.unpadded, "rows_of", lambda inputs, shared: None)


class Task:
    """A model, batches for it, and their losses and gradients."""

    def __init__(self, base: Path, **sections: Any) -> None:
        spec = specification(**sections)
        self.model: Any = build(spec, base)
        state = initial_state(spec, base)
        torch.manual_seed(1)
        load_trainable(self.model, {name: t + 0.1 * torch.randn(t.shape) for name, t in state.items()})
        self.model.train()
        self.method: Any = methods.create(spec, load_tokenizer(base))
        examples = self.method.prepare(RECORDS)
        self.batches = [self.method.collate(examples[i : i + 4], 0) for i in (0, 4)]

    @property
    def trained(self) -> dict[str, torch.nn.Parameter]:
        return trainable_tensors(self.model)

    def gradients(self) -> tuple[float, list[torch.Tensor]]:
        self.model.zero_grad()
        total = torch.stack([self.method.loss(self.model, batch) for batch in self.batches]).sum()
        total.backward()
        return total.item(), [p.grad.clone() for p in self.trained.values() if p.grad is not None]

    def scores(self) -> list[tuple[float, list[bool]]]:
        with torch.no_grad():
            found = [self.method.loss.score(self.model, batch) for batch in self.batches]
        return [(loss, matched.tolist()) for loss, matched in found]


def equal(ours: tuple[float, list[torch.Tensor]], theirs: tuple[float, list[torch.Tensor]]) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    assert len(ours[1]) == len(theirs[1]) > 0
    for mine, other in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()) + 1e-7)


def base_of(family: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    if family == "gpt2":
        return tiny_gpt2(folder, layers=3), {"adapter": {"first_layer": 1, "target_modules": ["c_attn"]}}
    return tiny_llama(folder, layers=3), UPPER


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_losses_and_gradients_are_those_of_padded_rows(family: str, tmp_path: Path, padded: Callable[[], None]) -> None:
    base, sections = base_of(family, tmp_path)
    task = Task(base, **sections)
    assert unpadded.runs_in_rows(task.model, token_loss.body_of(task.model))
    in_rows, scored = task.gradients(), task.scores()
    task.method.loss.prefix = FrozenPrefix.of(task.model, task.trained.values())
    # GPT-2 adds positions to what it is given in place of embeddings: going on from kept states is found to be wrong.
    assert (task.method.loss.prefix is None) == (family == "gpt2")
    cold, warm, kept_scored = task.gradients(), task.gradients(), task.scores()
    padded()
    plain, plain_scored = task.gradients(), task.scores()
    for found in (in_rows, cold, warm):
        equal(found, plain)
    for found_scores in (scored, kept_scored):
        assert [s[0] for s in found_scores] == pytest.approx([s[0] for s in plain_scored], rel=1e-5)
        assert [s[1] for s in found_scores] == [s[1] for s in plain_scored]


def test_what_rows_begin_with_is_taken_once(llama: Path) -> None:
    inputs = Task(llama).batches[0].inputs
    found = unpadded.rows_of(inputs, shared=True)
    alone = unpadded.rows_of(inputs, shared=False)
    assert found is not None
    assert alone is not None
    real = int(inputs["attention_mask"].sum())
    begins = next(i for i in range(99) if len({int(row[i]) for row in inputs["input_ids"]}) > 1)
    assert begins > 1
    assert alone[0].ids.numel() == real
    assert found[0].ids.numel() == real - 3 * begins
    for rows, mask in (found, alone):
        assert torch.equal(rows.ids[0][rows.places[mask]], inputs["input_ids"][mask])
        assert torch.equal(rows.positions[0][rows.places[mask]], torch.nonzero(mask)[:, 1])


def test_rows_padded_on_the_left_are_left_alone() -> None:
    mask = torch.tensor([[0, 0, 1], [1, 1, 1]])
    assert (
        unpadded.rows_of({"input_ids": torch.ones(2, 3, dtype=torch.int64), "attention_mask": mask}, shared=True)
        is None
    )


def test_a_model_that_looks_ahead_is_not_run_in_rows(tmp_path: Path) -> None:
    spec = specification(method={"name": "masked_lm"}, adapter={"target_modules": ["query"]})
    model: Any = build(spec, tiny_bert(tmp_path))
    assert not unpadded.runs_in_rows(model, token_loss.body_of(model))


def test_a_sliding_window_is_not_run_in_rows(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path)
    config = transformers.MistralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=6, pad_token_id=0, bos_token_id=None, eos_token_id=2,
    )  # fmt: skip
    transformers.MistralForCausalLM(config).save_pretrained(tmp_path)
    model: Any = build(specification(**UPPER), tmp_path)
    assert not unpadded.runs_in_rows(model, token_loss.body_of(model))
    assert FrozenPrefix.of(model, trainable_tensors(model).values()) is None


def test_gradients_of_single_records_see_padded_rows(llama: Path, padded: Callable[[], None]) -> None:
    """Under DP-SGD each record's gradient is taken apart by row."""
    task = Task(llama, **UPPER)
    task.method.loss.prefix = FrozenPrefix.of(task.model, task.trained.values())

    def per_record() -> list[torch.Tensor]:
        with PerSampleGradients(task.model) as per_sample:
            total = task.method.loss(task.model, task.batches[0])
            return [gradient.clone() for gradient in per_sample.of(total, rows=4)]

    ours = per_record()
    task.model.zero_grad()
    padded()
    for mine, plain in zip(ours, per_record(), strict=True):
        assert mine.shape[0] == 4
        assert torch.equal(mine, plain)
    assert task.method.loss.prefix.held_bytes == 0


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_layers_that_are_computed_again_are_not_run_in_rows(llama: Path) -> None:
    task = Task(llama)
    task.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert not unpadded.runs_in_rows(task.model, token_loss.body_of(task.model))
    assert FrozenPrefix.of(task.model, list(task.trained.values())[-1:]) is None


def test_a_compiled_model_is_not_run_in_rows(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor tried out: that would compile it."""
    task = Task(llama, **UPPER)
    task.model.base_model.compile()
    monkeypatch.setattr(unpadded, "trial", None)
    assert not unpadded.runs_in_rows(task.model, token_loss.body_of(task.model))
    assert FrozenPrefix.of(task.model, task.trained.values()) is None


def test_where_something_is_drawn_for_each_token_nothing_is_shared(tmp_path: Path) -> None:
    model: Any = build(specification(adapter={"target_modules": ["c_attn"]}), tiny_gpt2(tmp_path, dropout=0.5))
    assert unpadded.drops(model.train())
    assert not unpadded.drops(model.eval())


def test_nothing_is_kept_where_the_first_layer_is_trained(llama: Path) -> None:
    for sections in ({}, {"adapter": {"kind": "full"}}):
        model: Any = build(specification(**sections), llama)
        assert FrozenPrefix.of(model, trainable_tensors(model).values()) is None


def test_kept_states_outlive_a_change_of_the_adapters(llama: Path, padded: Callable[[], None]) -> None:
    task = Task(llama, **UPPER)
    prefix = task.method.loss.prefix = FrozenPrefix.of(task.model, task.trained.values())
    assert prefix is not None
    before = task.gradients()[0]
    held = prefix.held_bytes
    with torch.no_grad():
        for parameter in task.trained.values():
            parameter.add_(0.5)
    changed = task.gradients()
    assert prefix.held_bytes == held > 0
    assert changed[0] != pytest.approx(before, rel=1e-3)
    padded()
    equal(changed, task.gradients())


def test_no_more_is_kept_than_allowed(llama: Path, padded: Callable[[], None]) -> None:
    task = Task(llama, **UPPER)
    limit = 2 * 60 * 32 * 4
    prefix = task.method.loss.prefix = FrozenPrefix.of(task.model, task.trained.values(), limit_bytes=limit)
    assert prefix is not None
    found = task.gradients()
    assert 0 < prefix.held_bytes <= limit
    padded()
    equal(found, task.gradients())


def test_a_nodes_rounds_are_the_same_with_kept_states(
    llama: Path, tmp_path: Path, padded: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rounds with evaluation, and no record's frozen layers computed twice."""
    computed: list[int] = []
    compute = FrozenPrefix._computed
    monkeypatch.setattr(
        frozen_prefix.FrozenPrefix, "_computed", lambda self, ids: computed.append(len(ids)) or compute(self, ids)
    )
    spec = specification(adapter={"first_layer": 1}, federation={"rounds": 2})
    updates = []
    for name in ("kept", "plain"):
        if name == "plain":
            padded()
        trainer = LocalTrainer(spec, llama, node="hospital-a", folder=tmp_path / name, threads=1, device="cpu")
        model = trainer.schema.flatten(initial_state(spec, llama))
        computed.clear()
        for number in (1, 2):
            slot = fleet_pb2.SlotOpen(slot=number, round=number, attempt=1)
            contribution = trainer.contribute(model, LocalData(RECORDS[:6], RECORDS[6:]), slot)
            model = model + contribution.update
        updates.append((model, contribution.metrics))
        assert sum(computed) == (len(RECORDS) if name == "kept" else 0)
    np.testing.assert_allclose(updates[0][0], updates[1][0], rtol=1e-3, atol=1e-4)
    assert updates[0][1] == pytest.approx(updates[1][1], rel=1e-4)
