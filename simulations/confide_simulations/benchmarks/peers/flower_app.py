"""What runs inside Flower, plain: ClientApp and ServerApp of FedAvg, as Flower's own templates write them."""

import os

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from confide_simulations.benchmarks.peers.task import FOLDER, Task

client = ClientApp()
server = ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """A round's local steps; Flower starts a process for every message."""
    task = Task.read(os.environ[FOLDER])
    arrays, settings = message.content["arrays"], message.content["config"]
    assert isinstance(arrays, ArrayRecord)  # noqa: S101 - what the strategy sends
    model = arrays.to_numpy_ndarrays()[0]
    number = int(settings["server-round"])  # type: ignore[arg-type]
    local = task.trained("flower", str(context.node_config["node"]), model, number)
    metrics = MetricRecord({"num-examples": 1, **local.metrics})
    content = RecordDict({"arrays": ArrayRecord([local.model]), "metrics": metrics})
    return Message(content, reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds, then the last model into the task's folder."""
    task = Task.read(os.environ[FOLDER])
    count = len(task.nodes)
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=count, min_available_nodes=count)
    result = strategy.start(grid, ArrayRecord([task.initial()]), num_rounds=task.rounds)
    task.keep("flower", np.asarray(result.arrays.to_numpy_ndarrays()[0]))
