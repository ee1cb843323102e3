"""Classification of texts with a sequence head, on encoders and decoders.

Records: {text, label}; the label set is method.labels, in order. With method.class_weights = "balanced" a rare class
weighs more, up to a limit: the weights come from the node's own counts and never leave it. A class that a node lacks is
no error: its output is learned from other nodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from confide.errors import DataError, SpecificationError
from confide.methods.base import Batch, fitting, label_of, micro_batches, pad_right
from confide.methods.token_loss import body_of
from confide.runs.fields import Record, fields_of, text_of
from confide.runs.metrics import Metric
from confide.runs.specification import Specification

_MOST_WEIGHT = 10.0
"""Of a record: else the one record of a class in a shard of hundreds would make a whole step by itself."""


@dataclass(frozen=True)
class Labelled:
    """ids: (T,) tokens; label: index into method.labels; weight: of this record in the training loss."""

    ids: NDArray[np.int32]
    label: int
    weight: float


class Classification:
    """Cross-entropy over a fixed label set."""

    name = "classification"
    whole_batch = False

    def __init__(self, specification: Specification, tokenizer: Any) -> None:
        labels = specification.method.labels
        if len(set(labels)) != len(labels) or not all(label.strip() for label in labels):
            raise SpecificationError(f"method.labels is {list(labels)}; labels must be different and not empty")
        self._tokenizer = tokenizer
        self._max_length = specification.method.max_length
        self._labels = {label: index for index, label in enumerate(labels)}
        self._balanced = specification.method.class_weights == "balanced"

    def prepare(self, records: Sequence[Record]) -> list[Labelled]:
        """Tokens and label of each record. Raises DataError when no record has a label of method.labels."""
        known = fitting(self._encode, records)
        counts = np.bincount([label for _, label in known], minlength=len(self._labels))
        weights = np.ones(len(self._labels))
        if self._balanced:
            present = counts > 0
            even = len(known) / (max(1, present.sum()) * np.maximum(counts, 1))
            weights = np.where(present, np.minimum(even, _MOST_WEIGHT), 0.0)
        return [Labelled(ids, label, float(weights[label])) for ids, label in known]

    def _encode(self, record: Record) -> tuple[NDArray[np.int32], int]:
        label = self._label(record)
        ids = self._tokenizer(text_of(record, "text"), truncation=True, max_length=self._max_length)["input_ids"]
        return np.asarray(ids or [self._tokenizer.pad_token_id], dtype=np.int32), label

    def _label(self, record: Record) -> int:
        fields_of(self.name, record)
        index = self._labels.get(label_of(record["label"], self._labels))
        if index is None:
            raise DataError(
                f"a record's label is not in method.labels ({', '.join(self._labels)}); map the data set's labels on "
                "the node"
            )
        return index

    def length(self, example: Labelled) -> int:
        """Tokens."""
        return len(example.ids)

    def collate(self, examples: Sequence[Labelled], seed: int) -> Batch:
        """labels: (B,) class indices."""
        inputs = {
            "input_ids": pad_right([e.ids for e in examples], self._tokenizer.pad_token_id),
            "attention_mask": pad_right([np.ones(len(e.ids)) for e in examples], 0),
            "weights": torch.tensor([e.weight for e in examples], dtype=torch.float32),
        }
        return Batch(inputs, torch.tensor([e.label for e in examples]), len(examples))

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """Summed weighted cross-entropy."""
        losses = F.cross_entropy(logits_of(model, batch), batch.labels, reduction="none")
        return (losses * batch.inputs["weights"]).sum()

    def evaluate(
        self, model: Any, evaluation: Sequence[Labelled], train: Sequence[Labelled], micro_batch_size: int
    ) -> dict[Metric, float]:
        """Unweighted EVAL_LOSS, EVAL_ACCURACY and EVAL_MACRO_F1."""
        device = next(model.parameters()).device
        loss, truth, predicted = 0.0, [], []
        with torch.no_grad():
            for part in micro_batches(self, evaluation, micro_batch_size):
                batch = self.collate(part, seed=0).to(device)
                logits = logits_of(model, batch)
                loss += float(F.cross_entropy(logits, batch.labels, reduction="sum"))
                truth += batch.labels.tolist()
                predicted += logits.argmax(dim=-1).tolist()
        return {
            Metric.EVAL_LOSS: loss / len(truth),
            Metric.EVAL_ACCURACY: float(np.mean(np.equal(truth, predicted))),
            Metric.EVAL_MACRO_F1: macro_f1(truth, predicted),
        }


def logits_of(model: Any, batch: Batch) -> torch.Tensor:
    """float32, shape (B, classes). A decoder is read at its last token, wherever padding begins."""
    inputs = {name: tensor for name, tensor in batch.inputs.items() if name != "weights"}
    if not hasattr(model, "score"):
        logits: torch.Tensor = model(**inputs).logits
        return logits.float()
    hidden = body_of(model)(**inputs).last_hidden_state
    last = inputs["attention_mask"].sum(dim=1) - 1
    rows = hidden[torch.arange(len(last), device=hidden.device), last]
    scores: torch.Tensor = model.score(rows.to(model.score.weight.dtype))
    return scores.float()


def macro_f1(truth: list[int], predicted: list[int]) -> float:
    """Mean F1 over the classes that occur in either list."""
    scores = []
    for label in sorted({*truth, *predicted}):
        hits = sum(t == p == label for t, p in zip(truth, predicted, strict=True))
        scores.append(2 * hits / (truth.count(label) + predicted.count(label)))
    return float(np.mean(scores)) if scores else 0.0


METHOD = Classification
