"""Plans: exact on a node, by example in public, in words where a setting is useless, and silent about N."""

import math

import numpy as np
import pytest
from confide.errors import DataError, FailureName, ProtocolFailure, SpecificationError
from confide.privacy.accounting import epsilon_by_rdp
from confide.privacy.filter import filter_epsilon
from confide.privacy.metrics import allowed_metrics, check_unaccounted
from confide.privacy.organization import organization_noise, organization_plan, slot_noise
from confide.privacy.plan import Usefulness, check_user_key, planned_slots, unit_plan
from confide.privacy.plan_words import (
    EXAMPLE_UNITS,
    describe_organization_plan,
    describe_unit_plan,
    public_plan,
)
from confide.runs.contribution import Contribution
from confide.runs.metrics import Metric
from confide.runs.specification import EXAMPLE, Specification, parse_toml


def specification(
    unit: str = "record", *, epsilon: float = 8.0, delta: float = 1e-5, batch: int = 8, steps: int = 3, rounds: int = 3,
    attempts: int = 2, bits: int = 16,
) -> Specification:  # fmt: skip
    key = '\nuser_key = "speaker"' if unit == "user" else ""
    text = EXAMPLE.replace("batch_size = 8", f"batch_size = {batch}").replace(
        "local_steps = 3", f"local_steps = {steps}"
    )
    text = text.replace("rounds = 3", f"rounds = {rounds}")
    if unit == "organization":
        text = text.replace("clip_norm = 12.0", "clip_norm = 0.5")
    sealing = f"\n[sealing]\nmax_attempts = {attempts}\nbits = {bits}\n"
    privacy = f'\n[privacy]\nunit = "{unit}"\nepsilon = {epsilon}\ndelta = {delta}\nclip = 0.5{key}\n'
    return parse_toml(text + sealing + privacy)


def known_run() -> Specification:
    """N = 10000, B = 512, 98 steps: 98 rounds of one step without spare attempts."""
    return specification(batch=512, steps=1, rounds=98, attempts=1)


def test_the_known_run_is_planned_as_known() -> None:
    plan = unit_plan(known_run(), 10_000)
    assert (plan.steps, plan.slots, plan.sampling_rate) == (98, 98, 0.0512)
    assert plan.epsilon == pytest.approx(8.0, abs=0.01) and plan.epsilon <= 8.0
    assert plan.epsilon_by_rdp == pytest.approx(9.29, abs=0.01)
    assert plan.noise_multiplier == pytest.approx(0.6993, abs=0.001)
    assert plan.noise_multiplier < plan.noise_multiplier_by_rdp
    assert plan.noise_stddev == pytest.approx(plan.noise_multiplier * 0.5 / 512)
    assert plan.epsilon_beside_others == filter_epsilon(plan.cost.whole, delta=1e-5)
    assert plan.usefulness is Usefulness.USEFUL and describe_unit_plan(plan)[1] == []


def test_spare_slots_are_paid_for() -> None:
    assert planned_slots(specification(rounds=3)) == 4
    assert planned_slots(specification(rounds=98)) == 108
    assert planned_slots(specification(rounds=98, attempts=1)) == 98


def test_a_plan_is_the_same_every_time() -> None:
    assert unit_plan(specification(), 2000) == unit_plan(specification(), 2000)


def test_too_few_records_is_said_in_words() -> None:
    lines, warnings = describe_unit_plan(unit_plan(specification(), 116, trained=460_000))
    assert any("too few records" in warning for warning in warnings)
    assert any("460,000 parameters" in warning for warning in warnings)
    assert any("q = 8 / 116" in line for line in lines)


def test_a_batch_larger_than_the_data_is_said_in_words() -> None:
    plan = unit_plan(specification(batch=512), 100)
    assert plan.sampling_rate == 1.0 and plan.batch_size == 512
    assert any("sampling hides nothing" in warning for warning in describe_unit_plan(plan)[1])


def test_a_weak_promise_is_said_in_words() -> None:
    plan = unit_plan(specification(epsilon=20.0), 2000)
    assert any("promises little" in warning for warning in describe_unit_plan(plan)[1])


@pytest.mark.parametrize("units", [100_000, 2_345_678])
def test_delta_must_be_below_one_over_n_and_the_refusal_does_not_tell_n(units: int) -> None:
    with pytest.raises(SpecificationError, match="not below one over the number") as refusal:
        unit_plan(specification(), units)
    assert str(units) not in str(refusal.value) and f"{units:,}" not in str(refusal.value)


def test_what_cannot_be_planned_is_refused() -> None:
    with pytest.raises(SpecificationError, match="plan by units"):
        unit_plan(specification("organization"), 100)
    with pytest.raises(SpecificationError, match="this noise is for"):
        organization_plan(specification(), members=5, trained=100)
    with pytest.raises(DataError, match="no records"):
        unit_plan(specification(), 0)
    with pytest.raises(SpecificationError, match="local_steps is 0"):
        unit_plan(specification(steps=0), 100)


@pytest.mark.parametrize("epsilon", [0.0, -3.0])
def test_epsilon_must_be_positive(epsilon: float) -> None:
    with pytest.raises(SpecificationError, match="above 0"):
        specification(epsilon=epsilon)


def test_every_record_must_name_its_user() -> None:
    run = specification("user")
    check_user_key([{"speaker": "Hamlet"}, {"speaker": 7}], run)
    check_user_key([{}], specification("record"))
    for bad in ({}, {"speaker": ""}, {"speaker": None}, {"speaker": True}, {"speaker": ["x"]}):
        with pytest.raises(DataError, match="user_key is 'speaker'") as refusal:
            check_user_key([{"speaker": "Hamlet", "text": "secret"}, {**bad, "text": "secret"}], run)
        assert "secret" not in str(refusal.value)


def test_nothing_but_the_update_leaves_a_private_run() -> None:
    assert allowed_metrics(parse_toml(EXAMPLE)) == frozenset(Metric)
    for unit in ("record", "user", "organization"):
        run = specification(unit)
        update = np.zeros(3, dtype=np.float32)
        check_unaccounted(run, Contribution(update))
        for surplus in (*(Contribution(update, metrics={metric: 0.0}) for metric in Metric), Contribution(update, 0.5)):
            with pytest.raises(ProtocolFailure) as failure:
                check_unaccounted(run, surplus)
            assert failure.value.name is FailureName.METRIC_NOT_ALLOWED


def test_a_small_consortium_is_told_that_the_model_would_be_noise() -> None:
    plan = organization_plan(specification("organization"), members=4, trained=460_000)
    assert (plan.slot.least_survivors, plan.colluding, plan.slots) == (3, 1, 4)
    assert plan.usefulness is Usefulness.USELESS
    lines, warnings = describe_organization_plan(plan)
    assert "too few organizations" in warnings[0] and f"{plan.members_needed:,}" in warnings[0]
    assert 400 < plan.members_needed < 470
    assert any("NOISE_INSUFFICIENT" in line for line in lines)


def test_a_large_consortium_with_a_small_model_is_useful() -> None:
    plan = organization_plan(specification("organization", rounds=20), members=60, trained=400)
    assert plan.usefulness is Usefulness.USEFUL and describe_organization_plan(plan)[1] == []


def test_organization_noise_is_enough_in_every_allowed_epoch() -> None:
    run = specification("organization")
    plan, noise = organization_plan(run, members=10, trained=5000), organization_noise(run, 5000)
    assert plan.slot.run == noise
    assert epsilon_by_rdp(noise.cost.whole, delta=1e-5) <= 8.0
    # An epoch with fewer members: each adds more, and the honest ones together still add mu.
    for members in range(3, 11):
        epoch = slot_noise(run, 5000, members=members)
        assert epoch.run == noise
        assert epoch.variance * (epoch.least_survivors - 1) == pytest.approx(noise.noise.variance)


def test_the_noise_and_its_lanes_do_not_depend_on_the_bits_of_plain_sealing() -> None:
    eight = organization_plan(specification("organization", bits=8), members=6, trained=50_000)
    sixteen = organization_plan(specification("organization", bits=16), members=6, trained=50_000)
    assert eight.noise_stddev == sixteen.noise_stddev
    assert eight.slot.lane_bits == sixteen.slot.lane_bits < 24


def test_a_lane_too_narrow_for_the_noise_is_refused() -> None:
    with pytest.raises(ProtocolFailure, match=r"PARAMETERS_IMPOSSIBLE.*32 is the most"):
        organization_plan(specification("organization", epsilon=0.01), members=40, trained=4_000_000_000)


def test_impossible_cohorts_are_refused() -> None:
    with pytest.raises(ProtocolFailure, match="PARAMETERS_IMPOSSIBLE"):
        organization_plan(specification("organization"), members=2, trained=100)


def test_the_public_plan_knows_examples_only() -> None:
    lines, warnings = public_plan(specification(delta=1e-6, batch=256, steps=10, epsilon=2.0), trained=1000)
    text = "\n".join(lines)
    for units in EXAMPLE_UNITS:
        assert f"{units:,} records" in text
    assert "N is known to the node alone" in text and "40 steps (4 slots x 10)" in text
    assert all("too few" in warning for warning in warnings)
    refusing, _ = public_plan(specification())
    assert any("100,000 records refuses" in line for line in refusing)


def test_the_public_plan_of_an_organization_level_run() -> None:
    formula, none = public_plan(specification("organization"))
    assert "mu / (fewest survivors - colluding)" in formula[1] and none == []
    _, warnings = public_plan(specification("organization"), members=4, trained=460_000)
    assert "too few organizations" in warnings[0]
    assert public_plan(parse_toml(EXAMPLE))[1] == ["no differential privacy: the model may remember single records"]


def test_more_records_need_less_noise() -> None:
    small, large = unit_plan(specification(), 116), unit_plan(specification(), 2000)
    assert large.noise_multiplier < small.noise_multiplier
    assert large.signal_to_noise > small.signal_to_noise
    assert math.isclose(small.signal_to_noise, 8 * math.sqrt(12) / small.noise_multiplier)
