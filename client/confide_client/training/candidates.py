"""One node's part in a feedback run by comparisons: does a candidate prefer what people here did, more than its base?

The candidate wins a comparison where its log-odds of the chosen over the rejected answer are larger than the base's. No
text, and no comparison's result by itself, leaves: three numbers over all of them do.
"""

from pathlib import Path

import numpy as np
import torch
from confide.codec.tensors import TensorSchema
from confide.errors import DataError
from confide.methods.base import create, micro_batches
from confide.methods.feedback import LEAST_PAIRS, gate_opinion
from confide.methods.first_model import check_candidate
from confide.models.architecture import load_tokenizer
from confide.models.trainable import as_trained, build, load_trainable, schema_of
from confide.proto import fleet_pb2
from confide.runs.contribution import Contribution
from confide.runs.specification import Specification
from numpy.typing import NDArray

from confide_client.data.datasets import LocalData

MOST_PAIRS = 512
"""Of a node's comparisons so many are judged at most, evenly spread: a round has to end."""


class CandidateTrainer:
    """A confide_client.runs.loading.Trainer that judges a model."""

    schema: TensorSchema

    def __init__(self, specification: Specification, base: Path) -> None:
        """Load the base with the candidate's adapter, not yet filled."""
        self._specification = specification
        self.schema = schema_of(specification, base)
        self._run = as_trained(specification)
        self._of_candidate = schema_of(self._run, base)
        self._model = build(self._run, base).eval()
        self._method = create(self._run, load_tokenizer(base))

    def contribute(self, model: NDArray[np.float32], data: LocalData, slot: fleet_pb2.SlotOpen) -> Contribution:
        """Zeros where the candidate's tensors are, and the opinion behind them.

        Raises UpdateError CANDIDATE_CHANGED for another model than is named, DataError for too few comparisons.
        """
        if slot.evaluate_only:
            return Contribution(np.zeros(0, dtype=np.float32))
        candidate = check_candidate(self._specification, model)
        load_trainable(self._model, self._of_candidate.unflatten(candidate))
        update = np.zeros(self.schema.size, dtype=np.float32)
        update[-self._specification.feedback.numbers :] = gate_opinion(
            self._margins(data), self._specification.feedback.below
        )
        return Contribution(update)

    def _margins(self, data: LocalData) -> NDArray[np.float64]:
        """(pairs,): by how much more the candidate prefers the chosen answer than its base does."""
        records = [record for record in data.train if record is not None]
        pairs = self._method.prepare(records[:: max(1, -(-len(records) // MOST_PAIRS))])
        if len(pairs) < LEAST_PAIRS:
            raise DataError(f"this node has fewer than {LEAST_PAIRS} comparisons, too few to judge a model by")
        found = []
        with torch.no_grad():
            for part in micro_batches(self._method, pairs, self._specification.training.micro_batch_size):
                batch = self._method.collate(part, seed=0)
                found.append(self._method.margins(self._model, batch).double())  # type: ignore[attr-defined]  # dpo's
        return np.asarray(torch.cat(found).numpy(), dtype=np.float64)
