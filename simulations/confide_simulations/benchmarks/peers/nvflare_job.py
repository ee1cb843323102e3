"""The job, run by the Python of NVFLARE's environment: FedAvg over a POC federation of real processes.

python nvflare_job.py TASK_FOLDER
"""

import os
import sys
from pathlib import Path

import numpy as np
from nvflare.app_common.np.recipes.fedavg import NumpyFedAvgRecipe
from nvflare.recipe.poc_env import PocEnv

from confide_simulations.benchmarks.peers.task import Task


def main(folder: str) -> None:
    """Provision, start, train, stop; the last model goes into the task's folder."""
    task = Task.read(folder)
    first = Path(folder) / "nvflare" / "initial.npy"
    np.save(first, task.initial())
    recipe = NumpyFedAvgRecipe(
        name="peers",
        initial_ckpt=str(first),
        min_clients=len(task.nodes),
        num_rounds=task.rounds,
        train_script=str(Path(__file__).with_name("nvflare_client.py")),
    )
    environment = PocEnv(num_clients=len(task.nodes))
    try:
        run = recipe.execute(environment)
        result = run.get_result(clean_up=False)
        found = sorted(Path(str(result)).rglob("server.npy"), key=os.path.getmtime)
        if not found:
            raise SystemExit(f"NVFLARE's job {run.get_job_id()} left no server.npy in {result}")
        task.keep("nvflare", np.load(found[-1]).astype(np.float32))
    finally:
        environment.stop(clean_up=False)


if __name__ == "__main__":
    main(sys.argv[1])
