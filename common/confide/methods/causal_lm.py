"""Pre-training on the next token: documents packed to full sequences, none of which sees another.

Records: {text}. Each document ends with the end token. A sequence holds pieces of documents one after another; each
piece has its own positions from 0, and a model attends inside a piece only (packing.py).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from confide.errors import ModelError
from confide.methods.base import IGNORED, Batch, mean_loss, pad_right
from confide.methods.documents import DocumentEncoder
from confide.methods.packing import Packed, PackedSequences, Tokens
from confide.methods.token_loss import TokenLoss
from confide.runs.fields import Record
from confide.runs.metrics import Metric
from confide.runs.specification import Specification


class CausalLanguageModel:
    """Next-token prediction."""

    name = "causal_lm"
    whole_batch = False

    def __init__(self, specification: Specification, tokenizer: Any) -> None:
        if tokenizer.eos_token_id is None:
            raise ModelError("causal_lm needs an end token in the tokenizer to close documents; add one to it")
        self._tokenizer = tokenizer
        self._max_length = specification.method.max_length
        self.loss = TokenLoss()
        self.encoder = DocumentEncoder(self.name, tokenizer, special=False, end=tokenizer.eos_token_id)

    def prepare(self, records: Sequence[Record]) -> PackedSequences:
        """Packed sequences in the order of the documents."""
        return self.examples(self.encoder.tokens(records))

    def examples(self, tokens: Tokens) -> PackedSequences:
        """Sequences of full length over an encoded corpus."""
        return PackedSequences(tokens, self._max_length)

    def length(self, example: Packed) -> int:
        """Tokens."""
        return len(example.ids)

    def collate(self, examples: Sequence[Packed], seed: int) -> Batch:
        """labels[b, t]: the next token of the same piece. No mask is given: positions that start again part pieces.

        What fills up the last sequence is a piece of its own, on which no loss is taken. Where no sequence holds a
        second piece, the positions are the model's own: none are given, and attention takes its fast causal path.
        """
        ids = pad_right([e.ids for e in examples], self._tokenizer.pad_token_id)
        positions = torch.zeros_like(ids)
        labels = torch.full_like(ids, IGNORED)
        for row, example in enumerate(examples):
            count = len(example.ids)
            positions[row, :count] = torch.from_numpy(example.positions)
            positions[row, count:] = torch.arange(ids.shape[1] - count)
            goes_on = example.positions[1:] > 0
            labels[row, : count - 1] = torch.from_numpy(np.where(goes_on, example.ids[1:], IGNORED))
        inputs = {"input_ids": ids}
        if any((example.positions[1:] == 0).any() for example in examples):
            inputs["position_ids"] = positions
        return Batch(inputs, labels, int((labels != IGNORED).sum()))

    def evaluate(
        self, model: Any, evaluation: Sequence[Packed], train: Sequence[Packed], micro_batch_size: int
    ) -> dict[Metric, float]:
        """EVAL_LOSS: nats per token; EVAL_BITS_PER_BYTE: the same per byte of text, comparable across tokenizers."""
        loss = mean_loss(self, model, evaluation, micro_batch_size)
        predicted = sum(int((e.positions > 0).sum()) for e in evaluation)
        size = sum(e.bytes for e in evaluation)
        return {Metric.EVAL_LOSS: loss, Metric.EVAL_BITS_PER_BYTE: loss * predicted / (math.log(2) * max(size, 1.0))}


METHOD = CausalLanguageModel
