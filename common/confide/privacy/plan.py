"""What a run's privacy section means in numbers: on a node with its own data, and in public with examples.

The batch size is specified and public; a node divides it by its own number of units to get the sampling rate, and
from that the noise. That number of units (N) never leaves the node: a plan is for the operator's eyes, and the text of
a refusal, which travels, holds no count.

>>> from confide.runs.specification import EXAMPLE, parse_toml
>>> section = '[privacy]\\nunit = "record"\\nepsilon = 8.0\\ndelta = 1e-5\\nclip = 1.0\\n'
>>> plan = unit_plan(parse_toml(EXAMPLE + section), units=2000)
>>> plan.slots, plan.steps, plan.sampling_rate, plan.usefulness.value
(4, 12, 0.004, 'useless')
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from confide.codec.layout import VectorLayout
from confide.errors import DataError, FailureName, ProtocolFailure, SpecificationError
from confide.privacy.accounting import epsilon_by_pld, epsilon_by_rdp
from confide.privacy.calibration import SharedNoise, noise_multiplier, noise_multiplier_by_rdp, ring_bits, shared_noise
from confide.privacy.events import SampledGaussian
from confide.privacy.filter import filter_epsilon
from confide.privacy.ledger_entries import RunCost
from confide.runs.specification import Privacy, Specification
from confide.sealing.parameters import Parameters
from confide.sealing.roles import Metric

SPARE_FRACTION = 0.1
"""Of the rounds: further slots that the noise pays for, because an abandoned slot is charged and tried again."""


class Usefulness(StrEnum):
    """A rule of thumb over signal_to_noise; only training shows the truth (docs/privacy.md)."""

    USEFUL = "useful"
    WEAK = "weak"
    USELESS = "useless"


def planned_slots(specification: Specification) -> int:
    """Slots that the run's privacy pays for: its rounds, and a tenth more for repeated attempts if there may be any."""
    rounds = specification.federation.rounds
    return rounds + (math.ceil(SPARE_FRACTION * rounds) if specification.sealing.max_attempts > 1 else 0)


def allowed_metrics(specification: Specification) -> frozenset[Metric]:
    """What a node may report beside its update: everything without privacy, nothing with it, as nothing is noised."""
    return frozenset(Metric) if specification.privacy.unit == "none" else frozenset()


def check_metrics(specification: Specification, metrics: Iterable[Metric]) -> None:
    """Raise ProtocolFailure METRIC_NOT_ALLOWED for a metric that would leave a private run unaccounted."""
    surplus = sorted(set(metrics) - allowed_metrics(specification))
    if surplus:
        raise ProtocolFailure(
            FailureName.METRIC_NOT_ALLOWED,
            f"{', '.join(surplus)} would be reported in a run that protects each {specification.privacy.unit}; "
            "metrics are not noised, so none may leave",
        )


def check_user_key(records: Iterable[Mapping[str, Any]], specification: Specification) -> None:
    """Raise DataError unless every record names its user, under user-level privacy. The message holds no data."""
    key = specification.privacy.user_key
    if specification.privacy.unit != "user" or key is None:
        return
    for record in records:
        value = record.get(key)
        if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
            raise DataError(
                f"privacy.user_key is {key!r}, but a record lacks that field or it is empty. Give every record its "
                'user\'s text or number, or ask for privacy.unit = "record"'
            )


def target(privacy: Privacy) -> tuple[float, float, float]:
    """(epsilon, delta, clip) of a private run; raises SpecificationError without privacy."""
    if privacy.epsilon is None or privacy.delta is None or privacy.clip is None:
        raise SpecificationError(f'privacy.unit is "{privacy.unit}": there is nothing to calculate')
    return privacy.epsilon, privacy.delta, privacy.clip


@dataclass(frozen=True, kw_only=True)
class UnitPlan:
    """Record or user level, on one node. Epsilons are of the whole run at `delta`."""

    unit: str
    units: int
    """N. Private to the node."""
    batch_size: int
    """Expected number of units in a batch; what sums are divided by, always."""
    sampling_rate: float
    """q = batch_size / N, at most 1."""
    noise_multiplier: float
    """Standard deviation of the noise on the sum over the clip."""
    noise_multiplier_by_rdp: float
    """What the looser accountant would have asked for: for comparison."""
    clip: float
    slots: int
    steps: int
    """Over all slots."""
    delta: float
    epsilon: float
    """By privacy loss distributions; at most what was specified."""
    epsilon_by_rdp: float
    """By Renyi divergences: for comparison."""
    epsilon_beside_others: float
    """Budget that the run takes once it shares a group with other runs."""
    trained: int | None
    cost: RunCost
    """What the ledger is asked to approve."""

    @property
    def noise_stddev(self) -> float:
        """Of each coordinate of the mean gradient of one step."""
        return self.noise_multiplier * self.clip / self.batch_size

    @property
    def signal_to_noise(self) -> float:
        """Largest total push of all steps over the noise they add up to, in one direction: B sqrt(T) / sigma."""
        return self.batch_size * math.sqrt(self.steps) / self.noise_multiplier

    @property
    def usefulness(self) -> Usefulness:
        """By signal_to_noise: below 100 useless, below 1000 weak."""
        return _usefulness(self.signal_to_noise, weak_below=1000.0, useless_below=100.0)


def _usefulness(signal_to_noise: float, *, weak_below: float, useless_below: float) -> Usefulness:
    if signal_to_noise < useless_below:
        return Usefulness.USELESS
    return Usefulness.WEAK if signal_to_noise < weak_below else Usefulness.USEFUL


def unit_plan(specification: Specification, units: int, *, trained: int | None = None) -> UnitPlan:
    """The exact noise and spend of a record- or user-level run on a node with `units` records (or users).

    trained: number of trained parameters, if known. The same specification and N always give the same plan.
    Raises SpecificationError when delta is not below 1/N or there is nothing to protect; its message holds no count.
    """
    privacy = specification.privacy
    if privacy.unit not in ("record", "user"):
        raise SpecificationError(f'privacy.unit is "{privacy.unit}"; a plan by units is for "record" and "user"')
    epsilon, delta, clip = target(privacy)
    if units < 1:
        raise DataError(f"the data set has no {privacy.unit}s to train on")
    if delta * units >= 1:
        raise SpecificationError(
            f"privacy.delta is {delta}, which is not below one over the number of {privacy.unit}s on this node: "
            f"publishing a {privacy.unit} at random would keep that promise. Ask for a smaller delta"
        )
    slots, batch = planned_slots(specification), specification.training.batch_size
    rate, local_steps = min(1.0, batch / units), specification.training.local_steps
    if local_steps < 1:
        raise SpecificationError("training.local_steps is 0: nothing is trained, so there is nothing to protect")
    steps = slots * local_steps
    sigma = noise_multiplier(epsilon=epsilon, delta=delta, sampling_rate=rate, steps=steps)
    by_rdp = noise_multiplier_by_rdp(epsilon=epsilon, delta=delta, sampling_rate=rate, steps=steps)
    slot = SampledGaussian(noise_multiplier=sigma, sampling_rate=rate, steps=local_steps)
    cost = RunCost(slot=(slot,), slots=slots)
    return UnitPlan(
        unit=privacy.unit, units=units, batch_size=batch, sampling_rate=rate, noise_multiplier=sigma,
        noise_multiplier_by_rdp=by_rdp, clip=clip, slots=slots, steps=steps, delta=delta,
        epsilon=epsilon_by_pld(cost.whole, delta=delta), epsilon_by_rdp=epsilon_by_rdp(cost.whole, delta=delta),
        epsilon_beside_others=filter_epsilon(cost.whole, delta=delta), trained=trained, cost=cost,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OrganizationPlan:
    """Organization level: what every node adds, and what it costs each. Public: it depends on no data."""

    members: int
    least_survivors: int
    """s_min: fewest organizations in an opened sum, else NOISE_INSUFFICIENT."""
    colluding: int
    trained: int
    clip: float
    slots: int
    delta: float
    epsilon: float
    """By Renyi divergences; at most what was specified."""
    epsilon_beside_others: float
    noise: SharedNoise
    noise_bits: int
    """VectorLayout.noise_bits: room in a lane for all members' noise."""
    step: float
    """The value of one integer unit."""
    cost: RunCost

    @property
    def noise_stddev(self) -> float:
        """Of each rotated coordinate of the sum, of the noise that counts, in the update's units."""
        return math.sqrt(self.noise.variance) * self.step

    def variance_per_node(self, *, least_survivors: int, colluding: int) -> float:
        """What each node adds, in squared integer units, in an epoch with these s_min and c: mu / (s_min - c)."""
        if least_survivors <= colluding:
            raise ProtocolFailure(
                FailureName.PARAMETERS_IMPOSSIBLE,
                f"{colluding} of {least_survivors} organizations collude: nobody honest adds noise",
            )
        return self.noise.variance / (least_survivors - colluding)

    @property
    def signal_to_noise(self) -> float:
        """Norm of the largest possible sum of all rounds over the norm of its noise: n sqrt(T) C / (stddev sqrt(D))."""
        return self.members * math.sqrt(self.slots) * self.clip / (self.noise_stddev * math.sqrt(max(1, self.trained)))

    @property
    def usefulness(self) -> Usefulness:
        """By signal_to_noise: below 0.1 useless, below 1 weak."""
        return _usefulness(self.signal_to_noise, weak_below=1.0, useless_below=0.1)

    @property
    def members_needed(self) -> int:
        """Organizations for a signal as large as the noise, everything else unchanged."""
        return math.ceil(self.members / self.signal_to_noise)


def organization_plan(specification: Specification, *, members: int, trained: int) -> OrganizationPlan:
    """The noise of an organization-level run with `members` nodes that train `trained` parameters.

    Raises ProtocolFailure PARAMETERS_IMPOSSIBLE: the cohort cannot keep the promise, or a lane cannot hold the noise.
    """
    if specification.privacy.unit != "organization":
        raise SpecificationError(f'privacy.unit is "{specification.privacy.unit}"; this plan is for "organization"')
    epsilon, delta, clip = target(specification.privacy)
    sealing = specification.sealing
    parameters = Parameters.of(
        members=members,
        colluding=sealing.colluding,
        min_cohort=specification.federation.min_cohort,
        max_missing=sealing.max_missing,
    )
    layout = VectorLayout(
        parameters=trained, scalars=0, bits=sealing.bits, members=members, clip=clip, rotation_seed=bytes(32)
    )
    slots = planned_slots(specification)
    noise = shared_noise(
        epsilon=epsilon, delta=delta, scaled_clip=layout.clip / layout.step, dimension=layout.coordinates, slots=slots,
        least_survivors=parameters.smallest_list, colluding=parameters.colluding,
    )  # fmt: skip
    lane_bits = ring_bits(
        members=members, levels=layout.levels, variance_per_node=noise.variance_per_node, coordinates=layout.coordinates
    )
    if lane_bits > 32:
        raise ProtocolFailure(
            FailureName.PARAMETERS_IMPOSSIBLE,
            f"{sealing.bits}-bit coordinates with this much noise need {lane_bits} bits a lane; 32 is the most. "
            "Lower sealing.bits, train fewer parameters, or ask for a larger epsilon",
        )
    cost = RunCost(slot=(noise.slot,), slots=slots)
    return OrganizationPlan(
        members=members, least_survivors=parameters.smallest_list, colluding=parameters.colluding, trained=trained,
        clip=clip, slots=slots, delta=delta, epsilon=epsilon_by_rdp(cost.whole, delta=delta),
        epsilon_beside_others=filter_epsilon(cost.whole, delta=delta), noise=noise,
        noise_bits=max(0, lane_bits - layout.lane_bits), step=layout.step, cost=cost,
    )  # fmt: skip
