"""Every field of a run specification, read off the models: docs/specification.md and `confide run new` are made of it.

>>> rounds = {field.name: field for field in fields(Federation)}["rounds"]
>>> rounds.kind, rounds.allowed, rounds.required
('integer', '1 to 100000', True)
"""

import ast
import difflib
import functools
import inspect
import json
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from confide.runs.sections import Federation
from confide.runs.specification import Specification

_PATTERNS = {
    r"^[a-z0-9][a-z0-9._-]{0,63}$": "lower-case letters, digits, dot, dash and underscore, at most 64",
    r"^[0-9a-f]{64}$": "64 hexadecimal digits",
}
_KINDS = {int: "integer", float: "number", bool: "true or false", str: "text"}
__all__ = ["Federation", "Field", "Section", "fields", "literal", "nearest", "sections"]


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field. default: as TOML, "" where there is none; allowed: the range or choices in words, "" for any."""

    name: str
    kind: str
    allowed: str
    default: str
    required: bool
    about: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """One table of the TOML file; path "" is the top."""

    path: str
    about: str
    fields: tuple[Field, ...]


def sections(model: type[BaseModel] = Specification, path: str = "") -> Iterator[Section]:
    """All tables, outer before inner, in the order of the models."""
    yield Section(path=path, about=inspect.cleandoc(model.__doc__ or ""), fields=tuple(fields(model)))
    for name, info in model.model_fields.items():
        inner = _model_of(info.annotation)
        if inner is not None:
            yield from sections(inner, f"{path}.{name}" if path else name)


def fields(model: type[BaseModel]) -> Iterator[Field]:
    """The fields of one model that are no tables themselves."""
    said = _docstrings(model)
    for name, info in model.model_fields.items():
        if _model_of(info.annotation) is None:
            yield Field(
                name=name,
                kind=_kind(info.annotation),
                allowed=_allowed(info),
                default="" if info.is_required() or info.default is None else literal(info.default),
                required=info.is_required(),
                about=said.get(name, ""),
            )


def nearest(path: tuple[str, ...]) -> str:
    """For a place where an unknown field stands: what it may have been, and what is there. "" where nothing is."""
    model: type[BaseModel] = Specification
    for part in path[:-1]:
        info = model.model_fields.get(part)
        inner = _model_of(info.annotation) if info is not None else None
        if inner is None:
            return ""
        model = inner
    names = list(model.model_fields)
    close = difflib.get_close_matches(path[-1], names, n=1)
    meant = f"did you mean {close[0]}? " if close else ""
    return f"{meant}Fields here: {', '.join(names)}"


def literal(value: Any) -> str:
    """A default as TOML writes it."""
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(literal(item) for item in value) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value)


@functools.cache
def _docstrings(model: type[BaseModel]) -> Mapping[str, str]:
    """The string that stands under each field."""
    body = ast.parse(textwrap.dedent(inspect.getsource(model))).body[0]
    assert isinstance(body, ast.ClassDef)  # noqa: S101 - the source of a class
    found: dict[str, str] = {}
    for before, after in zip(body.body, body.body[1:], strict=False):
        if not (isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name)):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            found[before.target.id] = " ".join(str(after.value.value).split())
    return found


def _model_of(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _plain(annotation: Any) -> list[Any]:
    """The alternatives of an annotation, without None and without metadata."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _plain(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in {typing.Union, types.UnionType}:
        return [kind for part in typing.get_args(annotation) if part is not type(None) for kind in _plain(part)]
    return [annotation]


def _is_enum(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, StrEnum)


def _kind(annotation: Any) -> str:
    (first, *_) = _plain(annotation)
    origin = typing.get_origin(first)
    if origin is typing.Literal or _is_enum(first):
        return "choice"
    if origin is tuple:
        return "list of " + _kind(typing.get_args(first)[0])
    return _KINDS.get(first, getattr(first, "__name__", str(first)))


def _allowed(info: FieldInfo) -> str:
    (first, *_) = _plain(info.annotation)
    if typing.get_origin(first) is typing.Literal:
        return ", ".join(literal(choice) for choice in typing.get_args(first))
    if _is_enum(first):
        return ", ".join(literal(choice.value) for choice in first)
    return _range([*info.metadata, *_metadata(info.annotation)])


def _metadata(annotation: Any) -> list[Any]:
    """Constraints inside Annotated, through unions; a FieldInfo holds its own."""
    if typing.get_origin(annotation) is typing.Annotated:
        base, *rest = typing.get_args(annotation)
        inner = [item for part in rest for item in (part.metadata if isinstance(part, FieldInfo) else [part])]
        return inner + _metadata(base)
    return [item for part in typing.get_args(annotation) for item in _metadata(part)]


def _range(metadata: list[Any]) -> str:
    low = high = pattern = ""
    for item in metadata:
        if isinstance(item, Ge):
            low = f"{item.ge:g}" if isinstance(item.ge, float) else f"{item.ge}"
        if isinstance(item, Gt):
            low = f"above {item.gt}"
        if isinstance(item, Le):
            high = f"{item.le}"
        if isinstance(item, Lt):
            high = f"below {item.lt}"
        pattern = getattr(item, "pattern", None) or pattern
    if pattern:
        return _PATTERNS.get(pattern, f"matches `{pattern}`")
    if low and high:
        return f"{low} to {high}"
    return f"{low} or more" if low and not low.startswith("above") else low or high
