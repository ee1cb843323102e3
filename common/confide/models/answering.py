"""Ask a base model, with or without an exported adapter: tokens as they come.

model, tokenizer = load_answering(Path("base"), adapter=Path("adapter"))
for piece in answer(model, tokenizer, [{"role": "user", "content": "Hello"}], max_tokens=64): print(piece, end="")
"""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open

from confide.errors import ModelError
from confide.models.adapter_hash import ADAPTER_FILE
from confide.models.architecture import load_config, load_tokenizer
from confide.models.arithmetic import precision
from confide.models.arithmetic.widened import widened
from confide.models.pretrained import load_pretrained
from confide.models.rendering import Rendering
from confide.models.store import folder_digest, model_files
from confide.models.weights import check_whole


def load_answering(base_folder: Path, adapter: Path | None = None, device: str | None = None) -> tuple[Any, Any]:
    """(model, tokenizer), ready to generate.

    Raises ModelError for a base that writes no text, and for an adapter that was trained on another base, for another
    task, or that has no effect.
    """
    if adapter is not None:
        check_adapter(adapter, base_folder)
    model, tokenizer = load_writer(base_folder, device)
    if adapter is not None:
        model = with_adapter(model, adapter)
        model.to(model.device)
    return model.eval(), tokenizer


def load_writer(base_folder: Path, device: str | None = None) -> tuple[Any, Any]:
    """(model, tokenizer) of the base alone, which writes text. Raises ModelError for one that does not."""
    model_files(base_folder)  # raises for a folder that holds none, which its configuration would be blamed for
    config = load_config(base_folder)
    if not _writes_text(config):
        raise ModelError(
            f"{base_folder} holds a {config.model_type} model, which does not write text from left to right; "
            "name a causal language model"
        )
    tokenizer = load_tokenizer(base_folder)
    device = device or precision.default_device()
    narrow = precision.choice(device).arithmetic == "bfloat16"
    model = load_pretrained(
        transformers.AutoModelForCausalLM,
        base_folder,
        "auto" if narrow else torch.float32,
        remedy="without it, it writes at random: name a causal language model with its head",
        source=None if narrow else widened(base_folder),
    )
    return model.to(device), tokenizer


def _writes_text(config: Any) -> bool:
    """Encoders have causal heads too in transformers, for cross-attention; unasked, they look both ways."""
    if type(config) not in transformers.AutoModelForCausalLM._model_mapping or config.is_encoder_decoder:
        return False
    masked = type(config) in transformers.AutoModelForMaskedLM._model_mapping
    return not masked or bool(getattr(config, "is_decoder", False))


def check_adapter(adapter: Path, base_folder: Path) -> None:
    """Raises ModelError for an adapter of another base or task, or one without effect."""
    path = adapter / ADAPTER_FILE
    if not path.is_file():
        raise ModelError(f"{adapter} holds no {ADAPTER_FILE}; name a folder that `confide run export` wrote")
    config = _read(adapter / "adapter_config.json")
    if config is None:
        raise ModelError(f"{adapter / 'adapter_config.json'} is missing or damaged; export the adapter again")
    check_whole({path.name: path})
    task = config.get("task_type") or "CAUSAL_LM"
    if task != "CAUSAL_LM":
        raise ModelError(f"the adapter in {adapter} is for {task}; it writes no text, and would change nothing here")
    pinned = (_read(adapter / "manifest.json") or {}).get("base_model_sha256")
    found = folder_digest(base_folder)
    if pinned is not None and pinned != found:
        raise ModelError(
            f"this adapter was trained on the model {pinned}; the model in {base_folder} is another one ({found})"
        )
    with safe_open(path, framework="pt") as file:
        if not any(bool(file.get_tensor(name).any()) for name in file.keys() if ".lora_A." not in name):  # noqa: SIM118
            raise ModelError(f"the adapter in {adapter} changes nothing: it is as training began")


def with_adapter(model: Any, adapter: Path, name: str = "default", *, trainable: bool = False) -> Any:
    """The model with one more adapter, under a name. Raises ModelError where a tensor has no place in the model."""
    path = adapter / ADAPTER_FILE
    check_whole({path.name: path})
    with safe_open(path, framework="pt") as file:
        weights = set(file.keys())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tensors without a place: an error below
        if isinstance(model, PeftModel):
            adapted = model
            adapted.load_adapter(str(adapter), adapter_name=name, is_trainable=trainable)
        else:
            adapted = PeftModel.from_pretrained(model, str(adapter), adapter_name=name, is_trainable=trainable)
    # Not "auto": PEFT would look for the base by its name, also on a hub.
    present = get_peft_model_state_dict(adapted, adapter_name=name, save_embedding_layers=False)
    odd = sorted(weights ^ set(present))
    if odd:
        raise ModelError(f"the adapter in {adapter} does not fit this model: {odd[0]!r} has no counterpart in it")
    return adapted


def _read(path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def prompt_ids(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> torch.Tensor:
    """int64, shape (1, T): the conversation up to where the assistant begins to write, as training has it."""
    return torch.tensor([Rendering(tokenizer).prompt_ids(messages)], dtype=torch.int64)


def answer(
    model: Any,
    tokenizer: Any,
    messages: Sequence[Mapping[str, str]],
    *,
    max_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[str]:
    """Pieces of the answer. temperature 0 takes the likeliest token, always the same answer."""
    ids = prompt_ids(tokenizer, messages).to(model.device)
    random = torch.Generator(device=model.device).manual_seed(seed)
    written: list[int] = []
    shown = ""
    cache = None
    with torch.inference_mode():
        while len(written) < max_tokens:
            output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            token = _next(output.logits[0, -1].float(), temperature, random)
            if token in ends(model, tokenizer):
                break
            written.append(token)
            ids = torch.tensor([[token]], device=model.device)
            text = tokenizer.decode(written, skip_special_tokens=True)
            # Bytes of one character may come in several tokens; show it when it is whole.
            if not text.endswith("\N{REPLACEMENT CHARACTER}"):
                yield text[len(shown) :]
                shown = text


def _next(logits: torch.Tensor, temperature: float, random: torch.Generator) -> int:
    if temperature <= 0:
        return int(logits.argmax())
    return int(torch.multinomial(torch.softmax(logits / temperature, dim=-1), 1, generator=random))


def ends(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end an answer."""
    named = model.generation_config.eos_token_id
    return {*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id} - {None}
