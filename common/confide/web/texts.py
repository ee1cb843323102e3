"""The words of the pages: one TOML catalogue, read once, so that another language is another file.

    [overview]
    calm = "Nothing needs you."
    needs = {one = "1 thing needs you.", other = "{count} things need you."}

>>> texts = Texts({"a": {"b": "{who} waits", "n": {"one": "1 run", "other": "{count} runs"}}})
>>> texts("a.b", who="x"), texts("a.n", count=1), texts("a.n", count=3)
('x waits', '1 run', '3 runs')
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from confide.errors import StateError


class Texts:
    """Called with a key and what stands in the text's braces."""

    def __init__(self, catalogue: Mapping[str, Any]) -> None:
        self._texts = dict(_flat("", catalogue))

    @classmethod
    def read(cls, *paths: Path) -> "Texts":
        """From TOML files that have no section in common. Raises StateError where they have."""
        every: dict[str, Any] = {}
        for path in paths:
            found = tomllib.loads(path.read_text(encoding="utf-8"))
            if twice := every.keys() & found.keys():
                raise StateError(
                    f"{path} has the sections {', '.join(sorted(twice))} of another catalogue; rename them"
                )
            every |= found
        return cls(every)

    @property
    def keys(self) -> frozenset[str]:
        """Of every text."""
        return frozenset(self._texts)

    def __call__(self, key: str, **said: object) -> str:
        """The text. With forms by number, `count` chooses. Raises StateError for a key that is not there."""
        found = self._texts.get(key)
        if found is None:
            raise StateError(f"the catalogue of texts has no {key!r}; add it")
        text = found if isinstance(found, str) else found["one" if said.get("count") == 1 else "other"]
        return text.format_map({name: _number(value) for name, value in said.items()}) if said else text

    def get(self, key: str, otherwise: str) -> str:
        """The text, or what the caller has for a key that came from elsewhere."""
        found = self._texts.get(key)
        return found if isinstance(found, str) else otherwise


def _flat(prefix: str, catalogue: Mapping[str, Any]) -> Any:
    for name, value in catalogue.items():
        if isinstance(value, str) or set(value) == {"one", "other"}:
            yield prefix + name, value
        else:
            yield from _flat(f"{prefix}{name}.", value)


def _number(value: object) -> object:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
