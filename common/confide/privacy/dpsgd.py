"""One step of DP-SGD (Abadi et al. 2016, algorithm 1): clip each unit's gradient, sum, add noise, divide by q*N.

    with PerSampleGradients(model) as per_sample:
        for batch in poisson_batches:                       # varying size, empty ones included
            private_gradients(per_sample, batch, loss=RecordLoss(model, method), mechanism=..., ...)
            optimizer.step()                                # any optimizer: it sees noised gradients only

A unit is what privacy protects: one record, or all records of one user. It is a sequence of examples (rows), one for
most records. The loss of an example is the mean over its counted tokens, so that one clipping norm fits short and
long ones; a unit's gradient is the sum over its examples, clipped as a whole.
"""

import secrets
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from confide.errors import ModelError, SpecificationError
from confide.methods.base import IGNORED, Method
from confide.privacy.per_sample import PerSampleGradients
from confide.privacy.randomness import SecureRandom

Unit = Sequence[Any]
"""The examples of one record or user; may be empty, when nothing can be learned from it."""

# Scaling in float32 may round a norm up; this keeps the clipped norm at or below the bound.
_ROUNDING = 1 - 1e-6


@dataclass(frozen=True, kw_only=True)
class ClippedGaussian:
    """What the accountant assumes of every step.

    clip: L2 norm to which the gradient of one unit is scaled down.
    noise_multiplier: standard deviation of the noise over `clip`.
    expected_batch: q * N, the expected number of units in a Poisson batch: a constant of the run, never the size of
        the batch at hand, which would tell who is in the data.
    """

    clip: float
    noise_multiplier: float
    expected_batch: float

    def __post_init__(self) -> None:
        for name in ("clip", "noise_multiplier", "expected_batch"):
            value = getattr(self, name)
            if not (value > 0 and value < float("inf")):
                raise SpecificationError(f"{name} of a private step is {value}; it must be positive and finite")

    @property
    def noise_stddev(self) -> float:
        """Of the sum of clipped gradients, before the division."""
        return self.clip * self.noise_multiplier


@dataclass(frozen=True)
class RowLosses:
    """total: scalar, the sum of one loss a row. scale_B: (B,), what multiplies a row's gradient before clipping."""

    total: torch.Tensor
    scale_B: torch.Tensor


Loss = Callable[[Sequence[Any]], RowLosses]
"""The losses of a micro-batch of examples, each depending on its own example alone."""


class RecordLoss:
    """The loss of a training method, one mean a row. Raises ModelError for a method that relates records."""

    def __init__(
        self, model: Any, method: Method, *, context: Callable[[], AbstractContextManager[Any]] = nullcontext
    ) -> None:
        """context: in which each forward pass runs, such as autocast's."""
        if method.whole_batch:
            raise ModelError(
                f"method {method.name!r} compares the records of a batch with each other, so that no record has a "
                'gradient of its own; use privacy.unit = "organization", or another method'
            )
        self._model, self._method, self._context = model, method, context

    def __call__(self, examples: Sequence[Any]) -> RowLosses:
        """Row i belongs to examples[i]; whatever the method draws (masked tokens) comes from a fresh secret seed."""
        device = next(self._model.parameters()).device
        batch = self._method.collate(examples, secrets.randbits(62)).to(device)
        with self._context():
            total = self._method.loss(self._model, batch)
        if batch.labels.dim() < 2:
            return RowLosses(total, torch.ones(len(examples), device=device))
        counted_B = (batch.labels != IGNORED).flatten(1).sum(1)
        return RowLosses(total, 1.0 / counted_B.clamp(min=1))


def clip_factors(gradients: Sequence[torch.Tensor], clip: float, scale_B: torch.Tensor | None = None) -> torch.Tensor:
    """Shape (B,), float32: what multiplies each row's whole gradient so that, times `scale_B`, its norm is <= `clip`.

    gradients: tensors (B, ...). A row whose gradient is not finite gets 0: it must neither spoil the sum nor raise
    an error, which would tell that it is there.
    """
    squares = torch.stack([g.float().flatten(1).square().sum(1) for g in gradients])
    norms_B = squares.sum(0).sqrt()
    scale_B = torch.ones_like(norms_B) if scale_B is None else scale_B.float()
    factors_B = scale_B * (clip / (norms_B * scale_B).clamp(min=1e-30)).clamp(max=1.0) * _ROUNDING
    return torch.where(torch.isfinite(norms_B), factors_B, torch.zeros_like(factors_B))


def _add_clipped(
    sums: list[torch.Tensor], gradients: Sequence[torch.Tensor], clip: float, scale_B: torch.Tensor | None = None
) -> None:
    factors_B = clip_factors(gradients, clip, scale_B)
    kept = factors_B > 0
    if not bool(kept.all()):
        # 0 * NaN is NaN: such rows are left out, not multiplied.
        factors_B, gradients = factors_B[kept], [g[kept] for g in gradients]
    for total, gradient in zip(sums, gradients, strict=True):
        total.add_(torch.tensordot(factors_B, gradient.float(), dims=1))


class _OpenUnit:
    """Sums the gradients of a unit whose rows may spread over several micro-batches, and clips it when it ends."""

    def __init__(self, sums: list[torch.Tensor], clip: float) -> None:
        self._sums, self._clip = sums, clip
        self._number = -1
        self._gradients: list[torch.Tensor] = []

    def add(self, number: int, gradients: list[torch.Tensor], row: int, scale: torch.Tensor) -> None:
        if number != self._number:
            self.close()
            self._number = number
            self._gradients = [torch.zeros_like(g[:1], dtype=torch.float32) for g in gradients]
        for total, gradient in zip(self._gradients, gradients, strict=True):
            total.add_(gradient[row : row + 1].float() * scale)

    def close(self) -> None:
        if self._gradients:
            _add_clipped(self._sums, self._gradients, self._clip)
        self._gradients = []


def clipped_sum(
    per_sample: PerSampleGradients,
    batch: Sequence[Unit],
    *,
    loss: Loss,
    clip: float,
    micro_batch_size: int,
) -> list[torch.Tensor]:
    """Sum over units of their clipped gradients, float32, one tensor for each trainable parameter; no noise yet.

    Guarantee: adding or removing one unit changes the returned tensors, taken together, by L2 norm at most `clip`, up
    to float32 summation. micro_batch_size bounds memory and changes nothing else. An empty batch gives zeros.
    """
    sums = [torch.zeros_like(p, dtype=torch.float32) for p in per_sample.parameters]
    rows = [(number, example) for number, unit in enumerate(batch) for example in unit]
    single = all(len(unit) <= 1 for unit in batch)
    open_unit = _OpenUnit(sums, clip)
    for start in range(0, len(rows), micro_batch_size):
        part = rows[start : start + micro_batch_size]
        losses = loss([example for _, example in part])
        gradients = per_sample.of(losses.total, rows=len(part))
        if single:
            _add_clipped(sums, gradients, clip, losses.scale_B)
            continue
        for row, (number, _) in enumerate(part):
            open_unit.add(number, gradients, row, losses.scale_B[row])
    open_unit.close()
    return sums


def private_gradients(
    per_sample: PerSampleGradients,
    batch: Sequence[Unit],
    *,
    loss: Loss,
    mechanism: ClippedGaussian,
    micro_batch_size: int,
    random: SecureRandom,
) -> None:
    """Set `grad` of every trainable parameter to (sum of clipped gradients + Gaussian noise) / expected batch.

    batch: a Poisson sample of the units, of any size; an empty one still gives pure noise, or its emptiness would show.

    Guarantee: with batches drawn by Poisson sampling at rate q, one call is the Poisson-subsampled Gaussian mechanism
    of noise multiplier `mechanism.noise_multiplier` under zero-out adjacency of one unit (its examples are replaced by
    none), against anyone who sees all gradients, as far as `random` is unpredictable and its values are Gaussian (its
    docstring states the limits).
    """
    sums = clipped_sum(per_sample, batch, loss=loss, clip=mechanism.clip, micro_batch_size=micro_batch_size)
    for parameter, total, mask in zip(per_sample.parameters, sums, per_sample.masks, strict=True):
        noise = random.gaussian(total.numel(), stddev=mechanism.noise_stddev)
        total += torch.from_numpy(noise).reshape(total.shape).to(total)
        if mask is not None:
            total *= mask  # What no record can move needs no noise.
        parameter.grad = (total / mechanism.expected_batch).to(parameter.dtype)
