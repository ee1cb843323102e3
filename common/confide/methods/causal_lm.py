"""Pre-training on the next token: documents packed to full sequences, none of which sees another.

Records: {text}. Each document ends with the end token. A sequence holds pieces of documents one after another; each
piece has its own positions from 0, and a model attends inside a piece only. A document that does not fit goes on in
the next sequence as a piece of its own.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from confide.errors import ModelError
from confide.methods.base import IGNORED, Batch, Record, fields_of, mean_loss, pad_right, text_of
from confide.methods.token_loss import TokenLoss
from confide.runs.specification import Specification
from confide.sealing.roles import Metric

_TOKENIZER_BATCH = 512


@dataclass(frozen=True)
class Packed:
    """One packed sequence.

    ids: (T,) tokens; positions: (T,) position of each token in its piece, 0 where a piece begins.
    bytes: of text, in UTF-8, behind the tokens that are predicted.
    """

    ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    bytes: float


def tokenized(
    tokenizer: Any, records: Sequence[Record], method: str, *, special: bool
) -> Iterator[tuple[list[int], int]]:
    """(token ids, bytes of text) of each document that is not empty."""
    for start in range(0, len(records), _TOKENIZER_BATCH):
        texts = []
        for number in range(start, min(start + _TOKENIZER_BATCH, len(records))):
            record = records[number]  # a slice of a memory-mapped data set is a dictionary of columns, not records
            fields_of(method, record)
            texts.append(text_of(record, "text"))
        encoded = tokenizer(texts, add_special_tokens=special)["input_ids"] if texts else []
        for text, ids in zip(texts, encoded, strict=True):
            if ids:
                yield ids, len(text.encode())


def pack(documents: Iterator[tuple[list[int], int]], length: int) -> list[Packed]:
    """Fill sequences of `length` tokens; only the last one may be shorter."""
    sequences: list[Packed] = []
    ids: list[int] = []
    positions: list[int] = []
    size = 0.0
    for document, document_bytes in documents:
        taken = 0
        while taken < len(document):
            piece = document[taken : taken + length - len(ids)]
            ids += piece
            positions += range(len(piece))
            size += document_bytes * (len(piece) - 1) / len(document)
            taken += len(piece)
            if len(ids) == length:
                sequences.append(_sequence(ids, positions, size))
                ids, positions, size = [], [], 0.0
    if len(ids) > 1:
        sequences.append(_sequence(ids, positions, size))
    return sequences


def _sequence(ids: list[int], positions: list[int], size: float) -> Packed:
    return Packed(np.asarray(ids, dtype=np.int32), np.asarray(positions, dtype=np.int32), size)


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

    def prepare(self, records: Sequence[Record]) -> list[Packed]:
        """Packed sequences in the order of the documents."""
        end = self._tokenizer.eos_token_id
        documents = tokenized(self._tokenizer, records, self.name, special=False)
        return pack(((([*ids, end]), size) for ids, size in documents), self._max_length)

    def length(self, example: Packed) -> int:
        """Tokens."""
        return len(example.ids)

    def collate(self, examples: Sequence[Packed], seed: int) -> Batch:
        """labels[b, t]: the next token of the same piece. No mask is given: positions that start again part pieces.

        What fills up the last sequence is a piece of its own, on which no loss is taken.
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
        inputs = {"input_ids": ids, "position_ids": positions}
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
