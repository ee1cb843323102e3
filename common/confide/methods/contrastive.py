"""Sentence embeddings: InfoNCE over pairs, or supervised contrastive loss over labels.

Records: {anchor, positive} with perhaps {negative} (a text or a list of texts), {question, answer}, or {text, label}.
An embedding is the mean of the last hidden states over the tokens, normalised to length 1. Pairs are contrasted with
every other positive of the batch and with all hard negatives (InfoNCE, van den Oord et al. 2018); labelled texts with
all texts of other labels (Khosla et al. 2020, equation 2).
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from confide.errors import DataError
from confide.methods.base import Batch, fitting, label_of, pad_right
from confide.runs.fields import Record, fields_of, text_of
from confide.runs.metrics import Metric
from confide.runs.specification import Specification

_ANCHOR, _POSITIVE, _NEGATIVE, _LABELLED = range(4)
_TOP = 10


@dataclass(frozen=True)
class Texts:
    """The texts of one record: tokens, roles and identities (equal texts or labels have equal identities)."""

    ids: tuple[NDArray[np.int32], ...]
    roles: tuple[int, ...]
    identities: tuple[int, ...]


class Contrastive:
    """Texts that belong together come close."""

    name = "contrastive"
    whole_batch = True

    def __init__(self, specification: Specification, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._max_length = specification.method.max_length
        self._temperature = specification.method.temperature
        self._at_once = specification.training.micro_batch_size

    def prepare(self, records: Sequence[Record]) -> list[Texts]:
        """Raises DataError when no record fits, or when pairs and labelled texts are mixed."""
        examples = fitting(self._encode, records)
        if len({example.roles[0] for example in examples}) > 1:
            raise DataError("the data set mixes pairs and labelled texts; register them as two data sets")
        return examples

    def _encode(self, record: Record) -> Texts:
        names = fields_of(self.name, record)
        first, second = (text_of(record, names[0]), record[names[1]])
        if names == ("text", "label"):
            return self._texts([(first, _LABELLED, f"label {label_of(second)}")])
        positive = text_of(record, names[1])
        entries = [(first, _ANCHOR, first), (positive, _POSITIVE, positive)]
        hard = record.get("negative")
        for negative in [hard] if isinstance(hard, str) else hard or []:
            if not isinstance(negative, str):
                raise DataError("field 'negative' of a record must be a text or a list of texts")
            entries.append((negative, _NEGATIVE, negative))
        return self._texts(entries)

    def _texts(self, entries: list[tuple[str, int, str]]) -> Texts:
        texts, roles, names = zip(*entries, strict=True)
        rows = self._tokenizer(list(texts), truncation=True, max_length=self._max_length)["input_ids"]
        pad = [self._tokenizer.pad_token_id]
        ids = tuple(np.asarray(row or pad, dtype=np.int32) for row in rows)
        return Texts(ids, roles, tuple(_identity(name) for name in names))

    def length(self, example: Texts) -> int:
        """Tokens of the longest text."""
        return max(len(ids) for ids in example.ids)

    def collate(self, examples: Sequence[Texts], seed: int) -> Batch:
        """labels: (rows, 2): role and identity of each text. count: anchors that take part in the loss."""
        rows = [ids for example in examples for ids in example.ids]
        labels = torch.tensor(
            [pair for e in examples for pair in zip(e.roles, e.identities, strict=True)], dtype=torch.int64
        )
        inputs = {
            "input_ids": pad_right(rows, self._tokenizer.pad_token_id),
            "attention_mask": pad_right([np.ones(len(row)) for row in rows], 0),
        }
        roles, identities = labels[:, 0], labels[:, 1]
        same = identities[:, None] == identities[None, :]
        labelled = int(((roles == _LABELLED) & (same.sum(dim=1) > 1)).sum())
        return Batch(inputs, labels, labelled + int((roles == _ANCHOR).sum()))

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """Summed over anchors. Texts run through the model micro_batch_size at a time; the loss is over all of them."""
        vectors = self._embed(model, batch)
        roles, identities = batch.labels[:, 0], batch.labels[:, 1]
        if bool((roles == _LABELLED).all()):
            return supervised_contrastive(vectors, identities, self._temperature)
        return info_nce(vectors, roles, identities, self._temperature)

    def _embed(self, model: Any, batch: Batch) -> torch.Tensor:
        """(rows, D), length 1. Parts are run again in the backward pass: one part's activations exist at a time."""
        parts = []
        size = self._at_once
        for start in range(0, len(batch.labels), size):
            part = slice(start, start + size)
            mask = batch.inputs["attention_mask"][part]
            width = int(mask.sum(dim=1).max())
            ids, mask = batch.inputs["input_ids"][part, :width], mask[:, :width]
            whole = len(batch.labels) <= size or not torch.is_grad_enabled()
            parts.append(embed(model, ids, mask) if whole else _recomputed(model, ids, mask))
        return torch.cat(parts)

    def evaluate(
        self, model: Any, evaluation: Sequence[Texts], train: Sequence[Texts], micro_batch_size: int
    ) -> dict[Metric, float]:
        """EVAL_NDCG_AT_10 and EVAL_RECALL_AT_10 of finding what belongs to each anchor among the evaluation texts."""
        vectors, labels = [], []
        device = next(model.parameters()).device
        with torch.no_grad():
            for start in range(0, len(evaluation), micro_batch_size):
                batch = self.collate(evaluation[start : start + micro_batch_size], seed=0)
                vectors.append(self._embed(model, batch.to(device)).cpu())
                labels.append(batch.labels)
        gains = list(_rankings(torch.cat(vectors), torch.cat(labels)))
        if not gains:
            return {}
        ndcg, recall = np.mean(gains, axis=0)
        return {Metric.EVAL_NDCG_AT_10: float(ndcg), Metric.EVAL_RECALL_AT_10: float(recall)}


def embed(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """float32 (B, D) of length 1: mean over the tokens that are not padding."""
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
    weights = mask[:, :, None].float()
    return F.normalize((hidden * weights).sum(dim=1) / weights.sum(dim=1), dim=-1)


def _recomputed(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = checkpoint(embed, model, ids, mask, use_reentrant=False)
    return out


def info_nce(vectors: torch.Tensor, roles: torch.Tensor, identities: torch.Tensor, temperature: float) -> torch.Tensor:
    """Sum over anchors of -log softmax of the own positive among all positives and hard negatives of the batch.

    A candidate with the very text of the own positive is not held against it.
    """
    anchors, positives = vectors[roles == _ANCHOR], vectors[roles == _POSITIVE]
    names = torch.cat([identities[roles == _POSITIVE], identities[roles == _NEGATIVE]])
    candidates = torch.cat([positives, vectors[roles == _NEGATIVE]])
    scores = anchors @ candidates.T / temperature
    own = torch.arange(len(anchors), device=scores.device)
    twin = names[None, :] == names[own, None]
    twin[own, own] = False
    return F.cross_entropy(scores.masked_fill(twin, -math.inf), own, reduction="sum")


def supervised_contrastive(vectors: torch.Tensor, classes: torch.Tensor, temperature: float) -> torch.Tensor:
    """Khosla et al. 2020, equation 2 (the sum outside the logarithm), summed over anchors that have a positive."""
    itself = torch.eye(len(classes), dtype=torch.bool, device=vectors.device)
    scores = (vectors @ vectors.T / temperature).masked_fill(itself, -math.inf)
    log_p = torch.log_softmax(scores, dim=1)
    positive = (classes[:, None] == classes[None, :]) & ~itself
    counts = positive.sum(dim=1)
    if not bool(counts.any()):
        return vectors.sum() * 0.0
    per_anchor = log_p.masked_fill(~positive, 0.0).sum(dim=1) / counts.clamp(min=1)
    return -per_anchor.sum()


def _rankings(vectors: torch.Tensor, labels: torch.Tensor) -> Iterator[tuple[float, float]]:
    """(nDCG@10, recall@10) of every query that has something to find."""
    roles, names = labels[:, 0], labels[:, 1]
    if bool((roles == _LABELLED).all()):
        for row in range(len(names)):
            others = torch.arange(len(names)) != row
            yield from _gain(vectors[row], vectors[others], names[others] == names[row])
        return
    corpus_rows: dict[int, int] = {}
    for row in range(len(names)):
        if int(roles[row]) in (_POSITIVE, _NEGATIVE):
            corpus_rows.setdefault(int(names[row]), row)
    rows = torch.tensor(sorted(corpus_rows.values()))
    for anchor in torch.nonzero(roles == _ANCHOR)[:, 0].tolist():
        # The texts of a record follow each other: its positive is the next row.
        yield from _gain(vectors[anchor], vectors[rows], names[rows] == names[anchor + 1])


def _gain(query: torch.Tensor, corpus: torch.Tensor, relevant: torch.Tensor) -> Iterator[tuple[float, float]]:
    total = int(relevant.sum())
    if total == 0:
        return
    order = torch.argsort(corpus @ query, descending=True, stable=True)[:_TOP]
    found = relevant[order].double().numpy()
    discounts = 1 / np.log2(np.arange(2, len(found) + 2))
    ideal = (1 / np.log2(np.arange(2, min(total, _TOP) + 2))).sum()
    yield float((found * discounts).sum() / ideal), float(found.sum() / total)


def _identity(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")


METHOD = Contrastive
