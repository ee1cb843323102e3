"""Bytes that a node sends in one sealed round, by method: of the upload exactly, as both sides lay it out."""

from collections.abc import Callable
from typing import Any

from confide.models.store import folder_digest
from confide.models.trainable import schema_of
from confide.planning.run_plan import upload_bytes
from confide.runs.specification import Specification, parse_document

from confide_simulations import assets

NODES = 4
LLAMA = {"rank": 8, "target_modules": ["q_proj", "v_proj"], "first_layer": 18}
_STEP = {"local_steps": 1, "batch_size": 64, "learning_rate": 1.0, "optimizer": "sgd"}
_SHARED = {"unit": "record", "epsilon": 8.0, "delta": 1e-5, "clip": 0.5, "noise": "shared"}
_ORGANIZATION = {"unit": "organization", "epsilon": 8.0, "delta": 1e-5, "clip": 1.0}


def measure(say: Callable[[str], None]) -> dict[str, Any]:
    """By method: scalars that travel, and bytes of the upload among four nodes."""
    minilm, smollm = assets.minilm(say), assets.smollm2(say)
    layers = {"rank": 8, "target_modules": ["query", "value"]}
    asked = {"purpose": "scores", "source": "made up", "prompts": ["p"] * 128, "answers": [f"a{i}" for i in range(128)]}
    runs: dict[str, tuple[Any, dict[str, Any]]] = {
        "reward head": (minilm, {"method": "reward", "adapter": {"kind": "none"}}),
        "reward head, shared noise": (minilm, {"method": "reward", "adapter": {"kind": "none"}, "privacy": _SHARED}),
        "reward, LoRA r=8": (minilm, {"method": "reward", "adapter": layers}),
        "DPO, LoRA r=8 on 12 layers": (smollm, {"method": "dpo", "adapter": LLAMA}),
        "feedback, 128 answers": (minilm, {"method": "feedback", "feedback": asked, "privacy": _ORGANIZATION}),
    }
    found = {}
    for name, (base, sections) in runs.items():
        specification = _specification(folder_digest(base), **sections)
        sent = schema_of(specification, base).size
        found[name] = {"scalars": sent, "bytes": upload_bytes(specification, NODES, sent)}
    return {"nodes": NODES, "bits": 16, "upload": found}


def _specification(sha256: str, *, method: str, **sections: Any) -> Specification:
    shared = sections.get("privacy", {}).get("noise") == "shared"
    clip = {} if shared else {"clip_norm": sections.get("privacy", {}).get("clip", 4.0)}
    document = {
        "version": 1, "name": "bytes", "model": {"sha256": sha256}, "method": {"name": method, "max_length": 64},
        "federation": {"rounds": 1, "data": "pairs", **clip}, **sections,
    }  # fmt: skip
    if method != "feedback":
        document["training"] = _STEP
    return parse_document(document, "the benchmark's run")
