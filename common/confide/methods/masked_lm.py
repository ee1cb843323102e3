"""Pre-training on masked tokens (Devlin et al. 2019, section 3.1): 80% [MASK], 10% a random token, 10% unchanged.

Records: {text}. Documents, with the tokenizer's own special tokens around each, are packed to full sequences; attention
is block-diagonal, so that no document sees another. Which tokens are masked is drawn anew for every batch.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from confide.errors import ModelError
from confide.methods.base import IGNORED, Batch, mean_loss, pad_right
from confide.methods.documents import DocumentEncoder
from confide.methods.packing import Packed, PackedSequences, Tokens
from confide.methods.token_loss import TokenLoss
from confide.models.pieces import piece_inputs
from confide.runs.fields import Record
from confide.runs.metrics import Metric
from confide.runs.specification import Specification


class MaskedLanguageModel:
    """Prediction of hidden tokens from both sides."""

    name = "masked_lm"
    whole_batch = False

    def __init__(self, specification: Specification, tokenizer: Any) -> None:
        if tokenizer.mask_token_id is None:
            raise ModelError("masked_lm needs a mask token in the tokenizer; choose an encoder such as a BERT as base")
        self._tokenizer = tokenizer
        self._max_length = specification.method.max_length
        self._probability = specification.method.mask_probability
        self._special = np.asarray(tokenizer.all_special_ids)
        self._token_loss = TokenLoss()
        self.encoder = DocumentEncoder(self.name, tokenizer, special=True)

    def prepare(self, records: Sequence[Record]) -> PackedSequences:
        """Packed sequences that hold at least one token to mask."""
        return self.examples(self.encoder.tokens(records))

    def examples(self, tokens: Tokens) -> PackedSequences:
        """Sequences over an encoded corpus, without those that hold special tokens only."""
        length = self._max_length
        every = PackedSequences(tokens, length)
        hopeful = [n for n in range(len(every)) if self._maskable(tokens.ids[n * length : (n + 1) * length]).any()]
        return every if len(hopeful) == len(every) else every.choose(np.asarray(hopeful, dtype=np.int64))

    def _maskable(self, ids: NDArray[Any]) -> NDArray[np.bool_]:
        return np.isin(ids, self._special, invert=True)

    def length(self, example: Packed) -> int:
        """Tokens."""
        return len(example.ids)

    def collate(self, examples: Sequence[Packed], seed: int) -> Batch:
        """inputs: ids, positions and piece numbers (B, T); labels: the hidden tokens, IGNORED elsewhere."""
        random = np.random.Generator(np.random.PCG64(seed))
        rows, labels = [], []
        for example in examples:
            ids, hidden = self._mask(example.ids, random)
            rows.append(ids)
            labels.append(np.where(hidden, example.ids, IGNORED))
        label_tensor = pad_right(labels, IGNORED)
        inputs = {
            "input_ids": pad_right(rows, self._tokenizer.pad_token_id),
            "position_ids": pad_right([e.positions for e in examples], 0),
            "pieces": pad_right([np.cumsum(e.positions == 0) for e in examples], 0),
        }
        return Batch(inputs, label_tensor, int((label_tensor != IGNORED).sum()))

    def _mask(self, ids: NDArray[np.int32], random: np.random.Generator) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """(tokens that the model sees, which are hidden); at least one is."""
        maskable = self._maskable(ids)
        hidden = maskable & (random.random(len(ids)) < self._probability)
        if not hidden.any():
            hidden[random.choice(np.flatnonzero(maskable))] = True
        choice = random.random(len(ids))
        seen = ids.copy()
        seen[hidden & (choice < 0.8)] = self._tokenizer.mask_token_id
        drawn = random.integers(0, len(self._tokenizer), len(ids), dtype=np.int32)
        swapped = hidden & (choice >= 0.8) & (choice < 0.9)
        seen[swapped] = drawn[swapped]
        return seen, hidden

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """Summed cross-entropy over the hidden tokens."""
        return self._token_loss(model, Batch(piece_inputs(model, batch.inputs), batch.labels, batch.count))

    def evaluate(
        self, model: Any, evaluation: Sequence[Packed], train: Sequence[Packed], micro_batch_size: int
    ) -> dict[Metric, float]:
        """EVAL_LOSS: nats per hidden token, the same tokens hidden every time."""
        return {Metric.EVAL_LOSS: mean_loss(self, model, evaluation, micro_batch_size)}


_body_inputs = piece_inputs
METHOD = MaskedLanguageModel
