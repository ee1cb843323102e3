"""What the log says of an entry of the audit log, in one line each: last night, for whoever reads it in the morning.

>>> sentence("training", {"run": "1f" * 16, "round": 3, "slot": 4, "attempt": 1})
'run 1f1f1f1f: round 3 begins (slot 4, attempt 1)'
>>> sentence("agent started", {})
"""

from collections.abc import Callable, Mapping
from typing import Any

Facts = Mapping[str, Any]


def sentence(event: str, facts: Facts) -> str | None:
    """None for entries that are no news for people. Everything in it is cleaned by the log's formatter."""
    if event == "sent":
        return _sent(facts)
    make = _SENTENCES.get(event)
    return None if make is None else f"run {str(facts.get('run', ''))[:8]}: {make(facts)}"


def _offered(facts: Facts) -> str:
    return f"offer {facts.get('name', 'without a name')} of {facts.get('administrator', 'nobody')}"


def _refused(facts: Facts) -> str:
    return f"{_offered(facts)}: refused, {facts.get('code', '')}: {facts.get('reason', '')}"


def _waits(facts: Facts) -> str:
    why = f" ({facts['reason']})" if facts.get("reason") else ""
    return (
        f"{_offered(facts)}: waits for a person{why}; see `confide node plan`, then `confide node approve` or `refuse`"
    )


def _round_ended(facts: Facts) -> str:
    if not facts.get("committed"):
        return f"round {facts['round']} (slot {facts['slot']}) was abandoned: {facts.get('reason', '')}"
    part = "with" if facts.get("contributed") else "without"
    return f"round {facts['round']} is committed, {part} this node's update"


def _run_ended(facts: Facts) -> str:
    how = facts.get("reason") or "finished"
    who = f" by {facts['stopped_by']}" if facts.get("stopped_by") else ""
    return f"ended: {how}{who}; its training files, replies and uploads here are erased"


_SENTENCES: dict[str, Callable[[Facts], str]] = {
    "offer accepted": lambda facts: f"{_offered(facts)}: accepted by {facts.get('by', '')}",
    "offer refused": _refused,
    "offer waits for approval": _waits,
    "training": lambda facts: f"round {facts['round']} begins (slot {facts['slot']}, attempt {facts['attempt']})",
    "answering": lambda facts: f"judges public answers (slot {facts['slot']}, attempt {facts['attempt']})",
    "records left out": lambda facts: f"{facts['unfit']} of {facts['records']} training records teach nothing",
    "round ended": _round_ended,
    "run ended": _run_ended,
}


def _sent(facts: Facts) -> str | None:
    """Of what leaves, only an update is news."""
    size = sum(entry["bytes"] for entry in facts.get("payload", {}).values())
    again = ", again" if facts.get("again") else ""
    return f"run {facts['run'][:8]}: update sent, {size:,} bytes{again}" if size else None
