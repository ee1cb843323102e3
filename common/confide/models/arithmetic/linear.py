"""Linear layers in bfloat16 autocast on a processor's matrix unit: torch's products but for the weight's gradient.

    use_matrix_unit(model)  # before training; a layer whose weight rests or is no float32 works as before

Without autocast, and on any other processor, nothing changes. The weight's gradient is float32 and not rounded.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from confide.models.arithmetic import linear_kernels, matrix_unit


class TiledLinear(nn.Linear):
    """nn.Linear, with the same parameters and under the same name."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out)."""
        if not (_autocast() and torch.is_grad_enabled() and self.weight.requires_grad):
            return super().forward(input)
        rows = input.to(torch.bfloat16).reshape(-1, self.in_features)
        output: torch.Tensor = _Product.apply(rows, self.weight)  # type: ignore[no-untyped-call]
        if self.bias is not None:
            output = output + self.bias.to(torch.bfloat16)
        return output.view(*input.shape[:-1], self.out_features)


def use_matrix_unit(model: nn.Module) -> None:
    """Take the fast gradient in every linear layer of a model in which it can be had."""
    for module in model.modules():
        if type(module) is nn.Linear and fits(module.weight):
            module.__class__ = TiledLinear


def fits(weight: torch.Tensor) -> bool:
    """Whether the gradient of a weight (out, in) can be had."""
    divided = all(size % linear_kernels.BLOCK == 0 for size in weight.shape)
    return matrix_unit.AVAILABLE and divided and weight.device.type == "cpu" and weight.dtype == torch.float32


def _autocast() -> bool:
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


class _Product(torch.autograd.Function):
    """rows weight^T, of rows (N, in) in bfloat16 and weight (out, in) in float32."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        half = weight.to(torch.bfloat16)
        ctx.save_for_backward(rows, half)
        return F.linear(rows, half)

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        (gradient,) = outputs
        rows, half = ctx.saved_tensors
        to_rows = gradient @ half if ctx.needs_input_grad[0] else None
        return to_rows, _weight_gradient(gradient, rows)


@torch.library.custom_op("confide::weight_gradient", mutates_args=())
def _weight_gradient(gradient: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """(N, out) and (N, in) in bfloat16 -> (out, in) float32."""
    return linear_kernels.weight_gradient(gradient.contiguous(), rows.contiguous())


@_weight_gradient.register_fake
def _(gradient: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return gradient.new_empty(gradient.shape[1], rows.shape[1], dtype=torch.float32)
