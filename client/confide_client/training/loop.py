"""H optimizer steps over a seeded shuffle of the shard."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from confide.errors import TrainingError
from confide.methods.base import Batch, Example, Method, micro_batches
from confide.models import seeds
from confide.models.arithmetic import precision
from confide.models.sent_coordinates import is_active
from confide.proto import fleet_pb2
from confide.runs.schedule import learning_rate
from confide.runs.specification import Specification
from numpy.typing import NDArray

from confide_client.progress import Phase, tell
from confide_client.training.checkpoint import SlotCheckpoint
from confide_client.training.draws import Draws
from confide_client.training.optimizers import OptimizerStates, make_optimizer
from confide_client.training.shards import whole


def batch_indices(
    specification: Specification, count: int, draws: Draws, slot: fleet_pb2.SlotOpen
) -> Iterator[list[int]]:
    """For each step of a round, which of `count` examples it takes.

    The shard is shuffled anew for every pass, and rounds go on where the last one ended, so that all examples are seen
    equally often. A retried round (attempt > 1) shuffles differently. No example is twice in one batch.
    """
    training = specification.training
    size = min(training.batch_size, count)
    passes: dict[int, NDArray[np.int64]] = {}

    def example_at(position: int) -> int:
        number, offset = divmod(position, count)
        if number not in passes:
            passes.pop(number - 2, None)  # a batch reaches into two passes at most
            passes[number] = np.random.Generator(np.random.PCG64(draws.order(number, slot))).permutation(count)
        return int(passes[number][offset])

    start = specification.steps_before(slot.round) * size
    for step in range(specification.steps_in(slot.round)):
        chosen: list[int] = []
        position = start + step * size
        seen: set[int] = set()
        for index in map(example_at, range(position, position + size)):
            if index not in seen:
                seen.add(index)
                chosen.append(index)
        yield chosen


Gradients = Callable[[int], torch.Tensor]
"""Of a step of the round (0-based, rising, perhaps not from 0): leave the gradients in the parameters and return the
mean loss."""


def run_steps(
    specification: Specification,
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    slot: fleet_pb2.SlotOpen,
    gradients: Gradients,
    checkpoint: SlotCheckpoint | None = None,
) -> float:
    """Train in place and return the mean loss over the steps. Raises TrainingError for NaN or an exploding loss.

    checkpoint: of the slot, which goes on where it stands there.
    """
    training = specification.training
    first, losses = checkpoint.restore(parameters, optimizer) if checkpoint is not None else (0, [])
    steps = specification.steps_in(slot.round)
    for step in range(first, steps):
        tell(Phase.TRAINING, step, steps)
        rate = learning_rate(specification, specification.steps_before(slot.round) + step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        total = gradients(step)
        norm = _clip(parameters, training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        # One wait for a GPU a step. A bad step has been taken by now, but an error discards the whole model.
        loss, gradient_norm = torch.stack([total, norm]).tolist()
        _check(loss, gradient_norm, losses, step, steps)
        losses.append(loss)
        if checkpoint is not None:
            checkpoint.keep(losses, parameters, optimizer)
    tell(Phase.TRAINING, steps, steps)
    if checkpoint is not None:
        checkpoint.erase()
    return math.fsum(losses) / len(losses)


def active_parameters(
    specification: Specification, parameters: Mapping[str, torch.nn.Parameter], round: int
) -> dict[str, torch.nn.Parameter]:
    """Those that are trained in a round; gradients of the others are switched off."""
    active = {name: p for name, p in parameters.items() if is_active(specification, name, round)}
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in active)
    return active


def train_round(
    specification: Specification,
    model: Any,
    active: Mapping[str, torch.nn.Parameter],
    states: OptimizerStates,
    slot: fleet_pb2.SlotOpen,
    seed: int,
    steps: Callable[[torch.optim.Optimizer], float | None],
    *,
    writes: bool = True,
) -> float | None:
    """All local steps of a slot, with the optimizer state that the node kept and keeps; returns what `steps` does.

    active: the parameters that are trained in this round. writes: as OptimizerStates.keep.
    """
    optimizer = make_optimizer(specification.training, active)
    if specification.training.keep_optimizer_state:
        states.restore(optimizer, active, slot.round)
    torch.manual_seed(seed)
    model.train()
    loss = steps(optimizer)
    if specification.training.keep_optimizer_state:
        states.keep(optimizer, active, slot.round, writes=writes)
    return loss


def step_batches(
    specification: Specification,
    method: Method,
    examples: Sequence[Example],
    draws: Draws,
    slot: fleet_pb2.SlotOpen,
    seed: int,
) -> Iterator[list[Batch]]:
    """The micro-batches of each step of a round, one step after another."""
    for step, chosen in enumerate(batch_indices(specification, len(examples), draws, slot)):
        draw = seeds.derive(seed, "step", step)
        batch = [examples[index] for index in chosen]
        size = len(batch) if method.whole_batch else specification.training.micro_batch_size
        yield [
            method.collate(part, seeds.derive(draw, index))
            for index, part in enumerate(micro_batches(method, batch, size))
        ]


def accumulate(
    specification: Specification,
    parts: Sequence[tuple[Batch, float]],
    loss: Callable[[Batch], torch.Tensor],
    device: torch.device,
) -> torch.Tensor:
    """Add up the gradients of each summed loss over its divisor; returns the sum of the divided losses."""
    total = torch.zeros((), device=device)
    for part, divisor in parts:
        with precision.autocast(specification, device):
            divided = loss(part.to(device)) / divisor
        divided.backward()  # type: ignore[no-untyped-call]
        total += divided.detach()
    return total


def terms(parts: Sequence[Batch]) -> int:
    """Over how many terms (tokens, records) the mean loss of a step runs."""
    return max(1, sum(part.count for part in parts))


def _clip(parameters: Mapping[str, torch.nn.Parameter], max_norm: float) -> torch.Tensor:
    limit = max_norm if max_norm > 0 else math.inf
    return whole(torch.nn.utils.clip_grad_norm_(parameters.values(), limit))


def _check(loss: float, norm: float, losses: list[float], step: int, steps: int) -> None:
    where = f"at local step {step + 1} of {steps}"
    if not math.isfinite(loss) or not math.isfinite(norm):
        raise TrainingError(f"the loss or its gradient became NaN or infinite {where}; lower training.learning_rate")
    if losses and loss > 4 * max(losses[0], 5.0):
        raise TrainingError(
            f"the loss exploded {where}: {loss:.3g} after {losses[0]:.3g} at the first; lower training.learning_rate"
        )
