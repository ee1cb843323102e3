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

from confide.errors import DataError, SpecificationError
from confide.privacy.accounting import epsilon_by_pld, epsilon_by_rdp
from confide.privacy.calibration import noise_multiplier, noise_multiplier_by_rdp
from confide.privacy.events import SampledGaussian
from confide.privacy.filter import filter_epsilon
from confide.privacy.ledger_entries import RunCost
from confide.runs.sections import Privacy
from confide.runs.specification import Specification

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
        return usefulness(self.signal_to_noise, weak_below=1000.0, useless_below=100.0)


def usefulness(signal_to_noise: float, *, weak_below: float, useless_below: float) -> Usefulness:
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
