"""Record- and user-level privacy whose noise all nodes add together inside the sealed sum (privacy.noise = "shared").

One step a round. Each node takes the gradient of every one of its units at the round's model, clips it to C, rounds it
towards zero to integers of L2 norm at most L = 2^bits, and adds them up, exactly. The sum, not rotated and not rounded
again, gets the node's share of Skellam noise and is masked. What anybody sees is the sum over all nodes.

Guarantee: let any s_min members be in each opened sum and c of them collude with the coordinator. What they see of a
slot is (the sum of all units' integers but their own) + Skellam noise of variance at least mu in each coordinate, since
the shares mu / (s_min - c) of the s_min - c honest ones add up to mu, and a sum of independent Skellam variables is
one. Replacing one unit by nothing moves the sum of integers by a vector of L2 norm at most L and L1 norm at most
L min(sqrt(D), L). So a slot is the event SkellamRelease(mu, L, L1), charged for every slot; models that follow from
opened sums are post-processing. It holds against whoever sees sums, and not, as with noise = "own", against whoever
sees this node's upload without its masks: it presupposes sealing (docs/privacy.md, "Shared noise").
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from confide.codec.layout import MAX_INTEGER, VectorLayout
from confide.errors import FailureName, ProtocolFailure, SpecificationError
from confide.privacy.accounting import epsilon_by_rdp
from confide.privacy.calibration import SharedNoise, check_noise, noise_reach, noise_within
from confide.privacy.filter import filter_epsilon
from confide.privacy.ledger_entries import RunCost
from confide.privacy.noise.randomness import SecureRandom
from confide.privacy.plan import planned_slots, target
from confide.runs.parameters import Parameters, for_epoch, planned
from confide.runs.parameters import colluding as counted_colluding
from confide.runs.specification import Specification

SCALAR_BITS = 8
FINEST_BITS = 14
"""A unit's clip is at most 2^14 steps: rounding towards zero then shortens it by far less than the noise moves it."""
COARSEST_BITS = 6
NORM_TAIL = 1.5
"""As organization.NORM_TAIL."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """confide.privacy.noise.lattice.Grid: a unit's clip is 2^bits steps."""

    clip: float
    bits: int

    @property
    def bound(self) -> int:
        """L: largest L2 norm of one unit's integers."""
        return 1 << self.bits

    @property
    def granularity(self) -> float:
        """One step in the gradient's units."""
        return math.ldexp(self.clip, -self.bits)


@dataclass(frozen=True, kw_only=True)
class UnitNoise:
    """The noise of one run, whoever takes part and however many units they have. No data is in it."""

    grid: Grid
    trained: int
    batch_size: int
    """B: what every node's sum is divided by; a constant."""
    learning_rate: float
    noise: SharedNoise
    cost: RunCost

    @property
    def step(self) -> float:
        """What one integer is worth in the update: learning_rate * granularity / batch_size."""
        return self.learning_rate * self.grid.granularity / self.batch_size

    @property
    def levels(self) -> int:
        """Where a node's sum is clamped, coordinate by coordinate, which moves no two sums further apart: B clips."""
        return self.grid.bound * self.batch_size


@lru_cache(maxsize=16)
def unit_noise(specification: Specification, trained: int) -> UnitNoise:
    """Scale, noise and cost of a run with shared noise that trains `trained` parameters.

    Raises ProtocolFailure PARAMETERS_IMPOSSIBLE for a promise that no noise keeps.
    """
    privacy, training = specification.privacy, specification.training
    if privacy.noise != "shared":
        raise SpecificationError(f'privacy.noise is "{privacy.noise}"; this noise is for "shared"')
    if trained < 1:
        raise SpecificationError("nothing is trained, so there is nothing to protect")
    epsilon, delta, clip = target(privacy)
    bits = min(FINEST_BITS, (MAX_INTEGER // training.batch_size).bit_length() - 1)
    if bits < COARSEST_BITS:
        raise SpecificationError(
            f"training.batch_size is {training.batch_size}; with shared noise at most {MAX_INTEGER >> COARSEST_BITS}"
        )
    slots = planned_slots(specification)
    noise = noise_within(epsilon=epsilon, delta=delta, norm_bound=1 << (2 * bits), dimension=trained, slots=slots)
    return UnitNoise(
        grid=Grid(clip=clip, bits=bits), trained=trained, batch_size=training.batch_size,
        learning_rate=training.learning_rate, noise=noise, cost=RunCost(slot=(noise.slot,), slots=slots),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class UnitSlotNoise:
    """confide.privacy.shared.SlotNoise."""

    run: UnitNoise
    members: int
    least_survivors: int
    """s_min, by the specification alone: a node whose own policy asks for more adds no less."""
    variance: float
    """Of one node, per coordinate, in squared integer units: mu / (s_min - c)."""
    lane_bits: int

    def layout(self, specification: Specification, trained: int, *, scalars: int, rotation_seed: bytes) -> VectorLayout:
        """Integers as they are, with room for all members' sums and noise."""
        room = VectorLayout(
            parameters=0, scalars=0, bits=SCALAR_BITS, members=self.members, clip=1.0, rotation_seed=rotation_seed
        )
        return VectorLayout(
            parameters=trained, scalars=scalars, bits=SCALAR_BITS, members=self.members,
            clip=self.run.levels * self.run.step * math.sqrt(trained), rotation_seed=rotation_seed,
            noise_bits=max(0, self.lane_bits - room.lane_bits),
            integer_step=self.run.step, integer_levels=self.run.levels,
        )  # fmt: skip

    def to_integers(self, random: SecureRandom) -> Callable[[NDArray[np.float64]], NDArray[np.int64]]:
        """This node's share of Skellam noise on integers that are exact in float64."""

        def noised(integers: NDArray[np.float64]) -> NDArray[np.int64]:
            return integers.astype(np.int64) + random.skellam(integers.size, variance=self.variance)

        return noised

    def check(self, contributors: int) -> None:
        """Raise ProtocolFailure NOISE_INSUFFICIENT when a sum would hold less noise than was accounted."""
        check_noise(contributors, least_survivors=self.least_survivors)

    def largest_sum(self, contributors: int) -> float:
        """As organization.SlotNoise.largest_sum: the sums' clamp, and 1.5 times the noise's length beside it."""
        sums = contributors * self.run.levels * math.sqrt(self.run.trained)
        noise = math.sqrt(max(1024, self.run.trained) * contributors * self.variance)
        return (sums + NORM_TAIL * noise) * self.run.step


@lru_cache(maxsize=64)
def slot_noise(specification: Specification, trained: int, *, members: int) -> UnitSlotNoise:
    """The noise of an epoch of `members`.

    Raises ProtocolFailure PARAMETERS_IMPOSSIBLE: the cohort cannot keep the promise, or a lane cannot hold the noise.
    """
    return _slot_noise(specification, trained, for_epoch(specification, members, waive_colluding=True))


def _slot_noise(specification: Specification, trained: int, parameters: Parameters) -> UnitSlotNoise:
    run = unit_noise(specification, trained)
    variance = run.noise.per_node(least_survivors=parameters.smallest_list, colluding=parameters.colluding)
    members = parameters.members
    reach = members * run.levels + noise_reach(variance=members * variance, coordinates=max(1024, trained))
    lane_bits = (2 * reach + 1).bit_length()
    if lane_bits > 32:
        raise ProtocolFailure(
            FailureName.PARAMETERS_IMPOSSIBLE,
            f"the sum of {members} organizations with this much noise needs {lane_bits} bits a lane; 32 is the most. "
            "Ask for a smaller training.batch_size, a larger epsilon or fewer rounds",
        )
    return UnitSlotNoise(
        run=run, members=members, least_survivors=parameters.smallest_list, variance=variance, lane_bits=lane_bits
    )


def largest_mean(specification: Specification, trained: int) -> float:
    """L2 norm that the mean of an honest sum does not exceed, whatever epoch it came from: for the model chain."""
    run, colluding = unit_noise(specification, trained), counted_colluding(specification, 0)
    fewest = max(specification.federation.min_cohort, colluding + 2)
    variance = run.noise.per_node(least_survivors=fewest, colluding=colluding)
    least = UnitSlotNoise(run=run, members=fewest, least_survivors=fewest, variance=variance, lane_bits=0)
    return least.largest_sum(fewest) / fewest


@dataclass(frozen=True, kw_only=True)
class SharedUnitPlan:
    """What every node adds, and what it costs each. Public: it depends on no data."""

    unit: str
    slot: UnitSlotNoise
    colluding: int
    delta: float
    epsilon: float
    """Of the whole run, by Renyi divergences; at most what was specified."""
    epsilon_beside_others: float

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of the noise that counts, over the clip."""
        return math.sqrt(self.slot.run.noise.variance) / self.slot.run.grid.bound

    def units_needed(self) -> int:
        """Over all nodes together, for a mean gradient whose noise over all rounds is a tenth of the clip in length."""
        run = self.slot.run
        return math.ceil(10 * self.noise_multiplier * math.sqrt(run.trained / run.cost.slots))


def shared_unit_plan(specification: Specification, *, members: int, trained: int) -> SharedUnitPlan:
    """The noise of a run with `members` nodes that train `trained` parameters. Raises PARAMETERS_IMPOSSIBLE."""
    parameters = planned(specification, members)
    slot = _slot_noise(specification, trained, parameters)
    _, delta, _ = target(specification.privacy)
    cost = slot.run.cost
    return SharedUnitPlan(
        unit=specification.privacy.unit, slot=slot, colluding=parameters.colluding, delta=delta,
        epsilon=epsilon_by_rdp(cost.whole, delta=delta), epsilon_beside_others=filter_epsilon(cost.whole, delta=delta),
    )  # fmt: skip
