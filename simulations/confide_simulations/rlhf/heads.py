"""Baselines of the demo in this process: the steps that the nodes take, on differences of features that are all here.

The federated heads come from real runs. These say what one would get by pooling everything, and what each organization
gets alone: without privacy, and at the same epsilon with all of the noise its own, for which one node may use Gaussian
noise and the tighter accountant.
"""

from collections.abc import Sequence

import numpy as np
from confide.privacy.calibration import noise_multiplier
from numpy.typing import NDArray

from confide_simulations.rlhf import job

Vectors = NDArray[np.float64]


def gradient_sum(weight: Vectors, differences_ND: Vectors, clip: float) -> Vectors:
    """(D,): of -log sigmoid(w x) over pairs, each clipped."""
    margins = differences_ND @ weight
    gradients = -differences_ND / (1 + np.exp(margins))[:, None]
    norms = np.linalg.norm(gradients, axis=1)
    clipped: Vectors = (gradients * np.minimum(1.0, clip / np.maximum(norms, 1e-12))[:, None]).sum(axis=0)
    return clipped


def train(
    shards: Sequence[Vectors], *, clip: float = np.inf, batch_size: int | None = None, noise_stddev: float = 0.0,
    seed: int = 0,
) -> Vectors:  # fmt: skip
    """(D,): the head after job.ROUNDS rounds of the mean over shards, with the coordinator's momentum.

    batch_size: what each shard's sum is divided by; None: its own number of pairs. noise_stddev: of each shard's sum.
    """
    rng = np.random.default_rng(seed)
    weight = np.zeros(shards[0].shape[1])
    velocity = np.zeros_like(weight)
    for _ in range(job.ROUNDS):
        mean = np.zeros_like(weight)
        for shard in shards:
            noised = gradient_sum(weight, shard, clip) + noise_stddev * rng.normal(size=weight.size)
            mean += noised / (batch_size or len(shard)) / len(shards)
        velocity = job.MOMENTUM * velocity + mean
        weight = weight - job.LEARNING_RATE * (mean + job.MOMENTUM * velocity)
    return weight


def alone_private(shard: Vectors, epsilon: float, *, slots: int, seed: int) -> Vectors:
    """One organization at the same epsilon, all units in every step."""
    sigma = noise_multiplier(epsilon=epsilon, delta=job.DELTA, sampling_rate=1.0, steps=slots)
    return train([shard], clip=job.CLIP, batch_size=job.BATCH_SIZE, noise_stddev=sigma * job.CLIP, seed=seed)


def right(weight: Vectors, differences_ND: Vectors) -> Vectors:
    """(N,): 1 where the chosen one's reward is larger, 1/2 where they are equal."""
    margins = differences_ND @ weight
    return np.asarray((margins > 0) + 0.5 * (margins == 0), dtype=np.float64)


def paired_interval(
    one: Vectors, other: Vectors, *, seed: int = 0, resamples: int = 4000
) -> tuple[float, float, float]:
    """(mean difference, 95 % interval) over the same pairs, no two of which share a snippet: bootstrap."""
    difference = one - other
    rng = np.random.default_rng(seed)
    means = difference[rng.integers(0, len(difference), (resamples, len(difference)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(difference.mean()), float(low), float(high)
