"""The local step in two processes: the update of one process, and nothing that outlives or poisons it."""

import contextlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from confide.errors import ModelError, SpecificationError, TrainingError
from confide.models.trainable import initial_state
from confide.runs.specification import Specification
from confide_client.runs.replies import failure_of
from confide_client.training import LocalTrainer
from confide_client.training.sharding.reports import LAUNCHER, read_failure, write_failure
from confide_client.training.sharding.steps import processes_for
from safetensors.torch import load_file

from tests.tiny_models import tiny_llama
from tests.training_specs import specification
from tests.unit.test_training_local import Shard, slot

WORKER = "confide_client.training.sharding.worker"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


def trainer(spec: Specification, base: Path, folder: Path, processes: int) -> LocalTrainer:
    return LocalTrainer(
        spec, base, node="hospital-a", folder=folder, threads=processes, device="cpu", processes=processes
    )


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


# Five micro-batches of uneven lengths: one process has one more than the other.
UNEVEN: dict[str, Any] = {"batch_size": 9, "micro_batch_size": 2, "keep_optimizer_state": True}


@pytest.mark.parametrize(
    "sections",
    [
        {"adapter": {"kind": "full"}, "training": {**UNEVEN, "learning_rate": 1e-3, "gradient_checkpointing": True}},
        {"adapter": {"aggregation": "rolora"}, "training": UNEVEN, "model": {"dtype": "float32"}},
    ],
)
def test_two_processes_train_as_one_does(llama: Path, tmp_path: Path, sections: dict[str, Any]) -> None:
    """The second round of a run whose first one process trained: the optimizer's state goes over, and comes back."""
    spec = specification(**sections)
    one = trainer(spec, llama, tmp_path / "1", 1)
    model = one.schema.flatten(initial_state(spec, llama))
    model = model + one.contribute(model, Shard(), slot(1)).update
    shutil.copytree(tmp_path / "1", tmp_path / "2")
    two = trainer(spec, llama, tmp_path / "2", 2)
    alone, split = (local.contribute(model, Shard(), slot(2)) for local in (one, two))
    assert difference(split.update, alone.update) < 1e-5
    assert split.metrics.keys() == alone.metrics.keys()
    for name, value in alone.metrics.items():
        assert split.metrics[name] == pytest.approx(value, rel=1e-5)
    names = ["optimizer-000001.safetensors", "optimizer-000002.safetensors"]
    assert [path.name for path in sorted((tmp_path / "2").iterdir())] == names
    kept = [load_file(tmp_path / folder / names[1]) for folder in ("1", "2")]
    assert kept[0].keys() == kept[1].keys()
    for key, tensor in kept[0].items():
        torch.testing.assert_close(kept[1][key], tensor, rtol=1e-3, atol=1e-7)


def descendants(process: psutil.Process) -> list[psutil.Process]:
    """Those below a process that run the local step; more appear while they start."""
    found = []
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any("confide_client.training.sharding" in part for part in child.cmdline()):
                found.append(child)
    return found


def workers(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in descendants(process) if WORKER in child.cmdline()[-2]]


def wait_for(condition: Any, timeout_s: float = 120.0) -> Any:
    deadline, pause = time.monotonic() + timeout_s, threading.Event()
    while time.monotonic() < deadline:
        with contextlib.suppress(psutil.Error):
            found = condition()
            if found:
                return found
        pause.wait(0.02)
    raise AssertionError("it did not happen in time")


def listening(processes: list[psutil.Process]) -> list[str]:
    """Addresses of listening sockets of two workers, once both have one."""
    addresses = [
        [c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN] for process in processes
    ]
    return [ip for each in addresses for ip in each] if len(addresses) == 2 and all(addresses) else []


def test_a_worker_that_dies_fails_the_step_by_name_and_listened_on_loopback_only(llama: Path, tmp_path: Path) -> None:
    spec = specification(training={"local_steps": 1000, "batch_size": 9})
    local = trainer(spec, llama, tmp_path, 2)
    model = local.schema.flatten(initial_state(spec, llama))
    seen: list[Any] = []

    def kill() -> None:
        here = psutil.Process()
        seen.extend(wait_for(lambda: listening(workers(here))))
        seen.append(descendants(here))
        workers(here)[1].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(TrainingError, match=r"worker process \d of 2 died by SIGKILL") as caught:
        local.contribute(model, Shard(), slot())
    killer.join()
    *addresses, below = seen
    assert set(addresses) == {"127.0.0.1"}
    gone, alive = psutil.wait_procs(below, timeout=30)
    assert not alive and len(gone) >= 3
    failure = failure_of(caught.value)
    assert failure.code == "TrainingError" and str(tmp_path) not in failure.message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.full
def test_an_error_of_a_worker_keeps_its_name(llama: Path, tmp_path: Path) -> None:
    spec = specification(adapter={"kind": "full"}, training={"learning_rate": 1e30})
    local = trainer(spec, llama, tmp_path, 2)
    model = local.schema.flatten(initial_state(spec, llama))
    with pytest.raises(TrainingError, match="NaN or infin"):
        local.contribute(model, Shard(), slot())


_AGENT = """
import sys
from pathlib import Path
from confide.models.trainable import initial_state
from confide_client.agent.agent import Stopped, stoppable
from tests.training_specs import specification
from tests.unit.test_training_local import Shard, slot
from tests.unit.test_training_sharded import trainer
spec = specification(training={"local_steps": 1000, "batch_size": 9})
base, folder = Path(sys.argv[1]), Path(sys.argv[2])
local = trainer(spec, base, folder, 2)
try:
    with stoppable():
        local.contribute(local.schema.flatten(initial_state(spec, base)), Shard(), slot())
except Stopped:
    sys.exit(7)
"""


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_worker_outlives_the_agent(llama: Path, tmp_path: Path, number: signal.Signals) -> None:
    agent = subprocess.Popen([sys.executable, "-c", _AGENT, str(llama), str(tmp_path)])
    watched = psutil.Process(agent.pid)
    wait_for(lambda: listening(workers(watched)))
    below = descendants(watched)
    agent.send_signal(number)
    assert agent.wait(60) == (7 if number == signal.SIGTERM else -signal.SIGKILL)
    _, alive = psutil.wait_procs(below, timeout=30)
    assert not alive and len(below) >= 3


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"method": {"name": "contrastive"}}, "contrastive relates"),
        (
            {"privacy": {"unit": "record", "epsilon": 3.0, "delta": 1e-5, "clip": 1.0}},
            "gradients of single records are not sharded",
        ),
    ],
)
def test_what_one_process_alone_can_train_is_refused_by_name(
    llama: Path, tmp_path: Path, sections: dict[str, Any], reason: str
) -> None:
    spec = specification(**sections)
    with pytest.raises(SpecificationError, match=reason):
        trainer(spec, llama, tmp_path, 2)
    assert processes_for(spec, 2) == 2
    assert processes_for(spec, None) == 1


def test_a_smaller_rank_is_trained_in_one_process(llama: Path, tmp_path: Path) -> None:
    spec = specification(adapter={"kind": "lora", "rank": 4, "target_modules": ["q_proj"]})
    with pytest.raises(SpecificationError, match="max_rank is 2"):
        LocalTrainer(spec, llama, node="hospital-a", folder=tmp_path, device="cpu", rank=2, processes=2)


def test_of_several_failures_the_cause_is_reported(tmp_path: Path) -> None:
    assert read_failure(tmp_path) is None
    write_failure(tmp_path, "1", ModelError("the cause"))
    write_failure(tmp_path, "0", TrainingError("running the model failed, since rank 1 had gone"))
    found = read_failure(tmp_path)
    assert isinstance(found, ModelError) and str(found) == "the cause"
    write_failure(tmp_path, LAUNCHER, TrainingError("rank 2 was killed"))
    assert str(read_failure(tmp_path)) == "rank 2 was killed"
    (tmp_path / "failure-launcher.json").unlink()
    (tmp_path / "failure-3.json").write_text("{")
    assert isinstance(read_failure(tmp_path), TrainingError)
