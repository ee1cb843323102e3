"""BERT's encoder, written down for embedding: texts lie one after another without padding.

transformers computes the same, and takes more than two seconds of CPU time to import before it does; an `add` of a
short file, a search and a question take less than that. What is gained otherwise: products are taken of all tokens of
a batch, whatever texts they are of, so that nothing is padded and no product has a new shape; texts of one length
attend together.

    encoder = read(folder, shape_of(folder), torch.bfloat16)
    encoder.vectors([[101, 2040, 12778, 1029, 102]]).shape       # (1, 384)

The model is that of Devlin et al. (2019), https://arxiv.org/abs/1810.04805: post-norm layers, GELU, learned positions.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.nn import functional as F

from confide.models.store import only_hashed
from confide.rag.encoders import plain_attention
from confide.rag.encoders.bert_shape import Shape

_STEP = 64
"""Tokens of a batch are filled up to a multiple of it: a product whose shape is new costs milliseconds to prepare."""
_PLAIN_UP_TO = 160
"""Tokens of a text up to which two products and a softmax are faster than the fused kernel on a matrix unit."""
_FILE = "model.safetensors"


class Bert:
    """Weights in one precision. Several threads may use it at once: nothing in it changes."""

    def __init__(self, shape: Shape, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> None:
        """tensors: by the names of transformers' BertModel. Raises LookupError for one that is missing or misshapen."""
        self.shape = shape
        self._tensors = {name: tensors[name].to(dtype) for name in _names(shape)}
        for name, sizes in _names(shape).items():
            found = tuple(self._tensors[name].shape)
            if len(found) != len(sizes) or any(
                want not in (None, size) for want, size in zip(sizes, found, strict=True)
            ):
                raise LookupError(f"{name} has the shape {found}")

    def batches(self, rows: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        """By length, up to so many tokens together."""
        batches: list[list[int]] = []
        held = 0
        for place in sorted(range(len(rows)), key=lambda place: len(rows[place])):
            if not batches or held + len(rows[place]) > tokens:
                batches.append([])
                held = 0
            held += len(rows[place])
            batches[-1].append(place)
        return batches

    @torch.inference_mode()
    def vectors(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """(N, D) of length 1: of N rows of token ids, best in the order of their length. Padded nowhere."""
        runs = _runs(rows)
        hidden_ND = self._hidden(rows, runs)
        means = [
            hidden_ND[start : start + count * length].view(count, length, self.shape.width).float().mean(dim=1)
            for start, count, length in runs
        ]
        found: NDArray[np.float32] = F.normalize(torch.cat(means), dim=-1).numpy()
        return found

    def _hidden(self, rows: Sequence[Sequence[int]], runs: Sequence[tuple[int, int, int]]) -> torch.Tensor:
        """(N, D) of all tokens of all rows, one after another, then of what fills them up."""
        ids = [token for row in rows for token in row]
        places = [place for row in rows for place in range(len(row))]
        filling = [0] * (-len(ids) % _STEP)
        hidden = self._table("word", ids + filling) + self._tensors["embeddings.token_type_embeddings.weight"][0]
        hidden = self._norm(hidden + self._table("position", places + filling), "embeddings.LayerNorm")
        for layer in range(self.shape.layers):
            hidden = self._layer(hidden, runs, f"encoder.layer.{layer}")
        return hidden

    def _layer(self, hidden: torch.Tensor, runs: Sequence[tuple[int, int, int]], name: str) -> torch.Tensor:
        mixed = self._attended(hidden, runs, f"{name}.attention.self")
        out = self._linear(mixed, f"{name}.attention.output.dense").add_(hidden)
        hidden = self._norm(out, f"{name}.attention.output.LayerNorm")
        wide = F.gelu(self._linear(hidden, f"{name}.intermediate.dense"))
        return self._norm(self._linear(wide, f"{name}.output.dense").add_(hidden), f"{name}.output.LayerNorm")

    def _attended(self, hidden: torch.Tensor, runs: Sequence[tuple[int, int, int]], name: str) -> torch.Tensor:
        query, key, value = (self._linear(hidden, f"{name}.{part}") for part in ("query", "key", "value"))
        mixed = torch.zeros_like(hidden)
        for start, count, length in runs:
            of_run = slice(start, start + count * length)
            q, k, v = (
                each[of_run].view(count, length, self.shape.heads, -1).transpose(1, 2) for each in (query, key, value)
            )
            mixed[of_run] = _attention(q, k, v).reshape(count * length, -1)
        return mixed

    def _table(self, name: str, places: list[int]) -> torch.Tensor:
        return F.embedding(torch.tensor(places), self._tensors[f"embeddings.{name}_embeddings.weight"])

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"])

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"]
        return F.layer_norm(x, (self.shape.width,), weight, bias, self.shape.epsilon)


def read(folder: Path, shape: Shape, dtype: torch.dtype) -> Bert | None:
    """The folder's weights; None where they are in several files, or under other names: transformers knows more."""
    try:
        with only_hashed(folder) as hashed:
            tensors = load_file(hashed / _FILE)
    except (OSError, SafetensorError):
        return None
    try:
        return Bert(shape, {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}, dtype)
    except LookupError:
        return None


def _names(shape: Shape) -> dict[str, tuple[int | None, ...]]:
    """Shapes of all tensors that are used; None: any size."""
    width, inner = shape.width, shape.inner
    found: dict[str, tuple[int | None, ...]] = {
        "embeddings.word_embeddings.weight": (None, width),
        "embeddings.position_embeddings.weight": (shape.most_tokens, width),
        "embeddings.token_type_embeddings.weight": (None, width),
    }
    norms: list[str] = ["embeddings.LayerNorm"]
    linears: dict[str, tuple[int | None, ...]] = {}
    for layer in range(shape.layers):
        name = f"encoder.layer.{layer}"
        norms += [f"{name}.attention.output.LayerNorm", f"{name}.output.LayerNorm"]
        linears |= {f"{name}.attention.self.{part}": (width, width) for part in ("query", "key", "value")}
        linears |= {f"{name}.attention.output.dense": (width, width), f"{name}.intermediate.dense": (inner, width)}
        linears[f"{name}.output.dense"] = (width, inner)
    found |= {f"{norm}.{part}": (width,) for norm in norms for part in ("weight", "bias")}
    found |= {f"{linear}.weight": sizes for linear, sizes in linears.items()}
    return found | {f"{linear}.bias": sizes[:1] for linear, sizes in linears.items()}


def _runs(rows: Sequence[Sequence[int]]) -> list[tuple[int, int, int]]:
    """(first token, rows, tokens of each) of neighbours of one length."""
    runs: list[tuple[int, int, int]] = []
    start = 0
    for row in rows:
        if runs and runs[-1][2] == len(row):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1, len(row))
        else:
            runs.append((start, 1, len(row)))
        start += len(row)
    return runs


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """(B, heads, T, D) each. Returns (B, T, heads, D)."""
    plain = not _matrix_unit() or query.shape[2] <= _PLAIN_UP_TO
    if plain and query.dtype == torch.bfloat16 and plain_attention.fits(query):
        return plain_attention.mixed(query, key, value, query.shape[-1] ** -0.5)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)


@functools.cache
def _matrix_unit() -> bool:
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))
