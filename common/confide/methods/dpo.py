"""Direct preference optimisation (Rafailov et al. 2023): the model learns to prefer what people preferred.

Records: {prompt, chosen, rejected} or {chosen, rejected} (preference.py). With log-probabilities p of the policy and r
of the reference (reference.py: the base without its adapter), h = (p_chosen - p_rejected) - (r_chosen - r_rejected):

    sigmoid   -log sigmoid(beta h)
    ipo       (h - 1 / (2 beta))^2                        (Azar et al. 2023, equation 17)

Guarantee: the loss of a pair depends on this pair alone, so that one pair is one unit of privacy: the gradients of its
two halves are added before they are clipped (privacy.dpsgd.RowLosses.rows).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from confide.methods.base import IGNORED, Batch, fitting, micro_batches
from confide.methods.preference import Answer, Pair, PairEncoder, answer_rows
from confide.methods.reference import FILE_NAME, Reference, check_start, without_adapters
from confide.methods.token_loss import TokenLoss
from confide.models.arithmetic import precision
from confide.runs.fields import Record
from confide.runs.metrics import Metric
from confide.runs.specification import Specification


class DirectPreference:
    """DPO and IPO with fixed reference log-probabilities."""

    name = "dpo"
    whole_batch = False

    def __init__(self, specification: Specification, tokenizer: Any) -> None:
        self._specification = specification
        self._encoder = PairEncoder(self.name, tokenizer, specification.method.max_length)
        self._pad = tokenizer.pad_token_id
        self._beta, self._kind = specification.method.beta, specification.method.preference_loss
        self._at_once = specification.training.micro_batch_size
        self._tokens = TokenLoss()
        self._model: Any = None
        self._reference = Reference(specification.model.sha256)

    def attach(self, model: Any, folder: Path | None = None) -> None:
        """The model that is trained, whose base is the reference; folder: the run's own at this node."""
        self._model = model
        self._reference = Reference(self._specification.model.sha256, None if folder is None else folder / FILE_NAME)

    def check_first(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Raise ModelError REFERENCE_CHANGED unless the run starts from its reference."""
        check_start(tensors)

    def prepare(self, records: Sequence[Record]) -> list[Pair]:
        """Raises DataError when no record is a pair of different answers."""
        return fitting(self._encoder.pair, records)

    def length(self, example: Pair) -> int:
        """Tokens of the longer answer."""
        return example.tokens

    def collate(self, examples: Sequence[Pair], seed: int) -> Batch:
        """labels: (B,) ones. inputs: preference.rows, "reference" (2B,) float32 where a model is attached."""
        answers = [half for pair in examples for half in (pair.chosen, pair.rejected)]
        inputs = answer_rows(answers, self._pad)
        if self._model is not None:
            inputs["reference"] = torch.tensor(self._reference.of(answers, self._refer), dtype=torch.float32)
        return Batch(inputs, torch.ones(len(examples), dtype=torch.int64), len(examples), rows=2)

    def _refer(self, answers: list[Answer]) -> list[float]:
        """Each by itself, so that what is kept of an answer depends on nothing else."""
        device = next(self._model.parameters()).device
        found = []
        with without_adapters(self._model), precision.autocast(self._specification, device):
            for answer in answers:
                inputs = {name: t.to(device) for name, t in answer_rows([answer], self._pad).items()}
                found.append(float(self.log_probabilities(self._model, inputs)[0]))
        return found

    def finish(self) -> None:
        """Keep what was computed of the reference."""
        self._reference.keep()

    def log_probabilities(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """float32 (rows,): of each row's answer, given what stands before it."""
        ids, mask = inputs["input_ids"], inputs["answer_mask"]
        targets = torch.where(mask[:, 1:] > 0, ids[:, 1:], IGNORED)
        batch = Batch({"input_ids": ids[:, :-1], "attention_mask": inputs["attention_mask"][:, :-1]}, targets, 0)
        return -self._tokens.rows(model, batch)

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """Summed over pairs."""
        return self._losses(self.margins(model, batch)).sum()

    def _losses(self, h: torch.Tensor) -> torch.Tensor:
        if self._kind == "ipo":
            return (h - 1 / (2 * self._beta)).square()
        return F.softplus(-self._beta * h)

    def margins(self, model: Any, batch: Batch) -> torch.Tensor:
        """h, float32 (B,)."""
        policy = self.log_probabilities(model, batch.inputs)
        reference = batch.inputs.get("reference")
        if reference is None:
            with without_adapters(model):
                reference = self.log_probabilities(model, batch.inputs)
        gain = policy - reference
        return gain[0::2] - gain[1::2]

    def evaluate(
        self, model: Any, evaluation: Sequence[Pair], train: Sequence[Pair], micro_batch_size: int
    ) -> dict[Metric, float]:
        """EVAL_LOSS a pair; EVAL_ACCURACY: share of pairs whose chosen answer gained more than the other, ties half."""
        device = next(model.parameters()).device
        with torch.no_grad():
            margins = torch.cat(
                [
                    self.margins(model, self.collate(part, seed=0).to(device)).double().cpu()
                    for part in micro_batches(self, evaluation, micro_batch_size)
                ]
            )
        right = (margins > 0).double() + 0.5 * (margins == 0).double()
        return {
            Metric.EVAL_LOSS: float(self._losses(margins).mean()),
            Metric.EVAL_ACCURACY: float(right.mean()),
        }


METHOD = DirectPreference
