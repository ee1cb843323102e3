"""Sentence embeddings in process: mean of the last hidden states over the tokens, normalised to length 1.

The same as training's contrastive method makes them, so that a retriever that was trained here is served as trained.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import transformers
from confide.models.architecture import load_tokenizer
from confide.models.arithmetic import precision
from confide.models.pretrained import load_pretrained, pooler_names
from confide.models.store import folder_digest
from torch.nn import functional as F

from confide_server.serving.encoding import encoded
from confide_server.serving.port import Overloaded, Unanswerable

_AT_ONCE = 32
_MOST_WAITING = 64


class LocalEmbedder:
    """One model on one thread."""

    def __init__(self, folder: Path, device: str | None = None) -> None:
        """Raises ModelError for a folder that holds no model."""
        self.sha256 = folder_digest(folder)
        self._tokenizer = load_tokenizer(folder)
        device = device or precision.default_device()
        model = load_pretrained(transformers.AutoModel, folder, torch.float32, may_lack=pooler_names)
        self._model: Any = model.to(device)
        self.dimensions = int(self._model.config.hidden_size)
        positions = int(getattr(self._model.config, "max_position_embeddings", 512))
        self._most = min(positions, int(self._tokenizer.model_max_length))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embedder")
        self._waiting = 0

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._tokenizer(text)["input_ids"])

    async def embed(self, texts: Sequence[str]) -> tuple[list[list[float]], int]:
        """(one vector a text, tokens read). Raises Unanswerable for an empty or too long text, Overloaded."""
        rows: list[list[int]] = await encoded(self._rows, list(texts), sum(map(len, texts)))
        for place, row in enumerate(rows):
            if not row or len(row) > self._most:
                raise Unanswerable(
                    f"input {place} has {len(row)} tokens; this model embeds 1 to {self._most}", param="input"
                )
        if self._waiting >= _MOST_WAITING:
            raise Overloaded(f"{self._waiting} requests for embeddings wait already; try again later", 5.0)
        self._waiting += 1
        try:
            vectors = await asyncio.get_running_loop().run_in_executor(self._thread, self._embed, rows)
        finally:
            self._waiting -= 1
        return vectors, sum(map(len, rows))

    def _rows(self, texts: list[str]) -> list[list[int]]:
        rows: list[list[int]] = self._tokenizer(texts)["input_ids"]
        return rows

    def _embed(self, rows: list[list[int]]) -> list[list[float]]:
        by_length = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        found: list[list[float]] = [[] for _ in rows]
        for begin in range(0, len(rows), _AT_ONCE):
            places = by_length[begin : begin + _AT_ONCE]
            for place, vector in zip(places, self._batch([rows[place] for place in places]), strict=True):
                found[place] = vector
        return found

    def _batch(self, rows: list[list[int]]) -> list[list[float]]:
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self._tokenizer.pad_token_id)
        mask = torch.zeros(len(rows), width, dtype=torch.int64)
        for place, row in enumerate(rows):
            ids[place, : len(row)], mask[place, : len(row)] = torch.tensor(row), 1
        ids, mask = ids.to(self._model.device), mask.to(self._model.device)
        with torch.inference_mode():
            hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        weights = mask[..., None].float()
        mean = (hidden * weights).sum(1) / weights.sum(1)
        vectors: list[list[float]] = F.normalize(mean, dim=-1).tolist()
        return vectors

    async def close(self) -> None:
        """End."""
        self._thread.shutdown(wait=False, cancel_futures=True)
