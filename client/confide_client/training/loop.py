"""H optimizer steps over a seeded shuffle of the shard."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from confide.errors import TrainingError
from confide.methods.base import Example, Method, micro_batches
from confide.models import seeds
from confide.proto import fleet_pb2
from confide.runs.specification import Specification

from confide_client.training.optimizers import learning_rate


def batch_indices(specification: Specification, count: int, node: str, slot: fleet_pb2.SlotOpen) -> list[list[int]]:
    """For each step of a round, which of `count` examples it takes.

    The shard is shuffled anew for every pass, and rounds go on where the last one ended, so that all examples are seen
    equally often. A retried round (attempt > 1) shuffles differently. No example is twice in one batch.
    """
    training = specification.training
    size = min(training.batch_size, count)
    passes: dict[int, list[int]] = {}

    def example_at(position: int) -> int:
        number, offset = divmod(position, count)
        if number not in passes:
            draw = seeds.derive(specification.seed, "shuffle", node, number, slot.attempt)
            passes[number] = np.random.Generator(np.random.PCG64(draw)).permutation(count).tolist()
        return passes[number][offset]

    start = specification.steps_before(slot.round) * size
    steps = []
    for step in range(specification.steps_in(slot.round)):
        chosen: list[int] = []
        position = start + step * size
        seen: set[int] = set()
        for index in map(example_at, range(position, position + size)):
            if index not in seen:
                seen.add(index)
                chosen.append(index)
        steps.append(chosen)
    return steps


def run_steps(
    specification: Specification,
    model: Any,
    method: Method,
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    examples: Sequence[Example],
    node: str,
    slot: fleet_pb2.SlotOpen,
    seed: int,
) -> float:
    """Train in place and return the mean loss over the steps. Raises TrainingError for NaN or an exploding loss."""
    training = specification.training
    losses: list[float] = []
    for step, chosen in enumerate(batch_indices(specification, len(examples), node, slot)):
        rate = learning_rate(specification, specification.steps_before(slot.round) + step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = [examples[index] for index in chosen]
        total = _accumulate(specification, model, method, batch, seeds.derive(seed, "step", step))
        norm = _clip(parameters, training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        # One wait for a GPU a step. A bad step has been taken by now, but an error discards the whole model.
        loss, gradient_norm = torch.stack([total, norm]).tolist()
        _check(loss, gradient_norm, losses, step, specification.steps_in(slot.round))
        losses.append(loss)
    return math.fsum(losses) / len(losses)


def _accumulate(
    specification: Specification, model: Any, method: Method, batch: list[Example], seed: int
) -> torch.Tensor:
    """Gradients of the mean loss over all terms of the batch, micro batch by micro batch; returns that mean."""
    training = specification.training
    device = next(model.parameters()).device
    size = len(batch) if method.whole_batch else training.micro_batch_size
    parts = [
        method.collate(part, seeds.derive(seed, index)) for index, part in enumerate(micro_batches(method, batch, size))
    ]
    count = max(1, sum(part.count for part in parts))
    total = torch.zeros((), device=device)
    for part in parts:
        with torch.autocast(device.type, torch.bfloat16, enabled=training.autocast):
            loss = method.loss(model, part.to(device)) / count
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    return total


def _clip(parameters: Mapping[str, torch.nn.Parameter], max_norm: float) -> torch.Tensor:
    limit = max_norm if max_norm > 0 else math.inf
    return torch.nn.utils.clip_grad_norm_(parameters.values(), limit)


def _check(loss: float, norm: float, losses: list[float], step: int, steps: int) -> None:
    where = f"at local step {step + 1} of {steps}"
    if not math.isfinite(loss) or not math.isfinite(norm):
        raise TrainingError(f"the loss or its gradient became NaN or infinite {where}; lower training.learning_rate")
    if losses and loss > 4 * max(losses[0], 5.0):
        raise TrainingError(
            f"the loss exploded {where}: {loss:.3g} after {losses[0]:.3g} at the first; lower training.learning_rate"
        )
