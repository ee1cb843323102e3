"""A reward model after Bradley and Terry (1952): how much better one answer is than another.

Records: {prompt, chosen, rejected} or {chosen, rejected} (preference.py). An answer's feature f is the pooled final
hidden state of the base, normalised to length 1; its reward is w . f, and P(chosen beats rejected) is the logistic
function of the rewards' difference. With adapter.kind = "none" the base is frozen: all that is learned from a pair is
the difference of its two features, (D,), computed once and kept in this process' memory; w is all that travels.

Guarantee: the loss of a pair depends on this pair alone. A frozen feature is computed by itself, not in a batch, so
that it is a function of its own text to the last bit.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from confide import canonical
from confide.errors import DataError
from confide.methods.base import Batch, fitting, micro_batches
from confide.methods.preference import Answer, Pair, PairEncoder, answer_rows, rows
from confide.models.architecture import REWARD_HEAD
from confide.runs.fields import Record
from confide.runs.metrics import Metric
from confide.runs.specification import Specification


class Features:
    """Pooled hidden states of a model's body."""

    def __init__(self, pooling: str) -> None:
        self._last = pooling == "last"

    def __call__(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """float32 (B, D) of length 1. inputs: as preference.answer_rows; the answer's tokens are pooled."""
        hidden = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state.float()
        mask = inputs["answer_mask"]
        if self._last:
            last = inputs["attention_mask"].sum(dim=1) - 1
            pooled = hidden[torch.arange(len(last), device=hidden.device), last]
        else:
            weights = mask[:, :, None].float()
            pooled = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
        return F.normalize(pooled, dim=-1)


def _sums(model: Any) -> list[list[str]]:
    """What of a loaded model its hash does not say: numbers drawn, how they are rounded, and where they are."""
    return [
        [name, str(one.dtype), one.device.type, repr(float(one.detach().sum(dtype=torch.float64)))]
        for name, one in [*model.named_parameters(), *model.named_buffers()]
        if not name.startswith(REWARD_HEAD)
    ]


class FrozenFeatures:
    """Features of a base that does not change, each computed once: in memory only.

    A process keeps those of the base that it loaded last, so that a run after a run, at another epsilon for example,
    reads no text again.
    """

    _kept: ClassVar[tuple[str, dict[bytes, NDArray[np.float32]]]] = ("", {})

    def __init__(self, model: Any, pooling: str, pad: int, reads_as: str = "") -> None:
        """reads_as: equal for models that make the same of a text; empty: for this one alone."""
        self._model, self._features, self._pad = model, Features(pooling), pad
        self._known: dict[bytes, NDArray[np.float32]] = {}
        if reads_as and FrozenFeatures._kept[0] == reads_as:
            self._known = FrozenFeatures._kept[1]
        elif reads_as:
            FrozenFeatures._kept = (reads_as, self._known)

    def of(self, answer: Answer) -> NDArray[np.float32]:
        """(D,) of length 1."""
        found = self._known.get(answer.key)
        if found is None:
            device = next(self._model.parameters()).device
            inputs = {name: tensor.to(device) for name, tensor in answer_rows([answer], self._pad).items()}
            training = self._model.training
            self._model.eval()
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                found = self._features(self._model, inputs)[0].cpu().numpy()
            self._model.train(training)
            self._known[answer.key] = found
        return found

    def difference(self, pair: Pair) -> NDArray[np.float32]:
        """(D,): the chosen answer's feature minus the rejected one's."""
        return self.of(pair.chosen) - self.of(pair.rejected)


class Reward:
    """Bradley-Terry loss of pairs."""

    name = "reward"
    whole_batch = False

    def __init__(self, specification: Specification, tokenizer: Any) -> None:
        self._encoder = PairEncoder(self.name, tokenizer, specification.method.max_length)
        self._pad = tokenizer.pad_token_id
        self._pooling = specification.method.pooling
        self._frozen_base = specification.adapter.kind == "none"
        self._frozen: FrozenFeatures | None = None
        self._base = specification.model.sha256

    def attach(self, model: Any, folder: Path | None = None) -> None:
        """Keep in memory what a frozen base makes of each answer from now on; nothing where the base is trained."""
        if self._frozen_base:
            reads_as = canonical.digest([self._base, self._pooling, _sums(model)])
            self._frozen = FrozenFeatures(model, self._pooling, self._pad, reads_as)

    def check_first(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """It may start anywhere."""

    def finish(self) -> None:
        """Nothing is kept on disk."""

    def prepare(self, records: Sequence[Record]) -> list[Pair]:
        """Raises DataError when no record is a pair of different answers."""
        return fitting(self._encoder.pair, records)

    def length(self, example: Pair) -> int:
        """Tokens of the longer answer."""
        return example.tokens

    def collate(self, examples: Sequence[Pair], seed: int) -> Batch:
        """labels: (B,) ones. inputs: "difference" (B, D) on a frozen base, else the rows of preference.rows."""
        labels = torch.ones(len(examples), dtype=torch.int64)
        if self._frozen is not None:
            differences = np.stack([self._frozen.difference(pair) for pair in examples])
            return Batch({"difference": torch.from_numpy(differences)}, labels, len(examples))
        return Batch(rows(examples, self._pad), labels, len(examples), rows=2)

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """Summed -log P(chosen beats rejected)."""
        return F.softplus(-self._margins(model, batch)).sum()

    def _margins(self, model: Any, batch: Batch) -> torch.Tensor:
        """float32 (B,): by how much the chosen answer's reward is larger."""
        if "difference" in batch.inputs:
            margins: torch.Tensor = model.reward_head(batch.inputs["difference"])[:, 0]
            return margins
        rewards: torch.Tensor = model.reward_head(Features(self._pooling)(model, batch.inputs))[:, 0]
        return rewards[0::2] - rewards[1::2]

    def evaluate(
        self, model: Any, evaluation: Sequence[Pair], train: Sequence[Pair], micro_batch_size: int
    ) -> dict[Metric, float]:
        """EVAL_LOSS: nats a pair; EVAL_ACCURACY: share of pairs whose chosen answer's reward is larger, ties half."""
        device = next(model.parameters()).device
        found = []
        with torch.no_grad():
            for part in micro_batches(self, evaluation, micro_batch_size):
                found.append(self._margins(model, self.collate(part, seed=0).to(device)).double().cpu())
        margins = torch.cat(found)
        if not len(margins):
            raise DataError("there is no pair to evaluate on")
        right = (margins > 0).double() + 0.5 * (margins == 0).double()
        return {
            Metric.EVAL_LOSS: float(F.softplus(-margins).mean()),
            Metric.EVAL_ACCURACY: float(right.mean()),
        }


METHOD = Reward
