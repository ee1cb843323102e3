"""A model folder's chat template, which is a program (Jinja), within limits of time and size.

transformers renders it in Jinja's immutable sandbox: it reaches no file, no module and nothing of Python's own. What a
sandbox does not bound is how long it runs and how much it makes of a few characters. Here a template that can multiply
text, or is longer than MAX_SOURCE_CHARS, is refused before it is run; one that runs longer than MAX_SECONDS, makes more
than MAX_TEXT_CHARS of a conversation or lets the process grow by MAX_GROWTH_KIB is stopped.

Honest limit: a single replacement of one long text by another within one step of the template is not interrupted.
"""

import functools
import re
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import jinja2
from jinja2 import nodes

from confide.errors import ModelError

MAX_SOURCE_CHARS = 1 << 18
MAX_SECONDS = 10.0
MAX_TEXT_CHARS = 1 << 26
MAX_GROWTH_KIB = 1 << 20
"""Of the process's largest resident memory, while one conversation is rendered."""
_MULTIPLYING_FILTERS = frozenset({"center", "format", "wordwrap", "batch", "slice"})
_MULTIPLYING_METHODS = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map"})
_GENERATION = re.compile(r"(\{%[-+]?)\s*(end)?generation\s*([-+]?%\})")
_REMEDY = "use another base model, or mend its template"
_FILE = "<template>"
"""What Jinja calls the code that it makes of a template from a string."""


class _Stopped(Exception):
    """Out of bounds; raised inside the template, which cannot catch it."""


def render(tokenizer: Any, messages: Sequence[Mapping[str, Any]], *, generate: bool) -> str:
    """The conversation as the model was taught to read it.

    generate: up to where the assistant begins to write. Raises ModelError for a template outside the limits, and what
    the template itself raises (most often about the order of roles).
    """
    given = tokenizer.chat_template
    for source in given.values() if isinstance(given, dict) else (given,):
        check_source(source)
    try:
        with _bounded():
            text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=generate)
    except _Stopped as stopped:
        raise ModelError(
            f"this model's chat template {stopped}; use another base model, or mend its template"
        ) from None
    if not isinstance(text, str) or len(text) > MAX_TEXT_CHARS:
        raise ModelError(f"this model's chat template makes more than {MAX_TEXT_CHARS} characters of a conversation")
    return text


@functools.lru_cache(maxsize=16)
def check_source(template: str) -> None:
    """Refuse a template that is too long, or whose operations can make much of little. Raises ModelError."""
    if len(template) > MAX_SOURCE_CHARS:
        raise ModelError(
            f"this model's chat template has {len(template)} characters; at most {MAX_SOURCE_CHARS} are run"
        )
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False)  # noqa: S701 - not HTML
    try:
        tree = environment.parse(_GENERATION.sub(_as_condition, template))
    except jinja2.TemplateSyntaxError:
        return  # transformers says so in its own words; the limits of running hold all the same
    for node in tree.find_all((nodes.Mul, nodes.Pow, nodes.Filter, nodes.Getattr)):
        _check_node(node)


def _as_condition(tag: re.Match[str]) -> str:
    """transformers' own block {% generation %} as one that Jinja knows."""
    return f"{tag[1]} {'endif' if tag[2] else 'if true'} {tag[3]}"


def _check_node(node: nodes.Node) -> None:
    said = None
    if isinstance(node, nodes.Mul | nodes.Pow):
        said = "multiplies"
    elif isinstance(node, nodes.Filter) and node.name in _MULTIPLYING_FILTERS:
        said = f"uses the filter {node.name}"
    elif isinstance(node, nodes.Filter) and node.name == "indent" and not _narrow(node):
        said = "indents by something else than a small number"
    elif isinstance(node, nodes.Getattr) and node.attr in _MULTIPLYING_METHODS:
        said = f"uses the method {node.attr}"
    if said is not None:
        raise ModelError(
            f"this model's chat template {said} (line {node.lineno}), which can make any amount of text of little and "
            f"is not run; {_REMEDY}"
        )


def _narrow(indent: nodes.Filter) -> bool:
    widths = [*indent.args[:1], *(one.value for one in indent.kwargs if one.key == "width")]
    return all(isinstance(one, nodes.Const) and isinstance(one.value, int) and one.value <= 64 for one in widths)


@contextmanager
def _bounded() -> Iterator[None]:
    """While this holds, code that Jinja made of a template is watched line by line, in this thread."""
    until, most = time.monotonic() + MAX_SECONDS, _largest_kib() + MAX_GROWTH_KIB
    before = sys.gettrace()

    def on_line(frame: FrameType, event: str, argument: Any) -> Any:
        if time.monotonic() > until:
            raise _Stopped(f"runs longer than {MAX_SECONDS:g} s")
        if _largest_kib() > most:
            raise _Stopped(f"lets the process grow by more than {MAX_GROWTH_KIB >> 10} MiB")
        return on_line

    def on_call(frame: FrameType, event: str, argument: Any) -> Any:
        return on_line if frame.f_code.co_filename == _FILE else None

    sys.settrace(on_call)
    try:
        yield
    finally:
        sys.settrace(before)


def _largest_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
