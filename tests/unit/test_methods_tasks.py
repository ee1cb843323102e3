"""Classification, contrastive and in-context objectives against oracles written out by hand."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from confide.errors import DataError, ModelError, SpecificationError
from confide.methods.base import create
from confide.methods.classification import logits_of, macro_f1
from confide.methods.contrastive import embed, info_nce, supervised_contrastive
from confide.models.architecture import load_tokenizer
from confide.models.trainable import build, initial_state, load_trainable
from confide.planning.fitness import check
from confide.proto import fleet_pb2
from confide.runs.fields import Record
from confide.runs.metrics import Metric
from confide.runs.specification import Specification
from confide_client.training import LocalTrainer

from tests.tiny_models import make_tokenizer, tiny_bert, tiny_gpt2, tiny_llama
from tests.training_specs import specification


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    makers = {"llama": tiny_llama, "gpt2": tiny_gpt2, "bert": tiny_bert}
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in makers.items()}


@dataclass(frozen=True)
class Shard:
    train: list[Record]
    evaluation: list[Record] = field(default_factory=list)
    digest: str = ""


TARGETS = {"llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"], "bert": ["query", "value"]}
SENTIMENT = [
    {"text": text, "label": label}
    for i in range(6)
    for text, label in ((f"good work {i}, a fine wall", "high"), (f"bad work {i}, a crooked wall", "low"))
]


def sentiment(family: str, **method: Any) -> Specification:
    return specification(
        method={"name": "classification", "labels": ["low", "high"], **method},
        adapter={"target_modules": TARGETS[family], "rank": 8},
        training={"local_steps": 12, "batch_size": 6, "learning_rate": 2e-2},
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_classification_learns_and_reports(folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    spec = sentiment(family)
    local = LocalTrainer(spec, folders[family], node="hospital-a", folder=tmp_path, threads=1, device="cpu")
    model = local.schema.flatten(initial_state(spec, folders[family]))
    data = Shard(SENTIMENT, SENTIMENT)
    for round in (1, 2):
        contribution = local.contribute(model, data, fleet_pb2.SlotOpen(slot=round, round=round, attempt=1))
        model = model + contribution.update
    after = local.contribute(model, data, fleet_pb2.SlotOpen(slot=3, round=3, attempt=1, evaluate_only=True)).metrics
    assert after[Metric.EVAL_LOSS] < 0.4
    assert after[Metric.EVAL_ACCURACY] == after[Metric.EVAL_MACRO_F1] == 1.0


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_classification_ignores_padding(folders: dict[str, Path], family: str) -> None:
    spec = sentiment(family)
    model = build(spec, folders[family])
    load_trainable(model, initial_state(spec, folders[family]))
    method = create(spec, load_tokenizer(folders[family]))
    examples = method.prepare([{"text": "short", "label": "low"}, {"text": "a much longer text " * 3, "label": "high"}])
    with torch.no_grad():
        together = float(method.loss(model, method.collate(examples, 0)))
        alone = sum(float(method.loss(model, method.collate([example], 0))) for example in examples)
    assert together == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_classification_logits_are_transformers_own(folders: dict[str, Path], family: str) -> None:
    spec = sentiment(family)
    model: Any = build(spec, folders[family]).eval()
    load_trainable(model, initial_state(spec, folders[family]))
    tokenizer = load_tokenizer(folders[family])
    model.config.pad_token_id = tokenizer.pad_token_id
    method = create(spec, tokenizer)
    batch = method.collate(method.prepare([{"text": "a fine wall", "label": "low"}, {"text": "a", "label": "low"}]), 0)
    inputs = {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        torch.testing.assert_close(logits_of(model, batch), model(**inputs).logits)


def test_balanced_weights_give_every_class_the_same_total(folders: dict[str, Path]) -> None:
    method: Any = create(sentiment("bert", class_weights="balanced"), load_tokenizer(folders["bert"]))
    records = [{"text": "a", "label": "low"}] * 9 + [{"text": "b", "label": "high"}]
    weights = [example.weight for example in method.prepare(records)]
    assert sum(weights[:9]) == pytest.approx(5.0) and weights[9] == pytest.approx(5.0)
    rare = [example.weight for example in method.prepare(records[:9] * 30 + records[9:])]
    assert rare[-1] == 10.0 and rare[0] == pytest.approx(271 / 540)
    only = [example.weight for example in method.prepare(records[:9])]
    assert only == [1.0] * 9
    plain: Any = create(sentiment("bert"), load_tokenizer(folders["bert"]))
    assert {example.weight for example in plain.prepare(records)} == {1.0}


def test_a_class_that_a_node_lacks_is_learned_elsewhere(folders: dict[str, Path], tmp_path: Path) -> None:
    """An empty class is no error: training runs on what there is, and macro-F1 is over the classes that occur."""
    spec = sentiment("bert", labels=["low", "high", "middling"], class_weights="balanced")
    local = LocalTrainer(spec, folders["bert"], node="hospital-a", folder=tmp_path, threads=1, device="cpu")
    model = local.schema.flatten(initial_state(spec, folders["bert"]))
    only = [record for record in SENTIMENT if record["label"] == "low"]
    contribution = local.contribute(model, Shard(only, only), fleet_pb2.SlotOpen(slot=1, round=1, attempt=1))
    assert np.isfinite(contribution.update).all() and contribution.update.any()
    after = local.contribute(
        model + contribution.update, Shard(only, only), fleet_pb2.SlotOpen(slot=2, round=2, attempt=1)
    )
    assert after.metrics[Metric.EVAL_MACRO_F1] == 1.0


def test_macro_f1_by_hand() -> None:
    truth, predicted = [0, 0, 0, 1, 2], [0, 0, 1, 1, 0]
    class_0 = 2 * (2 / 3) * (2 / 3) / (2 / 3 + 2 / 3)
    class_1 = 2 * (1 / 2) * 1 / (1 / 2 + 1)
    assert macro_f1(truth, predicted) == pytest.approx((class_0 + class_1 + 0) / 3)
    assert macro_f1([1, 1], [1, 1]) == 1.0


def test_unknown_labels_are_named_without_quoting(folders: dict[str, Path]) -> None:
    method = create(sentiment("bert"), load_tokenizer(folders["bert"]))
    with pytest.raises(DataError, match=r"low, high") as caught:
        method.prepare([{"text": "secret", "label": "secret"}])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("labels", [["low", "low"], ["low", " "]])
def test_bad_label_sets_are_refused_at_plan_time(folders: dict[str, Path], labels: list[str]) -> None:
    with pytest.raises(SpecificationError, match="different and not empty"):
        check(sentiment("bert", labels=labels), folders["bert"])


def unit(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_supervised_contrastive_is_equation_2() -> None:
    vectors, classes, temperature = unit(6), torch.tensor([1, 1, 2, 2, 2, 3]), 0.1
    expected = 0.0
    for i in range(6):
        positives = [p for p in range(6) if p != i and classes[p] == classes[i]]
        others = sum(math.exp(float(vectors[i] @ vectors[a]) / temperature) for a in range(6) if a != i)
        for p in positives:
            similarity = math.exp(float(vectors[i] @ vectors[p]) / temperature)
            expected -= math.log(similarity / others) / len(positives)
    assert float(supervised_contrastive(vectors, classes, temperature)) == pytest.approx(expected, rel=1e-5)
    lonely = unit(3).requires_grad_()
    supervised_contrastive(lonely, torch.tensor([1, 2, 3]), 0.1).backward()  # type: ignore[no-untyped-call]
    assert lonely.grad is not None and not lonely.grad.any()


def test_info_nce_by_hand_with_hard_negatives_and_twins() -> None:
    """Rows: two pairs, the first with a hard negative; the third pair's positive is the first one's very text."""
    vectors, temperature = unit(7), 0.05
    roles = torch.tensor([0, 1, 2, 0, 1, 0, 1])
    names = torch.tensor([10, 11, 12, 13, 14, 15, 11])
    candidates = {0: [1, 4, 2], 3: [1, 4, 6, 2], 5: [6, 4, 2]}
    expected = 0.0
    for anchor, own in ((0, 1), (3, 4), (5, 6)):
        scores = {c: math.exp(float(vectors[anchor] @ vectors[c]) / temperature) for c in candidates[anchor]}
        expected -= math.log(scores[own] / sum(scores.values()))
    assert float(info_nce(vectors, roles, names, temperature)) == pytest.approx(expected, rel=1e-4)


PAIRS: list[Record] = [
    {"anchor": f"question {word}", "positive": f"the {word} is answered", "negative": "nothing to see"}
    for word in ("wall", "brick", "permit", "mortar", "scaffold", "client")
]


def pairs_spec(**training: Any) -> Specification:
    return specification(
        method={"name": "contrastive", "temperature": 0.1},
        adapter={"target_modules": TARGETS["bert"], "rank": 8},
        training={"local_steps": 8, "batch_size": 6, "learning_rate": 1e-2, **training},
    )


@pytest.mark.parametrize("labelled", [False, True])
def test_contrastive_training_is_whole_whatever_fits_in_memory(
    folders: dict[str, Path], tmp_path: Path, labelled: bool
) -> None:
    """All texts of a batch are contrasted, though only micro_batch_size of them run through the model at a time."""
    data = Shard([{"text": r["text"], "label": r["label"]} for r in SENTIMENT] if labelled else PAIRS)
    updates = []
    for size in (2, 64):
        spec = pairs_spec(micro_batch_size=size, optimizer="sgd", learning_rate=0.1)
        local = LocalTrainer(spec, folders["bert"], node="hospital-a", folder=tmp_path, threads=1, device="cpu")
        model = local.schema.flatten(initial_state(spec, folders["bert"]))
        updates.append(local.contribute(model, data, fleet_pb2.SlotOpen(slot=1, round=1, attempt=1)).update)
    assert np.linalg.norm(updates[0]) > 0
    assert np.linalg.norm(updates[0] - updates[1]) < 1e-3 * np.linalg.norm(updates[1])


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_contrastive_training_finds_what_belongs_together(
    folders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    spec = specification(
        method={"name": "contrastive", "temperature": 0.1},
        adapter={"kind": "full"},
        training={"local_steps": 30, "batch_size": 6, "learning_rate": 3e-3},
    )
    local = LocalTrainer(spec, folders[family], node="hospital-a", folder=tmp_path, threads=1, device="cpu")
    model = local.schema.flatten(initial_state(spec, folders[family]))
    data = Shard(PAIRS, PAIRS)
    before = local.contribute(model, data, fleet_pb2.SlotOpen(slot=1, round=1, attempt=1))
    after = local.contribute(
        model + before.update, data, fleet_pb2.SlotOpen(slot=2, round=2, attempt=1, evaluate_only=True)
    ).metrics
    assert after[Metric.EVAL_NDCG_AT_10] > 0.99 > before.metrics[Metric.EVAL_NDCG_AT_10]
    assert after[Metric.EVAL_RECALL_AT_10] == 1.0


def test_retrieval_metrics_by_hand(folders: dict[str, Path]) -> None:
    """Embeddings as they are: rank each question's positive by cosine with numpy and compare."""
    spec = pairs_spec()
    model: Any = build(spec, folders["bert"]).eval()
    tokenizer = load_tokenizer(folders["bert"])
    method = create(spec, tokenizer)
    records = [{"anchor": f"q {i * 7}", "positive": f"answer number {i}"} for i in range(14)]
    metrics = method.evaluate(model, method.prepare(records), [], 4)

    def vector(text: str) -> torch.Tensor:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            return embed(model, ids, torch.ones_like(ids))[0]

    corpus = torch.stack([vector(r["positive"]) for r in records])
    ranks = [int((-(corpus @ vector(r["anchor"]))).argsort().tolist().index(i)) for i, r in enumerate(records)]
    ndcg = np.mean([1 / math.log2(rank + 2) if rank < 10 else 0.0 for rank in ranks])
    assert metrics[Metric.EVAL_NDCG_AT_10] == pytest.approx(ndcg, abs=1e-6)
    assert metrics[Metric.EVAL_RECALL_AT_10] == pytest.approx(np.mean([rank < 10 for rank in ranks]))


def test_retrieval_metrics_of_labelled_texts_by_brute_force(folders: dict[str, Path]) -> None:
    """Several texts belong to each query, more than ten to some: every order and gain written out."""
    method = create(pairs_spec(), load_tokenizer(folders["bert"]))
    model: Any = build(pairs_spec(), folders["bert"]).eval()
    kinds = ["wall"] * 13 + ["brick"] * 5 + ["permit"] * 2 + ["alone"]
    records = [{"text": f"{i * 7919 % 101} {kind} {i}", "label": kind} for i, kind in enumerate(kinds)]
    examples = method.prepare(records)
    metrics = method.evaluate(model, examples, [], 4)
    with torch.no_grad():
        vectors = [embed(model, torch.tensor([e.ids[0].tolist()]), torch.ones(1, len(e.ids[0])))[0] for e in examples]
    ndcg, recall = [], []
    for query, kind in enumerate(kinds):
        relevant = kinds.count(kind) - 1
        if relevant == 0:
            continue
        others = [other for other in range(len(kinds)) if other != query]
        best = sorted(others, key=lambda other: -float(vectors[query] @ vectors[other]))[:10]
        gains = [1 / math.log2(place + 2) for place, other in enumerate(best) if kinds[other] == kind]
        ideal = [1 / math.log2(place + 2) for place in range(min(10, relevant))]
        ndcg.append(sum(gains) / sum(ideal))
        recall.append(len(gains) / relevant)
    assert metrics[Metric.EVAL_NDCG_AT_10] == pytest.approx(sum(ndcg) / len(ndcg), abs=1e-6)
    assert metrics[Metric.EVAL_RECALL_AT_10] == pytest.approx(sum(recall) / len(recall), abs=1e-6)


def test_embeddings_ignore_padding_and_have_length_one(folders: dict[str, Path]) -> None:
    model = build(pairs_spec(), folders["bert"]).eval()
    ids = torch.tensor([[9, 10, 11, 0, 0]])
    with torch.no_grad():
        padded = embed(model, ids, torch.tensor([[1, 1, 1, 0, 0]]))
        alone = embed(model, ids[:, :3], torch.ones(1, 3, dtype=torch.int64))
    torch.testing.assert_close(padded, alone, rtol=1e-5, atol=1e-6)
    assert float(padded.norm()) == pytest.approx(1.0)


def test_mixed_and_malformed_contrastive_records(folders: dict[str, Path]) -> None:
    method = create(pairs_spec(), load_tokenizer(folders["bert"]))
    with pytest.raises(DataError, match="mixes pairs"):
        method.prepare([PAIRS[0], {"text": "a", "label": "b"}])
    with pytest.raises(DataError, match="negative"):
        method.prepare([{"anchor": "a", "positive": "b", "negative": [3]}])


def asked(**method: Any) -> Specification:
    return specification(method={"name": "in_context", **method}, training={"local_steps": 0})


QUESTIONS: list[Record] = [{"input": f"what is {i}", "output": f"it is {i}"} for i in range(8)]


def test_in_context_prompt_holds_shots_and_fits(folders: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(folders["gpt2"])
    method: Any = create(asked(max_length=200, prompt="In: {input} Out: {output}"), tokenizer)
    shots = method.prepare(QUESTIONS)
    text = tokenizer.decode(method._prompt(shots[0], shots[1:3])[0])
    assert text == "In: what is 1 Out: it is 1\n\nIn: what is 2 Out: it is 2\n\nIn: what is 0 Out:"
    short: Any = create(asked(max_length=40, prompt="In: {input} Out: {output}"), tokenizer)
    text = tokenizer.decode(short._prompt(shots[0], shots[1:3])[0])
    assert text in {"In: what is 2 Out: it is 2\n\nIn: what is 0 Out:", "In: what is 0 Out:"}
    tiny: Any = create(asked(max_length=8), tokenizer)
    assert tiny._prompt(shots[0], shots)[0].shape == (8,)


def test_a_template_is_no_format_string(folders: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(folders["gpt2"])
    method: Any = create(asked(prompt="{input.__class__} {0} {input}: {output}"), tokenizer)
    (shot,) = method.prepare([{"input": "hello", "output": "x"}])
    assert "{input.__class__} {0} hello:" in tokenizer.decode(method._prompt(shot, [])[0])
    for bad in ("{input}", "{output}{input}", "{output}", "{input} {output} trailing"):
        with pytest.raises(SpecificationError, match="must hold"):
            create(asked(prompt=bad), tokenizer)


def test_in_context_answers_are_the_models_own(folders: dict[str, Path], tmp_path: Path) -> None:
    """Oracle: transformers' generate, and label log-probabilities one by one."""
    base = folders["llama"]
    model: Any = build(asked(), base).eval()
    tokenizer = load_tokenizer(base)
    method: Any = create(asked(max_length=200, shots=2), tokenizer)
    shots = method.prepare(QUESTIONS)
    prompt = method._prompt(shots[0], shots[1:3])
    generated = model.generate(prompt, max_new_tokens=48, do_sample=False, use_cache=True)[0, prompt.shape[1] :]
    lines = tokenizer.decode(generated, skip_special_tokens=True).strip().splitlines()
    assert method._written(model, prompt) == (lines[0] if lines else "")

    labels = ("it is 0", "it is 1", "nothing at all")
    labelled: Any = create(asked(max_length=200, labels=list(labels)), tokenizer)
    scores = []
    for label in labels:
        answer = torch.tensor([tokenizer(" " + label)["input_ids"]])
        whole = torch.cat([prompt, answer], dim=1)
        with torch.no_grad():
            log_p = model(input_ids=whole).logits[0].log_softmax(-1)
        scores.append(sum(float(log_p[prompt.shape[1] + i - 1, answer[0, i]]) for i in range(answer.shape[1])))
    assert labelled._likeliest(model, prompt) == labels[int(np.argmax(scores))]


@pytest.mark.parametrize("selection", ["random", "nearest"])
def test_in_context_evaluates_and_trains_nothing(folders: dict[str, Path], tmp_path: Path, selection: str) -> None:
    spec = asked(shots=2, shot_selection=selection, max_length=200, labels=["it is 0", "it is 1"])
    local = LocalTrainer(spec, folders["llama"], node="hospital-a", folder=tmp_path, threads=1, device="cpu")
    data = Shard(QUESTIONS[:2] * 2, QUESTIONS[:2])
    slot = fleet_pb2.SlotOpen(slot=1, round=1, attempt=1)
    contribution = local.contribute(np.zeros(0, dtype=np.float32), data, slot)
    assert contribution.update.size == 0
    assert set(contribution.metrics) == {Metric.EVAL_EXACT_MATCH, Metric.EVAL_ACCURACY, Metric.EVAL_MACRO_F1}


def test_nearest_shots_stand_next_to_the_question(folders: dict[str, Path]) -> None:
    model: Any = build(asked(), folders["llama"]).eval()
    method: Any = create(asked(shots=3, shot_selection="nearest"), load_tokenizer(folders["llama"]))
    shots = method.prepare(QUESTIONS)
    for question, chosen in zip(shots, method._chosen(model, shots, shots), strict=True):
        assert len(chosen) == 3 and chosen[-1] == question


def test_in_context_refuses_to_train_and_unknown_outputs(folders: dict[str, Path]) -> None:
    method = create(asked(labels=["yes", "no"]), load_tokenizer(folders["llama"]))
    with pytest.raises(DataError) as caught:
        method.prepare([{"input": "secret", "output": "secret"}])
    assert "secret" not in str(caught.value)
    with pytest.raises(ModelError, match="trains nothing"):
        method.collate([], 0)


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        (("0", "1"), (1.0, 0, "1.0", "0", 1)),
        (("true", "false"), (True, False, "true", "false", True)),
        (("True", "False"), (True, False, "True", "False", True)),
        (("1.0", "0.5"), (1.0, 0.5, "1.0", "0.5", 1.0)),
    ],
)
def test_a_label_is_known_however_a_table_wrote_it(
    tmp_path: Path, labels: tuple[str, ...], values: tuple[object, ...]
) -> None:
    tokenizer = make_tokenizer(tmp_path, chat=False)
    spec = specification(method={"name": "classification", "labels": labels})
    made = create(spec, tokenizer).prepare([{"text": "a", "label": value} for value in values])
    expected = [labels.index(name) for name in ((labels[1], labels[0]) if labels[0] == "0" else labels)]
    assert [example.label for example in made] == [*expected, *expected, expected[0]]
