"""Documented functions of the installed Python's standard library, read as text: nothing of it is imported or run.

>>> record = next(functions())
>>> sorted(record)
['completion', 'module', 'prompt']
"""

import ast
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path

_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip"}
_DESCRIPTION, _BODY = (30, 400), (20, 500)
"""Characters, fewest and most."""
_ASKED = "Write the body of this Python function."


def functions(library: Path | None = None) -> Iterator[dict[str, str]]:
    """Records {prompt, completion, module} of every function with a description and a short body, each body once.

    library: a folder of modules; default the installed standard library.
    """
    root = library or Path(sysconfig.get_path("stdlib"))
    bodies = set()
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root)
        if _LEFT_OUT & {*place.parts}:
            continue
        for prompt, body in _of_module(path):
            if body not in bodies:
                bodies.add(body)
                yield {"prompt": prompt, "completion": body, "module": place.parts[0].removesuffix(".py")}


def _of_module(path: Path) -> Iterator[tuple[str, str]]:
    try:
        text = path.read_text("utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in old strings
            tree = ast.parse(text)
    except (UnicodeDecodeError, SyntaxError):  # some files exist to be wrong
        return
    lines = text.splitlines()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and len(node.body) > 1:
            first = node.body[0]
            description = ast.get_docstring(node)
            if description is None or first.end_lineno is None or first.end_lineno == node.body[1].lineno:
                continue
            head = textwrap.dedent("\n".join(lines[node.lineno - 1 : first.end_lineno]))
            body = textwrap.dedent("\n".join(lines[first.end_lineno : node.end_lineno])).strip("\n")
            if _DESCRIPTION[0] <= len(description) <= _DESCRIPTION[1] and _BODY[0] <= len(body) <= _BODY[1]:
                yield f"{_ASKED}\n\n{head}", body
