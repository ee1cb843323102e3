"""Run specifications of tests, from a few changes to a small default."""

from typing import Any

from confide import canonical
from confide.runs.specification import Specification

_BASE: dict[str, Any] = {
    "version": 1,
    "name": "test",
    "seed": 5,
    "reproducible": True,
    "model": {"sha256": "0" * 64},
    "adapter": {"rank": 4, "alpha": 8.0, "target_modules": ["q_proj", "v_proj"]},
    "method": {"max_length": 64},
    "training": {"local_steps": 3, "batch_size": 4, "learning_rate": 1e-2},
    "federation": {"rounds": 2, "data": "shard"},
    "sealing": {"kind": "none"},
}


def specification(**sections: Any) -> Specification:
    """The default with some fields of some sections replaced: specification(adapter={"rank": 2}, seed=6)."""
    document = dict(_BASE)
    for key, value in sections.items():
        old = _BASE.get(key)
        document[key] = {**old, **value} if isinstance(old, dict) else value
    return Specification.model_validate_json(canonical.encode(document))
