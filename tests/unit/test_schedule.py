"""A clip that follows the learning rate, by round and by specification."""

import math
from typing import Any

import pytest
from confide.errors import SpecificationError
from confide.runs.schedule import clip_norm, describe_clip, learning_rate
from confide.runs.specification import Specification

from tests.training_specs import specification


def following(training: dict[str, Any], **federation: Any) -> Specification:
    federation = {"clip_norm": 8.0, "clip_schedule": "learning_rate", **federation}
    return specification(training={"learning_rate": 3e-3, **training}, federation=federation)


def test_a_constant_clip_is_that_of_every_round() -> None:
    spec = specification(training={"schedule": "cosine"}, federation={"rounds": 9, "clip_norm": 8.0})
    assert {clip_norm(spec, round=number) for number in range(1, 11)} == {8.0}


def test_the_clip_shrinks_in_proportion_to_the_learning_rate() -> None:
    spec = following({"local_steps": 1, "schedule": "cosine"}, rounds=12)
    clips = [clip_norm(spec, round=number) for number in range(1, 13)]
    rates = [learning_rate(spec, step) / 3e-3 for step in range(12)]
    assert clips[0] == 8.0 and clips == sorted(clips, reverse=True)
    for clip, rate in zip(clips, rates, strict=True):
        assert clip / 8.0 == pytest.approx(max(rate, 1 / 16), abs=0.5 / 1024)


def test_a_round_of_few_steps_has_the_clip_of_a_random_walk() -> None:
    spec = following({"local_steps": 16}, rounds=4, warm_start_rounds=2, warm_start_steps=4)
    assert [clip_norm(spec, round=number) for number in range(1, 5)] == [4.0, 4.0, 8.0, 8.0]


def test_every_share_is_a_multiple_of_1_1024_so_that_machines_agree() -> None:
    spec = following({"local_steps": 7, "schedule": "cosine", "warmup_steps": 9}, rounds=11)
    for number in range(1, 13):
        share = clip_norm(spec, round=number) / 8.0
        assert share * 1024 == math.floor(share * 1024) and 1 / 16 <= share <= 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"federation": {"clip_schedule": "learning_rate"}}, "set federation.clip_norm"),
        (
            {
                "method": {"name": "in_context"},
                "training": {"local_steps": 0},
                "federation": {"clip_schedule": "learning_rate", "clip_norm": 1.0},
            },
            "nothing is trained",
        ),
        (
            {
                "federation": {"clip_schedule": "learning_rate", "clip_norm": 1.0},
                "sealing": {"kind": "sealed"},
                "privacy": {"unit": "organization", "epsilon": 1.0, "delta": 1e-5, "clip": 1.0},
            },
            "made for one clip",
        ),
    ],
)
def test_a_clip_without_a_schedule_to_follow_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        specification(**changes)


def test_without_a_clip_there_is_none_to_calculate() -> None:
    with pytest.raises(SpecificationError, match=r"federation\.clip_norm is missing"):
        clip_norm(specification(), round=1)


def test_the_plan_says_a_constant_clip() -> None:
    assert describe_clip(specification(federation={"clip_norm": 8.0})).endswith("at most 8 in every round")


def test_the_plan_says_the_first_clips_the_last_and_from_where_it_is_at_its_floor() -> None:
    spec = following({"local_steps": 16, "schedule": "cosine"}, rounds=20, warm_start_rounds=2, warm_start_steps=4)
    text = describe_clip(spec)
    first, full, last = (clip_norm(spec, round=number) for number in (1, 3, 20))
    assert f"{first:.3g} in round 1, {full:.3g} in round 3, {last:.3g} in round 20," in text
    at_floor = next(number for number in range(1, 21) if clip_norm(spec, round=number) == 0.5)
    assert 3 < at_floor < 20
    assert text.endswith(f"never below 1/16 of clip_norm, so from round {at_floor} on")


def test_a_clip_that_stays_above_its_floor_is_not_said_to_reach_it() -> None:
    text = describe_clip(following({"local_steps": 1}, rounds=1))
    assert "at most 8 in round 1, as" in text and text.endswith("1/16 of clip_norm")
