"""README.md of an exported adapter or model, from its manifest: what it is, where it comes from, what was measured."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from confide.runs.specification import Specification

_LICENCE = re.compile(r"\A---\n(?:.*\n)*?license:\s*([\w.+-]+)", re.MULTILINE)


def licence_of(base_folder: Path) -> str | None:
    """The base model's, as its own model card says; None where it says nothing."""
    card = base_folder / "README.md"
    found = _LICENCE.search(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else None
    return found[1] if found else None


def model_card(
    specification: Specification, manifest: Mapping[str, Any], *, base_name: str, licence: str | None, adapter: bool
) -> str:
    """Markdown with the front matter that hubs read."""
    kind = "adapter" if adapter else "model"
    task = "text-classification" if specification.method.name == "classification" else "text-generation"
    front = [
        "---",
        *(["library_name: peft", f"base_model: {base_name}"] if adapter else ["library_name: transformers"]),
        f"license: {licence or 'other'}",
        *([f"pipeline_tag: {task}"] if specification.method.name in {"sft", "causal_lm", "classification"} else []),
        "tags: [federated-learning, confide]",
        "---",
    ]
    terms = (
        f"The base model's card says {licence}; what was trained on may bind it further."
        if licence
        else "The base model's folder did not say its licence; find it before you pass this on. It binds this too."
    )
    return "\n".join(
        [
            *front,
            f"# {specification.name}",
            "",
            f"An {kind}" if adapter else f"A {kind}",
            "that several organizations trained together with Confide; their texts stayed with them.",
            "",
            "## Licence",
            "",
            terms,
            "",
            "## Lineage",
            "",
            *_lineage(specification, manifest),
            "",
            "## Evaluation",
            "",
            *_evaluation(manifest),
            "",
            *(_loading() if adapter else []),
        ]
    )


def _lineage(specification: Specification, manifest: Mapping[str, Any]) -> list[str]:
    privacy = specification.privacy
    protected = (
        "none" if privacy.unit == "none" else f"{privacy.unit}, epsilon {privacy.epsilon}, delta {privacy.delta}"
    )
    rows = {
        "base model": f"{specification.model.name}, sha256 {specification.model.sha256}",
        "run": manifest.get("run_id", "not recorded"),
        "round": manifest.get("round", "not recorded"),
        "specification": specification.digest,
        "administrator": manifest.get("administrator", "not recorded"),
        "method": specification.method.name,
        "sealing": specification.sealing.kind.value,
        "differential privacy": protected,
    }
    rounds = manifest.get("rounds") or []
    if rounds:
        rows["contributors of the last round"] = ", ".join(map(str, rounds[-1].get("contributors", []))) or "none"
    return [f"- {name}: {value}" for name, value in rows.items()] + ["- all of it, signed: manifest.json"]


def _evaluation(manifest: Mapping[str, Any]) -> list[str]:
    """Of the newest round whose organizations measured anything, on records kept from training."""
    for entry in reversed(manifest.get("rounds") or []):
        if entry.get("metrics"):
            said = [f"- {name}: {value}" for name, value in sorted(entry["metrics"].items())]
            return [
                f"Means over the organizations, of the model that round {entry.get('round')} began with:",
                "",
                *said,
            ]
    return ["Nothing was measured in this run."]


def _loading() -> list[str]:
    return [
        "## Use",
        "",
        "`base_model_name_or_path` in adapter_config.json says where the base model is; set it to where you have it.",
        "",
        "```python",
        "from peft import AutoPeftModelForCausalLM",
        'model = AutoPeftModelForCausalLM.from_pretrained("this folder")',
        "```",
        "",
    ]
