"""A reward model from a snapshot, in one place: frozen features, a Bradley-Terry head, and how far it can be trusted.

head, report = fit(differences_ND, seed=7)            # report: held-out accuracy, calibration, length bias
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from confide.errors import DataError
from confide.methods.feedback import LEAST_PAIRS, newton
from numpy.typing import NDArray

Vectors = NDArray[np.float64]
Texts = tuple[str, str, str]
_BINS = 10
_LEAST_PROMPTS = 5
"""Fewer prompts are instructions rather than questions, and holding one out would hold out most."""


@dataclass(frozen=True, kw_only=True)
class RewardReport:
    """accuracy: of held-out pairs, with a 95 % bootstrap interval. reliability: (claimed, happened, pairs) by bin.

    length_correlation: of a pair's margin with how much longer its chosen answer is. shorter_chosen: accuracy where the
    chosen answer is the shorter one; None without any. seen: share of held-out pairs with an answer that the
    others have too, so that the accuracy is too good; None where texts were not given. organizations: accuracy of each,
    where pairs say whose they are.
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
    seen: float | None = None
    organizations: Mapping[str, float] = field(default_factory=dict)

    @property
    def worst(self) -> tuple[str, float] | None:
        """The organization that is served least well."""
        return min(self.organizations.items(), key=lambda item: item[1]) if self.organizations else None


def fit(
    differences_ND: Vectors, *, longer_N: Sequence[int] | None = None, organizations: Sequence[str] = (),
    texts_N: Sequence[Texts] = (), seed: int = 0, penalty: float = 1e-3,
) -> tuple[Vectors, RewardReport]:  # fmt: skip
    """The head over all pairs, and a report from a fifth that was held out of a head of its own.

    longer_N: characters by which each chosen answer is longer. texts_N: (prompt, chosen, rejected) of each pair: those
    of one prompt, or of the same answers, are held out together, or the head would be asked what it has learned by
    heart; none: each pair is of texts of its own. Raises DataError for fewer than 20 pairs.
    """
    count = len(differences_ND)
    if count < LEAST_PAIRS:
        raise DataError(
            f"{count} pairs are too few for a reward model; {LEAST_PAIRS} are the least, some hundred useful"
        )
    if not np.isfinite(differences_ND).all():
        raise DataError("a feature is NaN or infinite; check the base model")
    groups = _together(texts_N) if texts_N else np.arange(count)
    held, rest = _apart(groups, seed)
    margins = differences_ND[held] @ newton(differences_ND[rest], penalty=penalty)
    longer = None if longer_N is None else np.asarray(longer_N, dtype=float)[held]
    named = [organizations[i] for i in held] if organizations else []
    report = replace(
        _report(margins, longer, named, groups[held], count, seed),
        seen=_seen(texts_N, held, rest) if texts_N else None,
    )
    return newton(differences_ND, penalty=penalty), report


def _together(texts_N: Sequence[Texts]) -> NDArray[np.int64]:
    """A number a pair, equal for those that are held out together: of one prompt, or the same two answers.

    Where there are hardly any prompts, or none, by answers alone.
    """
    by_prompt = len({prompt for prompt, _, _ in texts_N}) >= _LEAST_PROMPTS
    names = [(prompt,) if prompt and by_prompt else tuple(sorted(answers)) for prompt, *answers in texts_N]
    numbers: dict[tuple[str, ...], int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names])


def _apart(groups: NDArray[np.int64], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(places held out, the rest): a fifth, of whole groups. Raises DataError where all pairs are one."""
    names, sizes = np.unique(groups, return_counts=True)
    if len(names) < 2:
        raise DataError("all pairs are the same one, so that none can be held out; add others")
    order = np.random.default_rng(seed).permutation(len(names))
    room, held = len(groups) // 5, list[int]()
    for number in order:
        if sizes[number] <= room:
            held.append(int(names[number]))
            room -= sizes[number]
    inside = np.isin(groups, held or [names[np.argmin(sizes)]])
    return np.flatnonzero(inside), np.flatnonzero(~inside)


def _seen(texts_N: Sequence[Texts], held: NDArray[np.int64], rest: NDArray[np.int64]) -> float:
    """Share of the held-out pairs with an answer that is in one of the others too."""
    known = {text for i in rest for text in texts_N[i][1:]}
    return float(np.mean([not known.isdisjoint(texts_N[i][1:]) for i in held]))


def _bootstrap(right: Vectors, groups: NDArray[np.int64], seed: int) -> tuple[float, float]:
    """95 % interval of the mean, whole groups drawn."""
    _, place = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(place, weights=right), np.bincount(place)
    drawn = np.random.default_rng(seed).integers(0, len(sums), (2000, len(sums)))
    low, high = np.quantile(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1), [0.025, 0.975])
    return float(low), float(high)


def _report(
    margins: Vectors, longer: Vectors | None, named: Sequence[str], groups: NDArray[np.int64], count: int, seed: int
) -> RewardReport:
    right = (margins > 0) + 0.5 * (margins == 0)
    low, high = _bootstrap(right, groups, seed)
    reliability = _reliability(margins)
    error = sum(abs(claimed - happened) * pairs for claimed, happened, pairs in reliability) / len(margins)
    shorter = None if longer is None or not (longer < 0).any() else float(right[longer < 0].mean())
    correlation = None
    if longer is not None and longer.std() > 0 and margins.std() > 0:
        correlation = float(np.corrcoef(margins, longer)[0, 1])
    return RewardReport(
        pairs=count, held_out=len(margins), accuracy=float(right.mean()), interval=(low, high),
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
    right = (margins > 0) + 0.5 * (margins == 0)
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
