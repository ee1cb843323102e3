"""What every arm trains. The local step is the same code in all of them; what lies between organizations is not.

So is what it draws: the run is `reproducible`, so that a node's batches follow from the run's seed and the node's name,
and each node's data set is registered under one split seed, so that every arm keeps the same records apart.

task = Task.read(folder)
local = task.trained("flower", "hospital-a", task.initial(), round_number=1)
task.keep("flower", local.model)
"""

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from confide.runs.specification import Specification
    from confide_client.data.datasets import LocalData
    from confide_client.training.trainer import LocalTrainer

Vector = NDArray[np.float32]
FOLDER = "CONFIDE_PEERS_TASK"
"""Environment variable by which an arm's programs find the task's folder."""
DATA = "shard"
"""The data set's name at every node."""


class Local(NamedTuple):
    """What a node gives to a round."""

    model: Vector
    """After its local steps, shape (parameters,)."""
    metrics: dict[str, float]
    """Of the received model on the records that the node keeps apart, and of the steps."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Paths of one run of the benchmark, and its size."""

    folder: str
    base: str
    nodes: tuple[str, ...]
    rounds: int
    local_steps: int

    def write(self) -> None:
        """As JSON, into the task's folder."""
        (Path(self.folder) / "task.json").write_text(json.dumps(asdict(self)), "utf-8")

    @classmethod
    def read(cls, folder: str | Path) -> "Task":
        """What `write` wrote."""
        document = json.loads((Path(folder) / "task.json").read_text("utf-8"))
        return cls(**{**document, "nodes": tuple(document["nodes"])})

    @property
    def specification(self) -> Path:
        """Of an unsealed run: canonical bytes."""
        return Path(self.folder) / "specification.json"

    @property
    def sealed(self) -> Path:
        """Of the same run, sealed."""
        return Path(self.folder) / "sealed.json"

    def shard(self, node: str) -> Path:
        """A node's records."""
        return Path(self.folder) / f"{node}.jsonl"

    def model(self, arm: str) -> Path:
        """The final model of an arm: raw float32."""
        return Path(self.folder) / f"{arm}.f32"

    def initial(self) -> Vector:
        """The first model, shape (parameters,)."""
        return self.read_model("initial")

    def read_model(self, arm: str) -> Vector:
        """What `keep` wrote, shape (parameters,)."""
        return np.frombuffer(self.model(arm).read_bytes(), "<f4").copy()

    def keep(self, arm: str, model: Vector) -> None:
        """Write an arm's final model."""
        self.model(arm).write_bytes(np.ascontiguousarray(model, dtype="<f4").tobytes())

    def state(self, node: str) -> Path:
        """Where a node's data set is registered for the arms whose nodes have no state folder of Confide's."""
        return Path(self.folder) / "registered" / node

    def register(self, node: str, state: Path) -> None:
        """Into a node's state folder: its records, with the split that it has in every arm."""
        from confide_client.data.datasets import DataSets

        from confide_simulations.simulate.population import split_seed

        seed = split_seed(_parsed(self.specification).seed, node, self.shard(node))
        DataSets(state).add(DATA, self.shard(node), split_seed=seed)

    def trained(self, arm: str, node: str, model: Vector, round_number: int) -> Local:
        """A node's local steps of a round, from the model that it received, float32 of shape (parameters,)."""
        from confide.proto import fleet_pb2

        trainer, data = _ready(self, arm, node)
        slot = fleet_pb2.SlotOpen(slot=round_number, round=round_number, attempt=1)
        start = np.ascontiguousarray(model, dtype=np.float32)
        given = trainer.contribute(start, data, slot)
        return Local(start + given.update, {str(name): float(value) for name, value in given.metrics.items()})


@cache
def _ready(task: Task, arm: str, node: str) -> "tuple[LocalTrainer, LocalData]":
    """Kept for as long as the process lives: who starts a process for every round pays for loading every round."""
    from confide.files import private_folder
    from confide_client.data.datasets import DataSets
    from confide_client.training.trainer import LocalTrainer

    specification, folder = _parsed(task.specification), private_folder(Path(task.folder) / "local" / arm / node)
    trainer = LocalTrainer(specification, Path(task.base), node=node, folder=folder, threads=1)
    return trainer, DataSets(task.state(node)).load(DATA)


def _parsed(path: Path) -> "Specification":
    from confide.runs.specification import parse_canonical

    return parse_canonical(path.read_bytes())
