"""Organization-level privacy: the noise that all nodes add together inside the sealed sum, for node and coordinator.

Everything here follows from the signed specification, the size of what is trained and the number of members. No data
is in it, so every member and the coordinator calculate the same.

    noise = organization_noise(specification, trained)       # of the run: scale, mu, cost
    share = slot_noise(specification, trained, members=7)    # of an epoch: what each of its members adds

The node's path: clip to C -> rotate -> scale -> round, again until the norm is within its bound -> add its share of
Skellam noise -> mask. docs/privacy.md, "Organization level", has the formulas.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from confide.codec.layout import VectorLayout
from confide.errors import FailureName, ProtocolFailure, SpecificationError
from confide.privacy.accounting import epsilon_by_rdp
from confide.privacy.calibration import SharedNoise, check_noise, granularity, ring_bits, shared_noise
from confide.privacy.filter import filter_epsilon
from confide.privacy.ledger_entries import RunCost
from confide.privacy.noise.randomness import SecureRandom
from confide.privacy.noise.rounding import conditionally_round
from confide.privacy.plan import Usefulness, planned_slots, target, usefulness
from confide.runs.parameters import Parameters, for_epoch, planned
from confide.runs.parameters import colluding as counted_colluding
from confide.runs.specification import Specification

SCALAR_BITS = 8
"""VectorLayout.bits of a slot with noise: digits of its exact scalars, which are constants. No choice of the run."""

NORM_TAIL = 1.5
"""An honest sum's noise is at most this much longer than its standard deviation says: see `largest_sum`."""


@dataclass(frozen=True, kw_only=True)
class OrganizationNoise:
    """The noise of one run, whoever takes part."""

    clip: float
    coordinates: int
    """D: lanes of the rotated update, padding included."""
    units: int
    """a: integer units in clip / sqrt(D)."""
    noise: SharedNoise
    cost: RunCost
    """What the ledger is asked to approve."""

    @property
    def step(self) -> float:
        """The value of one integer unit, 1/s."""
        return self.clip / (self.units * math.sqrt(self.coordinates))


@lru_cache(maxsize=16)
def organization_noise(specification: Specification, trained: int) -> OrganizationNoise:
    """Scale, noise and cost of an organization-level run that trains `trained` parameters.

    Raises ProtocolFailure PARAMETERS_IMPOSSIBLE for a promise that no noise keeps.
    """
    if specification.privacy.unit != "organization":
        raise SpecificationError(f'privacy.unit is "{specification.privacy.unit}"; this noise is for "organization"')
    epsilon, delta, clip = target(specification.privacy)
    coordinates = _layout(specification, trained, members=2, units=1, noise_bits=0).coordinates
    if coordinates == 0:
        raise SpecificationError("nothing is trained, so there is nothing to protect")
    slots = planned_slots(specification)
    units = granularity(epsilon=epsilon, delta=delta, dimension=coordinates, slots=slots)
    noise = shared_noise(
        epsilon=epsilon, delta=delta, scaled_clip=units * math.sqrt(coordinates), dimension=coordinates, slots=slots
    )
    cost = RunCost(slot=(noise.slot,), slots=slots)
    return OrganizationNoise(clip=clip, coordinates=coordinates, units=units, noise=noise, cost=cost)


def _layout(
    specification: Specification, trained: int, *, members: int, units: int, noise_bits: int, scalars: int = 0,
    rotation_seed: bytes = bytes(32),
) -> VectorLayout:  # fmt: skip
    return VectorLayout(
        parameters=trained, scalars=scalars, bits=SCALAR_BITS, members=members, clip=target(specification.privacy)[2],
        rotation_seed=rotation_seed, noise_bits=noise_bits, granularity=units,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SlotNoise:
    """What each member of one epoch adds in each slot, and the room that the sum needs."""

    run: OrganizationNoise
    members: int
    least_survivors: int
    """s_min, by the specification alone: a node whose own policy asks for more adds no less."""
    variance: float
    """Of one node, per coordinate, in squared integer units: mu / (s_min - c)."""
    lane_bits: int
    """Of the sum of all members; it wraps with probability below 1e-9, and that would hurt the model only."""

    def layout(self, specification: Specification, trained: int, *, scalars: int, rotation_seed: bytes) -> VectorLayout:
        """How a slot's noised updates become lanes."""
        without = _layout(specification, trained, members=self.members, units=self.run.units, noise_bits=0)
        return _layout(
            specification, trained, members=self.members, units=self.run.units, scalars=scalars,
            noise_bits=self.lane_bits - without.lane_bits, rotation_seed=rotation_seed,
        )  # fmt: skip

    def to_integers(self, random: SecureRandom) -> Callable[[NDArray[np.float64]], NDArray[np.int64]]:
        """What seal_vector.encode_upload asks for: conditional rounding, then this node's share of Skellam noise.

        Guarantee: together with the shares of s_min - c - 1 other honest members in the sum, the noise has at least
        the variance that the run's cost was calculated with.
        """

        def noised(scaled: NDArray[np.float64]) -> NDArray[np.int64]:
            rounded = conditionally_round(scaled, bound=self.run.noise.norm_bound, random=random)
            return rounded + random.skellam(scaled.size, variance=self.variance)

        return noised

    def check(self, contributors: int) -> None:
        """Raise ProtocolFailure NOISE_INSUFFICIENT when a sum would hold less noise than was accounted."""
        check_noise(contributors, least_survivors=self.least_survivors)

    def largest_sum(self, contributors: int) -> float:
        """L2 norm, in the update's units, that an honest sum does not exceed.

        The updates: their conditional bound. The noise: its squared norm has the mean D n v and, as Skellam's kurtosis
        exceeds the normal one by 1/v, the standard deviation D n v sqrt((2 + 1/(n v)) / D), at most 5 % of the mean
        where v >= 1 and D >= 1024. 1.5 times in length is 2.25 times in square: 23 standard deviations (Chebyshev
        0.2 %); the normal tail there is e^-220. The ring is so wide that a sum with a mask left in it is longer.
        """
        updates = contributors * math.sqrt(self.run.noise.norm_bound)
        noise = math.sqrt(self.run.coordinates * contributors * self.variance)
        return (updates + NORM_TAIL * noise) * self.run.step


@lru_cache(maxsize=64)
def slot_noise(specification: Specification, trained: int, *, members: int) -> SlotNoise:
    """The noise of an epoch of `members`.

    Raises ProtocolFailure PARAMETERS_IMPOSSIBLE: the cohort cannot keep the promise, or a lane cannot hold the noise.
    """
    return _slot_noise(specification, trained, for_epoch(specification, members, waive_colluding=True))


def _slot_noise(specification: Specification, trained: int, parameters: Parameters) -> SlotNoise:
    run = organization_noise(specification, trained)
    variance = run.noise.per_node(least_survivors=parameters.smallest_list, colluding=parameters.colluding)
    members = parameters.members
    layout = _layout(specification, trained, members=members, units=run.units, noise_bits=0)
    needed = ring_bits(members=members, levels=layout.levels, variance_per_node=variance, coordinates=run.coordinates)
    lane_bits = max(layout.lane_bits, needed)
    if lane_bits > 32:
        raise ProtocolFailure(
            FailureName.PARAMETERS_IMPOSSIBLE,
            f"the sum of {members} organizations with this much noise needs {lane_bits} bits a lane; 32 is the most. "
            "Train fewer parameters, or ask for a larger epsilon or fewer rounds",
        )
    return SlotNoise(
        run=run, members=members, least_survivors=parameters.smallest_list, variance=variance, lane_bits=lane_bits
    )


def largest_mean(specification: Specification, trained: int) -> float:
    """L2 norm that the mean of an honest sum does not exceed, whatever epoch it came from: for the model chain.

    The noise of a mean is longest in the smallest sum that any epoch allows: q > (n + c) / 2 with n >= c + 2 members.
    """
    run, colluding = organization_noise(specification, trained), counted_colluding(specification, 0)
    fewest = max(specification.federation.min_cohort, colluding + 2)
    variance = run.noise.per_node(least_survivors=fewest, colluding=colluding)
    least = SlotNoise(run=run, members=fewest, least_survivors=fewest, variance=variance, lane_bits=0)
    return least.largest_sum(fewest) / fewest


@dataclass(frozen=True, kw_only=True)
class OrganizationPlan:
    """Organization level: what every node adds, and what it costs each. Public: it depends on no data."""

    slot: SlotNoise
    colluding: int
    trained: int
    slots: int
    delta: float
    epsilon: float
    """By Renyi divergences; at most what was specified."""
    epsilon_beside_others: float

    @property
    def noise_stddev(self) -> float:
        """Of each rotated coordinate of the sum, of the noise that counts, in the update's units."""
        return math.sqrt(self.slot.run.noise.variance) * self.slot.run.step

    @property
    def signal_to_noise(self) -> float:
        """Norm of the largest possible sum of all rounds over the norm of its noise: n sqrt(T) C / (stddev sqrt(D))."""
        signal = self.slot.members * math.sqrt(self.slots) * self.slot.run.clip
        return signal / (self.noise_stddev * math.sqrt(max(1, self.trained)))

    @property
    def usefulness(self) -> Usefulness:
        """By signal_to_noise: below 0.1 useless, below 1 weak."""
        return usefulness(self.signal_to_noise, weak_below=1.0, useless_below=0.1)

    @property
    def members_needed(self) -> int:
        """Organizations for a signal as large as the noise, everything else unchanged."""
        return math.ceil(self.slot.members / self.signal_to_noise)


def organization_plan(specification: Specification, *, members: int, trained: int) -> OrganizationPlan:
    """The noise of an organization-level run with `members` nodes that train `trained` parameters.

    Raises ProtocolFailure PARAMETERS_IMPOSSIBLE: the cohort cannot keep the promise, or a lane cannot hold the noise.
    """
    parameters = planned(specification, members)
    slot = _slot_noise(specification, trained, parameters)
    _, delta, _ = target(specification.privacy)
    cost = slot.run.cost
    return OrganizationPlan(
        slot=slot, colluding=parameters.colluding, trained=trained, slots=cost.slots, delta=delta,
        epsilon=epsilon_by_rdp(cost.whole, delta=delta), epsilon_beside_others=filter_epsilon(cost.whole, delta=delta),
    )  # fmt: skip
