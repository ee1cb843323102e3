"""What a node contributes: a cheap function of model, node and slot, so that every model can be computed by itself."""

import zlib
from collections.abc import Collection
from pathlib import Path

import numpy as np
from confide.codec.tensors import TensorSchema
from confide.proto import fleet_pb2
from confide.runs.contribution import Contribution
from confide.runs.metrics import Metric
from confide.runs.specification import Specification
from confide_client.data.datasets import LocalData
from confide_client.runs.loading import Trainer
from numpy.typing import NDArray

PARAMETERS = 24
CLIP = 1.0
_NORM = 0.9
TOLERANCE = 2e-3
"""Of a mean update's coordinates: rounding to 16 bits moves one by less, a missing update by far more."""


def update_of(model: bytes, node: str, slot: int) -> NDArray[np.float32]:
    """float32, shape (PARAMETERS,), of norm 0.9."""
    drawn = np.random.default_rng([zlib.crc32(model), zlib.crc32(node.encode()), slot]).normal(size=PARAMETERS)
    made: NDArray[np.float32] = (_NORM * drawn / np.linalg.norm(drawn)).astype("<f4")
    return made


def weight_of(specification: Specification, node: str, slot: int) -> float:
    """In (0, 1]; 1 where weights are uniform."""
    if specification.federation.weights == "uniform":
        return 1.0
    return (1 + zlib.crc32(f"{node}/{slot}".encode()) % 8) / 8


def mean_update(
    specification: Specification, model: bytes, contributors: Collection[str], slot: int
) -> NDArray[np.float64]:
    """What the sum over these nodes has to give, float64, shape (PARAMETERS,)."""
    weights = {name: weight_of(specification, name, slot) for name in contributors}
    total = sum(
        (weights[name] * update_of(model, name, slot).astype(np.float64) for name in contributors), np.zeros(PARAMETERS)
    )
    return np.asarray(total / sum(weights.values()))


class Deterministic:
    """A confide_client.runs.loading.Trainer."""

    schema = TensorSchema.unnamed(PARAMETERS)

    def __init__(self, specification: Specification, node: str) -> None:
        self._specification, self._node = specification, node

    def contribute(self, model: NDArray[np.float32], data: LocalData, slot: fleet_pb2.SlotOpen) -> Contribution:
        """`update_of`, with its weight."""
        private = self._specification.privacy.unit != "none"
        update = update_of(model.astype("<f4").tobytes(), self._node, slot.slot)
        metrics = {} if private else {Metric.TRAIN_LOSS: 1.0 / slot.slot}
        return Contribution(update, weight_of(self._specification, self._node, slot.slot), metrics)


def make_trainer(
    specification: Specification, base: Path, *, node: str, folder: Path, threads: int | None, rank: int | None
) -> Trainer:
    """A confide_client.runs.loading.MakeTrainer."""
    return Deterministic(specification, node)


def schema_of(specification: Specification, base: Path) -> TensorSchema:
    """Of the flat update."""
    return Deterministic.schema
