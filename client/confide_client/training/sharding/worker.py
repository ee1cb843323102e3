"""One of the processes that share a local step: its part of the parameters, and of each step's micro-batches.

    torch's elastic launch runs: python -m confide_client.training.sharding.worker FOLDER

Parameters, gradients and optimizer state are split over the processes (FSDP2: each layer is gathered when it is its
turn), and gradients are summed over them: the update is that of one process, up to the order of additions.
"""

import contextlib
import functools
import logging
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from confide.codec.tensors import TensorSchema
from confide.errors import ConfideError
from confide.methods import base as methods
from confide.models import seeds
from confide.models.architecture import load_tokenizer
from confide.models.trainable import build, load_trainable, trainable_tensors
from confide.proto import fleet_pb2
from confide.runs.specification import Specification
from confide.secrecy import private_process
from confide.text import log_to_stderr
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from confide_client.progress import heard_by
from confide_client.training.evaluation import evaluate
from confide_client.training.failures import named_failures
from confide_client.training.loop import accumulate, active_parameters, run_steps, terms, train_round
from confide_client.training.optimizers import OptimizerStates
from confide_client.training.sharding.job import (
    Job,
    Outcome,
    read_batches,
    read_evaluation,
    read_job,
    write_outcome,
)
from confide_client.training.sharding.reports import write_failure, write_progress
from confide_client.training.shards import placed_like, whole

log = logging.getLogger(__name__)


class _Root(nn.Module):
    """Runs any work on a sharded model with the root's own parameters gathered: losses use a model's parts directly."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[nn.Module], Any]) -> Any:
        """What `work` makes of the model."""
        return work(self.model)


def _sharded(model: nn.Module, device: torch.device) -> _Root:
    """Each layer is a unit that is gathered when it runs; embeddings, head and the rest are one more."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for module in list(model.modules()):
        if isinstance(module, nn.ModuleList):
            for layer in module:
                fully_shard(layer, mesh=mesh)
    root = _Root(model)
    fully_shard(root, mesh=mesh)
    return root


class Worker:
    """One rank of a local step."""

    def __init__(self, folder: Path, job: Job, specification: Specification) -> None:
        self._folder, self._job, self._specification = folder, job, specification
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        self._device = _device(job)
        self._method = methods.create(specification, load_tokenizer(Path(job.base)))
        model: Any = build(specification, Path(job.base), "cpu")
        self._schema = TensorSchema.of(trainable_tensors(model))
        load_trainable(model, self._tensors("received.f32"))
        if specification.training.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self._model = model
        self._root = _sharded(model, self._device)
        self._parameters = trainable_tensors(model)
        self._active = active_parameters(specification, self._parameters, job.round)

    def _tensors(self, name: str) -> dict[str, torch.Tensor]:
        return self._schema.unflatten(self._schema.decode((self._folder / name).read_bytes()))

    def run(self) -> None:
        """The whole job; the first rank writes its outcome."""
        metrics = {}
        records = read_evaluation(self._folder)
        if records:
            examples = self._method.prepare(records)
            metrics = self._root(lambda model: evaluate(self._specification, self._method, model, examples, []))
        if not self._job.trains:
            self._write(Outcome(metrics))
            return
        if (self._folder / "start.f32").exists():
            self._load(self._tensors("start.f32"))
        loss = self._train()
        trained = self._schema.flatten({name: whole(p.detach()) for name, p in self._parameters.items()})
        self._write(Outcome(metrics, trained, loss))

    def _write(self, outcome: Outcome) -> None:
        if self._rank == 0:
            write_outcome(self._folder, outcome)

    def _load(self, tensors: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(placed_like(tensors[name], parameter))

    def _train(self) -> float | None:
        specification = self._specification
        slot = fleet_pb2.SlotOpen(round=self._job.round)

        def steps(optimizer: torch.optim.Optimizer) -> float:
            return run_steps(specification, self._active, optimizer, slot, self._gradients)

        states = OptimizerStates(Path(self._job.states), self._schema)
        # Dropout must differ between processes, which see different records.
        seed = seeds.derive(self._job.seed, "process", self._rank)
        return train_round(specification, self._model, self._active, states, slot, seed, steps, writes=self._rank == 0)

    def _gradients(self, step: int) -> torch.Tensor:
        parts = read_batches(self._folder, step)
        # FSDP takes the mean of the gradients over the processes; a step's mean loss is a sum.
        divisor = terms(parts) / self._world
        mine: list[tuple[methods.Batch, float]] = [(part, divisor) for part in parts[self._rank :: self._world]]
        while len(mine) < math.ceil(len(parts) / self._world):
            # Gathering a layer takes every process: one that has run out repeats a batch, which then counts nothing.
            mine.append((parts[0], math.inf))
        total = accumulate(
            self._specification,
            mine,
            lambda part: self._root(lambda model: self._method.loss(model, part)),
            self._device,
        )
        dist.all_reduce(total)
        return total / self._world


def _device(job: Job) -> torch.device:
    if job.device != "cuda":
        torch.set_num_threads(max(1, (job.threads or os.cpu_count() or 1) // job.processes))
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


def _told(folder: Path, rank: int) -> contextlib.AbstractContextManager[None]:
    """The first rank tells the trainer how far all are: they go step by step together."""
    return heard_by(functools.partial(write_progress, folder)) if rank == 0 else contextlib.nullcontext()


def main(folder: Path) -> int:
    """0 when this rank did its part; else its failure stands in the folder."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    job, specification = read_job(folder)
    store = dist.FileStore(str(folder / "group"), world)  # type: ignore[attr-defined]  # left out of its __all__
    dist.init_process_group("nccl" if job.device == "cuda" else "gloo", store=store, rank=rank, world_size=world)
    try:
        with named_failures(specification), _told(folder, rank):
            Worker(folder, job, specification).run()
    except ConfideError as error:
        write_failure(folder, str(rank), error)
        log.exception("worker process %d failed", rank)
        # No farewell to the other processes: they may be waiting in a collective, and are ended by the launcher.
        os._exit(1)
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    private_process()
    log_to_stderr(logging.WARNING)
    sys.exit(main(Path(sys.argv[1])))
