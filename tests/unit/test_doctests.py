"""The examples in the shared core's docstrings do what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

COMMON = Path(__file__).resolve().parents[2] / "common"
WITH_EXAMPLES = [
    ".".join(path.relative_to(COMMON).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted(COMMON.rglob("*.py"))
    if "    >>> " in (text := path.read_text("utf-8")) or "\n>>> " in text
]


def test_there_are_examples() -> None:
    assert len(WITH_EXAMPLES) > 40


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_the_examples_hold(module: str) -> None:
    found = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert found.attempted and not found.failed
