"""Starts the worker processes of one local step through torch's elastic launch, and says how one died.

    python -m confide_client.training.sharding.launch FOLDER PROCESSES

A process of its own: torch's launcher takes over the signals of the process that it runs in. The workers meet through
files: the rendezvous needs no port, and their collectives listen on the loopback interface only.
"""

import os
import signal
import sys
from pathlib import Path

from confide.children import bound
from confide.errors import TrainingError
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from confide_client.training.sharding.reports import LAUNCHER, write_failure

_LOOPBACK = {
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
    # Else the launcher opens a store for the workers on all interfaces.
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}


def main(folder: Path, processes: int) -> int:
    """0 when all workers ended well. A worker that was killed leaves a failure of the launcher behind."""
    os.environ.update(_LOOPBACK)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="local-step",
        rdzv_backend="c10d",
        rdzv_endpoint=str(folder / "rendezvous"),
        rdzv_configs={"store_type": "file"},
        local_addr="127.0.0.1",
        # A step that lost a worker starts anew from the coordinator's retry, not from the middle.
        max_restarts=0,
        shutdown_timeout=5,
    )
    worker = bound([sys.executable, "-m", "confide_client.training.sharding.worker", str(folder)])
    try:
        elastic_launch(config, worker[0])(*worker[1:])
    except ChildFailedError as error:
        killed = {
            rank: -failure.exitcode
            for rank, failure in error.failures.items()
            # SIGTERM is how the launcher itself ends the others.
            if failure.exitcode < 0 and -failure.exitcode != signal.SIGTERM
        }
        for rank, number in list(killed.items())[:1]:
            name = signal.Signals(number).name
            died = TrainingError(
                f"worker process {rank} of {processes} died by {name} in the local step (out of memory, or ended by "
                "hand); nothing of the step is sent"
            )
            write_failure(folder, LAUNCHER, died)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
