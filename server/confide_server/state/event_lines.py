"""What the coordinator's log says of a run's events: one line each, for whoever reads in the morning what happened.

>>> line_of("1f" * 16, "contributed", {"round": 2, "node": "bank-b", "bytes": 1024})
'run 1f1f1f1f: contributed round=2 node=bank-b bytes=1024'

Contributions are named and not valued: metrics, norms and hashes are left to `confide run watch` and the manifest.
"""

import logging
from collections.abc import Mapping
from typing import Any

from confide.text import line

from confide_server.state.events import Happening, data_of

_NOT_TOLD = frozenset(
    {"metrics", "update_norm", "promise", "evidence", "model_sha256", "precision", "round_s", "hardware"}
)
_WARNINGS = frozenset({"dropped", "slot_abandoned", "paused", "run_failed", "run_waits", "run_paused"})
log = logging.getLogger(__name__)


def line_of(run_id: str, kind: str, data: Mapping[str, Any]) -> str:
    """The event in one line; what is false, empty or 0 is left out."""
    facts = [f"{key}={_value(value)}" for key, value in data.items() if key not in _NOT_TOLD and value]
    return " ".join([f"run {run_id[:8]}: {kind}", *facts])


def log_event(run_id: str, event: Happening) -> None:
    """INFO; WARNING for what somebody may want to mend. What it is about stands in the record too, for JSON logs."""
    data = data_of(event)
    about: dict[str, Any] = {"run": run_id, **{name: data[name] for name in ("round", "slot", "node") if name in data}}
    over = event.kind == "run_waits" and not data.get("waits_for")
    level = logging.WARNING if event.kind in _WARNINGS and not over else logging.INFO
    said = f"run {run_id[:8]}: waits no more" if over else line_of(run_id, event.kind, data)
    log.log(level, "%s", said, extra={"about": about, "about_is_said": True})


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{line(key, 64)}({line(one, 200)})" for key, one in value.items())
    if isinstance(value, list | tuple):
        return ",".join(line(one, 64) for one in value)
    text = line(value, 300)
    return f'"{text}"' if " " in text else text
