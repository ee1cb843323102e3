"""A real node in all but its training: what it contributes is made in a moment. For measuring everything else.

    python -m confide_simulations.benchmarks.fleet.stand_in STATE_FOLDER

Agent, policy, transport and sealing are the product's own; only the trainer is another one. It never imports torch.
"""

import json
import logging
import os
import sys
import zlib
from pathlib import Path

import numpy as np
from confide.codec.tensors import TensorSchema
from confide.journal import Journal
from confide.proto import fleet_pb2
from confide.runs.contribution import Contribution
from confide.runs.metrics import Metric
from confide.runs.specification import Specification
from confide_client.agent.agent import Agent
from confide_client.audit.log import Audit
from confide_client.data.datasets import LocalData
from confide_client.runs.loading import Trainer
from confide_client.runs.run import Node
from confide_client.state import StateFolder
from numpy.typing import NDArray

PARAMETERS = "CONFIDE_STAND_IN_PARAMETERS"
"""Environment variable: length of the update."""


class StandIn:
    """Contributes a fixed small random update of its own, a function of its name and the round."""

    def __init__(self, specification: Specification, node: str, parameters: int) -> None:
        self.schema = TensorSchema((("stand_in", (parameters,)),))
        self._node = node
        self._clip = specification.federation.clip_norm or 1.0

    def contribute(self, model: NDArray[np.float32], data: LocalData, slot: fleet_pb2.SlotOpen) -> Contribution:
        """Of norm about half the clip."""
        return Contribution(self.update(slot.round), 1.0, {Metric.TRAIN_LOSS: 1.0})

    def update(self, round_number: int) -> NDArray[np.float32]:
        """float32, shape (parameters,)."""
        return stand_in_update(self._node, round_number, self.schema.size, self._clip)


def stand_in_update(node: str, round_number: int, parameters: int, clip: float) -> NDArray[np.float32]:
    """What a stand-in named `node` contributes in a round, so that a test can compute the sum by itself."""
    generator = np.random.default_rng([zlib.crc32(node.encode()), round_number])
    scale = np.float32(0.5 * clip / max(1, parameters) ** 0.5)
    return generator.standard_normal(parameters, dtype=np.float32) * scale


def make_stand_in(
    specification: Specification, base: Path, *, node: str, folder: Path, threads: int | None, rank: int | None
) -> Trainer:
    """A confide_client.runs.run.MakeTrainer."""
    return StandIn(specification, node, int(os.environ[PARAMETERS]))


def write_base(folder: Path) -> Path:
    """A model folder that holds no model: enough to be pinned by hash."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "stand-in"}))
    (folder / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    return folder


def main() -> None:
    """Run the agent on the state folder that is named."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # one line a request
    state = StateFolder.at(Path(sys.argv[1]))
    member = state.member()
    parts = Node(
        state=state,
        member=member,
        audit=Audit(Journal(state.audit)),
        make_trainer=make_stand_in,
        schema=lambda specification, base: TensorSchema.unnamed(int(os.environ[PARAMETERS])),
        tries=lambda *_: None,  # its base is no model
    )
    Agent(state, parts).run()


if __name__ == "__main__":
    main()
