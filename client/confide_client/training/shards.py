"""Tensors that may be split over the processes of one node, handled like whole ones."""

import torch
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or gathered from all processes: then each of them must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_like(tensor: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    """`tensor`, whole and equal in every process, on the device of `model` and split as that is."""
    tensor = tensor.to(model.device)
    if not isinstance(model, DTensor):
        return tensor
    return distribute_tensor(tensor, model.device_mesh, model.placements)
