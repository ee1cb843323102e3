"""Plans in sentences, for `confide node plan` (exact, private) and `confide run plan` (examples, public).

>>> from confide.runs.specification import EXAMPLE, parse_toml
>>> section = '[privacy]\\nunit = "record"\\nepsilon = 8.0\\ndelta = 1e-5\\nclip = 1.0\\n'
>>> lines, warnings = describe_unit_plan(unit_plan(parse_toml(EXAMPLE + section), units=2000))
>>> warnings[0][:16]
'too few records:'
"""

import math

from confide.errors import ConfideError
from confide.privacy.organization import OrganizationPlan, organization_plan
from confide.privacy.plan import UnitPlan, Usefulness, planned_slots, target, unit_plan
from confide.privacy.shared_units import SharedUnitPlan, shared_unit_plan
from confide.runs.specification import Specification

EXAMPLE_UNITS = (1_000, 10_000, 100_000)
"""Sizes of invented nodes in a public plan."""

_PROMISE = {
    "record": "whoever sees everything that leaves this node learns almost the same whether or not any one record "
    "was in the data",
    "user": "whoever sees everything that leaves this node learns almost the same whether or not all records of any "
    "one user were in the data",
    "organization": "whoever sees the models learns almost the same whether or not any one organization contributed",
}


def describe_unit_plan(plan: UnitPlan) -> tuple[list[str], list[str]]:
    """(lines, warnings) for the operator of the node. They hold N: they are shown here and sent nowhere."""
    lines = [
        f"privacy of each {plan.unit}: {_PROMISE[plan.unit]}",
        f"batches: each of {plan.units} {plan.unit}s is in a batch with probability q = {plan.batch_size} / "
        f"{plan.units} = {plan.sampling_rate:.6g}, {plan.steps} times ({plan.slots} slots; a slot is one attempt at "
        "a round, and some are spare)",
        f"noise multiplier {plan.noise_multiplier:.4g} (a looser accountant, Renyi, would need "
        f"{plan.noise_multiplier_by_rdp:.4g}): each coordinate of a step's mean gradient gets noise of standard "
        f"deviation {plan.noise_stddev:.3g}, against at most {plan.clip:g} in length from the data",
        f"spend of the whole run: epsilon {plan.epsilon:.3f} at delta {plan.delta:g} (by Renyi: "
        f"{plan.epsilon_by_rdp:.3f}); beside other runs of the same group it takes {plan.epsilon_beside_others:.3f}",
        f"signal to noise in one direction over the whole run: at most {plan.signal_to_noise:.0f}",
    ]
    return lines, _unit_warnings(plan)


def _unit_warnings(plan: UnitPlan) -> list[str]:
    warnings = []
    if plan.usefulness is not Usefulness.USEFUL:
        degree = (
            "the noise will drown what could be learned"
            if plan.usefulness is Usefulness.USELESS
            else ("expect to learn little")
        )
        warnings.append(
            f"too few {plan.unit}s: signal to noise is {plan.signal_to_noise:.0f} and useful training starts around "
            f"1000; {degree}. More {plan.unit}s, larger batches, more steps or a larger epsilon help; a smaller "
            "clip does not"
        )
    if plan.batch_size > plan.units:
        warnings.append(
            f"the batch size exceeds the number of {plan.unit}s, so every step uses all of them and sampling hides "
            "nothing; ask for a smaller batch"
        )
    if plan.trained is not None and plan.signal_to_noise < 0.1 * math.sqrt(plan.trained):
        warnings.append(
            f"{plan.trained:,} parameters share a signal that is {plan.signal_to_noise / math.sqrt(plan.trained):.3f} "
            "of the noise in length; train fewer of them (a lower rank, fewer layers)"
        )
    return warnings + _strength_warning(plan.epsilon)


def _strength_warning(epsilon: float) -> list[str]:
    if epsilon <= 10:
        return []
    return [
        f"epsilon {epsilon:.1f} promises little: the odds of any guess may change by a factor of "
        f"{math.exp(min(epsilon, 700.0)):.2g}"
    ]


def describe_organization_plan(plan: OrganizationPlan) -> tuple[list[str], list[str]]:
    """(lines, warnings); public, as they depend on no data."""
    slot, relative = plan.slot, plan.noise_stddev / plan.slot.run.clip
    lines = [
        f"privacy of each organization: {_PROMISE['organization']}",
        f"{slot.members} organizations each add Skellam noise; any {slot.least_survivors} of them, {plan.colluding} "
        f"of those dishonest, still add enough. With fewer in a sum it is not opened (NOISE_INSUFFICIENT)",
        f"noise on each coordinate of a sum: standard deviation {plan.noise_stddev:.3g}, which is {relative:.3g} of "
        f"the clip; {plan.slots} sums may be opened; {slot.lane_bits} bits a coordinate travel (sealing.bits has no "
        "say here: the noise decides)",
        f"spend of the whole run: epsilon {plan.epsilon:.3f} at delta {plan.delta:g}; beside other runs of the same "
        f"group it takes {plan.epsilon_beside_others:.3f}",
    ]
    warnings = []
    if plan.usefulness is not Usefulness.USEFUL:
        degree = "the model would be noise" if plan.usefulness is Usefulness.USELESS else "expect to learn little"
        warnings.append(
            f"too few organizations: the largest possible sum over all rounds has {plan.signal_to_noise:.2g} times "
            f"the length of its noise; {degree}. About {plan.members_needed:,} organizations would be needed, or "
            f"fewer than {plan.trained:,} trained parameters. Record- or user-level privacy suits small consortia"
        )
    return lines, warnings + _strength_warning(plan.epsilon)


def describe_shared_unit_plan(plan: SharedUnitPlan) -> tuple[list[str], list[str]]:
    """(lines, warnings); public: the noise does not depend on how many units a node has."""
    slot, run = plan.slot, plan.slot.run
    lines = [
        f"privacy of each {plan.unit}: whoever sees sums, models and everything that follows from them learns almost "
        f"the same whether or not any one {plan.unit} was in the data; THE NOISE IS SHARED: who sees this node's "
        "upload without its masks is not held to that",
        f"{slot.members} organizations each add Skellam noise; any {slot.least_survivors} of them, {plan.colluding} of "
        "those dishonest, still add enough. With fewer in a sum it is not opened (NOISE_INSUFFICIENT)",
        f"every {plan.unit} is in every step; noise multiplier {plan.noise_multiplier:.4g}: each coordinate of a sum "
        f"over all nodes gets noise of standard deviation {plan.noise_multiplier * run.grid.clip:.3g}, against at most "
        f"{run.grid.clip:g} in length from one {plan.unit}; {run.cost.slots} sums may be opened; "
        f"{slot.lane_bits} bits a coordinate travel",
        f"spend of the whole run: epsilon {plan.epsilon:.3f} at delta {plan.delta:g}; beside other runs of the same "
        f"group it takes {plan.epsilon_beside_others:.3f}",
        f"expect a useful model from about {plan.units_needed():,} {plan.unit}s over all organizations together; with "
        "fewer the noise decides",
    ]
    return lines, _strength_warning(plan.epsilon)


def public_plan(
    specification: Specification, *, members: int | None = None, trained: int | None = None
) -> tuple[list[str], list[str]]:
    """(lines, warnings) for an administrator, who knows no node's N: how the noise comes about, and invented examples.

    members, trained: needed to calculate organization-level noise; without them only the formula is given.
    """
    privacy = specification.privacy
    if privacy.unit == "none":
        return [], ["no differential privacy: the model may remember single records"]
    epsilon, delta, clip = target(privacy)
    lines = [
        f"privacy: epsilon {epsilon:g} at delta {delta:g} for each {privacy.unit} over the whole run: "
        f"{_PROMISE[privacy.unit]}"
    ]
    if not specification.trains_model:
        from confide.privacy.counting import counting_plan, describe_counting_plan

        return lines + describe_counting_plan(counting_plan(specification)), []
    if privacy.unit == "organization":
        lines.append(
            "each update is clipped to length C, rounded to integers, and every node adds Skellam noise of variance "
            "mu / (fewest survivors - colluding); mu is the smallest for which the Renyi divergences of all slots "
            "together stay within epsilon and delta"
        )
        if members is None or trained is None:
            return lines, []
        more, warnings = describe_organization_plan(organization_plan(specification, members=members, trained=trained))
        return lines + more[1:], warnings
    if privacy.noise == "shared":
        if members is None or trained is None:
            return lines, []
        more, warnings = describe_shared_unit_plan(shared_unit_plan(specification, members=members, trained=trained))
        return lines + more, warnings
    lines.append(
        f"each node: every {privacy.unit}'s gradient is clipped to length {clip:g}; a batch takes each {privacy.unit} "
        f"with probability q = {specification.training.batch_size} / N; the sum gets Gaussian noise of standard "
        f"deviation sigma x {clip:g} and is divided by {specification.training.batch_size}. sigma is the smallest for "
        f"which {planned_slots(specification) * specification.training.local_steps} steps "
        f"({planned_slots(specification)} slots x {specification.training.local_steps}) stay within epsilon and delta. "
        "N is known to the node alone"
    )
    warnings = []
    for units in EXAMPLE_UNITS:
        line, warning = _example(specification, units, trained)
        lines.append(line)
        warnings += [warning] if warning else []
    return lines, warnings


def _example(specification: Specification, units: int, trained: int | None) -> tuple[str, str | None]:
    what = f"a node with {units:,} {specification.privacy.unit}s"
    try:
        plan = unit_plan(specification, units, trained=trained)
    except ConfideError as error:
        return f"example: {what} refuses: {error}", f"{what} would refuse the run"
    line = (
        f"example: {what}: q {plan.sampling_rate:.4g}, sigma {plan.noise_multiplier:.3f}, signal to noise "
        f"{plan.signal_to_noise:.0f} ({plan.usefulness.value})"
    )
    return line, None if plan.usefulness is Usefulness.USEFUL else f"{what} has too few: {plan.usefulness.value}"
