"""Whether a model's folder holds a BERT as `bert` computes it, and of what size. Needs no torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_AS_WRITTEN: Mapping[str, tuple[object, ...]] = {
    "model_type": ("bert",),
    "hidden_act": ("gelu",),
    "position_embedding_type": (None, "absolute"),
    "is_decoder": (None, False),
    "add_cross_attention": (None, False),
    "quantization_config": (None,),
}
"""What the configuration may say; any other BERT is left to transformers."""
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")


@dataclass(frozen=True)
class Shape:
    """width: numbers of a token; inner: of its widest layer; most_tokens: positions that the model knows."""

    width: int
    inner: int
    layers: int
    heads: int
    most_tokens: int
    epsilon: float


def shape_of(folder: Path) -> Shape | None:
    """None: another family, a variant, or a configuration that cannot be read."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(config, dict) or any(config.get(name) not in allowed for name, allowed in _AS_WRITTEN.items()):
        return None
    sizes = [size for size in map(config.get, _SIZES) if type(size) is int and size > 0]
    epsilon = config.get("layer_norm_eps", 1e-12)
    if len(sizes) != len(_SIZES) or not isinstance(epsilon, float):
        return None
    width, inner, layers, heads, most_tokens = sizes
    return None if width % heads else Shape(width, inner, layers, heads, most_tokens, epsilon)
