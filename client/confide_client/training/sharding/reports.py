"""How a worker process tells the trainer how far it is, and why a step failed (the launcher, for one that died)."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from confide.errors import ConfideError, DataError, ModelError, SpecificationError, TrainingError, UpdateError

from confide_client.progress import Phase

LAUNCHER = "launcher"

_ERRORS = (DataError, ModelError, SpecificationError, TrainingError, UpdateError)


def write_progress(folder: Path, phase: Phase, step: int, steps: int) -> None:
    """Replace what was told before."""
    temporary = folder / "progress.new"
    temporary.write_text(json.dumps([phase.value, step, steps]), encoding="utf-8")
    temporary.replace(folder / "progress.json")


def read_progress(folder: Path) -> tuple[Phase, int, int] | None:
    """What was told last, if anything."""
    try:
        phase, step, steps = json.loads((folder / "progress.json").read_bytes())
    except FileNotFoundError:
        return None
    return Phase(phase), int(step), int(steps)


def write_failure(folder: Path, who: str, error: ConfideError) -> None:
    """Keep why a worker failed, for the trainer to raise."""
    document = {"at": time.monotonic(), "code": error.code, "message": str(error)}
    (folder / f"failure-{who}.json").write_text(json.dumps(document), encoding="utf-8")


def read_failure(folder: Path) -> ConfideError | None:
    """The first failure; a worker that was killed comes before all, since the others fail for want of it."""
    found: list[Mapping[str, Any]] = []
    for path in folder.glob("failure-*.json"):
        try:
            found.append({**json.loads(path.read_bytes()), "killed": path.name == f"failure-{LAUNCHER}.json"})
        except ValueError:
            found.append({"at": 0.0, "code": "TrainingError", "message": "a worker died as it failed", "killed": False})
    if not found:
        return None
    first = min(found, key=lambda failure: (not failure["killed"], failure["at"]))
    kind = next((known for known in _ERRORS if known.__name__ == first["code"]), TrainingError)
    return kind(first["message"])
