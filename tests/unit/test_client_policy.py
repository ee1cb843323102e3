"""The policy denies by default; each refusal names value, bound and remedy, and tells nothing about what is here."""

import contextlib
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from confide.errors import NotNow, PolicyRefusal
from confide_client.policy.policy import TEMPLATE, Policy, load_policy, parse_policy
from hypothesis import given
from hypothesis import strategies as st

from tests.training_specs import specification

ROOT = bytes(range(32))
ALLOWING: dict[str, Any] = {
    "version": 1,
    "consortium_root": ROOT.hex(),
    "methods": ("sft",),
    "models": ("0" * 64,),
    "data_sets": ("shard",),
    "min_cohort": 3,
    "max_rounds": 5,
    "max_local_steps": 10,
    "training_hours": ("00:00-24:00",),
    "sealing": "optional",
    "reproducible": True,
    "privacy_units": ("none", "record"),
}


def policy(**changes: Any) -> Policy:
    return Policy(**{**ALLOWING, **changes})


def test_what_is_allowed_passes() -> None:
    policy().check_root(ROOT, demo=False)
    policy().check(specification(), group="shard")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": ()}, r"method 'sft' is not allowed .* add it to methods"),
        ({"models": ("1" * 64,)}, "base model '000000"),
        ({"data_sets": ("other",)}, "data set 'shard'"),
        ({"min_cohort": 4}, r"federation.min_cohort is 3; the policy allows 4 or more"),
        ({"max_rounds": 1}, r"federation.rounds is 2; the policy allows at most 1"),
        ({"max_local_steps": 2}, r"training.local_steps is 3; the policy allows at most 2"),
        ({"max_attempts": 1}, r"sealing.max_attempts is 2"),
        ({"sealing": "required"}, "sealing.kind is none"),
        ({"privacy_units": ("record",)}, "privacy.unit is 'none'; the policy allows record"),
        ({"privacy_units": ()}, "allows none"),
        ({"reproducible": False}, "the run is reproducible"),
    ],
)
def test_each_bound_refuses(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(PolicyRefusal, match=said):
        policy(**changes).check(specification(), group="shard")


def test_a_refusal_does_not_list_what_else_is_here() -> None:
    with pytest.raises(PolicyRefusal) as refusal:
        policy(data_sets=("oncology-notes",)).check(specification(), group="shard")
    assert "oncology" not in str(refusal.value)


def test_fewer_named_nodes_than_the_cohort_are_refused() -> None:
    named = specification(federation={"nodes": ["a", "b", "c"], "min_cohort": 3})
    policy().check(named, group="shard")
    with pytest.raises(PolicyRefusal, match="number of named nodes is 3"):
        policy(min_cohort=4).check(
            specification(federation={"nodes": ["a", "b", "c"], "min_cohort": 3}).model_copy(
                update={"federation": named.federation.model_copy(update={"min_cohort": 4})}
            ),
            group="shard",
        )


def test_colluding_zero_needs_a_waiver() -> None:
    sealed = specification(sealing={"kind": "sealed", "colluding": 0}, federation={"clip_norm": 1.0})
    with pytest.raises(PolicyRefusal, match="colluding is 0"):
        policy().check(sealed, group="shard")
    policy(waive_colluding=True).check(sealed, group="shard")


def test_differences_are_accepted_by_the_policy_or_not_at_all() -> None:
    sealed = specification(sealing={"kind": "sealed", "differences": "accepted"}, federation={"clip_norm": 1.0})
    with pytest.raises(PolicyRefusal, match="from two sums"):
        policy().check(sealed, group="shard")
    policy(differences="accepted").check(sealed, group="shard")


def test_privacy_needs_a_budget_of_its_group() -> None:
    private = specification(privacy={"unit": "record", "epsilon": 3.0, "delta": 1e-6, "clip": 1.0})
    with pytest.raises(PolicyRefusal, match="no budget"):
        policy().check(private, group="shard")
    low = policy(budgets={"shard": {"epsilon": 2.0, "delta": 1e-5}})
    with pytest.raises(PolicyRefusal, match=r"epsilon 3.0 and delta 1e-06 .* more than the policy") as told:
        low.check(private, group="shard")
    assert "2.0" not in str(told.value) and "1e-05" not in str(told.value), "a refusal goes to the coordinator"
    policy(budgets={"shard": {"epsilon": 4.0, "delta": 1e-5}}).check(private, group="shard")


def test_another_root_and_a_demo_root_are_refused() -> None:
    with pytest.raises(PolicyRefusal, match="root key"):
        policy().check_root(bytes(32), demo=False)
    with pytest.raises(PolicyRefusal, match="demo"):
        policy().check_root(ROOT, demo=True)
    policy(allow_demo_root=True).check_root(ROOT, demo=True)
    with pytest.raises(PolicyRefusal, match="obeys none"):
        policy(consortium_root="").check_root(ROOT, demo=False)


@pytest.mark.parametrize(
    ("window", "moment", "inside"),
    [
        ("00:00-24:00", "2026-11-22 23:59", True),
        ("09:00-17:00", "2026-11-22 17:00", False),
        ("mon-fri 20:00-06:00", "2026-11-21 05:59", True),  # Saturday morning belongs to Friday's night
        ("mon-fri 20:00-06:00", "2026-11-23 05:00", False),  # Monday morning belongs to Sunday's
        ("mon-fri 20:00-06:00", "2026-11-20 20:00", True),
        ("sat,sun 00:00-24:00", "2026-11-20 12:00", False),
        ("fri-mon 08:00-09:00", "2026-11-22 08:30", True),
    ],
)
def test_training_hours(window: str, moment: str, inside: bool) -> None:
    now = datetime.fromisoformat(moment)
    if inside:
        policy(training_hours=(window,)).check_hours(now)
    else:
        with pytest.raises(PolicyRefusal, match="the policy trains"):
            policy(training_hours=(window,)).check_hours(now)


@pytest.mark.parametrize(
    ("windows", "moment", "seconds"),
    [
        (("20:00-06:00",), "2026-11-20 19:59:30", 31),
        (("mon-fri 20:00-06:00",), "2026-11-21 06:00:00", 62 * 3600 + 1),  # Saturday morning, until Monday evening
        (("sat,sun 00:00-24:00", "mon-fri 20:00-06:00"), "2026-11-20 06:00:00", 14 * 3600 + 1),
        ((), "2026-11-20 06:00:00", 7 * 24 * 3600),
    ],
)
def test_who_asks_out_of_hours_is_told_when_they_begin(windows: tuple[str, ...], moment: str, seconds: int) -> None:
    with pytest.raises(NotNow) as told:
        policy(training_hours=windows).check_hours(datetime.fromisoformat(moment))
    assert told.value.seconds == seconds


def test_no_hours_mean_never() -> None:
    with pytest.raises(PolicyRefusal, match="trains none"):
        policy(training_hours=()).check_hours(datetime(2026, 1, 1, 12))


def test_the_template_denies_everything(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(TEMPLATE.format(root=ROOT.hex()))
    with pytest.raises(PolicyRefusal):
        load_policy(path).check(specification(), group="shard")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "version"),
        ("version = 2", "version"),
        ("version = 1\nmethod = ['sft']", "method"),
        ("version = 1\nmin_cohort = 2.5", "min_cohort"),
        ("version = 1\nconsortium_root = 'xyz'", "consortium_root"),
        ("version = 1\ntraining_hours = ['9-5']", "window"),
        ("version = 1\ntraining_hours = ['00:00-25:00']", "24:00"),
        ("version = 1\ntraining_hours = ['funday 00:00-24:00']", "days"),
        ("version = 1\n[budgets.faq]\nepsilon = 5000.0\ndelta = 1e-6", r"budgets\.faq\.epsilon: .*1000"),
        ("version = 1\n[budgets.faq]\nepsilon = 1.0\ndelta = 0.5", r"budgets\.faq\.delta: .*0\.01"),
        ("version = ", "not valid"),
        ("version = 1\nat = 2026-01-01", "not valid"),
    ],
)
def test_an_unclear_policy_allows_nothing(text: str, said: str) -> None:
    with pytest.raises(PolicyRefusal, match=f"(?s)nothing is allowed.*{said}|{said}.*nothing is allowed"):
        parse_policy(text)


@pytest.mark.parametrize(("epsilon", "delta"), [(1000.0, 0.0099), (1e-9, 1e-30)])
def test_whatever_budget_a_policy_may_hold_the_ledger_and_a_specification_take(epsilon: float, delta: float) -> None:
    """A policy with epsilon 5000 passed, and broke the first private run."""
    from confide.privacy.filter import Budget

    found = parse_policy(f"version = 1\n[budgets.faq]\nepsilon = {epsilon!r}\ndelta = {delta!r}").budgets["faq"]
    assert Budget(epsilon=found.epsilon, delta=found.delta).epsilon == epsilon
    asked = {"unit": "record", "epsilon": epsilon, "delta": delta, "clip": 1.0}
    assert specification(privacy=asked).privacy.delta == delta


def test_a_missing_policy_allows_nothing(tmp_path: Path) -> None:
    with pytest.raises(PolicyRefusal, match=r"no policy\.toml"):
        load_policy(tmp_path / "policy.toml")


@given(st.text(max_size=200))
def test_arbitrary_text_is_refused_or_parsed(text: str) -> None:
    with contextlib.suppress(PolicyRefusal):
        parse_policy(text)


def test_users_are_those_whom_the_operator_names() -> None:
    """Under a key that differs in every record the promise of users would be one of records."""
    section = {"unit": "user", "epsilon": 1.0, "delta": 1e-5, "clip": 1.0}
    budget = {"epsilon": 4.0, "delta": 1e-5}
    named = policy(budgets={"shard": {**budget, "user_key": "author"}}, privacy_units=("user",))
    named.check(specification(privacy={**section, "user_key": "author"}), group="shard")
    for key, unnamed in (("id", named), ("author", policy(budgets={"shard": budget}, privacy_units=("user",)))):
        with pytest.raises(PolicyRefusal, match="not what names the users") as caught:
            unnamed.check(specification(privacy={**section, "user_key": key}), group="shard")
        assert key == "author" or "author" not in str(caught.value)
