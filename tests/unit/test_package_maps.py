"""A package of the shared core says in its docstring what each of its modules is; the page draws its layers."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

COMMON = Path(__file__).resolve().parents[2] / "common"
PACKAGES = {
    str(path.parent.relative_to(COMMON)): path
    for path in sorted(COMMON.rglob("__init__.py"))
    if path.parent.name not in {"confide", "proto"}
}


@pytest.mark.parametrize("name", PACKAGES)
def test_every_module_is_named(name: str) -> None:
    text = ast.get_docstring(ast.parse(PACKAGES[name].read_text("utf-8"))) or ""
    folder = PACKAGES[name].parent
    modules = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    missing = {
        module for module in modules - {"__init__"} if not re.search(rf"`{module}`|^ +{module}  ", text, re.MULTILINE)
    }
    assert not missing, f"the docstring of {name} says nothing of {sorted(missing)}"


def test_the_page_draws_the_layers_that_the_contract_holds() -> None:
    root = COMMON.parent
    contracts = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["name"] == "the shared core's layers")
    drawn = "".join(f"    {layer}\n" for layer in layers if layer not in ("__main__", "cli"))
    assert drawn in (root / "docs" / "architecture.md").read_text("utf-8")
