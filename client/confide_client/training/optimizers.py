"""The local optimizer and its state between rounds."""

from collections.abc import Mapping
from pathlib import Path

import torch
from confide.codec.tensors import TensorSchema
from confide.errors import TrainingError
from confide.files import private_folder, write_atomic
from confide.runs.sections import Training
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from confide_client.kept_files import OPTIMIZER, path_of, rounds_of
from confide_client.training.shards import placed_like, whole

Parameters = Mapping[str, torch.nn.Parameter]


def make_optimizer(training: Training, parameters: Parameters) -> torch.optim.Optimizer:
    """AdamW or SGD, each as one fused kernel. Vectors (biases, norms) are not decayed."""
    decayed = [p for p in parameters.values() if p.ndim > 1]
    others = [p for p in parameters.values() if p.ndim <= 1]
    groups = [
        {"params": params, "weight_decay": decay}
        for params, decay in ((decayed, training.weight_decay), (others, 0.0))
        if params
    ]
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=training.learning_rate, fused=True)
    betas = (training.beta1, training.beta2)
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=betas, fused=True)


def state_of(optimizer: torch.optim.Optimizer, parameters: Parameters) -> dict[str, torch.Tensor]:
    """Its tensors by "kind/parameter", whole and on the CPU; of a split state each process must call this."""
    return {
        f"{kind}/{name}": whole(value.detach()).cpu().contiguous()
        for name, parameter in parameters.items()
        for kind, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, torch.Tensor)
    }


def set_state(
    optimizer: torch.optim.Optimizer, parameters: Parameters, tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Put back what `state_of` gave; returns what belongs to none of the parameters."""
    resting = {}
    for key, tensor in tensors.items():
        kind, name = key.split("/", 1)
        parameter = parameters.get(name)
        if parameter is None:
            resting[key] = tensor
            continue
        # Each process counts the steps by itself, beside its part of the parameter.
        placed = tensor.to(parameter.device) if kind == "step" else placed_like(tensor, parameter)
        optimizer.state[parameter][kind] = placed
    return resting


class OptimizerStates:
    """Optimizer state on this node's disk, one file per round, so that a retried round starts where the first try did.

    Holds nothing that leaves the node.
    """

    def __init__(self, folder: Path, schema: TensorSchema) -> None:
        self._folder = folder
        self._schema = schema
        self._resting: dict[str, torch.Tensor] = {}

    def _path(self, round: int) -> Path:
        return path_of(self._folder, OPTIMIZER, round)

    def restore(self, optimizer: torch.optim.Optimizer, parameters: Parameters, round: int) -> None:
        """Load the newest state from before `round`; none: start fresh.

        What belongs to parameters that rest in this round (RoLoRA's other half) is kept for the next.
        """
        self._resting = {}
        earlier = [p for p in rounds_of(self._folder, OPTIMIZER) if p < self._path(round)]
        if not earlier:
            return
        try:
            tensors = load_file(earlier[-1])
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"the local optimizer state {earlier[-1].name} is damaged; delete it, and training starts it afresh"
            ) from error
        self._resting = set_state(optimizer, parameters, tensors)

    def keep(
        self, optimizer: torch.optim.Optimizer, parameters: Parameters, round: int, *, writes: bool = True
    ) -> None:
        """Save the state after `round` and forget what no retry can need.

        writes: false in all but one of the processes that hold a split state; each of them must call this.
        """
        tensors = state_of(optimizer, parameters)
        if not writes:
            return
        if tensors:
            private_folder(self._folder)
            write_atomic(self._path(round), save(self._resting | tensors))
        for path in rounds_of(self._folder, OPTIMIZER):
            if path < self._path(round - 1):
                path.unlink()
