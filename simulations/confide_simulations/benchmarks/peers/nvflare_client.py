"""What runs inside an NVFLARE client: its client API around the one local step. Needs NVFLARE's own environment."""

import os

import nvflare.client as flare

from confide_simulations.benchmarks.peers.task import FOLDER, Task

KEY = "numpy_key"


def main() -> None:
    """Train whenever the server sends a model. Sites are called site-1, site-2, ... by NVFLARE."""
    flare.init()
    task = Task.read(os.environ[FOLDER])
    node = task.nodes[int(str(flare.get_site_name()).rpartition("-")[2]) - 1]
    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        number = int(received.current_round or 0) + 1
        local = task.trained("nvflare", node, received.params[KEY], number)
        weight = {"NUM_STEPS_CURRENT_ROUND": 1}
        flare.send(flare.FLModel(params={KEY: local.model}, metrics=local.metrics, meta=weight))


if __name__ == "__main__":
    main()
