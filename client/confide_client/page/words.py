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


Words = tuple[str, dict[str, object]]
"""(key of the text, what stands in its braces)"""


def policy_words(policy: Policy) -> list[Words]:
    """Each rule as a sentence, the most permissive ones first."""
    permissive = {
        "unsealed": policy.sealing == "optional",
        "differences": policy.differences == "accepted",
        "colluding": policy.waive_colluding,
        "reproducible": policy.reproducible,
        "demo_root": policy.allow_demo_root,
        "canaries": policy.canaries,
    }
    said: list[Words] = [(f"rule.{name}", {}) for name, allowed in permissive.items() if allowed]
    said.append(("rule.allowed", {"methods": listed(policy.methods), "data_sets": listed(policy.data_sets)}))
    said.append(("rule.models", {"models": listed([model[:16] for model in policy.models])}))
    most: dict[str, object] = {"rounds": policy.max_rounds, "steps": policy.max_local_steps}
    said.append(("rule.most", most | {"attempts": policy.max_attempts, "cohort": policy.min_cohort}))
    said.append(("rule.hours", {"hours": listed(policy.training_hours)}))
    said.append(("rule.units", {"units": listed(policy.privacy_units)}))
    for group, budget in policy.budgets.items():
        spent: dict[str, object] = {"epsilon": f"{budget.epsilon:g}", "delta": f"{budget.delta:g}", "group": group}
        said.append(("rule.budget", spent))
    said.append(("rule.hardware", {"hardware": listed(policy.hardware)}))
    said.append(("rule.ask" if policy.approval == "ask" else "rule.no_person", {}))
    return said


def listed(values: Sequence[str]) -> str:
    """Names in a sentence; a dash for none.

    >>> listed([]), listed(["a", "b"])
    ('–', 'a, b')
    """
    return ", ".join(line(value, 80) for value in values) or "–"


def audit_words(entry: Mapping[str, Any]) -> str:
    """An entry of the audit log without what the table shows beside it."""
    return ", ".join(
        f"{key} {_value(value)}" for key, value in entry.items() if key not in {"at", "event", "run", "payload"}
    )


def _value(value: object) -> str:
    if isinstance(value, float):
        return duration(value)
    return line(value, 200)
