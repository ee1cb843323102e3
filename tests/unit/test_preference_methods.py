"""Methods that learn from pairs, against closed forms and brute force; one pair is one unit of privacy."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from confide.errors import ConfideError, DataError, ModelError, SpecificationError, StateError
from confide.methods.base import create
from confide.methods.preference import PairEncoder
from confide.models.architecture import load_tokenizer
from confide.models.export import write_export
from confide.models.store import folder_digest
from confide.models.trainable import build, initial_state, load_trainable, trainable_tensors
from confide.privacy.dpsgd import RecordLoss, clipped_sum
from confide.privacy.noise.lattice import Lattice
from confide.privacy.per_sample import PerSampleGradients
from confide.proto import fleet_pb2
from confide.runs.fields import Record
from confide.runs.metrics import Metric
from confide.runs.specification import Specification
from confide_client.training import LocalTrainer
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.preferences import pairs
from tests.tiny_models import tiny_bert, tiny_llama
from tests.training_specs import specification

TARGETS = {"llama": ["q_proj", "v_proj"], "bert": ["query", "value"]}
ONE_UNIT = {"unit": "record", "epsilon": 8.0, "delta": 1e-3, "clip": 1.0}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    makers = {"llama": tiny_llama, "bert": tiny_bert}
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in makers.items()}


@dataclass(frozen=True)
class Shard:
    train: list[Record]
    evaluation: list[Record] = field(default_factory=list)
    digest: str = ""


def spec(family: str, name: str, kind: str, **sections: Any) -> Specification:
    return specification(
        method={"name": name, **sections.pop("method", {})},
        adapter={"kind": kind, "target_modules": TARGETS[family], "rank": 4},
        **{"training": {"local_steps": 8, "batch_size": 6, "learning_rate": 2e-2}, **sections},
    )


def task(folder: Path, run: Specification, *, attached: bool, shaken: bool = True) -> tuple[Any, Any, list[Any]]:
    """Model, method and examples; shaken: the trained values are no zeros."""
    model: Any = build(run, folder).eval()
    state = initial_state(run, folder)
    if shaken:
        generator = torch.Generator().manual_seed(1)
        state = {name: t + 0.3 * torch.randn(t.shape, generator=generator) for name, t in state.items()}
    load_trainable(model, state)
    method: Any = create(run, load_tokenizer(folder))
    if attached:
        method.attach(model)
    return model, method, method.prepare(pairs(5))


@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.parametrize("kind", ["none", "lora"])
def test_a_reward_model_learns_and_reports(folders: dict[str, Path], tmp_path: Path, family: str, kind: str) -> None:
    run = spec(family, "reward", kind)
    local = LocalTrainer(run, folders[family], node="hospital-a", folder=tmp_path, threads=1, device="cpu")
    model = local.schema.flatten(initial_state(run, folders[family]))
    data = Shard(pairs(12), pairs(6))
    first = local.contribute(model, data, fleet_pb2.SlotOpen(slot=1, round=1, attempt=1))
    assert first.metrics[Metric.EVAL_LOSS] == pytest.approx(math.log(2), rel=1e-5) and first.update.any()
    assert first.metrics[Metric.EVAL_ACCURACY] == 0.5, "equal rewards are half right"
    after = local.contribute(
        model + first.update, data, fleet_pb2.SlotOpen(slot=2, round=2, attempt=1, evaluate_only=True)
    )
    assert after.metrics[Metric.EVAL_ACCURACY] == 1.0
    names = [name for name, _ in local.schema.entries if ".lora_" not in name]
    assert names == ["reward_head.weight"]


@pytest.mark.parametrize("aggregation", ["average", "ffa"])
def test_a_reward_model_with_an_adapter_is_exported_and_scores_as_it_was_trained(
    folders: dict[str, Path], tmp_path: Path, aggregation: str
) -> None:
    from confide_server.rlhf.reward_model import RewardModel

    base = folders["bert"]
    run = specification(
        model={"sha256": folder_digest(base)}, method={"name": "reward"},
        adapter={"kind": "lora", "target_modules": TARGETS["bert"], "rank": 4, "aggregation": aggregation},
    )  # fmt: skip
    model, method, _ = task(base, run, attached=False)
    tensors = {name: tensor.detach().clone() for name, tensor in trainable_tensors(model).items()}
    folder = write_export(tmp_path / "reward", tensors, {"round": 1}, run, base)
    records = pairs(4, prompt=False)
    with torch.no_grad():
        margins = method._margins(model, method.collate(method.prepare(records), seed=0)).numpy()
    reward = RewardModel(folder, base, folder_digest(base))
    chosen, rejected = (
        reward.scores([""] * 4, [record[side] for record in records]) for side in ("chosen", "rejected")
    )
    assert chosen - rejected == pytest.approx(margins, abs=1e-5) and np.abs(margins).max() > 1e-3
    (folder / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="REWARD_OF_ANOTHER_ADAPTER"):
        RewardModel(folder, base, folder_digest(base))


def test_the_bradley_terry_loss_is_its_closed_form(folders: dict[str, Path]) -> None:
    model, method, examples = task(folders["bert"], spec("bert", "reward", "none"), attached=True)
    batch = method.collate(examples, seed=0)
    weight = model.reward_head.weight[0].detach().double()
    margins = batch.inputs["difference"].double() @ weight
    expected = torch.log1p(torch.exp(-margins)).sum()
    assert method.loss(model, batch).detach().item() == pytest.approx(float(expected), rel=1e-5)
    assert batch.inputs["difference"].shape == (5, 32) and batch.count == 5


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_frozen_feature_is_the_models_own_wherever_padding_ends(
    folders: dict[str, Path], family: str, pooling: str
) -> None:
    run = spec(family, "reward", "none", method={"pooling": pooling})
    model, method, examples = task(folders[family], run, attached=True)
    frozen = method.loss(model, method.collate(examples, seed=0)).detach().item()
    loose: Any = create(run, load_tokenizer(folders[family]))
    assert loose.loss(model, loose.collate(examples, seed=0)).detach().item() == pytest.approx(frozen, rel=1e-5)
    vectors = [method._frozen.of(pair.chosen) for pair in examples]
    assert all(np.linalg.norm(vector) == pytest.approx(1.0, rel=1e-5) for vector in vectors)


def test_features_are_kept_for_the_next_run_of_the_same_base_and_for_no_other(folders: dict[str, Path]) -> None:
    run = spec("bert", "reward", "none")
    _, method, examples = task(folders["bert"], run, attached=True)
    first = method._frozen.difference(examples[0])
    again, other, _ = task(folders["bert"], run, attached=True)
    assert other._frozen._known and np.array_equal(other._frozen.difference(examples[0]), first)
    with torch.no_grad():
        next(again.parameters()).mul_(2)  # as drawn from another seed
    changed: Any = create(run, load_tokenizer(folders["bert"]))
    changed.attach(again)
    assert not changed._frozen._known and not np.array_equal(changed._frozen.difference(examples[0]), first)
    _, pooled, _ = task(folders["bert"], spec("bert", "reward", "none", method={"pooling": "last"}), attached=True)
    assert not pooled._frozen._known


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_dpo_is_its_closed_form(folders: dict[str, Path], loss: str) -> None:
    run = spec("llama", "dpo", "lora", method={"preference_loss": loss, "beta": 0.3})
    model, method, examples = task(folders["llama"], run, attached=True)
    base: Any = build(run, folders["llama"]).eval()
    load_trainable(base, initial_state(run, folders["llama"]))

    def log_probability(of: Any, answer: Any) -> float:
        ids = torch.tensor(answer.ids[None], dtype=torch.int64)
        with torch.no_grad():
            log_p = torch.log_softmax(of(input_ids=ids).logits[0].double(), dim=-1)
        return sum(float(log_p[t - 1, ids[0, t]]) for t in range(answer.start, ids.shape[1]))

    total = 0.0
    for pair in examples:
        gains = [log_probability(model, half) - log_probability(base, half) for half in (pair.chosen, pair.rejected)]
        h = gains[0] - gains[1]
        total += math.log1p(math.exp(-0.3 * h)) if loss == "sigmoid" else (h - 1 / 0.6) ** 2
    assert method.loss(model, method.collate(examples, seed=0)).detach().item() == pytest.approx(total, rel=1e-4)
    loose: Any = create(run, load_tokenizer(folders["llama"]))
    unkept = loose.loss(model, loose.collate(examples, seed=0))
    assert unkept.detach().item() == pytest.approx(total, rel=1e-4) and unkept.requires_grad


@pytest.mark.parametrize("micro_batch_size", [1, 2, 5])
@pytest.mark.parametrize(("method", "kind"), [("reward", "none"), ("reward", "lora"), ("dpo", "lora")])
def test_a_pairs_halves_are_added_before_they_are_clipped(
    folders: dict[str, Path], method: str, kind: str, micro_batch_size: int
) -> None:
    """Against autograd on one pair at a time; clipping each half by itself gives something else."""
    model, objective, examples = task(folders["llama"], spec("llama", method, kind), attached=True)
    parameters = list(trainable_tensors(model).values())
    whole = []
    for example in examples:
        gradients = torch.autograd.grad(objective.loss(model, objective.collate([example], seed=0)), parameters)
        whole.append(torch.cat([g.flatten() for g in gradients]).double())
    clip = float(np.median([float(w.norm()) for w in whole]))
    kept = clip * (1 if micro_batch_size == 1 else 1 - 2.0**-7)
    expected = torch.stack([w * min(1.0, kept / float(w.norm())) for w in whole]).sum(0)
    lattice = Lattice(clip=clip, noise_multiplier=1.0)
    with PerSampleGradients(model) as per_sample:
        sums = clipped_sum(
            per_sample, [[e] for e in examples], loss=RecordLoss(model, objective), lattice=lattice,
            micro_batch_size=micro_batch_size,
        )  # fmt: skip
        place = {id(p): i for i, p in enumerate(per_sample.parameters)}
    found = torch.cat([sums[place[id(p)]].flatten().double() * lattice.granularity for p in parameters])
    assert float((found - expected).norm() / expected.norm()) < 1e-3


@pytest.mark.parametrize("kind", ["none", "lora"])
def test_users_are_annotators_and_are_clipped_as_a_whole(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    privacy = {**ONE_UNIT, "unit": "user", "user_key": "annotator"}
    run = spec("bert", "reward", kind, privacy=privacy)
    local = LocalTrainer(run, folders["bert"], node="a", folder=tmp_path, threads=1, device="cpu")
    assert local._private is not None and len(local._private.units(pairs(12))) == 4
    model = local.schema.flatten(initial_state(run, folders["bert"]))
    slot = fleet_pb2.SlotOpen(slot=1, round=1, attempt=1)
    contribution = local.contribute(model, Shard(pairs(12), pairs(4)), slot)
    assert contribution.metrics == {} and contribution.update.any()


def test_dpo_learns_from_the_reference_that_it_starts_at_and_keeps_it(folders: dict[str, Path], tmp_path: Path) -> None:
    run = spec("llama", "dpo", "lora")
    data, slot = Shard(pairs(12), pairs(6)), fleet_pb2.SlotOpen(slot=1, round=1, attempt=1)
    local = LocalTrainer(run, folders["llama"], node="a", folder=tmp_path, threads=1, device="cpu")
    model = local.schema.flatten(initial_state(run, folders["llama"]))
    first = local.contribute(model, data, slot)
    assert first.metrics[Metric.EVAL_LOSS] == pytest.approx(math.log(2), rel=1e-4)
    file = tmp_path / "reference.json"
    assert file.stat().st_mode & 0o777 == 0o600
    kept = json.loads(file.read_bytes())
    assert len(kept["log_probabilities"]) == 24
    moved = model + first.update
    again = LocalTrainer(run, folders["llama"], node="a", folder=tmp_path, threads=1, device="cpu")
    ended = again.contribute(moved, data, fleet_pb2.SlotOpen(slot=2, round=2, attempt=1, evaluate_only=True))
    assert ended.metrics[Metric.EVAL_ACCURACY] == 1.0 and ended.metrics[Metric.EVAL_LOSS] < 0.65
    assert json.loads(file.read_bytes()) == kept, "the reference did not drift with what was trained"


def test_a_changed_reference_is_refused_by_name(folders: dict[str, Path], tmp_path: Path) -> None:
    run = spec("llama", "dpo", "lora")
    local = LocalTrainer(run, folders["llama"], node="a", folder=tmp_path, threads=1, device="cpu")
    model = local.schema.flatten(initial_state(run, folders["llama"])) + np.float32(0.1)
    with pytest.raises(ModelError, match=r"REFERENCE_CHANGED.*Merge the adapter"):
        local.contribute(model, Shard(pairs(4)), fleet_pb2.SlotOpen(slot=1, round=1, attempt=1))
    for text, error, said in (
        ('{"base": "' + "1" * 64 + '", "log_probabilities": {}}', ModelError, "REFERENCE_CHANGED"),
        ('{"base": "' + "0" * 64 + '", "log_probabilities": {"a": NaN}}', StateError, "damaged"),
        ("[]", StateError, "damaged"),
    ):
        (tmp_path / "reference.json").write_text(text)
        with pytest.raises(error, match=said):
            LocalTrainer(run, folders["llama"], node="a", folder=tmp_path, threads=1, device="cpu")


BAD_RECORDS: dict[str, tuple[dict[str, Any], str]] = {
    "no fields": ({"text": "a"}, "lacks the fields"),
    "no rejected": ({"prompt": "a", "chosen": "b"}, "lacks the fields"),
    "the same": ({"prompt": "a", "chosen": "b", "rejected": "b"}, "are the same"),
    "the same when cut": ({"chosen": "a " * 200 + "b", "rejected": "a " * 200 + "c"}, "max_length"),
    "empty": ({"prompt": "a", "chosen": "b", "rejected": ""}, "empty answer"),
    "a number": ({"chosen": 1, "rejected": "b"}, "must be text or a list"),
    "no role": ({"chosen": [{"content": "a"}], "rejected": "b"}, "needs a role"),
    "two turns": ({"chosen": [{"role": "user", "content": "a"}] * 2, "rejected": "b"}, "only the last may differ"),
}


@pytest.mark.parametrize("case", BAD_RECORDS)
@pytest.mark.parametrize("method", ["reward", "dpo"])
def test_records_that_are_no_pair_are_named(folders: dict[str, Path], method: str, case: str) -> None:
    record, said = BAD_RECORDS[case]
    objective = create(spec("llama", method, "lora"), load_tokenizer(folders["llama"]))
    with pytest.raises(DataError, match=said) as refused:
        objective.prepare([record])
    assert "b" not in str(refused.value).split(), "the text of a record is quoted"
    assert len(objective.prepare([record, *pairs(2)])) == 2, "one that does not fit is left out"


def test_conversations_and_texts_are_the_same_pairs(folders: dict[str, Path]) -> None:
    encoder = PairEncoder("dpo", load_tokenizer(folders["llama"]), 64)
    user, one, other = ({"role": role, "content": text} for role, text in
                        (("user", "why?"), ("assistant", "so"), ("assistant", "no")))  # fmt: skip
    plain = encoder.pair({"prompt": "why?", "chosen": "so", "rejected": "no"})
    for record in (
        {"prompt": [user], "chosen": [one], "rejected": [other]},
        {"chosen": [user, one], "rejected": [user, other]},
    ):
        made = encoder.pair(record)
        assert (made.chosen.key, made.rejected.key) == (plain.chosen.key, plain.rejected.key)
    assert plain.chosen.start > 0 and encoder.pair({"chosen": "so", "rejected": "no"}).chosen.start == 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "a"]), inner),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.fixed_dictionaries({"chosen": JSON, "rejected": JSON}, optional={"prompt": JSON}))
def test_any_record_is_a_pair_or_a_named_error(record: dict[str, Any]) -> None:
    try:
        made = ENCODER.pair(record)
    except ConfideError:
        return
    assert made.chosen.key != made.rejected.key and made.tokens <= 32


@pytest.fixture(scope="module", autouse=True)
def _encoder(folders: dict[str, Path]) -> None:
    global ENCODER
    ENCODER = PairEncoder("reward", load_tokenizer(folders["llama"]), 32)


ENCODER: PairEncoder

IMPOSSIBLE = {
    "a head alone without a head": ({"method": {"name": "sft"}, "adapter": {"kind": "none"}}, "would train nothing"),
    "dpo of all parameters": ({"method": {"name": "dpo"}, "adapter": {"kind": "full"}}, "for reference"),
    "unknown loss": ({"method": {"name": "dpo", "preference_loss": "hinge"}}, "preference_loss"),
    "beta": ({"method": {"name": "dpo", "beta": 0.0}}, "beta"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_means_nothing_is_refused(case: str) -> None:
    sections, said = IMPOSSIBLE[case]
    with pytest.raises((SpecificationError, ValueError), match=said):
        specification(**sections)
