"""How a worker process, or the launcher for one that cannot any more, tells the trainer why a step failed."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from confide.errors import ConfideError, DataError, ModelError, SpecificationError, TrainingError, UpdateError

LAUNCHER = "launcher"

_ERRORS = (DataError, ModelError, SpecificationError, TrainingError, UpdateError)


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
