"""Supervised fine-tuning: the model learns to write the assistant's turns, given everything before them.

Records: {messages: [{role, content}, ...]}, {prompt, completion} or {question, answer}. With a chat template in the
tokenizer, prompts become user turns and completions assistant turns; without one, the two texts follow each other and
an end token closes the completion. Loss is taken on what the assistant writes, in every turn, and nowhere else.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from confide.errors import DataError
from confide.methods.base import IGNORED, Batch, fitting, micro_batches, pad_right
from confide.methods.token_loss import TokenLoss
from confide.models.rendering import Learnable, Rendering
from confide.runs.fields import Record, fields_of, text_of
from confide.runs.metrics import Metric
from confide.runs.specification import Specification

_ROLES = {"system", "user", "assistant", "tool"}


@dataclass(frozen=True)
class Conversation:
    """ids, learned: shape (T,): tokens, and which of them the assistant wrote.

    bytes: of the assistant's text, in UTF-8, behind the learned tokens.
    """

    ids: NDArray[np.int32]
    learned: NDArray[np.bool_]
    bytes: float


class SupervisedFineTuning:
    """Loss on completions."""

    name = "sft"
    whole_batch = False

    def __init__(self, specification: Specification, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._rendering = Rendering(tokenizer)
        self._max_length = specification.method.max_length
        self.loss = TokenLoss()

    def prepare(self, records: Sequence[Record]) -> list[Conversation]:
        """Conversations with at least one token to learn, cut to max_length. Raises DataError when none is left."""
        encoded = [example for made in fitting(self.examples, records) for example in made]
        usable = [example for example in encoded if example.learned[1:].any()]
        if len(records) and not usable:
            raise DataError(
                f"in no record a completion begins within method.max_length = {self._max_length} tokens; raise it"
            )
        return usable

    def encode(self, record: Record) -> Conversation:
        """The example that ends with the record's last answer. Raises DataError for a malformed record."""
        return self.examples(record)[-1]

    def examples(self, record: Record) -> list[Conversation]:
        """One example, or one of each answer where the template writes earlier turns differently (rendering.py)."""
        made = self._rendering.examples(_messages(record))
        if not made:
            raise DataError("in a record the assistant answers nothing, so that there is nothing to learn")
        return [self._conversation(one) for one in made]

    def _conversation(self, made: Learnable) -> Conversation:
        learned = np.zeros(len(made.ids), dtype=np.bool_)
        for start, stop in made.spans:
            learned[start:stop] = True
        kept = learned[: self._max_length]
        share = float(kept.sum()) / max(1, int(learned.sum()))
        return Conversation(np.asarray(made.ids[: self._max_length], dtype=np.int32), kept, made.bytes * share)

    def length(self, example: Conversation) -> int:
        """Tokens."""
        return len(example.ids)

    def collate(self, examples: Sequence[Conversation], seed: int) -> Batch:
        """labels[b, t] is the token after t where the assistant wrote it, else IGNORED."""
        labels = [np.where(e.learned, e.ids, IGNORED)[1:] for e in examples]
        inputs = {
            "input_ids": pad_right([e.ids[:-1] for e in examples], self._tokenizer.pad_token_id),
            "attention_mask": pad_right([np.ones(len(e.ids) - 1) for e in examples], 0),
        }
        return Batch(inputs, pad_right(labels, IGNORED), int(sum(e.learned[1:].sum() for e in examples)))

    def evaluate(
        self, model: Any, evaluation: Sequence[Conversation], train: Sequence[Conversation], micro_batch_size: int
    ) -> dict[Metric, float]:
        """EVAL_LOSS: nats per completion token; EVAL_BITS_PER_BYTE: the same per byte of the assistant's text.

        EVAL_EXACT_MATCH: share of examples whose completions greedy decoding writes exactly, up to max_length.
        """
        device = next(model.parameters()).device
        total, exact = 0.0, 0
        with torch.no_grad():
            for part in micro_batches(self, evaluation, micro_batch_size):
                loss, matched = self.loss.score(model, self.collate(part, seed=0).to(device))
                total += loss
                exact += int(matched.sum())
        predicted = sum(int(e.learned[1:].sum()) for e in evaluation)
        size = sum(e.bytes for e in evaluation)
        return {
            Metric.EVAL_LOSS: total / max(predicted, 1),
            Metric.EVAL_BITS_PER_BYTE: total / (math.log(2) * max(size, 1.0)),
            Metric.EVAL_EXACT_MATCH: exact / max(len(evaluation), 1),
        }


def _messages(record: Record) -> list[dict[str, str]]:
    names = fields_of("sft", record)
    if names != ("messages",):
        prompt, completion = names
        return [
            {"role": "user", "content": text_of(record, prompt)},
            {"role": "assistant", "content": text_of(record, completion)},
        ]
    turns = record["messages"]
    if not isinstance(turns, list | tuple):
        raise DataError("field 'messages' of a record is not a list of turns {role, content}")
    messages = []
    for turn in turns:
        if not (isinstance(turn, dict) and turn.get("role") in _ROLES and isinstance(turn.get("content"), str)):
            raise DataError(f"a turn in 'messages' needs a role ({', '.join(sorted(_ROLES))}) and a content of text")
        messages.append({"role": turn["role"], "content": turn["content"]})
    return messages


METHOD = SupervisedFineTuning
