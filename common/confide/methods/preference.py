"""Pairs of answers of which one was preferred: records, their tokens, and the rows of a batch.

Records: {prompt, chosen, rejected} or {chosen, rejected}, each a text or a conversation (a list of turns
{role, content}), in the forms that TRL reads. Without a prompt the turns that both conversations begin with are the
prompt; two texts have none. A pair is one record and one unit of privacy: its two answers are two rows of a batch, next
to each other, whose gradients are added before anything is clipped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from confide.errors import DataError
from confide.methods.base import pad_right
from confide.models.rendering import Rendering
from confide.runs.fields import Record, fields_of

Ids = NDArray[np.int32]
Turns = list[dict[str, str]]
_ROLES = {"system", "user", "assistant", "tool"}


@dataclass(frozen=True)
class Answer:
    """ids: (T,) tokens of prompt and answer; start: where the answer's begin."""

    ids: Ids
    start: int

    @property
    def key(self) -> bytes:
        """Equal for equal tokens and start."""
        return self.start.to_bytes(4, "big") + self.ids.tobytes()


@dataclass(frozen=True)
class Pair:
    """One comparison."""

    chosen: Answer
    rejected: Answer

    @property
    def tokens(self) -> int:
        """Of the longer half."""
        return max(len(self.chosen.ids), len(self.rejected.ids))


class PairEncoder:
    """Records into pairs, by one tokenizer."""

    def __init__(self, method: str, tokenizer: Any, max_length: int) -> None:
        self._method, self._tokenizer, self._max_length = method, tokenizer, max_length
        self._rendering = Rendering(tokenizer) if tokenizer.chat_template else None

    def pair(self, record: Record) -> Pair:
        """Raises DataError for a malformed record, equal answers, or nothing to read; the text quotes nothing."""
        fields_of(self._method, record)
        chosen, rejected, prompt = record["chosen"], record["rejected"], record.get("prompt")
        if chosen == rejected:
            raise DataError("a record's chosen and rejected answers are the same, so that nothing was preferred")
        turns, one, other = turns_of(prompt, chosen, rejected)
        pair = Pair(self.answer(turns, one), self.answer(turns, other))
        if pair.chosen.key == pair.rejected.key:
            raise DataError(
                f"a record's answers are the same within method.max_length = {self._max_length} tokens; raise it"
            )
        return pair

    def answer(self, prompt: Sequence[Mapping[str, str]], answer: str) -> Answer:
        """Tokens of an answer after a prompt, cut to max_length: first the prompt (its beginning), then the answer."""
        before, after = self._parts(prompt, answer)
        after = after[: self._max_length] or [self._tokenizer.pad_token_id]
        before = before[len(before) - min(len(before), self._max_length - len(after)) :]
        return Answer(np.asarray(before + after, dtype=np.int32), len(before))

    def _parts(self, prompt: Sequence[Mapping[str, str]], answer: str) -> tuple[list[int], list[int]]:
        if not prompt:
            return [], list(self._tokenizer(answer)["input_ids"])
        if self._rendering is not None:
            after = self._tokenizer(answer, add_special_tokens=False)["input_ids"]
            return list(self._rendering.prompt_ids(prompt)), [*after, self._tokenizer.eos_token_id]
        asked = "\n".join(turn["content"] for turn in prompt)
        before = list(self._tokenizer(asked)["input_ids"])
        after = list(self._tokenizer(answer, add_special_tokens=False)["input_ids"])
        end = self._tokenizer.sep_token_id or self._tokenizer.eos_token_id
        return before, after if end is None else [*after, end]


def turns_of(prompt: Any, chosen: Any, rejected: Any) -> tuple[Turns, str, str]:
    """(turns before the answer, the chosen text, the rejected text). Raises DataError for a malformed record."""
    asked = conversation(prompt, "user", "prompt")
    one, other = conversation(chosen, "assistant", "chosen"), conversation(rejected, "assistant", "rejected")
    if not one or not other:
        raise DataError("a record has an empty answer; give a text or a list of turns {role, content}")
    if prompt is None:
        common = 0
        while common < min(len(one), len(other)) - 1 and one[common] == other[common]:
            common += 1
        asked, one, other = one[:common], one[common:], other[common:]
    if len(one) != 1 or len(other) != 1:
        raise DataError("a record's answers are several turns each, of which only the last may differ")
    return asked, one[0]["content"], other[0]["content"]


def conversation(value: Any, role: str, field: str) -> Turns:
    """A text as one turn of this role, turns as they are, nothing as none. Raises DataError naming the field."""
    if value is None or value == "":
        return []
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list | tuple):
        raise DataError(f"field {field!r} of a record is {type(value).__name__}; it must be text or a list of turns")
    for turn in value:
        if not (isinstance(turn, dict) and turn.get("role") in _ROLES and isinstance(turn.get("content"), str)):
            raise DataError(f"a turn in {field!r} needs a role ({', '.join(sorted(_ROLES))}) and a content of text")
    return [{"role": turn["role"], "content": turn["content"]} for turn in value]


def rows(pairs: Sequence[Pair], pad: int) -> dict[str, torch.Tensor]:
    """input_ids, attention_mask, answer_mask, int64 (2B, T): chosen and rejected of each pair in turn."""
    return answer_rows([half for pair in pairs for half in (pair.chosen, pair.rejected)], pad)


def answer_rows(answers: Sequence[Answer], pad: int) -> dict[str, torch.Tensor]:
    """The same of single answers, (B, T). answer_mask: 1 where a token is the answer's."""
    answer = [np.arange(len(a.ids)) >= a.start for a in answers]
    return {
        "input_ids": pad_right([a.ids for a in answers], pad),
        "attention_mask": pad_right([np.ones(len(a.ids)) for a in answers], 0),
        "answer_mask": pad_right(answer, 0),
    }
