"""Counts under record- or user-level privacy: a tokenizer run's mechanism, its noise, and what it costs.

Every unit's counts of the candidate pairs are clipped together to L2 norm `privacy.clip`, summed over the node's units,
and released once a slot with Gaussian noise, as integers on a lattice (noise/lattice.py). All units are in every sum:
nothing is sampled. So the noise depends on no data: it is public, and the coordinator can tell what stands out of it.

Guarantee: everything that leaves the node in all planned slots is (epsilon, delta)-differentially private for removing
one unit, against whoever sees it unsealed; what is done with it afterwards costs nothing.

>>> from confide.runs.specification import parse_toml
>>> plan = counting_plan(parse_toml('''
... version = 1
... name = "words"
... method.name = "tokenizer"
... federation = {rounds = 10, data = "notes", clip_norm = 1e5}
... privacy = {unit = "record", epsilon = 8.0, delta = 1e-6, clip = 4.0}
... '''), units=1000)
>>> plan.slots, round(plan.noise_multiplier, 1), plan.epsilon <= 8.0
(11, 2.2, True)
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confide.errors import DataError, SpecificationError
from confide.privacy.accounting import epsilon_by_pld
from confide.privacy.calibration import noise_multiplier
from confide.privacy.events import GaussianRelease
from confide.privacy.filter import filter_epsilon
from confide.privacy.ledger_entries import RunCost
from confide.privacy.noise.lattice import Lattice
from confide.privacy.noise.randomness import SecureRandom
from confide.privacy.plan import planned_slots, target, unit_plan
from confide.runs.specification import Specification
from confide.tokenizer.counting import Corpus
from confide.tokenizer.merging import Floors
from confide.tokenizer.state import TokenizerState

MERGE_AT, KEEP_AT = 4.5, 1.5
"""Standard deviations of the sum's noise: a pair becomes a token, or is counted again, only above.

Of 65,536 pairs that do not occur, noise alone lifts one above 4.5 in one round of five. A pair whose true count is at
4.5 is measured below 1.5 once in 700 times."""


@dataclass(frozen=True, kw_only=True)
class CountingPlan:
    """Of one run, the same on every node but for the check of delta."""

    unit: str
    noise_multiplier: float
    """Standard deviation of the noise over the clip."""
    clip: float
    slots: int
    delta: float
    epsilon: float
    """Of the whole run, by privacy loss distributions; at most what was specified."""
    epsilon_beside_others: float
    """Budget that the run takes once it shares a group with other runs."""
    cost: RunCost

    @property
    def lattice(self) -> Lattice:
        """On which counts and their noise are integers."""
        return Lattice(clip=self.clip, noise_multiplier=self.noise_multiplier)

    @property
    def noise_stddev(self) -> float:
        """Of each count that one node sends."""
        return self.noise_multiplier * self.clip

    def sum_stddev(self, contributors: int) -> float:
        """Of each opened count: every contributor adds its own noise."""
        return self.noise_stddev * math.sqrt(contributors)


def counting_plan(specification: Specification, *, units: int | None = None) -> CountingPlan:
    """The noise and spend of a private tokenizer run; on a node with its number of records (or users).

    Raises SpecificationError when delta is not below 1/units; its message holds no count.
    """
    privacy = specification.privacy
    epsilon, delta, clip = target(privacy)
    if units is not None and units < 1:
        raise DataError(f"the data set has no {privacy.unit}s to count in")
    if units is not None and delta * units >= 1:
        raise SpecificationError(
            f"privacy.delta is {delta}, which is not below one over the number of {privacy.unit}s on this node: "
            f"publishing a {privacy.unit} at random would keep that promise. Ask for a smaller delta"
        )
    slots = planned_slots(specification)
    sigma = noise_multiplier(epsilon=epsilon, delta=delta, sampling_rate=1.0, steps=slots)
    cost = RunCost(slot=(GaussianRelease(noise_multiplier=sigma),), slots=slots)
    return CountingPlan(
        unit=privacy.unit,
        noise_multiplier=sigma,
        clip=clip,
        slots=slots,
        delta=delta,
        epsilon=epsilon_by_pld(cost.whole, delta=delta),
        epsilon_beside_others=filter_epsilon(cost.whole, delta=delta),
        cost=cost,
    )


def run_cost(specification: Specification, units: int) -> RunCost:
    """What a node's ledger is asked to set aside for a record- or user-level run of any method."""
    if specification.trains_model:
        return unit_plan(specification, units).cost
    return counting_plan(specification, units=units).cost


def private_counts(
    corpus: Corpus, state: TokenizerState, plan: CountingPlan, random: SecureRandom
) -> NDArray[np.float64]:
    """float64, shape (k,): one slot's release, a GaussianRelease of the plan's noise multiplier on its lattice."""
    lattice = plan.lattice
    counts = corpus.clipped_counts(state, plan.clip, step=lattice.granularity)
    noised: NDArray[np.int64] = counts + lattice.noise(len(counts), random)
    return noised.astype(np.float64) * lattice.granularity


def floors(specification: Specification, *, contributors: int) -> Floors:
    """What the outer step goes by. Public: it depends on the specification and the number of contributors."""
    least = specification.tokenizer.min_count
    if specification.privacy.unit == "none":
        # Half a count of room: a sealed count is rounded, and is as often a little low as high.
        return Floors(merge=least - 0.5, keep=least - 0.5)
    stddev = counting_plan(specification).sum_stddev(contributors)
    return Floors(merge=max(least, MERGE_AT * stddev), keep=max(least, KEEP_AT * stddev))


def describe_counting_plan(plan: CountingPlan) -> list[str]:
    """In sentences, for operators and administrators alike: it holds nothing of anybody's data."""
    return [
        f"privacy of each {plan.unit}: its counts of all pairs are clipped together to length {plan.clip:g}; every "
        f"count that leaves the node gets Gaussian noise of standard deviation {plan.noise_stddev:.3g} (noise "
        f"multiplier {plan.noise_multiplier:.4g}), {plan.slots} times",
        f"spend of the whole run: epsilon {plan.epsilon:.3f} at delta {plan.delta:g}; beside other runs of the same "
        f"group it takes {plan.epsilon_beside_others:.3f}",
        f"a pair becomes a token only where its count stands {MERGE_AT:g} standard deviations out of the sum's noise: "
        "with too little text the vocabulary stays smaller than asked",
    ]
