"""Gradients of single records, through Opacus' hooks, for LoRA matrices, heads and full models.

    with PerSampleGradients(model) as per_sample:
        total = method.loss(model, batch)               # the sum of the losses of the batch's B rows
        gradients = per_sample.of(total, rows=B)        # one tensor (B, *shape) for each of per_sample.parameters

Guarantee: `of` returns, for row i, the gradient of that row's loss alone. Held by tests against brute force for
every family offered, and checked again at run time on the first batch: the sum over rows must be the gradient that
autograd computes for the total, else ModelError. It presupposes that a row's loss depends on this row alone: no
normalization over the batch, no in-batch negatives, no packing of several records into one row.
"""

import math
import warnings
from collections.abc import Iterable, Mapping
from types import TracebackType

import torch
from opacus.grad_sample.grad_sample_module import GradSampleHooks
from torch import nn

from confide.errors import ModelError
from confide.privacy.families import check_trainable, explicit_inputs

# Against float32 rounding; bfloat16 autocast rounds both sides to 8 bits.
_SUM_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}


class _Hooks(GradSampleHooks):  # type: ignore[misc]  # Opacus ships no types
    def iterate_submodules(self, module: nn.Module) -> Iterable[nn.Module]:
        """Opacus' walk, but past containers that only rename a child's parameter (BERT's tied prediction bias)."""
        own = {id(p) for p in module.parameters(recurse=False) if p.requires_grad}
        below = {id(p) for child in module.children() for p in child.parameters()}
        if own - below:
            yield from super().iterate_submodules(module)
            return
        for child in module.children():
            yield from self.iterate_submodules(child)

    def capture_activations_hook(self, module: nn.Module, inputs: list[torch.Tensor], output: torch.Tensor) -> None:
        """Opacus captures in training mode only; here all modules are in evaluation mode, so that dropout is off."""
        before, module.training = module.training, True
        super().capture_activations_hook(module, inputs, output)
        module.training = before


class PerSampleGradients:
    """A context in which a model gives the gradients of single records. The model is as before when it ends.

    Dropout is off inside: a mask drawn for the batch from a known seed would let one record's presence change the
    gradient of every other record.
    """

    def __init__(self, model: nn.Module, masks: Mapping[nn.Parameter, torch.Tensor] | None = None) -> None:
        """masks: for some parameters, which entries are trained; gradients of the others are zero.

        Raises ModelError for a family, a setting or a layer that per-record gradients do not cover."""
        self._family = check_trainable(model)
        self._model = model
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        given = masks or {}
        self.masks = [given.get(parameter) for parameter in self.parameters]
        self._names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        if not self.parameters:
            raise ModelError("the model has no trainable parameter; nothing would be learned")
        self._checked = False

    def __enter__(self) -> "PerSampleGradients":
        self._was_training = {module: module.training for module in self._model.modules()}
        try:
            self._hooks = _Hooks(self._model, loss_reduction="sum")
        except NotImplementedError as error:
            for parameter in self.parameters:
                vars(parameter).pop("grad_sample", None)
                vars(parameter).pop("_forward_counter", None)
            raise ModelError(
                f"a layer of this {self._family.model_type!r} model gives no per-record gradient: {error}"
            ) from error
        # On the body, which a loss may call without the head.
        body = getattr(self._model, getattr(self._model, "base_model_prefix", ""), self._model)
        self._inputs = body.register_forward_pre_hook(explicit_inputs(self._family), with_kwargs=True)
        self._model.eval()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._inputs.remove()
        for module in self._hooks.iterate_submodules(self._model):
            vars(module).pop("activations", None)
            vars(module).pop("max_batch_len", None)
        self._hooks.cleanup()
        for module, training in self._was_training.items():
            module.training = training

    def of(self, total: torch.Tensor, *, rows: int) -> list[torch.Tensor]:
        """One tensor (rows, *parameter.shape) for each trainable parameter, in the dtype of the backward pass.

        total: scalar, the sum of one loss a row, from one forward pass of the model inside this context. A parameter
        that the loss does not use gets zeros. Leaves no `grad` behind.
        """
        with warnings.catch_warnings():
            # The first adapter's input is frozen; that is as intended.
            warnings.filterwarnings("ignore", message="Full backward hook is firing", category=UserWarning)
            total.backward()  # type: ignore[no-untyped-call]
        gradients = [
            self._one(name, parameter, rows) for name, parameter in zip(self._names, self.parameters, strict=True)
        ]
        if not self._checked:
            self._check_sums(gradients)
            self._checked = True
        for parameter in self.parameters:
            parameter.grad = None
            parameter.grad_sample = None  # type: ignore[attr-defined]
        return [
            gradient if mask is None else gradient * mask for gradient, mask in zip(gradients, self.masks, strict=True)
        ]

    def _one(self, name: str, parameter: nn.Parameter, rows: int) -> torch.Tensor:
        gradient = parameter.grad_sample  # type: ignore[attr-defined]
        if gradient is None:
            if parameter.grad is not None and bool(parameter.grad.any()):
                raise ModelError(f"{name!r} has a gradient but none per record; its layer is not covered by the hooks")
            return parameter.new_zeros((rows, *parameter.shape))
        if not isinstance(gradient, torch.Tensor) or gradient.shape != (rows, *parameter.shape):
            raise ModelError(
                f"{name!r} gives per-record gradients that do not match {rows} rows; its layer sees them together"
            )
        return gradient

    def _check_sums(self, gradients: list[torch.Tensor]) -> None:
        norms = [float(g.float().flatten(1).norm(dim=1).sum()) for g in gradients]
        # Some gradients are zero but for rounding (BERT's key biases): rounding is relative to the whole gradient.
        whole = math.hypot(*norms)
        for name, parameter, gradient, norm in zip(self._names, self.parameters, gradients, norms, strict=True):
            if parameter.grad is None or not math.isfinite(whole):
                continue
            difference = float((parameter.grad.float() - gradient.float().sum(0)).norm())
            if difference > _SUM_TOLERANCE[gradient.dtype] * (norm + 0.01 * whole):
                raise ModelError(
                    f"per-record gradients of {name!r} do not add up to the batch's gradient; an installed library "
                    "computes them wrongly. Nothing was trained; run the project's tests and report it"
                )
