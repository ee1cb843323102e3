"""The table of model families in docs/families.md, made by trying each: `python -m tests.families` writes it.

Tiny random models of every family, saved as real transformers folders; nothing is fetched.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as t
from confide.errors import ConfideError
from confide.methods.base import create
from confide.models.architecture import attention_for, load_config, load_tokenizer
from confide.models.export import write_adapter
from confide.models.trainable import build, initial_state, load_trainable, trainable_tensors
from confide.planning.fitness import check
from confide.privacy.families import FAMILIES as PRIVATE
from peft import PeftModel
from torch import nn
from transformers.pytorch_utils import Conv1D

from tests.tiny_models import make_tokenizer
from tests.training_specs import specification

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
LONG = {**SIZES, "max_position_embeddings": 128}
GROUPED = {**LONG, "num_key_value_heads": 2}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SHORT_NAMES = {"n_embd": 32, "n_layer": 2, "n_head": 4}

CAUSAL: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", GROUPED),
    "mistral": ("Mistral", {**GROUPED, "sliding_window": 16}),
    "mixtral": ("Mixtral", {**GROUPED, "num_local_experts": 4}),
    "qwen2": ("Qwen2", GROUPED),
    "qwen2_moe": ("Qwen2Moe", {**GROUPED, **EXPERTS, "shared_expert_intermediate_size": 16}),
    "qwen3": ("Qwen3", {**GROUPED, "head_dim": 8}),
    "qwen3_moe": ("Qwen3Moe", {**GROUPED, **EXPERTS, "head_dim": 8}),
    "qwen3_next": (
        "Qwen3Next",
        {
            **GROUPED,
            **EXPERTS,
            "head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "shared_expert_intermediate_size": 16,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    "gemma": ("Gemma", {**GROUPED, "head_dim": 8}),
    "gemma2": ("Gemma2", {**GROUPED, "head_dim": 8, "sliding_window": 16}),
    "gemma3_text": ("Gemma3Text", {**GROUPED, "head_dim": 8, "sliding_window": 16}),
    "recurrent_gemma": (
        "RecurrentGemma",
        {**SIZES, "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 16},
    ),
    "phi": ("Phi", LONG),
    "phi3": ("Phi3", {**GROUPED, "sliding_window": 16}),
    "gpt2": ("GPT2", {**SHORT_NAMES, "n_positions": 128, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
    "gpt_bigcode": (
        "GPTBigCode",
        {**SHORT_NAMES, "n_positions": 128, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    ),
    "gpt_neo": (
        "GPTNeo",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 16,
            "max_position_embeddings": 128,
            "resid_dropout": 0.0,
            "embed_dropout": 0.0,
            "attention_dropout": 0.0,
        },
    ),
    "gpt_neox": ("GPTNeoX", LONG),
    "gptj": ("GPTJ", {**SHORT_NAMES, "rotary_dim": 4, "n_positions": 128}),
    "codegen": ("CodeGen", {**SHORT_NAMES, "rotary_dim": 4, "n_positions": 128}),
    "opt": (
        "OPT",
        {
            "hidden_size": 32,
            "ffn_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
            "word_embed_proj_dim": 32,
            "dropout": 0.0,
        },
    ),
    "bloom": ("Bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "falcon": ("Falcon", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}),
    "mamba": ("Mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
    "gpt_oss": ("GptOss", {**GROUPED, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "smollm3": ("SmolLM3", GROUPED),
    "olmo": ("Olmo", GROUPED),
    "olmo2": ("Olmo2", GROUPED),
    "cohere": ("Cohere", GROUPED),
    "stablelm": ("StableLm", GROUPED),
    "starcoder2": ("Starcoder2", {**GROUPED, "residual_dropout": 0.0, "embedding_dropout": 0.0}),
    "granite": ("Granite", GROUPED),
    "glm": ("Glm", {**GROUPED, "head_dim": 8}),
    "nemotron": ("Nemotron", GROUPED),
}
MASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", {**LONG, **NO_DROPOUT}),
    "roberta": ("Roberta", {**LONG, **NO_DROPOUT}),
    "xlm-roberta": ("XLMRoberta", {**LONG, **NO_DROPOUT}),
    "camembert": ("Camembert", {**LONG, **NO_DROPOUT}),
    "distilbert": (
        "DistilBert",
        {
            "dim": 32,
            "hidden_dim": 64,
            "n_layers": 2,
            "n_heads": 4,
            "max_position_embeddings": 128,
            "dropout": 0.0,
            "attention_dropout": 0.0,
        },
    ),
    "electra": ("Electra", {**LONG, **NO_DROPOUT, "embedding_size": 16}),
    "albert": ("Albert", {**LONG, **NO_DROPOUT, "embedding_size": 16}),
    "deberta": ("Deberta", {**LONG, **NO_DROPOUT}),
    "deberta-v2": ("DebertaV2", {**LONG, **NO_DROPOUT}),
    "mpnet": ("MPNet", {**LONG, **NO_DROPOUT}),
    "modernbert": ("ModernBert", {**LONG, "global_attn_every_n_layers": 2, "local_attention": 16}),
    "convbert": ("ConvBert", {**LONG, **NO_DROPOUT, "embedding_size": 16}),
    "longformer": ("Longformer", {**LONG, **NO_DROPOUT, "attention_window": 8}),
}
FAMILIES = {**CAUSAL, **MASKED}


@dataclass(frozen=True)
class Row:
    """What was found of one family; texts are those of the table."""

    attention: str
    trains: str
    packs: str
    checkpoints: str
    private: str
    exports: str

    def line(self, name: str) -> str:
        """A row of the table in Markdown."""
        cells = (self.attention, self.trains, self.packs, self.checkpoints, self.private, self.exports)
        return f"| {name} | {' | '.join(cells)} |"


def make(folder: Path, name: str) -> Path:
    """A tiny random model of the family."""
    kind, sizes = FAMILIES[name]
    tokenizer = make_tokenizer(folder, chat=False, mask=name in MASKED)
    # Some tokenizer classes add a token of their own when they are loaded.
    ids = {"vocab_size": len(tokenizer) + 4, "pad_token_id": tokenizer.pad_token_id}
    ids |= {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id or tokenizer.eos_token_id}
    config = getattr(t, f"{kind}Config")(**sizes, **ids)
    task = t.AutoModelForMaskedLM if name in MASKED else t.AutoModelForCausalLM
    torch.manual_seed(0)
    model = task.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    return folder


def row_of(name: str, folder: Path) -> Row:
    """Try everything with one family."""
    trained = "masked_lm" if name in MASKED else "sft"
    packed = "masked_lm" if name in MASKED else "causal_lm"
    used = _accepted(folder, trained) or ("classification" if name in MASKED else "")
    if used == "classification" and _accepted(folder, used) is None:
        used = ""
    attention, trains, exports = "-", "no", "no"
    if used:
        spec = _spec(used)
        task = {"masked_lm": t.AutoModelForMaskedLM, "sft": t.AutoModelForCausalLM}.get(
            used, t.AutoModelForSequenceClassification
        )
        attention = {"eager": "eager", "confide_sdpa": "fast"}[attention_for(spec, load_config(folder, spec), task)]
        trains = used if _learns(folder, used) else "no"
        exports = "yes" if _exports(folder, used, task) else "no"
    return Row(
        attention=attention,
        trains=trains,
        packs="yes" if _accepted(folder, packed) else "no",
        checkpoints="yes" if used and _accepted(folder, used, gradient_checkpointing=True) else "no",
        private="yes" if name in PRIVATE else "no",
        exports=exports,
    )


def _spec(method: str, targets: list[str] | None = None, **training: Any) -> Any:
    labels = {"labels": ["a", "b"]} if method == "classification" else {}
    adapter = {"kind": "full"} if targets is None else {"target_modules": targets, "rank": 2}
    return specification(method={"name": method, "max_length": 48, **labels}, adapter=adapter, training=training)


def _accepted(folder: Path, method: str, **training: Any) -> str | None:
    try:
        check(_spec(method, **training), folder)
    except ConfideError:
        return None
    return method


def _records(method: str) -> list[dict[str, str]]:
    texts = ("How thick must the wall be?", "Who pays for the scaffold?")
    if method == "sft":
        return [{"prompt": text, "completion": "Twelve."} for text in texts]
    return [{"text": text, "label": label} for text, label in zip(texts, "ab", strict=True)]


def _learns(folder: Path, method: str) -> bool:
    """Some steps lower the loss."""
    spec = _spec(method)
    model: Any = build(spec, folder)
    made = create(spec, load_tokenizer(folder))
    batch = made.collate(made.prepare(_records(method)), seed=1)
    optimizer = torch.optim.Adam(trainable_tensors(model).values(), lr=1e-2)
    losses = []
    for _ in range(4):
        loss = made.loss(model, batch) / batch.count
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses[-1] < losses[0]


def _exports(folder: Path, method: str, task: Any) -> bool:
    """An adapter of it, loaded by PEFT, computes what was trained."""
    model = build(_spec(method), folder)
    layers = (n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and any(c.isdigit() for c in n))
    spec = _spec(method, [next(layers).rsplit(".", 1)[-1]])
    random = torch.Generator().manual_seed(1)
    state = {n: v + 0.1 * torch.randn(v.shape, generator=random) for n, v in initial_state(spec, folder).items()}
    trained = build(spec, folder).eval()
    load_trainable(trained, state)
    with tempfile.TemporaryDirectory() as out:
        write_adapter(Path(out), state, {}, spec, folder)
        base = task.from_pretrained(folder, attn_implementation="eager", num_labels=2)
        loaded = PeftModel.from_pretrained(base, out).eval()
    ids = torch.arange(8, 28).reshape(2, 10)
    with torch.no_grad():
        found, expected = loaded(input_ids=ids).logits, trained(input_ids=ids).logits
    return bool(torch.allclose(found, expected, rtol=1e-3, atol=1e-3))


HEAD = """# Model families

Which families of models work, tried on tiny random models of each by `python -m tests.families`, which writes this
page; the test suite holds it. A family that is not here is tried in the same way when a run is planned: `confide run
plan`, `confide node plan` and the node build a small model of it and compare it with plain eager attention, at the
run's longest length, with packed documents and with recomputed activations where the run asks for them. What does not
agree is refused by name.

- **attention**: fast (torch's and our kernels) where the outputs equal those of eager attention, else eager.
- **trains**: the method that was tried; a few steps lower the loss.
- **packs**: pre-training, in whose packed sequences no document sees another.
- **checkpoints**: `training.gradient_checkpointing` leaves the gradients as they are.
- **private**: gradients of single records were compared with brute force: record- and user-level privacy is offered.
- **exports**: an adapter, loaded by PEFT on the plain base, computes what was trained.

| family | attention | trains | packs | checkpoints | private | exports |
| --- | --- | --- | --- | --- | --- | --- |
"""


def table() -> str:
    """The whole page."""
    lines = []
    for name in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            lines.append(row_of(name, make(Path(folder), name)).line(name))
    return HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path("docs/families.md").write_text(table())
