"""A reward model from a snapshot, in one place: frozen features, a Bradley-Terry head, and how far it can be trusted.

head, report = fit(differences_ND, seed=7)            # report: held-out accuracy, calibration, length bias
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from confide.errors import DataError
from confide.methods.feedback import LEAST_PAIRS, newton
from numpy.typing import NDArray

Vectors = NDArray[np.float64]
_BINS = 10


@dataclass(frozen=True, kw_only=True)
class RewardReport:
    """accuracy: of held-out pairs, with a 95 % bootstrap interval. reliability: (claimed, happened, pairs) by bin.

    length_correlation: of a pair's margin with how much longer its chosen answer is. shorter_chosen: accuracy where the
    chosen answer is the shorter one; None without any. organizations: accuracy of each, where pairs say whose they are.
    """

    pairs: int
    held_out: int
    accuracy: float
    interval: tuple[float, float]
    log_loss: float
    calibration_error: float
    reliability: Sequence[tuple[float, float, int]]
    length_correlation: float | None
    shorter_chosen: float | None
    organizations: Mapping[str, float] = field(default_factory=dict)

    @property
    def worst(self) -> tuple[str, float] | None:
        """The organization that is served least well."""
        return min(self.organizations.items(), key=lambda item: item[1]) if self.organizations else None


def fit(
    differences_ND: Vectors, *, longer_N: Sequence[int] | None = None, organizations: Sequence[str] = (), seed: int = 0,
    penalty: float = 1e-3,
) -> tuple[Vectors, RewardReport]:  # fmt: skip
    """The head over all pairs, and a report from a fifth that was held out of a head of its own.

    longer_N: characters by which each chosen answer is longer. Raises DataError for fewer than 20 pairs.
    """
    count = len(differences_ND)
    if count < LEAST_PAIRS:
        raise DataError(
            f"{count} pairs are too few for a reward model; {LEAST_PAIRS} are the least, some hundred useful"
        )
    if not np.isfinite(differences_ND).all():
        raise DataError("a feature is NaN or infinite; check the base model")
    order = np.random.default_rng(seed).permutation(count)
    held, rest = order[: count // 5], order[count // 5 :]
    margins = differences_ND[held] @ newton(differences_ND[rest], penalty=penalty)
    longer = None if longer_N is None else np.asarray(longer_N, dtype=float)[held]
    named = [organizations[i] for i in held] if organizations else []
    return newton(differences_ND, penalty=penalty), _report(margins, longer, named, count, seed)


def _report(margins: Vectors, longer: Vectors | None, named: Sequence[str], count: int, seed: int) -> RewardReport:
    right = (margins > 0) + 0.5 * (margins == 0)
    rng = np.random.default_rng(seed)
    means = right[rng.integers(0, len(right), (2000, len(right)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    reliability = _reliability(margins)
    error = sum(abs(claimed - happened) * pairs for claimed, happened, pairs in reliability) / len(margins)
    shorter = None if longer is None or not (longer < 0).any() else float(right[longer < 0].mean())
    correlation = None
    if longer is not None and longer.std() > 0 and margins.std() > 0:
        correlation = float(np.corrcoef(margins, longer)[0, 1])
    return RewardReport(
        pairs=count, held_out=len(margins), accuracy=float(right.mean()), interval=(float(low), float(high)),
        log_loss=float(np.logaddexp(0.0, -margins).mean()), calibration_error=float(error), reliability=reliability,
        length_correlation=correlation, shorter_chosen=shorter,
        organizations={
            name: float(np.mean([r for r, own in zip(right, named, strict=True) if own == name]))
            for name in sorted(set(named))
        },
    )  # fmt: skip


def _reliability(margins: Vectors) -> list[tuple[float, float, int]]:
    """Of the answer that the model prefers, how sure it says it is and how often it is right, over [1/2, 1]."""
    sure = 1 / (1 + np.exp(-np.abs(margins)))
    right = margins > 0
    edges = np.linspace(0.5, 1.0, _BINS + 1)
    place = np.clip(np.digitize(sure, edges) - 1, 0, _BINS - 1)
    return [
        (float(sure[place == bin].mean()), float(right[place == bin].mean()), int((place == bin).sum()))
        for bin in range(_BINS)
        if (place == bin).any()
    ]


def plot(report: RewardReport, path: Any) -> None:
    """The reliability plot, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(4.2, 4.2), dpi=120)
    axes.plot([0.5, 1], [0.5, 1], ":", color="#888888")
    axes.plot([row[0] for row in report.reliability], [row[1] for row in report.reliability], "o-", color="#0b6e4f")
    axes.set_xlabel("how sure the reward model is")
    axes.set_ylabel("how often it is right")
    axes.set_title(f"{report.held_out} held-out comparisons")
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
