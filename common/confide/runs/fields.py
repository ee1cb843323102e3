"""Which fields each method's records need. Light: the node checks an offer by it before anything else is imported.

>>> check_names("sft", ("question", "answer", "id"))
"""

from collections.abc import Collection, Mapping
from typing import Any

from confide.errors import DataError

Record = Mapping[str, Any]

FIELDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "sft": (("messages",), ("prompt", "completion"), ("question", "answer")),
    "causal_lm": (("text",),),
    "masked_lm": (("text",),),
    "classification": (("text", "label"),),
    "contrastive": (("anchor", "positive"), ("text", "label"), ("question", "answer")),
    "tokenizer": (("text",), ("messages",), ("prompt", "completion"), ("question", "answer")),
    "reward": (("prompt", "chosen", "rejected"), ("chosen", "rejected")),
    "feedback": (("prompt", "chosen", "rejected"), ("chosen", "rejected")),
    "dpo": (("prompt", "chosen", "rejected"), ("chosen", "rejected")),
    "in_context": (("input", "output"), ("question", "answer"), ("text", "label"), ("prompt", "completion")),
}
"""For each method the alternatives of fields that a record must have."""


def needed(method: str) -> str:
    """The alternatives, for messages."""
    return " or ".join("{" + ", ".join(names) + "}" for names in FIELDS[method])


def check_names(method: str, names: Collection[str], *, user_key: str | None = None) -> None:
    """Raise DataError when a data set with these fields can have no record for the method, or names no user."""
    if not any(set(alternative) <= set(names) for alternative in FIELDS[method]):
        raise DataError(
            f"the data set has no fields for method {method!r}, which needs {needed(method)}. Rename them on the node"
        )
    if user_key is not None and user_key not in names:
        raise DataError(f"privacy.user_key is {user_key!r}, and the data set has no such field")


def fields_of(method: str, record: Record) -> tuple[str, ...]:
    """Which alternative of FIELDS a record has. Raises DataError; the text holds nothing of the record."""
    for alternative in FIELDS[method]:
        if all(record.get(name) is not None for name in alternative):
            return alternative
    raise DataError(
        f"a record lacks the fields that method {method!r} needs: {needed(method)}. Rename the data set's fields on "
        "the node"
    )


def text_of(record: Record, name: str) -> str:
    """A field as text. Raises DataError for anything else."""
    value = record[name]
    if not isinstance(value, str):
        raise DataError(f"field {name!r} of a record is {type(value).__name__}; it must be text")
    return value
