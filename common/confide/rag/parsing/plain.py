"""txt and jsonl.

A line of a jsonl file is {"text": ...} with perhaps "id" and "title", or {"question": ..., "answer": ...}; each is a
record of its own, and a passage never spans two. Other fields are left alone.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from confide.rag.parsing.blocks import Block, Unreadable, decoded

_MAX_DIGITS = 4300


def parse_txt(data: bytes) -> Iterator[Block]:
    """Paragraphs: what stands between empty lines."""
    for paragraph in re.split(
        r"\n[ \t]*\n", decoded(data).replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n\n")
    ):
        if paragraph.strip():
            yield Block(paragraph)


def parse_jsonl(data: bytes) -> Iterator[Block]:
    """One record a line."""
    seen: set[str] = set()
    for number, line in enumerate(decoded(data).split("\n"), start=1):
        if line.strip():
            yield from _record(line, number, seen)


def _record(line: str, number: int, seen: set[str]) -> Iterator[Block]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        raise Unreadable(f"line {number} is not JSON; each line holds one object") from None
    if not isinstance(fields, dict):
        raise Unreadable(f'line {number} is not an object; write {{"text": ...}}')
    record = _text(fields.get("id", str(number)), number, "id")
    if record in seen or not 0 < len(record) <= 200:
        raise Unreadable(f"line {number}: the field id must be 1 to 200 characters, and no other line's")
    seen.add(record)
    title = fields.get("title", fields.get("question"))
    body = fields.get("text", fields.get("answer"))
    if body is None:
        raise Unreadable(f'line {number} has no field "text" (or "question" and "answer")')
    if title is not None and _text(title, number, "title").strip():
        yield Block(title, level=1, record=record)
    if _text(body, number, "text").strip():
        yield Block(body, record=record)


def _text(value: Any, number: int, field: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and field == "id":
        return str(value)
    if not isinstance(value, str):
        raise Unreadable(f"line {number}: the field {field} must be text, not {type(value).__name__}")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise Unreadable(f"line {number}: the field {field} holds half of a surrogate pair; write it as UTF-8")
    return value
