"""What runs inside Flower under its SecAgg+ mod: the same task by the classes that the mod still needs."""

import os
from typing import Any

import numpy as np
from flwr.app import Context
from flwr.client import ClientApp, NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import LegacyContext, ServerApp, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.serverapp import Grid

from confide_simulations.benchmarks.peers.task import FOLDER, Task

ARM = "flower_secagg"


class _Client(NumPyClient):
    def __init__(self, node: str) -> None:
        self._node = node

    def fit(self, parameters: Any, config: Any) -> Any:
        """A round's local steps."""
        task = Task.read(os.environ[FOLDER])
        local = task.trained(ARM, self._node, parameters[0], int(config["round"]))
        return [local.model], 1, local.metrics


class _Kept(FedAvg):
    """FedAvg that keeps the newest model."""

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        """Keep what FedAvg made."""
        made = super().aggregate_fit(server_round, results, failures)
        if made[0] is not None:
            task = Task.read(os.environ[FOLDER])
            arm = ARM if server_round == task.rounds else f"{ARM}-{server_round}"
            task.keep(arm, np.asarray(parameters_to_ndarrays(made[0])[0]))
        return made


def _client(context: Context) -> Any:
    return _Client(str(context.node_config["node"])).to_client()


client = ClientApp(client_fn=_client, mods=[secaggplus_mod])
server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds under SecAgg+: shares for everybody, three of four open. Weights are equal, so max_weight is 1."""
    task = Task.read(os.environ[FOLDER])
    count = len(task.nodes)
    strategy = _Kept(
        fraction_fit=1.0,
        fraction_evaluate=0.0,
        min_fit_clients=count,
        min_available_clients=count,
        on_fit_config_fn=lambda number: {"round": number},
        initial_parameters=ndarrays_to_parameters([task.initial()]),
    )
    workflow = DefaultWorkflow(
        fit_workflow=SecAggPlusWorkflow(num_shares=1.0, reconstruction_threshold=0.75, max_weight=1.0)
    )
    workflow(grid, LegacyContext(context=context, config=ServerConfig(num_rounds=task.rounds), strategy=strategy))
