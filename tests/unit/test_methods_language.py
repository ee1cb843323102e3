"""SFT, next-token and masked-token objectives: what is learned from, what is not, and that no document sees another."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from confide.errors import DataError, ModelError
from confide.methods.base import IGNORED, Method, create, mean_loss
from confide.methods.sft import Conversation
from confide.models.architecture import load_tokenizer
from confide.models.trainable import build, trainable_tensors
from confide.planning.fitness import check
from confide.runs.metrics import Metric
from confide_client.data.datasets import DataSets
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny_models import TEXT, tiny_bert, tiny_gpt2, tiny_llama
from tests.training_specs import specification


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    makers = {"llama": tiny_llama, "gpt2": tiny_gpt2, "bert": tiny_bert}
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in makers.items()}


def method_of(folder: Path, **sections: Any) -> tuple[Method, Any]:
    tokenizer = load_tokenizer(folder)
    return create(specification(**sections), tokenizer), tokenizer


def learned_text(tokenizer: Any, example: Any) -> str:
    return str(tokenizer.decode(example.ids[example.learned]))


def test_sft_learns_every_assistant_turn_and_nothing_else(folders: dict[str, Path]) -> None:
    method, tokenizer = method_of(folders["llama"], method={"max_length": 200})
    turns = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "First?"},
        {"role": "assistant", "content": "One."},
        {"role": "user", "content": "Second?"},
        {"role": "assistant", "content": "Two."},
    ]
    (example,) = method.prepare([{"messages": turns}])
    assert learned_text(tokenizer, example) == "One.<|im_end|>\nTwo.<|im_end|>\n"
    assert tokenizer.decode(example.ids) == tokenizer.apply_chat_template(turns, tokenize=False)


def test_sft_without_chat_template_closes_the_completion(folders: dict[str, Path]) -> None:
    method, tokenizer = method_of(folders["gpt2"])
    for record in ({"prompt": "Who? ", "completion": "Me."}, {"question": "Who? ", "answer": "Me."}):
        (example,) = method.prepare([record])
        assert learned_text(tokenizer, example) == "Me.<eos>"


def test_sft_metrics_are_those_of_greedy_decoding(folders: dict[str, Path], tmp_path: Path) -> None:
    """Oracle: transformers' generate for the exact match, and a loss of whole logits for bits per byte.

    A record whose answer is what the model writes anyway matches; with one other word in it, it does not.
    """
    method, tokenizer = method_of(folders["gpt2"], method={"max_length": 200})
    model: Any = build(specification(adapter={"target_modules": ["c_attn"]}), folders["gpt2"]).eval()
    prompt = "Who pays for the scaffold?"
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    generated = model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=True, pad_token_id=0)
    whole = generated[0].numpy().astype(np.int32)
    learned = np.arange(len(whole)) >= ids.shape[1]
    other = whole.copy()
    other[-1] = (other[-1] + 1) % len(tokenizer)
    examples = [Conversation(whole, learned, 20.0), Conversation(other, learned, 12.0)]
    metrics = method.evaluate(model, examples, [], 2)
    assert metrics[Metric.EVAL_EXACT_MATCH] == 0.5
    nats = 0.0
    for row in (whole, other):
        with torch.no_grad():
            log_p = model(input_ids=torch.from_numpy(row.astype(np.int64))[None]).logits[0].log_softmax(-1)
        nats -= sum(float(log_p[place - 1, row[place]]) for place in range(ids.shape[1], len(row)))
    assert metrics[Metric.EVAL_LOSS] == pytest.approx(nats / (2 * learned.sum()), rel=1e-4)
    assert metrics[Metric.EVAL_BITS_PER_BYTE] == pytest.approx(nats / math.log(2) / 32.0, rel=1e-4)


def test_sft_counts_the_bytes_of_the_assistants_text(folders: dict[str, Path]) -> None:
    method, _ = method_of(folders["llama"], method={"max_length": 200})
    record = {"question": "Wie dick?", "answer": "Zwölf Zentimeter."}
    (example,) = method.prepare([record])
    assert example.bytes == len(record["answer"].encode())
    short, _ = method_of(folders["llama"], method={"max_length": len(example.ids) - 4})
    (cut,) = short.prepare([record])
    share = (example.learned.sum() - 4) / example.learned.sum()
    assert cut.bytes == pytest.approx(example.bytes * share)


def test_sft_labels_stand_where_they_are_predicted(folders: dict[str, Path]) -> None:
    method, tokenizer = method_of(folders["llama"])
    examples = method.prepare([{"prompt": "a", "completion": "bc"}, {"prompt": "a longer one", "completion": "d"}])
    batch = method.collate(examples, seed=0)
    for row, example in enumerate(examples):
        for position in range(batch.labels.shape[1]):
            learned = position + 1 < len(example.ids) and example.learned[position + 1]
            assert batch.labels[row, position] == (example.ids[position + 1] if learned else IGNORED)
        assert learned_text(tokenizer, example)
    assert batch.count == int((batch.labels != IGNORED).sum())


def test_sft_loss_ignores_padding_and_equals_full_logits(folders: dict[str, Path]) -> None:
    """Oracle: cross-entropy in float64 over all logits of each conversation by itself."""
    for family, targets in (("llama", ["q_proj"]), ("gpt2", ["c_attn"])):
        spec = specification(adapter={"target_modules": targets})
        model = build(spec, folders[family])
        method = create(spec, load_tokenizer(folders[family]))
        examples = method.prepare([{"prompt": "x", "completion": "y" * n} for n in (1, 7, 12)])
        expected = 0.0
        for example in examples:
            ids = torch.as_tensor(example.ids, dtype=torch.int64)[None]
            with torch.no_grad():
                log_p = model(input_ids=ids).logits[0].double().log_softmax(-1)
            for position in np.flatnonzero(example.learned[1:]):
                expected -= float(log_p[position, ids[0, position + 1]])
        loss = method.loss(model, method.collate(examples, seed=0))
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_gradient_through_labelled_positions_equals_autograd(folders: dict[str, Path], kind: str) -> None:
    """Oracle: torch's own cross-entropy over all logits."""
    spec = specification(adapter={"kind": kind, "target_modules": ["q_proj", "down_proj"]})
    model = build(spec, folders["llama"])
    parameters = trainable_tensors(model)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    method = create(spec, load_tokenizer(folders["llama"]))
    batch = method.collate(method.prepare([{"prompt": "x", "completion": TEXT[:n]} for n in (10, 60)]), seed=0)
    method.loss(model, batch).backward()  # type: ignore[no-untyped-call]
    ours = {name: parameter.grad.clone() for name, parameter in parameters.items() if parameter.grad is not None}
    model.zero_grad()
    logits = model(**batch.inputs).logits
    torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), batch.labels, ignore_index=IGNORED, reduction="sum"
    ).backward()  # type: ignore[no-untyped-call]
    assert set(ours) == set(parameters)
    for name, parameter in parameters.items():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-5)


def test_models_that_change_their_logits_are_noticed(folders: dict[str, Path]) -> None:
    """A head that is more than a matrix must not be cut short."""
    spec = specification()
    model: Any = build(spec, folders["llama"])
    original = model.forward

    def capped(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        output.logits = 3 * torch.tanh(output.logits / 3)
        return output

    method = create(spec, load_tokenizer(folders["llama"]))
    batch = method.collate(method.prepare([{"prompt": "x", "completion": "yes and no"}]), seed=0)
    plain = float(method.loss(model, batch).detach())
    model.lm_head.weight.data.mul_(40)
    model.forward = capped
    fresh = create(spec, load_tokenizer(folders["llama"]))
    expected = torch.nn.functional.cross_entropy(
        model(**batch.inputs).logits.transpose(1, 2), batch.labels, ignore_index=IGNORED, reduction="sum"
    )
    assert float(fresh.loss(model, batch).detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert plain != pytest.approx(float(expected.detach()), rel=1e-3)


def test_sft_cuts_long_texts_and_names_hopeless_ones(folders: dict[str, Path]) -> None:
    method, _ = method_of(folders["llama"], method={"max_length": 24})
    long_prompt = {"prompt": TEXT, "completion": "yes"}
    (example,) = method.prepare([long_prompt, {"prompt": "a", "completion": TEXT}])
    assert len(example.ids) == 24
    with pytest.raises(DataError, match=r"method\.max_length = 24"):
        method.prepare([long_prompt])


@pytest.mark.parametrize(
    "record",
    [
        {"secret-column": "secret"},
        {"prompt": "secret", "completion": None},
        {"prompt": "secret", "completion": 3},
        {"messages": "secret"},
        {"messages": [{"role": "secret", "content": "secret"}]},
        {"messages": [{"role": "user"}]},
        {"messages": [7]},
    ],
)
def test_malformed_records_are_named_without_quoting_them(folders: dict[str, Path], record: dict[str, Any]) -> None:
    method, _ = method_of(folders["llama"])
    with pytest.raises(DataError) as caught:
        method.prepare([record])
    assert "secret" not in str(caught.value)


def test_a_template_that_rewrites_earlier_turns_is_refused(folders: dict[str, Path]) -> None:
    method, tokenizer = method_of(folders["llama"])
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(DataError, match="differently once it is answered"):
        method.prepare([{"prompt": "a", "completion": "b"}])
    tokenizer.chat_template = "{{ raise_exception('wrong order') }}"
    with pytest.raises(DataError, match="refuses a record: wrong order"):
        method.prepare([{"prompt": "secret", "completion": "b"}])
    tokenizer.chat_template = "{{ raise_exception('no ' + messages[0]['content']) }}"
    with pytest.raises(DataError, match="alternate") as caught:
        method.prepare([{"prompt": "secret", "completion": "b"}])
    assert "secret" not in str(caught.value)


@given(st.lists(st.text(max_size=40), max_size=8), st.integers(8, 40))
@settings(derandomize=True, deadline=None, max_examples=40)
def test_packing_loses_no_token(texts: list[str], length: int) -> None:
    tokenizer = load_tokenizer(_packing_base())
    method = create(specification(method={"name": "causal_lm", "max_length": length}), tokenizer)
    packed = method.prepare([{"text": text} for text in texts])
    expected = [token for text in texts if text for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    joined = [int(token) for sequence in packed for token in sequence.ids]
    assert joined == expected or (len(expected) - len(joined) == 1 and joined == expected[:-1])
    assert all(len(sequence.ids) == length for sequence in packed[:-1])


@pytest.mark.parametrize("name", ["causal_lm", "masked_lm"])
def test_a_registered_data_set_is_packed_like_a_list(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    """Records of a memory-mapped data set come one by one; a slice of it would be columns."""
    records = [{"text": f"wall {number} is {number} thick"} for number in range(600)]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    data_sets = DataSets(tmp_path / "state")
    data_sets.add("texts", file, evaluation_fraction=0.0)
    base = folders["bert" if name == "masked_lm" else "llama"]
    method = create(specification(method={"name": name, "max_length": 32}), load_tokenizer(base))
    ours, theirs = method.prepare(data_sets.load("texts").train), method.prepare(records)
    assert [example.ids.tolist() for example in ours] == [example.ids.tolist() for example in theirs]


_BASES: list[Path] = []


def _packing_base() -> Path:
    if not _BASES:
        import tempfile

        _BASES.append(tiny_gpt2(Path(tempfile.mkdtemp())))
    return _BASES[0]


FAMILIES = [("llama", "causal_lm", "q_proj"), ("gpt2", "causal_lm", "c_attn"), ("bert", "masked_lm", "query")]


@pytest.mark.parametrize(("family", "name", "target"), FAMILIES)
def test_documents_in_one_sequence_do_not_see_each_other(
    folders: dict[str, Path], family: str, name: str, target: str
) -> None:
    """Hidden states of a packed document are those that it has alone, whatever stands beside it."""
    spec = specification(method={"name": name, "max_length": 96}, adapter={"target_modules": [target]})
    model: Any = build(spec, folders[family]).eval()
    method = create(spec, load_tokenizer(folders[family]))
    captured: list[torch.Tensor] = []
    body = getattr(model, model.base_model_prefix)
    body.register_forward_hook(lambda module, inputs, output: captured.append(output.last_hidden_state))

    def hidden(texts: list[str]) -> tuple[torch.Tensor, Any]:
        (example,) = method.prepare([{"text": text} for text in texts])
        batch = method.collate([example], seed=1)
        # what is hidden by masking differs by draw; look at the same tokens
        batch.inputs["input_ids"][0, : len(example.ids)] = torch.from_numpy(example.ids.astype(np.int64))
        method.loss(model, batch)
        return captured[-1][0], example

    alone, first = hidden(["a lime mortar"])
    packed, example = hidden(["Who pays?", "a lime mortar", "The client."])
    start = int(np.flatnonzero(example.positions == 0)[1])
    torch.testing.assert_close(packed[start : start + len(first.ids)], alone, rtol=1e-5, atol=1e-5)
    second, _ = hidden(["What else?", "a lime mortar", "The builder, of course."])
    assert not torch.allclose(packed[:3], second[:3], atol=1e-4)


def test_causal_labels_stay_inside_their_document(folders: dict[str, Path]) -> None:
    method, tokenizer = method_of(folders["llama"], method={"name": "causal_lm", "max_length": 64})
    (example,) = method.prepare([{"text": "ab"}, {"text": "cd"}])
    batch = method.collate([example], seed=0)
    end = tokenizer.eos_token_id
    for position in np.flatnonzero(example.ids == end):
        assert batch.labels[0, position] == IGNORED
    assert batch.count == len(example.ids) - 2


def test_bits_per_byte_of_a_uniform_model(folders: dict[str, Path]) -> None:
    """Every token costs ln(V) nats, so that bits per byte are tokens x log2(V) / bytes."""
    spec = specification(method={"name": "causal_lm", "max_length": 32})
    model: Any = build(spec, folders["llama"])
    model.model.norm.weight.data.zero_()
    tokenizer = load_tokenizer(folders["llama"])
    method = create(spec, tokenizer)
    examples = method.prepare([{"text": TEXT}])
    metrics = {metric.value: value for metric, value in method.evaluate(model, examples, [], 4).items()}
    tokens = len(tokenizer(TEXT)["input_ids"]) + 1
    assert metrics["eval_loss"] == pytest.approx(math.log(len(tokenizer)), rel=1e-5)
    assert metrics["eval_bits_per_byte"] == pytest.approx(math.log2(len(tokenizer)) * tokens / len(TEXT), rel=1e-5)


def test_masking_follows_80_10_10(folders: dict[str, Path]) -> None:
    method, tokenizer = method_of(folders["bert"], method={"name": "masked_lm", "max_length": 256})
    examples = method.prepare([{"text": TEXT * 20}])
    batch = method.collate(examples, seed=4)
    original = torch.cat([torch.from_numpy(e.ids.astype(np.int64)) for e in examples])
    seen = torch.cat([batch.inputs["input_ids"][i, : len(e.ids)] for i, e in enumerate(examples)])
    labels = torch.cat([batch.labels[i, : len(e.ids)] for i, e in enumerate(examples)])
    hidden = labels != IGNORED
    assert torch.equal(labels[hidden], original[hidden])
    assert torch.equal(seen[~hidden], original[~hidden])
    assert not any(int(token) in tokenizer.all_special_ids for token in original[hidden])
    share = hidden.float().mean().item()
    masked = (seen[hidden] == tokenizer.mask_token_id).float().mean().item()
    unchanged = (seen[hidden] == original[hidden]).float().mean().item()
    assert share == pytest.approx(0.15, abs=0.02)
    assert masked == pytest.approx(0.8, abs=0.05)
    assert unchanged == pytest.approx(0.1, abs=0.04)
    assert not torch.equal(method.collate(examples, seed=5).labels, batch.labels)
    assert torch.equal(method.collate(examples, seed=4).labels, batch.labels)


def test_masked_loss_is_repeatable_in_evaluation(folders: dict[str, Path]) -> None:
    spec = specification(method={"name": "masked_lm"}, adapter={"target_modules": ["query"]})
    model = build(spec, folders["bert"]).eval()
    method = create(spec, load_tokenizer(folders["bert"]))
    examples = method.prepare([{"text": TEXT}] * 3)
    assert mean_loss(method, model, examples, 2) == mean_loss(method, model, examples, 2)


def test_plan_time_checks(folders: dict[str, Path]) -> None:
    check(specification(), folders["llama"])
    with pytest.raises(ModelError, match="reads at most 512"):
        check(specification(method={"max_length": 513}), folders["llama"])
    with pytest.raises(ModelError, match="no head"):
        check(specification(method={"name": "masked_lm"}), folders["gpt2"])


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path, folders: dict[str, Path]) -> None:
    import json
    import shutil

    shutil.copytree(folders["llama"], tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    with pytest.raises(ModelError, match="do not belong together"):
        check(specification(), tmp_path / "m")
