"""Starting points of a run specification, by what people want: `confide run new` writes one as commented TOML.

>>> text = write("fine-tune", sha256="0" * 64, data="faq", changes={"adapter": {"first_layer": 18}})
>>> "first_layer = 18" in text, "# step_deadline_s" in text
(True, True)
"""

from collections.abc import Iterator, Mapping
from typing import Any

from confide.errors import SpecificationError
from confide.runs.reference import Field, Section, literal, sections
from confide.runs.specification import parse_toml

Tables = Mapping[str, Mapping[str, Any]]
_LORA = {"rank": 8, "alpha": 32.0, "target_modules": ["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]}
_ENCODER = {"rank": 8, "alpha": 16.0, "target_modules": ["query", "value"]}

STARTING_POINTS: Mapping[str, tuple[str, Tables]] = {
    "fine-tune": (
        "LoRA on questions and answers or on prompts and completions; loss on the answers only",
        {
            "adapter": _LORA,
            "method": {"name": "sft", "max_length": 256},
            "training": {"local_steps": 3, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 3e-3},
            "federation": {"rounds": 3, "clip_norm": 12.0},
        },
    ),
    "fine-tune-private": (
        "the same with differential privacy for every record",
        {
            "adapter": _LORA,
            "method": {"name": "sft", "max_length": 256},
            "training": {"local_steps": 3, "batch_size": 16, "micro_batch_size": 4, "learning_rate": 2e-3},
            "federation": {"rounds": 5, "clip_norm": 12.0},
            "privacy": {"unit": "record", "epsilon": 8.0, "delta": 1e-5, "clip": 1.0},
        },
    ),
    "pre-train": (
        "all parameters on plain text, few and long rounds (DiLoCo)",
        {
            "adapter": {"kind": "full"},
            "method": {"name": "causal_lm", "max_length": 256},
            "training": {"local_steps": 30, "batch_size": 16, "learning_rate": 5e-4, "schedule": "cosine"},
            "federation": {"rounds": 50, "clip_norm": 2.0, "clip_schedule": "learning_rate"},
            "federation.outer": {"learning_rate": 0.7, "momentum": 0.9, "nesterov": True},
            "sealing": {"bits": 4, "error_feedback": True},
        },
    ),
    "classify": (
        "a classifier of texts: name the labels under [method]",
        {
            "adapter": _ENCODER,
            "method": {"name": "classification", "labels": ["negative", "neutral", "positive"], "max_length": 128},
            "training": {"local_steps": 10, "batch_size": 16, "learning_rate": 1e-3},
            "federation": {"rounds": 5, "clip_norm": 20.0},
        },
    ),
    "retriever": (
        "sentence embeddings that bring questions to their passages",
        {
            "adapter": _ENCODER,
            "method": {"name": "contrastive", "max_length": 128},
            "training": {"local_steps": 10, "batch_size": 16, "learning_rate": 5e-4},
            "federation": {"rounds": 5, "clip_norm": 5.0},
        },
    ),
}


def write(name: str, *, sha256: str, data: str, changes: Tables | None = None) -> str:
    """The starting point as TOML: what it sets, and every other field of the same tables as a comment with its default.

    sha256: of the base model. changes: further values by table. Raises SpecificationError for an unknown name.
    """
    if name not in STARTING_POINTS:
        raise SpecificationError(f"there is no recipe {name!r}; the recipes are {', '.join(STARTING_POINTS)}")
    about, tables = STARTING_POINTS[name]
    chosen: dict[str, dict[str, Any]] = {path: dict(values) for path, values in tables.items()}
    chosen.setdefault("model", {})["sha256"] = sha256
    chosen["federation"]["data"] = data
    chosen[""] = {"version": 1, "name": name}
    for path, values in (changes or {}).items():
        chosen.setdefault(path, {}).update(values)
    lines = [f"# {about}.", "# docs/specification.md lists every field; `confide run plan` says what a run will do."]
    for section in sections():
        if section.path in chosen or section.path in {"sealing", "privacy"}:
            lines += _table(section, chosen.get(section.path, {}))
    text = "\n".join(lines) + "\n"
    parse_toml(text, f"the recipe {name}")
    return text


def _table(section: Section, values: Mapping[str, Any]) -> Iterator[str]:
    if section.path:
        yield f"\n[{section.path}]"
    width = max(len(_line(field, values)) for field in section.fields)
    for field in section.fields:
        said = " ".join(part for part in (field.about, field.allowed and f"({field.allowed})") if part)
        line = _line(field, values)
        yield f"{line:{min(width, 44)}}  # {said}" if said else line


def _line(field: Field, values: Mapping[str, Any]) -> str:
    if field.name in values:
        return f"{field.name} = {literal(values[field.name])}"
    return f"# {field.name} = {field.default or '...'}"
