"""What a parser makes of a file: blocks of text in reading order, each with what is known about its place.

A parser is a function from bytes to blocks. It raises Unreadable with a reason that a person can act on; the reason
never quotes the content.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum


class Unreadable(Exception):
    """The file cannot be read; the text says why and what to do."""


@dataclass(frozen=True)
class Block:
    """A paragraph, list item, table row or heading.

    level: 0 for text, 1 to 6 for a heading.
    page: counted from 1; None where the format has no pages.
    record: the record that it belongs to, of a format that holds records; text of two records is never one passage.
    lines: whether line breaks in it are the document's own (code), or come from how it was set.
    note: whether it is a note to the block before it (after the notes that stand between).
    """

    text: str
    level: int = 0
    page: int | None = None
    record: str | None = None
    lines: bool = False
    note: bool = False


class Left(StrEnum):
    """What a parser sees and does not read, as a report names it."""

    COMMENTS = "comment left out"
    MISSING_NOTES = "note missing in the file"
    PICTURES = "page that is a picture, not read"


@dataclass(frozen=True)
class LeftOut:
    """How often a file holds something that is not read."""

    what: Left
    count: int


@dataclass(frozen=True)
class Parsed:
    """Everything that a parser made of a file."""

    blocks: list[Block]
    left_out: Mapping[Left, int]


Parser = Callable[[bytes], Iterable[Block | LeftOut]]


def decoded(data: bytes, declared: str | None = None) -> str:
    """Text of a file that says its encoding, or is UTF-8. Raises Unreadable."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        declared = "utf-16"
    elif data.startswith(b"\xef\xbb\xbf"):
        declared = "utf-8-sig"
    name = (declared or "utf-8").lower()
    if name not in _ENCODINGS:
        raise Unreadable(f"says that it is encoded as {name[:40]!r}; convert it to UTF-8, for example with iconv")
    try:
        text = data.decode(_ENCODINGS[name])
    except UnicodeDecodeError as error:
        raise Unreadable(
            f"is not {name} (byte {error.start + 1}); convert it to UTF-8, for example with "
            "`iconv -f WINDOWS-1252 -t UTF-8`"
        ) from None
    if "\0" in text:
        raise Unreadable("holds NUL characters: it is a binary file, not text")
    return text


_ENCODINGS = {
    "utf-8": "utf-8",
    "utf8": "utf-8",
    "utf-8-sig": "utf-8-sig",
    "utf-16": "utf-16",
    "us-ascii": "ascii",
    "ascii": "ascii",
    # As browsers read it: what calls itself Latin-1 is Windows' superset of it.
    "iso-8859-1": "cp1252",
    "latin-1": "cp1252",
    "windows-1252": "cp1252",
    "iso-8859-15": "iso-8859-15",
}
