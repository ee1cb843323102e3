"""The specification of a run whose nodes are stand-ins: everything of a round but the training.

>>> run = stand_in_run("empty", "0" * 64, {"rounds": 3, "data": "shard", "min_cohort": 2}, {"kind": "none"})
>>> run.name, run.federation.rounds, run.training.local_steps, run.sealed
('empty', 3, 1, False)
"""

from collections.abc import Mapping
from typing import Any

from confide.runs.specification import Specification, parse_document


def stand_in_run(
    name: str,
    model_sha256: str,
    federation: Mapping[str, Any],
    sealing: Mapping[str, Any],
    privacy: Mapping[str, Any] | None = None,
) -> Specification:
    """One step a round on the whole model, at clipping norm 10 unless `federation` names another."""
    document: dict[str, Any] = {
        "version": 1,
        "name": name,
        "model": {"sha256": model_sha256},
        "adapter": {"kind": "full"},
        "training": {"local_steps": 1, "batch_size": 1, "learning_rate": 1.0},
        "federation": {"clip_norm": 10.0, **federation},
        "sealing": dict(sealing),
    }
    if privacy is not None:
        document["privacy"] = dict(privacy)
    return parse_document(document, f"the specification of {name}")
