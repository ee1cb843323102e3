"""The node's state and policy as sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

from confide.text import line
from confide.web.pages import duration

from confide_client.policy.policy import Policy

Head = tuple[str, str, dict[str, object]]
"""(mood, key of the text, what stands in its braces)"""


def headline(status: Mapping[str, Any], waiting: Sequence[Mapping[str, Any]], pause: Mapping[str, Any]) -> Head:
    """What the operator has to know first."""
    if "error" in status["membership"]:
        return "bad", "head.no_member", {"why": status["membership"]["error"]}
    if pause:
        return "warn", "head.paused", {"who": pause.get("by", "?"), "why": pause.get("reason", "")}
    if "error" in status["policy"]:
        return "bad", "head.no_policy", {"why": status["policy"]["error"]}
    if waiting:
        return "warn", "head.asked", {"count": len(waiting), "name": waiting[0].get("name", "")}
    agent = status["agent"]
    if not agent.get("running"):
        return "bad", "head.no_agent", {}
    if not agent.get("connected"):
        return "warn", "head.away", {"why": agent.get("complaint", "connecting")}
    if status["progress"]:
        return "good", "head.works", {"what": status["progress"]["words"], "run": status["progress"]["run"][:8]}
    return "good", "head.calm", {"coordinator": agent.get("coordinator", "")}


def policy_words(policy: Policy) -> list[str]:
    """Each rule as a sentence, the most permissive ones first."""
    said = []
    if policy.sealing == "optional":
        said.append(
            "RESEARCH ONLY: runs without sealing are allowed, which show this node's update to the coordinator."
        )
    if policy.differences == "accepted":
        said.append("Two sums of which one lacks this node may be opened: its update may be told from them.")
    if policy.waive_colluding:
        said.append("Runs that promise nothing against a coordinator together with another node are allowed.")
    if policy.reproducible:
        said.append("Runs whose order of records follows from a public seed are allowed.")
    if policy.allow_demo_root:
        said.append("A demo's root is obeyed: never for real data.")
    if policy.canaries:
        said.append("Made-up records may be planted into training for a privacy audit.")
    said.append(f"Methods: {listed(policy.methods)}. Data sets: {listed(policy.data_sets)}.")
    said.append(f"Base models: {listed([model[:16] for model in policy.models])}.")
    said.append(
        f"At most {policy.max_rounds} rounds of {policy.max_local_steps} local steps, one model trained on at most "
        f"{policy.max_attempts} times; never fewer than {policy.min_cohort} organizations in a sum."
    )
    said.append(f"Training hours: {listed(policy.training_hours)}.")
    said.append(f"Privacy that a run may have: {listed(policy.privacy_units)}.")
    for group, budget in policy.budgets.items():
        said.append(f"All runs together may spend epsilon {budget.epsilon:g} at delta {budget.delta:g} on {group}.")
    asked = "a person approves each run" if policy.approval == "ask" else "what passes these rules needs no person"
    said.append(f"Approval: {asked}.")
    return said


def listed(values: Sequence[str]) -> str:
    """Names in a sentence.

    >>> listed([]), listed(["a", "b"])
    ('none', 'a, b')
    """
    return ", ".join(line(value, 80) for value in values) or "none"


def audit_words(entry: Mapping[str, Any]) -> str:
    """An entry of the audit log without what the table shows beside it."""
    return ", ".join(
        f"{key} {_value(value)}" for key, value in entry.items() if key not in {"at", "event", "run", "payload"}
    )


def _value(value: object) -> str:
    if isinstance(value, float):
        return duration(value)
    return line(value, 200)
