"""The local step in several processes of one node, for models that one GPU cannot hold or would train too slowly.

The trainer stays in charge and reads the data; each slot it starts workers through torch's elastic launch, which shard
the parameters with FSDP2 and share the micro-batches of every step. What they get and give are files in the node's
private folder (job.py); nothing of it is pickled, and no socket listens on anything but the loopback interface.

    steps = ShardedSteps(specification, base, folder, processes=8, threads=None, device="cuda")
    outcome = steps.run(received, start, evaluation, batches, slot, seed)

Guarantee: workers end when this process does, however it ends (Linux), and a worker that dies fails the slot by name.
"""

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from confide.children import bound
from confide.errors import SpecificationError, TrainingError
from confide.files import private_folder
from confide.methods.base import Batch
from confide.models.arithmetic import precision
from confide.proto import fleet_pb2
from confide.runs.fields import Record
from confide.runs.specification import Specification
from numpy.typing import NDArray

from confide_client.progress import tell
from confide_client.training.sharding.job import Job, Outcome, read_outcome, write_batches, write_job
from confide_client.training.sharding.reports import read_failure, read_progress

log = logging.getLogger(__name__)

_GRACE_S = 10.0
_LOOK_EVERY_S = 1.0


def why_not_split(specification: Specification, rank: int | None = None) -> str:
    """Why a run can only be trained in one process; empty when it can be split. rank: the largest that is trained."""
    if rank is not None and specification.adapter.kind == "lora" and rank < specification.adapter.rank:
        return f"max_rank is {rank}, and an adapter's smaller rank is not sharded"
    if specification.privacy.unit in ("record", "user"):
        return f"privacy.unit is {specification.privacy.unit!r}, whose gradients of single records are not sharded"
    if specification.method.name == "contrastive":
        return "method contrastive relates all records of a batch to each other"
    if specification.method.name == "in_context":
        return "method in_context trains nothing"
    if specification.adapter.quantize_base != "none":
        return "a quantized base is not sharded"
    return ""


def processes_for(specification: Specification, chosen: int | None, rank: int | None = None) -> int:
    """How many processes train a run: the operator's choice, else one per GPU where the run can be split."""
    if chosen is not None:
        return chosen
    processes = torch.cuda.device_count()
    if processes < 2:
        return 1
    reason = why_not_split(specification, rank)
    if reason:
        log.info("one of %d GPUs is used: %s", processes, reason)
    return 1 if reason else processes


class ShardedSteps:
    """The local steps of one run in worker processes, which live for one slot each."""

    def __init__(
        self,
        specification: Specification,
        base: Path,
        folder: Path,
        processes: int,
        threads: int | None,
        device: str,
        rank: int | None = None,
    ) -> None:
        """folder: the run's private one. threads: of all processes together. device: "cpu" or "cuda".

        Raises SpecificationError for a run that only one process can train, TrainingError for more processes than GPUs.
        """
        reason = why_not_split(specification, rank)
        if reason:
            raise SpecificationError(
                f"this node trains in {processes} processes, which the run does not allow: {reason}; "
                "set the node to one process (confide node init FOLDER --processes 1)"
            )
        if device == "cuda" and processes > torch.cuda.device_count():
            raise TrainingError(
                f"this node is set to {processes} processes, but has {torch.cuda.device_count()} GPUs; "
                "each process needs its own. Lower the node's number of processes"
            )
        self._specification, self._base, self._folder = specification, base, folder
        self._processes, self._threads, self._device = processes, threads, device

    def run(
        self,
        received: NDArray[np.float32],
        start: NDArray[np.float32] | None,
        evaluation: Sequence[Record],
        batches: Iterable[list[Batch]] | None,
        slot: fleet_pb2.SlotOpen,
        seed: int,
    ) -> Outcome:
        """Evaluate `received` on the evaluation records, and train from `start` on the batches of each step.

        start, batches: None to evaluate only. Raises what a worker raised; TrainingError when one of them died.
        """
        folder = self._folder / "processes"
        self._clear(folder)
        try:
            job = Job(
                base=str(self._base),
                states=str(self._folder),
                device=self._device,
                processes=self._processes,
                threads=self._threads,
                round=slot.round,
                seed=seed,
                trains=start is not None,
            )
            write_job(folder, job, self._specification, received, start if start is not received else None, evaluation)
            for step, parts in enumerate(batches or ()):
                write_batches(folder, step, parts)
            status = _launch(folder, self._processes, precision.choice(self._device).arithmetic)
            failure = read_failure(folder)
            if failure is not None:
                raise failure
            if status != 0:
                raise TrainingError(f"the launcher of this node's worker processes ended with status {status}")
            return read_outcome(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _clear(self, folder: Path) -> None:
        """A process that was killed left its files; a rendezvous must start from none."""
        shutil.rmtree(folder, ignore_errors=True)
        private_folder(self._folder)
        private_folder(folder)


def _launch(folder: Path, processes: int, arithmetic: precision.Arithmetic) -> int:
    """Run the launcher to its end; nothing of it is left when this returns or raises.

    arithmetic: of all workers, which must not measure and differ.
    """
    command = bound([sys.executable, "-m", "confide_client.training.sharding.launch", str(folder), str(processes)])
    # A session of its own: Ctrl-C reaches this process alone, which then ends the workers.
    environment = {**os.environ, precision.VARIABLE: arithmetic}
    launcher = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, env=environment)
    try:
        while True:
            try:
                return launcher.wait(_LOOK_EVERY_S)
            except subprocess.TimeoutExpired:
                if (told := read_progress(folder)) is not None:
                    tell(*told)
    finally:
        if launcher.poll() is None:
            launcher.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                launcher.wait(_GRACE_S)
            launcher.kill()
            launcher.wait()
