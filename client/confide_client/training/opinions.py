"""One node's part in a feedback run: judge public answers, by its own reward model or by its own comparisons.

Nothing is trained that leaves. The head that is fitted here to the node's comparisons stays in this process' memory.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from confide.codec.tensors import TensorSchema
from confide.errors import DataError, ModelError
from confide.methods.base import create
from confide.methods.feedback import LEAST_PAIRS, Vectors, newton, opinion
from confide.methods.preference import PairEncoder
from confide.methods.reward import FrozenFeatures
from confide.models.architecture import load_base, load_tokenizer
from confide.models.reward_folder import read_reward
from confide.models.trainable import schema_of
from confide.proto import fleet_pb2
from confide.runs.contribution import Contribution
from confide.runs.fields import Record
from confide.runs.specification import Specification

from confide_client.data.datasets import LocalData


class OpinionTrainer:
    """A confide_client.runs.loading.Trainer that judges."""

    schema: TensorSchema

    def __init__(self, specification: Specification, base: Path, *, judge: str = "") -> None:
        """judge: folder of the node's own reward model; "": fitted to its comparisons. Raises ModelError."""
        self._specification = specification
        self.schema = schema_of(specification, base)
        method = specification.method
        self._head: Vectors | None = None
        pooling, length = method.pooling, method.max_length
        if judge:
            document, self._head = read_reward(Path(judge))
            pooling, length = ("last" if document.pooling == "last" else "mean"), document.max_length
        tokenizer = load_tokenizer(base)
        self._encoder = PairEncoder(method.name, tokenizer, length)
        self._reader = create(specification, tokenizer)
        model = load_base(specification, base, torch.float32, frozen=True).eval()
        self._features = FrozenFeatures(model, pooling, tokenizer.pad_token_id)
        width = int(model.config.get_text_config().hidden_size)
        if self._head is not None and self._head.shape != (width,):
            raise ModelError(f"this node's judge has {self._head.size} weights; its base has {width} features")

    def contribute(self, model: object, data: LocalData, slot: fleet_pb2.SlotOpen) -> Contribution:
        """The opinion on the signed answers; `model`, the zeros that the run begins with, says nothing.

        Raises DataError for too few comparisons to judge by, or a judge that says NaN.
        """
        if slot.evaluate_only:
            return Contribution(np.zeros(0, dtype=np.float32))
        head = self._head if self._head is not None else self._fitted(data.train)

        def rewards(prompts: Sequence[str], answers: Sequence[str]) -> Vectors:
            with np.errstate(invalid="ignore", over="ignore"):
                found: Vectors = self._of(prompts, answers).astype(np.float64) @ head
            return found

        return Contribution(opinion(self._specification.feedback, rewards).astype(np.float32))

    def _fitted(self, records: Sequence[Record]) -> Vectors:
        pairs = self._reader.prepare([record for record in records if record is not None])
        if len(pairs) < LEAST_PAIRS:
            raise DataError(
                f"this node has fewer than {LEAST_PAIRS} comparisons, too few to judge by; name a judge under "
                "[feedback] in policy.toml, or do not take part"
            )
        differences = np.stack([self._features.difference(pair) for pair in pairs]).astype(np.float64)
        return newton(differences)

    def _of(self, prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        asked = [
            self._encoder.answer([{"role": "user", "content": prompt}], answer)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        return np.stack([self._features.of(one) for one in asked])
