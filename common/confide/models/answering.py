"""Ask a base model, with or without an exported adapter: tokens as they come.

model, tokenizer = load_answering(Path("base"), adapter=Path("adapter"))
for piece in answer(model, tokenizer, [{"role": "user", "content": "Hello"}], max_tokens=64): print(piece, end="")
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel

from confide.errors import ModelError
from confide.models import precision
from confide.models.architecture import load_tokenizer
from confide.models.rendering import Rendering
from confide.models.store import folder_digest, model_files, only_hashed
from confide.models.weights import check_whole
from confide.models.widened import widened

_PINNED = "@sha256:"


def load_answering(base_folder: Path, adapter: Path | None = None, device: str | None = None) -> tuple[Any, Any]:
    """(model, tokenizer), ready to generate. Raises ModelError when the adapter was trained on another base."""
    check_whole(model_files(base_folder))
    if adapter is not None:
        _check_adapter(adapter, base_folder)
    tokenizer = load_tokenizer(base_folder)
    device = device or precision.default_device()
    try:
        narrow = precision.choice(device).arithmetic == "bfloat16"
        with only_hashed(base_folder if narrow else widened(base_folder)) as folder:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                dtype="auto" if narrow else torch.float32,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
            )
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load the model in {base_folder}: {str(error).splitlines()[0]}") from error
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    model.to(device)
    return model.eval(), tokenizer


def _check_adapter(adapter: Path, base_folder: Path) -> None:
    if not (adapter / "adapter_model.safetensors").is_file():
        raise ModelError(f"{adapter} holds no adapter_model.safetensors; name a folder that `confide run export` wrote")
    try:
        base = json.loads((adapter / "adapter_config.json").read_bytes()).get("base_model_name_or_path") or ""
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{adapter / 'adapter_config.json'} is missing or damaged; export the adapter again"
        ) from error
    if _PINNED in base and base.rsplit(_PINNED, 1)[1] != folder_digest(base_folder):
        raise ModelError(f"this adapter was trained on {base}; the model in {base_folder} is another one")


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
            if token in _ends(model, tokenizer):
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


def _ends(model: Any, tokenizer: Any) -> set[int]:
    ends = model.generation_config.eos_token_id
    return {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id} - {None}
