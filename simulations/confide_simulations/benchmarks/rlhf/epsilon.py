"""Accuracy of the federated reward head against epsilon: pooled, all four organizations together, and each alone.

The heads take the steps that nodes take (rlhf.heads), with the noise that all of them together put into a sealed sum:
its variance is what privacy.shared_units says for these runs, so that an epsilon here is that of the demo's real runs.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from confide.privacy.plan import planned_slots
from confide.privacy.shared import slot_noise
from confide_server.rlhf.reward_model import FeatureReader
from numpy.typing import NDArray

from confide_simulations import assets
from confide_simulations.demo.shards import NAMES
from confide_simulations.rlhf import comparisons, heads, job

Vectors = NDArray[np.float64]
EPSILONS = (0.5, 1.0, 2.0, 3.0, 8.0)
SEEDS = (7, 8, 9)
SNIPPETS, PAIRS, TEST_SNIPPETS, TEST_PAIRS = 500, 914, 1300, 450
_Z95 = 1.96


def measure(say: Callable[[str], None]) -> dict[str, Any]:
    """Accuracies by arm and epsilon: mean over seeds, and a 95 % interval over seeds and pairs."""
    found = comparisons.snippets(say)
    splits = [_split(found, seed) for seed in SEEDS]
    texts = sorted({pair[side] for split in splits for pair in _all(split) for side in ("chosen", "rejected")})
    say(f"features of {len(texts)} snippets, {len(SEEDS)} draws of data")
    reader = FeatureReader(assets.minilm(say), "mean", job.MAX_LENGTH)
    features = dict(zip(texts, reader.of(["" for _ in texts], texts).astype(np.float64), strict=True))
    right: dict[str, list[Vectors]] = {}
    for split, seed in zip(splits, SEEDS, strict=True):
        shards = [_differences(features, split.organizations[name]) for name in NAMES]
        test = _differences(features, split.test)
        for name, values in _arms(shards, test, seed).items():
            right.setdefault(name, []).append(values)
    return {
        "seeds": list(SEEDS), "test_pairs": TEST_PAIRS, "pairs_each": PAIRS, "organizations": len(NAMES),
        "delta": job.DELTA, "accuracy": {name: _interval(values) for name, values in right.items()},
    }  # fmt: skip


def _split(found: list[comparisons.Snippet], seed: int) -> comparisons.Split:
    return comparisons.split(
        found, NAMES, snippets_each=SNIPPETS, pairs_each=PAIRS, test_snippets=TEST_SNIPPETS, test_pairs=TEST_PAIRS,
        judge_snippets=300, seed=seed,
    )  # fmt: skip


def _all(split: comparisons.Split) -> list[comparisons.Pair]:
    return [pair for pairs in (*split.organizations.values(), split.test) for pair in pairs]


def _differences(features: dict[str, Vectors], pairs: tuple[comparisons.Pair, ...]) -> Vectors:
    return np.stack([features[pair["chosen"]] - features[pair["rejected"]] for pair in pairs])


def _arms(shards: list[Vectors], test: Vectors, seed: int) -> dict[str, Vectors]:
    """Whether each test pair is right, by arm; alone: the mean over organizations."""
    arms = {
        "pooled": heads.right(heads.train([np.concatenate(shards)]), test),
        "federated": heads.right(heads.train(shards), test),
        "alone": np.mean([heads.right(heads.train([shard]), test) for shard in shards], axis=0),
    }
    for epsilon in EPSILONS:
        specification = job.specification("0" * 63 + "1", nodes=len(shards), epsilon=epsilon)
        together = heads.train(
            shards, clip=job.CLIP, batch_size=job.BATCH_SIZE, noise_stddev=_own_share(specification, test.shape[1]),
            seed=seed,
        )  # fmt: skip
        slots = planned_slots(specification)
        alone = [heads.alone_private(shard, epsilon, slots=slots, seed=seed) for shard in shards]
        arms[f"federated {epsilon:g}"] = heads.right(together, test)
        arms[f"alone {epsilon:g}"] = np.mean([heads.right(weight, test) for weight in alone], axis=0)
    return arms


def _own_share(specification: Any, width: int) -> float:
    """Standard deviation that one of the nodes adds to its sum of clipped gradients, in the gradient's units."""
    noise: Any = slot_noise(specification, width, members=len(NAMES))
    return float(math.sqrt(noise.variance) * noise.run.grid.granularity)


def _interval(values: list[Vectors]) -> dict[str, float | list[float]]:
    by_seed = [float(one.mean()) for one in values]
    spread = float(np.var(by_seed, ddof=1)) / len(by_seed)
    pairs = float(np.mean([np.var(one) / len(one) for one in values])) / len(values)
    half = _Z95 * math.sqrt(max(spread, pairs))
    mean = float(np.mean(by_seed))
    return {"mean": mean, "low": mean - half, "high": mean + half, "by_seed": by_seed}


def plot(result: dict[str, Any], path: Path) -> None:
    """Accuracy against epsilon, all organizations and one alone, between the lines without privacy."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = result["accuracy"]
    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for arm, label in (("federated", "four organizations together"), ("alone", "one organization alone")):
        means = [found[f"{arm} {epsilon:g}"]["mean"] for epsilon in EPSILONS]
        below = [found[f"{arm} {epsilon:g}"]["mean"] - found[f"{arm} {epsilon:g}"]["low"] for epsilon in EPSILONS]
        axes.errorbar(EPSILONS, means, yerr=below, marker="o", capsize=4, label=label)
        axes.axhline(found[arm]["mean"], color="0.3" if arm == "federated" else "0.6", linestyle="--", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(EPSILONS), [f"{epsilon:g}" for epsilon in EPSILONS])
    axes.set_xlabel(f"epsilon of each comparison, delta {result['delta']:g}; dashed: without privacy")
    axes.set_ylabel("held-out pairs ranked as people do")
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
