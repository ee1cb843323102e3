"""In-context learning: nothing is trained; a few of the node's own examples stand before each question.

Records: {input, output}, {question, answer}, {text, label} or {prompt, completion}. method.prompt is a template with
{input} and {output}; method.shots examples are chosen from the node's training split, at random or by nearness of the
model's own mean hidden states. With method.labels the likeliest label is taken, else an answer of one line is written.
Only metrics leave the node.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from confide.errors import DataError, ModelError, SpecificationError
from confide.methods.base import Batch, fitting, label_of
from confide.methods.classification import macro_f1
from confide.models import seeds
from confide.runs.fields import Record, fields_of
from confide.runs.metrics import Metric
from confide.runs.specification import Specification

_TEMPLATE = "Question: {input}\nAnswer: {output}"
_BETWEEN = "\n\n"
_MOST_NEW_TOKENS = 48


@dataclass(frozen=True)
class Shot:
    """One question with its answer."""

    input: str
    output: str


class InContext:
    """Few-shot evaluation."""

    name = "in_context"
    whole_batch = False

    def __init__(self, specification: Specification, tokenizer: Any) -> None:
        template = specification.method.prompt or _TEMPLATE
        before, found, after = template.partition("{output}")
        if not found or after.strip() or "{input}" not in before:
            raise SpecificationError(
                f"method.prompt is {template!r}; it must hold {{input}} and end with {{output}}, for example "
                f"{_TEMPLATE!r}"
            )
        self._before = before
        self._tokenizer = tokenizer
        self._specification = specification
        self._labels = specification.method.labels

    def prepare(self, records: Sequence[Record]) -> list[Shot]:
        """Raises DataError when no record fits: has the fields, and an output in method.labels."""
        return fitting(self._shot, records)

    def _shot(self, record: Record) -> Shot:
        first, second = fields_of(self.name, record)
        shot = Shot(str(record[first]), label_of(record[second], self._labels))
        if self._labels and shot.output not in self._labels:
            raise DataError(f"a record's {second!r} is not in method.labels ({', '.join(self._labels)})")
        return shot

    def length(self, example: Shot) -> int:
        """Characters."""
        return len(example.input)

    def collate(self, examples: Sequence[Shot], seed: int) -> Batch:
        """Nothing is trained, so that there are no batches."""
        raise ModelError("in_context trains nothing; it only evaluates")

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """Nothing is trained, so that there is no loss."""
        raise ModelError("in_context trains nothing; it only evaluates")

    def evaluate(
        self, model: Any, evaluation: Sequence[Shot], train: Sequence[Shot], micro_batch_size: int
    ) -> dict[Metric, float]:
        """EVAL_EXACT_MATCH; with labels also EVAL_ACCURACY and EVAL_MACRO_F1."""
        chosen = self._chosen(model, evaluation, train)
        answers = []
        for question, shots in zip(evaluation, chosen, strict=True):
            ids = self._prompt(question, shots)
            answers.append(self._likeliest(model, ids) if self._labels else self._written(model, ids))
        exact = float(np.mean([_plain(a) == _plain(q.output) for a, q in zip(answers, evaluation, strict=True)]))
        if not self._labels:
            return {Metric.EVAL_EXACT_MATCH: exact}
        truth = [self._labels.index(q.output) for q in evaluation]
        predicted = [self._labels.index(a) for a in answers]
        return {
            Metric.EVAL_EXACT_MATCH: exact,
            Metric.EVAL_ACCURACY: exact,
            Metric.EVAL_MACRO_F1: macro_f1(truth, predicted),
        }

    def _chosen(self, model: Any, evaluation: Sequence[Shot], train: Sequence[Shot]) -> list[list[Shot]]:
        """The examples for each question; the nearest one stands last, next to the question."""
        count = min(self._specification.method.shots, len(train))
        if count == 0:
            return [[] for _ in evaluation]
        if self._specification.method.shot_selection == "random":
            picks = []
            for number in range(len(evaluation)):
                draw = seeds.derive(self._specification.seed, "shots", number)
                order = np.random.Generator(np.random.PCG64(draw)).permutation(len(train))
                picks.append([train[i] for i in order[:count]])
            return picks
        known = self._vectors(model, [shot.input for shot in train])
        asked = self._vectors(model, [shot.input for shot in evaluation])
        nearest = (asked @ known.T).topk(count, dim=1).indices.flip(1)
        return [[train[i] for i in row] for row in nearest.tolist()]

    def _vectors(self, model: Any, texts: list[str]) -> torch.Tensor:
        rows = []
        with torch.no_grad():
            for text in texts:
                ids = self._ids(text)[:, : self._specification.method.max_length].to(model.device)
                hidden = getattr(model, model.base_model_prefix)(input_ids=ids).last_hidden_state
                rows.append(F.normalize(hidden[0].float().mean(dim=0), dim=0))
        return torch.stack(rows)

    def _ids(self, text: str, *, special: bool = True) -> torch.Tensor:
        ids = self._tokenizer(text, add_special_tokens=special)["input_ids"] or [self._tokenizer.pad_token_id]
        return torch.tensor([ids], dtype=torch.int64)

    def _prompt(self, question: Shot, shots: list[Shot]) -> torch.Tensor:
        """(1, T), T <= max_length: as many of the shots as fit, those nearest to the question first to stay."""
        asked = self._before.replace("{input}", question.input).rstrip()
        limit = self._specification.method.max_length
        for skipped in range(len(shots) + 1):
            told = [self._before.replace("{input}", shot.input) + shot.output for shot in shots[skipped:]]
            ids = self._ids(_BETWEEN.join([*told, asked]))
            if ids.shape[1] <= limit:
                return ids
        return ids[:, -limit:]

    def _likeliest(self, model: Any, prompt: torch.Tensor) -> str:
        """The label with the highest log-probability after the prompt."""
        told = model(input_ids=prompt.to(model.device), use_cache=True, logits_to_keep=1)
        first, cache, scores = told.logits[0].float(), told.past_key_values, []
        for label in self._labels:
            answer = self._ids(" " + label, special=False).to(model.device)
            # The prompt is read once; each label goes on from there.
            rest = model(input_ids=answer, past_key_values=copy.deepcopy(cache), use_cache=True).logits[0, :-1].float()
            log_p = torch.log_softmax(torch.cat([first, rest]), dim=-1)
            scores.append(float(log_p.gather(1, answer[0][:, None]).sum()))
        return self._labels[int(np.argmax(scores))]

    def _written(self, model: Any, prompt: torch.Tensor) -> str:
        """One greedy line."""
        ids, cache, written = prompt.to(model.device), None, []
        for _ in range(_MOST_NEW_TOKENS):
            output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            token = int(output.logits[0, -1].argmax())
            if token == self._tokenizer.eos_token_id:
                break
            written.append(token)
            ids = torch.tensor([[token]], device=model.device)
            text: str = self._tokenizer.decode(written, skip_special_tokens=True)
            if "\n" in text.strip():
                break
        lines = self._tokenizer.decode(written, skip_special_tokens=True).strip().splitlines()
        return str(lines[0]) if lines else ""


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


METHOD = InContext
