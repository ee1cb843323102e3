"""What runs in a Ray worker: the installed ClientApp before many virtual nodes, over one loaded model.

A virtual node always comes to the same worker. Its runtime stays in that worker's memory, so that epoch secrets never
touch a disk, exactly as in an agent; what an agent keeps on disk lies in the node's own folder. A worker that died
is replaced, and its nodes begin again as restarted agents do.

The base model is loaded once in a worker. Its nodes train on it one after the other, which a worker does anyhow: every
training begins with the received tensors, and nothing else of the model is ever changed.
"""

import resource
import threading
from pathlib import Path

from confide.codec.tensors import TensorSchema
from confide.runs.specification import Specification
from confide_client.agent.app import make_app
from confide_client.agent.runtime import NodeRuntime
from confide_client.runs.loading import Trainer, local_schema
from confide_client.training import LocalTrainer
from confide_client.training.tokens import TokenizerTrainer
from flwr.app import Context
from flwr.clientapp import ClientApp

from confide_simulations.simulate.population import Population

FOLDER, NAME = "confide.folder", "confide.name"
"""Of a Context's node_config: the simulation's folder and the virtual node's name."""


class Bases:
    """The loaded base of the newest run, shared by the nodes of this process.

    Each node's runtime loads in a thread of its own, which transformers cannot do side by side: one lock over all of
    it. When the first node trains, everything is loaded, and what the other threads still do touches no model.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: tuple[str, LocalTrainer] | None = None
        self._schemas: dict[str, TensorSchema] = {}

    def schema(self, specification: Specification, base: Path) -> TensorSchema:
        """Of the flat update."""
        with self._lock:
            if specification.digest not in self._schemas:
                self._schemas[specification.digest] = local_schema(specification, base)
            return self._schemas[specification.digest]

    def trainer(
        self,
        specification: Specification,
        base: Path,
        *,
        node: str,
        folder: Path,
        threads: int | None,
        rank: int | None,
    ) -> Trainer:
        """A confide_client.runs.loading.MakeTrainer; all virtual nodes train the run's own rank."""
        if not specification.trains_model:
            return TokenizerTrainer(specification)
        with self._lock:
            if self._held is None or self._held[0] != specification.digest:
                self._held = None  # frees the old base before the new one is loaded
                made = LocalTrainer(specification, base, node=node, folder=folder, threads=threads)
                self._held = (specification.digest, made)
            return self._held[1].for_node(node, folder)


class Worker:
    """The virtual nodes of one process, all of one simulation."""

    def __init__(self) -> None:
        self._folder = ""
        self._population: Population | None = None
        self._runtimes: dict[str, NodeRuntime] = {}
        self._bases = Bases()
        # Every node holds a few files open.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    def runtime(self, context: Context) -> NodeRuntime:
        """The runtime of the node that a message is for; the nodes of an earlier simulation are let go."""
        folder, name = str(context.node_config[FOLDER]), str(context.node_config[NAME])
        if folder != self._folder or self._population is None:
            self.close()
            self._folder, self._population = folder, Population.open(Path(folder))
        if name not in self._runtimes:
            self._runtimes[name] = NodeRuntime(self._population.node(name, self._bases.trainer, self._bases.schema))
        return self._runtimes[name]

    def close(self) -> None:
        """Let go of all nodes' files."""
        for runtime in self._runtimes.values():
            runtime.close()
        self._runtimes.clear()


_worker: Worker | None = None


def load_app() -> ClientApp:
    """The ClientApp of this process; Flower's actor asks for it with every message."""
    global _worker
    if _worker is None:
        _worker = Worker()
    return make_app(_worker.runtime)
