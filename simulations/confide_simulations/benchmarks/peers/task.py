"""What every arm trains. The local step is the same code in all of them; what lies between organizations is not.

task = Task.read(folder)
task.keep("flower", task.trained("flower", "hospital-a", task.initial(), round_number=1))
"""

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from confide_client.training.trainer import LocalTrainer

Vector = NDArray[np.float32]
FOLDER = "CONFIDE_PEERS_TASK"
"""Environment variable by which an arm's programs find the task's folder."""


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
        return np.frombuffer(self.model("initial").read_bytes(), "<f4").copy()

    def keep(self, arm: str, model: Vector) -> None:
        """Write an arm's final model."""
        self.model(arm).write_bytes(np.ascontiguousarray(model, dtype="<f4").tobytes())

    def trained(self, arm: str, node: str, model: Vector, round_number: int) -> Vector:
        """The model after a node's local steps of a round, shape (parameters,)."""
        from confide.proto import fleet_pb2
        from confide_client.data.datasets import LocalData

        from confide_simulations.demo.shards import read_records

        slot = fleet_pb2.SlotOpen(slot=round_number, round=round_number, attempt=1)
        data = LocalData(read_records(self.shard(node)), ())
        start = np.ascontiguousarray(model, dtype=np.float32)
        return start + _trainer(self, arm, node).contribute(start, data, slot).update


@cache
def _trainer(task: Task, arm: str, node: str) -> "LocalTrainer":
    """Kept for as long as the process lives: who starts a process for every round pays for loading every round."""
    from confide.files import private_folder
    from confide.runs.specification import parse_canonical
    from confide_client.training.trainer import LocalTrainer

    specification = parse_canonical(task.specification.read_bytes())
    folder = private_folder(Path(task.folder) / "local" / arm / node)
    return LocalTrainer(specification, Path(task.base), node=node, folder=folder, threads=1)
