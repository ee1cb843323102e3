"""Word documents (docx), opened by python-docx: what stands on the page, paragraphs and tables of the body in order.

python-docx itself gives the text of a paragraph's own runs only. What was inserted while changes were tracked, what
stands in a form's controls, in text boxes and in tables within cells would be missing, and a sentence without its "not"
says the opposite. Left out is what the page does not show: deleted and hidden text, tables of contents.
"""

import io
import re
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

from confide.rag.parsing.blocks import Block, Unreadable

MOST_UNPACKED_BYTES = 256 * 2**20
_OLD_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_HEADING = re.compile(r"(?:heading|überschrift|titre|título|titolo|kop|rubrik)\s*([1-6])", re.IGNORECASE)
_CONTENTS = re.compile(r"toc\s*[1-9]", re.IGNORECASE)
_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_GONE = frozenset({f"{_W}del", f"{_W}moveFrom", f"{_W}pPr", f"{_W}rPr", f"{_W}rt", _FALLBACK})
"""Not walked into: deleted text, properties, readings above a word, and what older programs show instead."""
_MARKS = {f"{_W}tab": "\t", f"{_W}ptab": "\t", f"{_W}br": "\n", f"{_W}cr": "\n", f"{_W}noBreakHyphen": "-"}
_OFF = frozenset({"0", "false", "off"})

_Style = Callable[[Any], str]


def parse_docx(data: bytes) -> Iterator[Block]:
    """Headings by their style, paragraphs, and tables a row a block. Raises Unreadable."""
    from docx import Document
    from docx.text.paragraph import Paragraph

    if data.startswith(_OLD_OFFICE):
        raise Unreadable("is encrypted, or an old .doc; take the password off, or save it as .docx")
    _check_size(data)
    try:
        document = Document(io.BytesIO(data))
        body = document.element.body
    except Exception as error:  # the library raises many kinds for damaged input
        raise Unreadable(f"is no docx document that can be opened ({type(error).__name__}); save it again") from None

    def style(paragraph: Any) -> str:
        found = Paragraph(paragraph, document).style
        return (found.name if found is not None else "") or ""

    yield from _blocks(body, style)


def _check_size(data: bytes) -> None:
    """A zip says how much it unpacks to; python-docx unpacks all of it."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, OSError):
        raise Unreadable("is no docx document: it is not a zip archive, or a damaged one; save it again") from None
    if unpacked > MOST_UNPACKED_BYTES:
        raise Unreadable(
            f"unpacks to {unpacked >> 20} MiB; at most {MOST_UNPACKED_BYTES >> 20} MiB are read. Take pictures out"
        )


def _blocks(container: Any, style: _Style) -> Iterator[Block]:
    """Of a body, a cell or a text box. The XML's own limit on depth bounds the recursion."""
    for item in _within(container, f"{_W}p", f"{_W}tbl"):
        if item.tag == f"{_W}tbl":
            yield from _rows(item, style)
            continue
        text, boxes = _shown(item)
        name = style(item)
        if text.strip() and not _CONTENTS.fullmatch(name):
            yield Block(text, level=_level(name))
        for box in boxes:
            yield from _blocks(box, style)


def _within(container: Any, *tags: str) -> Iterator[Any]:
    """The nearest elements of these tags, through controls, tracked changes and other wrappers around them."""
    for child in container:
        if child.tag in tags:
            yield child
        elif isinstance(child.tag, str) and child.tag not in _GONE:
            yield from _within(child, *tags)


def _shown(paragraph: Any) -> tuple[str, list[Any]]:
    """A paragraph's text, and the text boxes that hang on it."""
    parts: list[str] = []
    boxes: list[Any] = []

    def walk(element: Any) -> None:
        for child in element:
            tag = child.tag
            if tag == f"{_W}t":
                parts.append("".join(child.itertext()))
            elif tag in _MARKS:
                parts.append(_MARKS[tag])
            elif tag == f"{_W}txbxContent":
                boxes.append(child)
            elif isinstance(tag, str) and tag not in _GONE and not (tag == f"{_W}r" and _hidden(child)):
                walk(child)

    walk(paragraph)
    return "".join(parts), boxes


def _hidden(run: Any) -> bool:
    found = run.find(f"{_W}rPr/{_W}vanish")
    return found is not None and found.get(f"{_W}val", "1") not in _OFF


def _level(style: str) -> int:
    if style.lower() == "title":
        return 1
    found = _HEADING.match(style)
    return int(found[1]) if found else 0


def _rows(table: Any, style: _Style) -> Iterator[Block]:
    above: dict[int, str] = {}
    for row in _within(table, f"{_W}tr"):
        if row.find(f"{_W}trPr/{_W}del") is not None:
            continue
        cells: list[str] = []
        column = _number(row.find(f"{_W}trPr/{_W}gridBefore"), 0)
        for cell in _within(row, f"{_W}tc"):
            text = " ".join(word for block in _blocks(cell, style) for word in block.text.split())
            merged = cell.find(f"{_W}tcPr/{_W}vMerge")
            if merged is not None and merged.get(f"{_W}val", "continue") == "continue":
                # A cell that is merged with the one above it says the same.
                text = above.get(column, "")
            above[column] = text
            column += _number(cell.find(f"{_W}tcPr/{_W}gridSpan"), 1)
            if text:
                cells.append(text)
        if cells:
            yield Block(" | ".join(cells))


def _number(element: Any, absent: int) -> int:
    value = "" if element is None else element.get(f"{_W}val", "")
    return int(value) if value.isascii() and value.isdigit() and len(value) < 10 else absent
