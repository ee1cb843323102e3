"""Per-record gradients against brute force, for every family that is offered: the test that the promise rests on.

It fails when Opacus, peft or transformers computes one record's gradient wrongly, and when a family is added to the
list without passing.
"""

from typing import Any

import peft
import pytest
import torch
import transformers
from confide.errors import ModelError
from confide.methods.base import IGNORED, Batch
from confide.methods.token_loss import TokenLoss
from confide.models.arithmetic.attention import IMPLEMENTATION
from confide.privacy.families import FAMILIES
from confide.privacy.per_sample import PerSampleGradients
from torch import nn

LENGTHS = (12, 3, 7, 9, 5)
_SMALL = {"vocab_size": 48, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
_HEADS = {"num_attention_heads": 4}
_GROUPED = {**_SMALL, **_HEADS, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_GPT2 = {"vocab_size": 48, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32, "bos_token_id": 1}
CONFIGS: dict[str, Any] = {
    "llama": lambda tied: transformers.LlamaConfig(**_GROUPED, tie_word_embeddings=tied),
    "mistral": lambda tied: transformers.MistralConfig(**_GROUPED, tie_word_embeddings=tied),
    "qwen2": lambda tied: transformers.Qwen2Config(**_GROUPED, tie_word_embeddings=tied),
    "qwen3": lambda tied: transformers.Qwen3Config(**_GROUPED, head_dim=4, tie_word_embeddings=tied),
    "smollm3": lambda tied: transformers.SmolLM3Config(**_GROUPED, tie_word_embeddings=tied),
    "gemma3_text": lambda tied: transformers.Gemma3TextConfig(**_GROUPED, head_dim=4, tie_word_embeddings=tied),
    "gpt2": lambda tied: transformers.GPT2Config(**_GPT2, eos_token_id=2, tie_word_embeddings=tied),
    "gpt_neox": lambda tied: transformers.GPTNeoXConfig(
        **_SMALL, **_HEADS, bos_token_id=1, eos_token_id=2, tie_word_embeddings=tied
    ),
    "bert": lambda tied: transformers.BertConfig(
        **_SMALL, **_HEADS, max_position_embeddings=32, tie_word_embeddings=tied
    ),
    "distilbert": lambda tied: transformers.DistilBertConfig(
        vocab_size=48,
        dim=16,
        hidden_dim=24,
        n_layers=2,
        n_heads=4,
        max_position_embeddings=32,
        tie_word_embeddings=tied,
    ),
}
MASKED = {"bert", "distilbert"}
FULL = [name for name, family in FAMILIES.items() if family.full]


def build(name: str, *, tied: bool, lora: bool, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(3)
    task = transformers.AutoModelForMaskedLM if name in MASKED else transformers.AutoModelForCausalLM
    model = task.from_config(CONFIGS[name](tied), attn_implementation=IMPLEMENTATION).to(dtype)
    if lora:
        linear = {n for n, m in model.named_modules() if isinstance(m, nn.Linear | transformers.pytorch_utils.Conv1D)}
        targets = [n for n in sorted(linear) if any(part.isdigit() for part in n.split("."))]
        config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=targets, fan_in_fan_out=name == "gpt2")
        model.requires_grad_(False)
        peft.inject_adapter_in_model(config, model)
        for parameter_name, parameter in model.named_parameters():
            if "lora_" in parameter_name:
                parameter.data = torch.randn(parameter.shape) * 0.1
                parameter.requires_grad_(True)
    return model


def batch_of(lengths: tuple[int, ...], rows: slice = slice(None), *, causal: bool) -> Batch:
    """Rows of random tokens, padded on the right to the longest of those taken."""
    ids = torch.randint(3, 48, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(9))
    longest = max(lengths[rows])
    mask = torch.arange(longest)[None] < torch.tensor(lengths[rows])[:, None]
    labels = torch.roll(ids, -1, dims=1)[rows, :longest] if causal else ids[rows, :longest]
    learned = mask & torch.roll(mask, -1, dims=1) & (torch.arange(longest) < longest - 1) if causal else mask
    inputs = {"input_ids": ids[rows, :longest].masked_fill(~mask, 0), "attention_mask": mask.long()}
    return Batch(inputs, labels.masked_fill(~learned, IGNORED), int(learned.sum()))


def brute_force(model: Any, loss: Any, *, causal: bool) -> list[list[torch.Tensor]]:
    """For each record and trainable parameter the gradient of a batch of one, without padding and hooks."""
    model.eval()
    parameters = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for row in range(len(LENGTHS)):
        total = loss(model, batch_of(LENGTHS, slice(row, row + 1), causal=causal))
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        rows.append([torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)])
    return rows


def worst_error(found: list[torch.Tensor], expected: list[list[torch.Tensor]]) -> float:
    """Largest difference of a parameter's gradient, relative to the norm of the record's whole gradient."""
    worst = 0.0
    for row, gradients in enumerate(expected):
        norm = float(torch.stack([g.float().norm() for g in gradients]).norm())
        assert norm > 1e-6
        worst = max(worst, *(float((f[row] - e).norm()) / norm for f, e in zip(found, gradients, strict=True)))
    return worst


def compare(model: Any, name: str) -> float:
    causal = name not in MASKED
    loss = TokenLoss()
    expected = brute_force(model, loss, causal=causal)
    with PerSampleGradients(model) as per_sample:
        found = per_sample.of(loss(model, batch_of(LENGTHS, causal=causal)), rows=len(LENGTHS))
        return worst_error(found, expected)


def test_every_family_offered_is_tested() -> None:
    assert set(CONFIGS) == set(FAMILIES)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_lora_gradients_equal_brute_force(name: str, tied: bool) -> None:
    assert compare(build(name, tied=tied, lora=True), name) < 1e-5


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", FULL)
def test_full_gradients_equal_brute_force(name: str, tied: bool) -> None:
    assert compare(build(name, tied=tied, lora=False), name) < 1e-5


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_bfloat16_base_with_float32_adapters(name: str) -> None:
    model = build(name, tied=True, lora=True, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    # The frozen body rounds to 8 bits, differently for padded rows; the adapters' own arithmetic is float32.
    assert compare(model, name) < 5e-2


def _classifier(name: str, lora: bool) -> Any:
    torch.manual_seed(4)
    config = CONFIGS[name](True)
    config.num_labels = 3
    config.pad_token_id = 0
    model = transformers.AutoModelForSequenceClassification.from_config(config, attn_implementation=IMPLEMENTATION)
    if lora:
        model.requires_grad_(False)
        for parameter_name, parameter in model.named_parameters():
            if not parameter_name.startswith(f"{model.base_model_prefix}.") or ".pooler." in parameter_name:
                parameter.requires_grad_(True)
    return model


@pytest.mark.parametrize("body", ["frozen", "trained"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "distilbert"])
def test_classification_heads_equal_brute_force(name: str, body: str) -> None:
    def loss(model: Any, batch: Batch) -> torch.Tensor:
        labels = batch.inputs["input_ids"][:, 0] % 3
        return nn.functional.cross_entropy(model(**batch.inputs).logits, labels, reduction="sum")

    model = _classifier(name, lora=body == "frozen")
    expected = brute_force(model, loss, causal=True)
    with PerSampleGradients(model) as per_sample:
        found = per_sample.of(loss(model, batch_of(LENGTHS, causal=True)), rows=len(LENGTHS))
        assert worst_error(found, expected) < 1e-5


def test_the_context_leaves_the_model_as_it_was() -> None:
    model = build("llama", tied=True, lora=True)
    model.train()
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    names = {name for name, _ in model.named_parameters()}
    with PerSampleGradients(model) as per_sample:
        per_sample.of(TokenLoss()(model, batch_of(LENGTHS, causal=True)), rows=len(LENGTHS))
    after = {name: dict(vars(module)) for name, module in model.named_modules()}
    assert {n: (v["training"], set(v)) for n, v in after.items()} == {
        n: (v["training"], set(v)) for n, v in before.items()
    }
    assert not any(len(m._forward_hooks) + len(m._backward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    assert names == {name for name, _ in model.named_parameters()}
    assert all(p.grad is None and not hasattr(p, "grad_sample") for p in model.parameters())


def test_dropout_is_off_inside() -> None:
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**_GPT2, eos_token_id=2, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    )
    model.train()
    batch = batch_of(LENGTHS, causal=True)
    with PerSampleGradients(model) as per_sample:
        first = per_sample.of(TokenLoss()(model, batch), rows=len(LENGTHS))
        second = per_sample.of(TokenLoss()(model, batch), rows=len(LENGTHS))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_an_untested_family_is_refused_by_name() -> None:
    config = transformers.OPTConfig(
        vocab_size=48, hidden_size=16, ffn_dim=24, num_hidden_layers=1, num_attention_heads=2, word_embed_proj_dim=16
    )
    with pytest.raises(ModelError, match=r"'opt'.*never compared.*llama"):
        PerSampleGradients(transformers.OPTForCausalLM(config))


def test_gradient_checkpointing_is_refused_by_name() -> None:
    model = build("llama", tied=True, lora=False)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with pytest.raises(ModelError, match="gradient checkpointing"):
        PerSampleGradients(model)


def test_full_training_that_the_hooks_do_not_cover_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"gemma3_text.*lora"):
        PerSampleGradients(build("gemma3_text", tied=True, lora=False))


def test_a_frozen_model_is_refused() -> None:
    model = build("llama", tied=True, lora=False).requires_grad_(False)
    with pytest.raises(ModelError, match="no trainable parameter"):
        PerSampleGradients(model)


def test_positions_shared_over_the_batch_are_caught_at_run_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-2 makes one row of positions for the whole batch: without the mending, the step must stop, not be wrong."""
    monkeypatch.setitem(FAMILIES, "gpt2", type(FAMILIES["gpt2"])("gpt2", explicit=()))
    model = build("gpt2", tied=True, lora=False)
    with PerSampleGradients(model) as per_sample, pytest.raises(ModelError, match=r"wpe.*together"):
        per_sample.of(TokenLoss()(model, batch_of(LENGTHS, causal=True)), rows=len(LENGTHS))


def test_a_wrong_gradient_of_a_library_is_caught_at_run_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from opacus.grad_sample.grad_sample_module import GradSampleHooks

    def halved(layer: nn.Linear, activations: list[torch.Tensor], backprops: torch.Tensor) -> dict[Any, torch.Tensor]:
        return {layer.weight: 0.5 * torch.einsum("n...i,n...j->nij", backprops, activations[0])}

    monkeypatch.setitem(GradSampleHooks.GRAD_SAMPLERS, nn.Linear, halved)
    model = build("llama", tied=True, lora=True)
    with PerSampleGradients(model) as per_sample, pytest.raises(ModelError, match="do not add up"):
        per_sample.of(TokenLoss()(model, batch_of(LENGTHS, causal=True)), rows=len(LENGTHS))
