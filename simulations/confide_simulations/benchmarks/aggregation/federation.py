"""The demo's federation in one process, unsealed: its nodes take turns on one loaded model, and each round can be seen.

    federation = InTurn(demo_specification(base, aggregation="ffa", seed=1, rounds=3), base, shards, folder)
    losses = [federation.loss(done.model, held_out) for done in federation.rounds()]

Benchmarks that look at single updates use it; what a federation costs is measured with real processes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from confide.proto import fleet_pb2
from confide.runs.metrics import Metric
from confide.runs.specification import Specification
from confide_client.data.datasets import LocalData
from numpy.typing import NDArray

from confide_simulations.demo.job import specification

Record = Mapping[str, Any]
NODES = 4


def demo_specification(base: Path, **settings: Any) -> Specification:
    """The demo's run with the model in `base`, unsealed; settings: of `confide_simulations.demo.job.specification`."""
    from confide.models.architecture import load_config

    config = load_config(base)
    return specification(
        sha256="0" * 64,
        name="base",
        dtype="bfloat16" if "bfloat16" in str(config.dtype) else "float32",
        layers=int(config.num_hidden_layers),
        nodes=NODES,
        sealing="none",
        **settings,
    ).model_copy(update={"reproducible": True})


@dataclass(frozen=True)
class Round:
    """trained: each node's model, float64. averaged: their mean. model: float32, as the next round begins with it."""

    trained: Sequence[NDArray[np.float64]]
    averaged: NDArray[np.float64]
    model: NDArray[np.float32]
    update_norm: float
    """The largest L2 norm of a node's update, before any clip."""


class InTurn:
    """One run: the product's local steps and what its coordinator does after a round, with updates in the open."""

    def __init__(
        self, specification: Specification, base: Path, shards: Mapping[str, Sequence[Record]], folder: Path
    ) -> None:
        """shards: training records by node. folder: for what nodes keep between rounds."""
        from confide.models.trainable import initial_state
        from confide_client.training import LocalTrainer

        self.specification = specification
        self._judge = LocalTrainer(specification, base, node="", folder=folder, threads=1)
        self._trainers = {name: self._judge.for_node(name, folder / name) for name in shards}
        self._data = {name: LocalData(train=list(records), evaluation=[]) for name, records in shards.items()}
        self.schema = self._judge.schema
        self.first_model = self.schema.flatten(initial_state(specification, base))

    def rounds(self) -> Iterator[Round]:
        """From the first model to the last."""
        from confide.models.aggregation import after_round

        model = self.first_model
        for number in range(1, self.specification.federation.rounds + 1):
            slot = fleet_pb2.SlotOpen(slot=number, round=number, attempt=1)
            updates = [
                trainer.contribute(model, self._data[name], slot).update for name, trainer in self._trainers.items()
            ]
            trained = [model.astype(np.float64) + update for update in updates]
            averaged: NDArray[np.float64] = np.mean(trained, axis=0)
            state = self.schema.unflatten(averaged.astype(np.float32))
            model = self.schema.flatten(after_round(self.specification, state))
            yield Round(trained, averaged, model, max(float(np.linalg.norm(update)) for update in updates))

    def loss(self, model: NDArray[np.float32], records: Sequence[Record]) -> float:
        """Mean NLL of a model on records that no node trains on, in nats a token."""
        slot = fleet_pb2.SlotOpen(slot=1, round=1, attempt=1, evaluate_only=True)
        return float(self._judge.contribute(model, LocalData([], records), slot).metrics[Metric.EVAL_LOSS])
