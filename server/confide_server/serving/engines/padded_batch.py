"""Rows that take their next token together: one cache of keys and values, padded on the left.

A row's keys and values lie in its own row of each tensor and nowhere else; they are written by its own tokens under its
own adapter, are never shared, kept or looked up again, and go when the row goes.

Guarantee: an answer depends on its own prompt and adapter only. Padding is masked, and its place in the mask is zero
for as long as the row lives. (Rounding may differ with the batch's shape, as for every batched product.)
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

_SPARE = 64
"""Columns of room that a cache has more than it needs when it is made anew."""


class GrowingLayer(DynamicLayer):  # type: ignore[misc]  # transformers ships no types
    """A layer's keys and values with room on the right: a step writes one column and copies nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._room: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        """Append columns, shape (B, heads, new, width); returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin = self.get_seq_length()
        end = begin + key_states.shape[-2]
        room = self._room_for(end, key_states, value_states)
        for whole, new in zip(room, (key_states, value_states), strict=True):
            whole[:, :, begin:end] = new
        self.keys, self.values = (whole[:, :, :end] for whole in room)
        return self.keys, self.values

    def _room_for(self, end: int, *like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self._room is not None and self._room[0].shape[-2] >= end:
            return self._room
        width, begin = end + end // 8 + _SPARE, self.get_seq_length()
        keys, values = (new.new_empty(*new.shape[:2], width, new.shape[-1]) for new in like)
        if begin:
            keys[:, :, :begin], values[:, :, :begin] = self.keys, self.values
        self._room = keys, values
        return self._room

    def replace(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Hold these instead."""
        self._room = None
        self.keys, self.values = keys, values


def batches_rows(config: Any) -> bool:
    """Whether a model's cache is plain keys and values of all tokens, which rows can share a batch in.

    Sliding windows and recurrent states are not: such a model takes one row at a time.
    """
    try:
        return all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)
    except (KeyError, AttributeError, TypeError, ValueError):
        return False


class PaddedBatch:
    """A cache and its mask, int64 of shape (rows, columns): 1 where a row has a token."""

    def __init__(self, config: Any, mask_BT: torch.Tensor, *, plain: bool) -> None:
        layers = DynamicCache(config=config)
        self.cache: Cache = Cache(layers=[GrowingLayer() for _ in layers.layers]) if plain else layers
        self.mask_BT = mask_BT
        self.plain = plain

    def feed(self, columns: int) -> dict[str, torch.Tensor]:
        """Attention mask and positions for the next `columns` columns, whose mask is already there."""
        seen = self.cache.get_seq_length() + columns
        mask = self.mask_BT[:, :seen]
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, seen - columns :]
        return {"attention_mask": mask, "position_ids": positions}

    def add_column(self) -> None:
        """Each row is about to take one more token."""
        self.mask_BT = torch.nn.functional.pad(self.mask_BT, (0, 1), value=1)

    def keep(self, rows: Sequence[int]) -> None:
        """Let the other rows go, and the columns that only they needed."""
        index = torch.tensor(rows, device=self.mask_BT.device)
        mask = self.mask_BT[index]
        seen = self.cache.get_seq_length()
        first = int(mask[:, :seen].any(0).int().argmax())
        self.mask_BT = mask[:, first:]
        for layer in self.cache.layers:
            layer.replace(layer.keys[index, :, first:], layer.values[index, :, first:])

    def join(self, other: "PaddedBatch") -> None:
        """Take the other's rows in, behind these. Both have seen all their columns."""
        width = max(self.mask_BT.shape[1], other.mask_BT.shape[1])
        self.mask_BT = torch.cat([_left(self.mask_BT, width, 1), _left(other.mask_BT, width, 1)])
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            pairs = (mine.keys, theirs.keys), (mine.values, theirs.values)
            mine.replace(*(torch.cat([_left(a, width, 2), _left(b, width, 2)]) for a, b in pairs))


def _left(tensor: torch.Tensor, width: int, dimension: int) -> torch.Tensor:
    """Zeros before the tensor along a dimension, up to `width`."""
    missing = width - tensor.shape[dimension]
    if not missing:
        return tensor
    shape = [*tensor.shape]
    shape[dimension] = missing
    return torch.cat([tensor.new_zeros(shape), tensor], dim=dimension)
