"""Membership inference by thresholds on the loss, plain and calibrated against the base model.

A record that a model has learned has a low loss. How low it would have been anyway differs from record to record, so
the calibrated score subtracts what a model that never saw it says (Watson et al. 2022; Carlini et al. 2022, LiRA, with
the base model as the one reference).

>>> attack = attack_of(np.array([3.0, 2.0, 0.5, 0.1]), np.array([True, True, False, False]))
>>> attack.auc, attack.tpr_at_1_percent_fpr
(1.0, 1.0)
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from confide.errors import DataError


@dataclass(frozen=True, kw_only=True)
class MembershipAttack:
    """auc: 0.5 is guessing. tpr_at_...: included records found while that fraction of the others is falsely accused."""

    auc: float
    tpr_at_1_percent_fpr: float
    tpr_at_10_percent_fpr: float


def attack_of(scores: NDArray[np.float64], included: NDArray[np.bool_]) -> MembershipAttack:
    """How well thresholds on `scores` (higher: more likely included) tell included records from others."""
    inside, outside = scores[included], scores[~included]
    if not inside.size or not outside.size:
        raise DataError("all canaries had the same coin; plant more of them")
    ranks = stats.rankdata(np.concatenate([inside, outside]))
    wins = ranks[: inside.size].sum() - inside.size * (inside.size + 1) / 2
    return MembershipAttack(
        auc=float(wins / (inside.size * outside.size)),
        tpr_at_1_percent_fpr=_tpr(inside, outside, 0.01),
        tpr_at_10_percent_fpr=_tpr(inside, outside, 0.10),
    )


def _tpr(inside: NDArray[np.float64], outside: NDArray[np.float64], fpr: float) -> float:
    accused = int(fpr * outside.size)
    threshold = np.sort(outside)[::-1][accused]
    return float((inside > threshold).mean())
