"""Documents that are stored, hashed and signed, and that later releases add fields to.

The canonical form of a document has every field of its class's *first form* (first_forms.json), and of the fields that
came later those that differ from their default. So a document of an earlier release has the same bytes, hash and
signature for ever, what it does not say has the meaning of before, and each meaning still has exactly one spelling: a
later field that is written out with its default is refused as not canonical.

What follows for whoever adds a field: give it the default that says what was done before there was the field, and never
change that default; another meaning takes another field or another `version`.

>>> class Example(StoredDocument):
...     name: str
>>> Example(name="a").model_dump(mode="json")
{'name': 'a'}
"""

import functools
import json
import weakref
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from confide import canonical

_FIRST_FORMS = Path(__file__).with_name("first_forms.json")


class StoredDocument(BaseModel):
    """Base of what is hashed or signed: frozen, strict, unknown fields refused, one form for each meaning."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        for name in later_fields(cls):
            if cls.model_fields[name].is_required():
                raise TypeError(
                    f"{document_key(cls)}.{name} is not in the class's first form and has no default, so that no "
                    "stored document could be read; give it the default that says what was done before"
                )

    @model_serializer(mode="wrap")
    def _canonical_form(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = handler(self)
        for name, default in _later_defaults(type(self)):
            if getattr(self, name) == default:
                document.pop(name, None)
        return document


def document_key(kind: type[StoredDocument]) -> str:
    """What first_forms.json calls a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def later_fields(kind: type[StoredDocument]) -> tuple[str, ...]:
    """The fields that a class got after its first form; none of a class that no release had yet."""
    first = first_forms().get(document_key(kind))
    return () if first is None else tuple(name for name in kind.model_fields if name not in first)


_digests: dict[int, tuple[weakref.ref[StoredDocument], str]] = {}


def digest_of(document: StoredDocument) -> str:
    """SHA-256 of the document's canonical bytes, in lower-case hex; found out once for each object.

    By the object, not by what it is equal to: 0.0 and -0.0 are equal and have different bytes.
    """
    number = id(document)
    known = _digests.get(number)
    if known is not None and known[0]() is document:
        return known[1]
    found = canonical.digest(document.model_dump(mode="json"))
    _digests[number] = weakref.ref(document, lambda _: _digests.pop(number, None)), found
    return found


@functools.cache
def _later_defaults(kind: type[StoredDocument]) -> tuple[tuple[str, Any], ...]:
    fields = kind.model_fields
    return tuple((name, fields[name].get_default(call_default_factory=True)) for name in later_fields(kind))


@functools.cache
def first_forms() -> dict[str, frozenset[str]]:
    """The fields that each class had in the first release that had the class."""
    forms: dict[str, list[str]] = json.loads(_FIRST_FORMS.read_text())
    return {kind: frozenset(fields) for kind, fields in forms.items()}
