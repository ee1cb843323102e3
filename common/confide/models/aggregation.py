"""LoRA under a plain sum: which matrices travel, how they start, and what happens between rounds.

Averaging A and B is not averaging their product BA. Each scheme here but "average" makes the mean of what travels
give exactly the mean of the products, so that a sealed sum is enough:

    average   A and B trained, both averaged (FedIT, Zhang et al. 2023): the baseline, with cross terms as error
    ffa       A frozen at its random start, B trained (FFA-LoRA, Sun et al. 2024)
    rolora    odd rounds train B, even rounds A (RoLoRA, Chen et al. 2024); the other half's update is zero
    fedsvd    B trained; between rounds BA is refactored so that A has orthonormal rows (FedSVD, Lee et al. 2025)
    fedsb     B and A frozen, orthonormal; only the rank x rank core R of B R A is trained (Fed-SB, Singhal et al. 2025)
"""

from collections.abc import Mapping

import torch

from confide.models import seeds
from confide.models.sent_coordinates import refactors
from confide.runs.specification import Specification

Tensors = dict[str, torch.Tensor]
_TRAVELS: dict[str, frozenset[str]] = {
    "average": frozenset({"lora_A", "lora_B"}),
    "ffa": frozenset({"lora_B"}),
    "rolora": frozenset({"lora_A", "lora_B"}),
    "fedsvd": frozenset({"lora_A", "lora_B"}),
    "fedsb": frozenset({"lora_core"}),
}


def trained_matrices(scheme: str) -> frozenset[str]:
    """Last parts of the names that belong to the travelling model under a scheme."""
    return _TRAVELS[scheme]


def _orthonormal_rows(seed: int, name: str, rows: int, columns: int) -> torch.Tensor:
    """Shape (rows, columns), rows <= columns: QR of a seeded uniform matrix in float64, signs fixed."""
    draw = seeds.uniform(seed, name, (columns, rows), 1.0).double()
    q, r = torch.linalg.qr(draw)
    signed: torch.Tensor = q * torch.sign(torch.diagonal(r))
    return signed.T.float().contiguous()


def _drawn(specification: Specification, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    scheme, seed = specification.adapter.aggregation, specification.seed
    kind = name.rsplit(".", 1)[-1]
    if kind == "lora_A":
        if scheme in {"fedsvd", "fedsb"}:
            return _orthonormal_rows(seed, name, *shape)
        return seeds.uniform(seed, name, shape, shape[1] ** -0.5)
    if kind == "lora_B" and scheme == "fedsb":
        return _orthonormal_rows(seed, name, shape[1], shape[0]).T.contiguous()
    return torch.zeros(shape)


def initial_matrices(specification: Specification, shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
    """The first values of the travelling LoRA matrices: A (rank, in), B (out, rank), core (rank, rank)."""
    return {name: _drawn(specification, name, shape) for name, shape in shapes.items()}


def fixed_matrices(specification: Specification, shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
    """Matrices that never travel because every node draws the same ones from the run's seed."""
    travels = _TRAVELS[specification.adapter.aggregation]
    return {
        name: _drawn(specification, name, shape)
        for name, shape in shapes.items()
        if name.rsplit(".", 1)[-1] not in travels
    }


def after_round(specification: Specification, tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """What the coordinator does with the model after a round's outer step: a pure function.

    fedsvd refactors every product BA, without changing it, into A with orthonormal rows (Lee et al. 2025,
    algorithm 1); all other schemes change nothing. Computed in float64 with fixed signs.
    """
    state = dict(tensors)
    if not refactors(specification):
        return state
    for name in tensors:
        if name.endswith(".lora_A"):
            b_name = name.removesuffix("lora_A") + "lora_B"
            state[name], state[b_name] = refactor(tensors[name], tensors[b_name])
    return state


def refactor(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(A', B') of the same shapes and dtype with B'A' = BA and A' A'^T = I: SVD of BA through two thin QRs.

    a: (rank, in), b: (out, rank). With B = 0 the row space of A is kept.
    """
    q_a, r_a = torch.linalg.qr(a.double().T)
    q_b, r_b = torch.linalg.qr(b.double())
    u, s, vh = torch.linalg.svd(r_b @ r_a.T)
    new_a = vh @ q_a.T
    new_b = (q_b @ u) * s
    # An SVD is unique only up to signs: fix them so that the result is the same on every machine.
    largest = new_a.gather(1, new_a.abs().argmax(dim=1, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0)
    return (new_a * sign).to(a.dtype).contiguous(), (new_b * sign.T).to(b.dtype).contiguous()


def rank_mask(name: str, shape: tuple[int, ...], rank: int) -> torch.Tensor:
    """Bool of `shape`: which entries of a LoRA matrix a node of smaller rank trains; the rest is zero-padding.

    A node that trains the first `rank` columns of B (rows of A, both of a core) still shares every fixed matrix with
    the others, so that under ffa, rolora, fedsvd and fedsb sums over mixed ranks stay exact.
    """
    mask = torch.ones(shape, dtype=torch.bool)
    kind = name.rsplit(".", 1)[-1]
    if kind in {"lora_A", "lora_core"}:
        mask[rank:] = False
    if kind in {"lora_B", "lora_core"}:
        mask[:, rank:] = False
    return mask
