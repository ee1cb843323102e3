"""A specification as the TOML that an administrator would write: what differs from the defaults, in the models' order.

>>> from confide.runs.specification import EXAMPLE, parse_toml
>>> parse_toml(to_toml(parse_toml(EXAMPLE))) == parse_toml(EXAMPLE)
True
"""

from collections.abc import Iterator

from pydantic import BaseModel

from confide.runs.reference import literal
from confide.runs.specification import Specification


def to_toml(specification: Specification) -> str:
    """The text; `parse_toml` makes the same specification of it."""
    return "\n".join(_table("", specification)).strip() + "\n"


def _table(path: str, model: BaseModel) -> Iterator[str]:
    tables: list[tuple[str, BaseModel]] = []
    lines: list[str] = []
    for name, info in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            tables.append((f"{path}.{name}" if path else name, value))
        elif value is not None and (info.is_required() or value != info.get_default(call_default_factory=True)):
            lines.append(f"{name} = {literal(value)}")
    if lines:
        yield from ([f"\n[{path}]"] if path else []) + lines
    for name, inner in tables:
        yield from _table(name, inner)
