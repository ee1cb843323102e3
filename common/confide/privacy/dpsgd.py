"""One step of DP-SGD (Abadi et al. 2016, algorithm 1): clip each unit's gradient, sum, add noise, divide by q*N.

    with PerSampleGradients(model) as per_sample:
        for batch in poisson_batches:                       # varying size, empty ones included
            private_gradients(per_sample, batch, loss=RecordLoss(model, method), mechanism=..., ...)
            optimizer.step()                                # any optimizer: it sees noised gradients only

A unit is what privacy protects: one record, or all records of one user. It is a sequence of examples (rows), one for
most records. The loss of an example is the mean over its counted tokens, so that one clipping norm fits short and
long ones; a unit's gradient is the sum over its examples, clipped as a whole. Sums and noise are integers
(noise/lattice.py).
"""

import secrets
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from confide.errors import ModelError, SpecificationError
from confide.methods.base import IGNORED, Method
from confide.privacy.noise.lattice import Grid, Lattice
from confide.privacy.noise.randomness import SecureRandom
from confide.privacy.per_sample import PerSampleGradients

Unit = Sequence[Any]
"""The examples of one record or user; may be empty, when nothing can be learned from it."""

# Relative. Squares are added by 256 in float32, in whatever order: at most 130 * 2^-24 of the norm is lost. Scaling
# rounds three times more, by 2^-24 each. What is kept is then certainly within the clip.
_ARITHMETIC = 1 - 2.0**-15
_PIECE = 256

_OTHERS = 1 - 2.0**-7
"""What is left of the clip for the unit itself: the rest is for the last bits that its presence changes in others'
gradients, by sharing a micro-batch with them (docs/privacy.md, "What one unit changes in the others")."""

_MOST_ROWS = 256


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
        if not 0 < self.expected_batch < float("inf"):
            raise SpecificationError(
                f"expected_batch of a private step is {self.expected_batch}; it must be positive and finite"
            )
        _ = self.lattice

    @property
    def lattice(self) -> Lattice:
        """Where the sum of clipped gradients and its noise are integers. Raises SpecificationError."""
        return Lattice(clip=self.clip, noise_multiplier=self.noise_multiplier)

    @property
    def noise_stddev(self) -> float:
        """Of the sum of clipped gradients, before the division."""
        return self.clip * self.noise_multiplier


@dataclass(frozen=True)
class RowLosses:
    """total: scalar, the sum of one loss an example. scale_B: (B,), what multiplies its gradient before clipping.

    rows: of the forward pass that each example takes, next to each other: the two answers of a pair are two.
    """

    total: torch.Tensor
    scale_B: torch.Tensor
    rows: int = 1


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
            return RowLosses(total, torch.ones(len(examples), device=device), batch.rows)
        counted_B = (batch.labels != IGNORED).flatten(1).sum(1)
        return RowLosses(total, 1.0 / counted_B.clamp(min=1))


def clip_factors(gradients: Sequence[torch.Tensor], clip: float, scale_B: torch.Tensor | None = None) -> torch.Tensor:
    """Shape (B,), float64: what multiplies each row's whole gradient so that, times `scale_B`, its norm is <= `clip`.

    gradients: tensors (B, ...), at most 2^34 scalars a row. A row whose gradient is not finite gets 0: it must neither
    spoil the sum nor raise an error, which would tell that it is there.
    """
    norms_B = torch.stack([_squared_norms(g.float().flatten(1)) for g in gradients]).sum(0).sqrt()
    scale_B = torch.ones_like(norms_B) if scale_B is None else scale_B.double()
    scaled_B = norms_B * scale_B
    factors_B = scale_B * (clip / scaled_B.clamp(min=1e-30)).clamp(max=1.0) * _ARITHMETIC
    return torch.where(torch.isfinite(scaled_B), factors_B, torch.zeros_like(factors_B))


def _squared_norms(rows_BD: torch.Tensor) -> torch.Tensor:
    """Shape (B,), float64. Relative error below 2^-15 in any order of summation, but for squares that underflow."""
    rows, size = rows_BD.shape
    even = size // _PIECE * _PIECE
    pieces_BP = torch.linalg.vector_norm(rows_BD[:, :even].view(rows, even // _PIECE, _PIECE), dim=2)
    total_B: torch.Tensor = pieces_BP.double().square().sum(1)
    if even < size:
        total_B += torch.linalg.vector_norm(rows_BD[:, even:], dim=1).double().square()
    return total_B


def _add_clipped(
    sums: list[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    lattice: Grid,
    scale_B: torch.Tensor | None = None,
    *,
    shared: bool,
) -> None:
    """Add each row's integers to `sums`, int64. Overwrites `gradients`.

    shared: whether rows of other units were in the same forward pass.
    Guarantee: a row adds a vector of L2 norm at most lattice.bound, nothing where it is not finite.
    """
    factors_B = clip_factors(gradients, lattice.clip * (_OTHERS if shared else 1.0), scale_B)
    kept = factors_B > 0
    if not bool(kept.all()):
        # 0 * NaN is NaN: such rows are left out, not multiplied.
        factors_B, gradients = factors_B[kept], [g[kept] for g in gradients]
    steps_B = (factors_B / lattice.granularity).float()
    for total, gradient in zip(sums, gradients, strict=True):
        scaled = gradient.float().mul_(steps_B.view(-1, *[1] * (gradient.dim() - 1)))
        for rows in torch.split(scaled, _MOST_ROWS):
            # To an integer type means towards zero. 256 rows of at most 2^22 fit int32.
            total.add_(rows.to(torch.int32).sum(0, dtype=torch.int32))


class _OpenUnit:
    """Sums the gradients of a unit whose rows may spread over several micro-batches, and clips it when it ends."""

    def __init__(self, sums: list[torch.Tensor], lattice: Grid, *, shared: bool) -> None:
        self._sums, self._lattice, self._shared = sums, lattice, shared
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
            _add_clipped(self._sums, self._gradients, self._lattice, shared=self._shared)
        self._gradients = []


def clipped_sum(
    per_sample: PerSampleGradients,
    batch: Sequence[Unit],
    *,
    loss: Loss,
    lattice: Grid,
    micro_batch_size: int,
) -> list[torch.Tensor]:
    """Sum over units of their clipped gradients in lattice steps, int64, one tensor for each trainable parameter; no
    noise yet. An empty batch gives zeros.

    Guarantee: adding or removing one unit changes the returned tensors, taken together, by L2 norm at most
    lattice.bound: the sum is exact in any order, and what a unit adds is bounded by _add_clipped. With
    micro_batch_size 1 that is all; above, a unit may also change the last bits of the gradients of those that it shares
    a micro-batch with, for which a part of the bound is set aside.
    """
    sums = [torch.zeros_like(p, dtype=torch.int64) for p in per_sample.parameters]
    rows = [(number, example) for number, unit in enumerate(batch) for example in unit]
    shared = micro_batch_size > 1
    open_unit = _OpenUnit(sums, lattice, shared=shared)
    for start in range(0, len(rows), micro_batch_size):
        part = rows[start : start + micro_batch_size]
        losses = loss([example for _, example in part])
        gradients = per_sample.of(losses.total, rows=len(part) * losses.rows)
        if losses.rows > 1:
            # Before anything is clipped: one pair is one unit, whatever its halves are.
            gradients = [g.reshape(len(part), losses.rows, *g.shape[1:]).sum(1) for g in gradients]
        # By the unit's own size, not by the others': both ways round differently.
        whole = [len(batch[number]) == 1 for number, _ in part]
        for row, (number, _) in enumerate(part):
            if not whole[row]:
                open_unit.add(number, gradients, row, losses.scale_B[row])
        scale_B = losses.scale_B
        if not all(whole):
            gradients, scale_B = [g[whole] for g in gradients], scale_B[whole]
        if any(whole):
            _add_clipped(sums, gradients, lattice, scale_B, shared=shared)
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
    """Set `grad` of every trainable parameter to (sum of clipped gradients + noise) * granularity / expected batch.

    batch: a Poisson sample of the units, of any size; an empty one still gives pure noise, or its emptiness would show.

    Guarantee: with batches drawn by Poisson sampling at rate q, one call is the Poisson-subsampled Gaussian mechanism
    of noise multiplier `mechanism.noise_multiplier`, rounded to the lattice, under zero-out adjacency of one unit (its
    examples are replaced by none), against anyone who sees all gradients, as far as `random` is unpredictable and
    clipped_sum's guarantee holds. What is done to the integers after the noise depends on no data.
    """
    lattice = mechanism.lattice
    sums = clipped_sum(per_sample, batch, loss=loss, lattice=lattice, micro_batch_size=micro_batch_size)
    for parameter, total, mask in zip(per_sample.parameters, sums, per_sample.masks, strict=True):
        noise = lattice.noise(total.numel(), random)
        total += torch.from_numpy(noise).reshape(total.shape).to(total.device)
        if mask is not None:
            total *= mask  # What no record can move needs no noise.
        mean = total.double() * (lattice.granularity / mechanism.expected_batch)
        parameter.grad = mean.to(parameter.dtype)
