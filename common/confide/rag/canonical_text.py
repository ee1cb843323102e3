"""A document's canonical text: made once from its blocks, stored, and never normalised again.

Every offset of this package (of chunks, sentences, quotations) counts characters of this text. It is Unicode NFC with
ligatures written out, without control, zero-width and direction-changing characters, blocks apart by an empty line.

>>> made = canonical_text([Block("Pa\\xadper  \\u202ework", level=1), Block("Four\\neyes.", page=2)])
>>> made.text
'Paper work\\n\\nFour eyes.'
>>> made.marks[1].headings, made.marks[1].page
(('Paper work',), 2)
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from confide.rag.parsing.blocks import Block

VERSION = 1
"""Of the rules below. Another version makes another text; a stored text keeps the version that made it."""
_LIGATURES = str.maketrans(
    {"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st", "\xad": "", "\ufeff": ""}
)
_SPACES = re.compile(r"[^\S\n]+")
_BROKEN = re.compile(r"(?<=\w)-\n(?=\w)")
"""A hyphen at the end of a line stays: whether it is the word's own cannot be told, and a quotation must not guess."""
_HEADING_CHARS = 200
_MOST_MARKS = 30
_MARKS = re.compile(f"[^\\x00-\\u02ff]{{{_MOST_MARKS + 1}}}")
"""Where there might be more: no mark has a lower number."""


@dataclass(frozen=True)
class Mark:
    """One block's place: characters [start, stop) of the text.

    level: 0 for text, else a heading's. headings: the path to it, outermost first, without itself.
    note: as of a block.
    """

    start: int
    stop: int
    level: int
    page: int | None
    record: str | None
    headings: tuple[str, ...]
    note: bool = False


@dataclass(frozen=True)
class CanonicalText:
    """The text, and its blocks in order; between two of them stands an empty line."""

    text: str
    marks: tuple[Mark, ...]


def canonical_text(blocks: Iterable[Block], change: Callable[[str], str] = str) -> CanonicalText:
    """Normalise and join the blocks. A block of which nothing is left is left out.

    change: what is done to each normalised text and record's name before it gets offsets: masking.
    """
    parts: list[str] = []
    marks: list[Mark] = []
    path: list[tuple[int, str]] = []
    place, record = 0, None
    records = _Records(change)
    for block in blocks:
        text = change(normalised(block.text, lines=block.lines))
        if not text:
            continue
        named = None if block.record is None else records.name(block.record)
        if named != record:
            path, record = [], named
        if block.level:
            path = [(level, title) for level, title in path if level < block.level]
        start = place + 2 if parts else 0
        place = start + len(text)
        headings = tuple(title for _, title in path)
        marks.append(Mark(start, place, block.level, block.page, record, headings, block.note))
        parts.append(text)
        if block.level:
            path.append((block.level, " ".join(text.split())[:_HEADING_CHARS]))
    return CanonicalText("\n\n".join(parts), tuple(marks))


class _Records:
    """What records are called: two that are masked alike stay two."""

    def __init__(self, change: Callable[[str], str]) -> None:
        self._change = change
        self._names: dict[str, str] = {}
        self._taken: set[str] = set()
        self._alike: Counter[str] = Counter()

    def name(self, record: str) -> str:
        if record not in self._names:
            shown = name = self._change(record)
            while name in self._taken:
                self._alike[shown] += 1
                name = f"{shown} {self._alike[shown] + 1}"
            self._names[record] = name
            self._taken.add(name)
        return self._names[record]


def normalised(text: str, *, lines: bool = False) -> str:
    """One block's text. lines: line breaks and indentation are its own and stay."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").translate(_LIGATURES)
    if not text.isascii() or not text.isprintable():
        text = unicodedata.normalize("NFC", _few_marks("".join(map(_shown, text))))
    if lines:
        return re.sub(r"\n\s*\n", "\n", "\n".join(line.rstrip() for line in text.split("\n"))).strip("\n")
    text = _BROKEN.sub("-", _SPACES.sub(" ", text))
    return " ".join(text.split())


def _few_marks(text: str) -> str:
    """At most 30 marks on one letter, as in Unicode's stream-safe text (UAX #15): ordering them takes the square."""
    if not _MARKS.search(text):
        return text
    kept, run = [], 0
    for char in text:
        run = run + 1 if unicodedata.combining(char) else 0
        if run <= _MOST_MARKS:
            kept.append(char)
    return "".join(kept)


def _shown(char: str) -> str:
    """What stands for a character: itself, a space, or nothing."""
    if char.isprintable() or char == "\n":
        return char
    category = unicodedata.category(char)
    if category in {"Zs", "Zl", "Zp"} or char == "\t":
        return " "
    # Cf: zero-width and direction-changing characters; Cc: controls; Co, Cs, Cn: no characters of a text.
    return "" if category == "Cf" else " "
