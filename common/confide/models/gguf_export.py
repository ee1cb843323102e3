"""A whole model folder as one GGUF file, for llama.cpp, Ollama and what else reads that format.

    write_gguf(merged_folder, merged_folder / "model.gguf")

Families: llama, mistral and qwen2, with a byte-level BPE tokenizer whose way of cutting text llama.cpp has a name for.
Others are refused by name. Weights keep their precision (float32, bfloat16, float16); to make them smaller, use
llama.cpp's llama-quantize.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors import safe_open

from confide.errors import ModelError, StateError
from confide.models.architecture import load_config, load_tokenizer
from confide.models.store import model_files

_FAMILIES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2"}
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_QWEN2_CUT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|"
_LLAMA3_CUT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|"


def write_gguf(model_folder: Path, path: Path) -> Path:
    """Write the file. Raises ModelError for a family or tokenizer that is not supported."""
    try:
        import gguf
    except ImportError as error:
        raise StateError("the gguf library is not here; install it with `pip install 'confide[models]'`") from error
    config = load_config(model_folder)
    family = _FAMILIES.get(config.model_type)
    if family is None:
        raise ModelError(
            f"a {config.model_type} model cannot be written as GGUF here; {', '.join(sorted(_FAMILIES))} can. Use "
            "llama.cpp's own convert_hf_to_gguf.py on the merged folder"
        )
    temporary = path.with_name(f".{path.name}.part")
    writer = gguf.GGUFWriter(temporary, family)
    try:
        _add_shape(writer, config)
        _add_tokenizer(writer, model_folder, config)
        _add_weights(gguf, writer, model_folder, config, family)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        temporary.replace(path)
    except OSError as error:
        raise ModelError(f"cannot write {path}: {error.strerror}; free space there") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _add_shape(writer: Any, config: Any) -> None:
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_name(config.name_or_path.rsplit("/", 1)[-1] or config.model_type)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", None) or heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(_rope_base(config))
    writer.add_vocab_size(config.vocab_size)


def _rope_base(config: Any) -> float:
    rope: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        raise ModelError(
            f"the model scales its positions ({rope['rope_type']}), which is not written as GGUF here; use llama.cpp's "
            "own convert_hf_to_gguf.py on the merged folder"
        )
    return float(rope.get("rope_theta") or getattr(config, "rope_theta", None) or 10000.0)


def _add_tokenizer(writer: Any, folder: Path, config: Any) -> None:
    tokenizer = load_tokenizer(folder)
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    if document["model"]["type"] != "BPE" or document["model"].get("byte_fallback"):
        raise ModelError(f"the tokenizer in {folder} is no byte-level BPE; only those are written as GGUF here")
    cut = _cut(document["pre_tokenizer"])
    added = {int(number): token for number, token in tokenizer.added_tokens_decoder.items()}
    by_number = {number: text for text, number in tokenizer.get_vocab().items()}
    tokens, kinds = [], []
    for number in range(config.vocab_size):
        known = by_number.get(number)
        tokens.append(f"[PAD{number}]" if known is None else known)
        special = added.get(number)
        kinds.append(
            _UNUSED if known is None else _NORMAL if special is None else _CONTROL if special.special else _USER_DEFINED
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cut)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = document["model"]["merges"]
    writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in merges])
    for add, number in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if number is not None:
            add(number)
    writer.add_add_bos_token(tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _cut(pre_tokenizer: Any) -> str:
    """llama.cpp's name for how a tokenizer cuts text before it merges. Raises ModelError for a way without a name."""
    parts = pre_tokenizer.get("pretokenizers", [pre_tokenizer]) if isinstance(pre_tokenizer, dict) else []
    kinds = [part["type"] for part in parts]
    if kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits"):
        return "smollm"
    pattern = str(parts[0].get("pattern", {}).get("Regex", "")) if kinds == ["Split", "ByteLevel"] else ""
    for beginning, name in ((_QWEN2_CUT, "qwen2"), (_LLAMA3_CUT, "llama-bpe")):
        if pattern.startswith(beginning):
            return name
    raise ModelError(
        "this tokenizer cuts text in a way that is not known to be one of llama.cpp's; a GGUF file would be read with "
        "other tokens. Use llama.cpp's own convert_hf_to_gguf.py on the merged folder"
    )


def _add_weights(gguf: Any, writer: Any, folder: Path, config: Any, family: str) -> None:
    arch = gguf.MODEL_ARCH.LLAMA if family == "llama" else gguf.MODEL_ARCH.QWEN2
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for file_name, file_path in model_files(folder).items():
        if not file_name.endswith(".safetensors"):
            continue
        with safe_open(file_path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                if name == "lm_head.weight" and config.tie_word_embeddings:
                    continue
                named = names.get_name(name, try_suffixes=(".weight", ".bias"))
                if named is None:
                    raise ModelError(f"the tensor {name!r} has no place in a GGUF file of a {config.model_type} model")
                tensor = file.get_tensor(name)
                if family == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
                    tensor = _interleaved(tensor, config, key=name.endswith("k_proj.weight"))
                data, kind = _as_stored(gguf, tensor)
                writer.add_tensor(named, data, raw_dtype=kind)


def _interleaved(weight: torch.Tensor, config: Any, *, key: bool) -> torch.Tensor:
    """Rows in llama.cpp's order of rotated pairs: neighbours, where transformers has halves."""
    heads = (getattr(config, "num_key_value_heads", None) if key else None) or config.num_attention_heads
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _as_stored(gguf: Any, tensor: torch.Tensor) -> tuple[NDArray[Any], Any]:
    """(numbers, GGUF's type): vectors in float32, as llama.cpp wants them; matrices as they are."""
    kinds = gguf.GGMLQuantizationType
    if tensor.ndim == 1 or tensor.dtype == torch.float32:
        return tensor.float().numpy(), kinds.F32
    if tensor.dtype == torch.float16:
        return tensor.numpy(), kinds.F16
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.uint8).numpy(), kinds.BF16
    raise ModelError(f"weights in {tensor.dtype} are not written as GGUF here; float32, float16 and bfloat16 are")
