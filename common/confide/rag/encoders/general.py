"""Encoders of every family but plain BERT, by transformers: texts of like length together, short ones padded."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from confide.errors import ModelError
from confide.models.pretrained import load_pretrained, pooler_names
from confide.rag.encoders import plain_attention

_LONG = 128
"""Tokens above which only texts of equal length go together: nothing is padded, and attention needs no mask."""
_STEP = 16
"""Shorter texts are padded to a multiple of it: a product whose shape is new costs some milliseconds to prepare."""


class General:
    """A model in memory. Several threads may use it at once."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        """Raises ModelError for a folder that holds no encoder."""
        model = load_pretrained(
            transformers.AutoModel,
            folder,
            dtype,
            what="embedder",
            remedy="take its whole folder",
            may_lack=pooler_names,
        )
        if not hasattr(model.config, "max_position_embeddings"):
            raise ModelError(f"the model in {folder} does not say how many tokens it reads; it is no embedder")
        if dtype == torch.bfloat16 and model.config._attn_implementation == "sdpa":
            plain_attention.register()
            model.set_attn_implementation(plain_attention.NAME)
        self.model = model

    def batches(self, rows: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        """Of like length, so that little of a batch is padding."""
        batches: list[list[int]] = []
        before = 0
        for place in sorted(range(len(rows)), key=lambda place: len(rows[place])):
            length = len(rows[place])
            if not batches or length > max(_LONG, before) or (len(batches[-1]) + 1) * length > tokens:
                batches.append([])
            before = length
            batches[-1].append(place)
        return batches

    def vectors(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """(N, D) of length 1."""
        width = max(map(len, rows))
        if width <= _LONG:
            width = _STEP * math.ceil(width / _STEP)
        ids = torch.zeros((len(rows), width), dtype=torch.int64)
        mask = torch.zeros((len(rows), width), dtype=torch.int64)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row)
            mask[place, : len(row)] = 1
        with torch.inference_mode():
            hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
            weights = mask[:, :, None].float()
            mean = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
            found: NDArray[np.float32] = torch.nn.functional.normalize(mean, dim=-1).numpy()
        return found
