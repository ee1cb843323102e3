"""Word documents (docx), opened by python-docx: what stands on the page, paragraphs and tables of the body in order.

python-docx itself gives the text of a paragraph's own runs only. What was inserted while changes were tracked, what
stands in a form's controls, in text boxes and in tables within cells would be missing, and a sentence without its "not"
says the opposite. Left out is what the page does not show: deleted and hidden text, tables of contents.

A footnote or endnote follows the paragraph or table row that refers to it, as a block of its own: neither's words are
changed, and the two are mostly one passage. What headers and footers say is read once, where it comes first. Comments
are counted and left out (docs/rag.md says why).
"""

import io
import re
import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from confide.rag.parsing.blocks import Block, Left, LeftOut, Unreadable
from confide.rag.parsing.docx_parts import NOTES, Margins, Parts, W, is_on

MOST_UNPACKED_BYTES = 256 * 2**20
_OLD_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_HEADING = re.compile(r"(?:heading|überschrift|titre|título|titolo|kop|rubrik)\s*([1-6])", re.IGNORECASE)
_CONTENTS = re.compile(r"toc\s*[1-9]", re.IGNORECASE)
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_GONE = frozenset({f"{W}del", f"{W}moveFrom", f"{W}pPr", f"{W}rPr", f"{W}rt", _FALLBACK})
"""Not walked into: deleted text, properties, readings above a word, and what older programs show instead."""
_MARKS = {f"{W}tab": "\t", f"{W}ptab": "\t", f"{W}br": "\n", f"{W}cr": "\n", f"{W}noBreakHyphen": "-"}
_PAGE_FIELD = re.compile(r"\s*(?:PAGE|NUMPAGES|SECTIONPAGES)\b", re.IGNORECASE)
_NUMBER = re.compile(r"[\W\d_]*|\W*[ivxlc]+\W*", re.IGNORECASE)

_Style = Callable[[Any], str]


def parse_docx(data: bytes) -> Iterator[Block | LeftOut]:
    """Headings by their style, paragraphs, notes, and tables a row a block. Raises Unreadable."""
    from docx import Document
    from docx.text.paragraph import Paragraph

    if data.startswith(_OLD_OFFICE):
        raise Unreadable("is encrypted, or an old .doc; take the password off, or save it as .docx")
    _check_size(data)
    try:
        document = Document(io.BytesIO(data))
        body = document.element.body
        parts = Parts(document)
    except Exception as error:  # the library raises many kinds for damaged input
        raise Unreadable(f"is no docx document that can be opened ({type(error).__name__}); save it again") from None

    names: dict[str | None, str] = {}

    def style(paragraph: Any) -> str:
        identifier = paragraph.style
        if identifier not in names:  # python-docx goes through all styles each time: half a millisecond
            found = Paragraph(paragraph, document).style
            names[identifier] = (found.name if found is not None else "") or ""
        return names[identifier]

    yield from _Reader(parts, style).document(body)


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


class _Reader:
    """Reads one document's parts in the order in which a reader of its pages comes to them."""

    def __init__(self, parts: Parts, style: _Style) -> None:
        self._parts, self._style = parts, style
        self._referred: deque[tuple[str, str]] = deque()
        self._read_notes: set[tuple[str, str]] = set()
        self._missing_notes = 0
        self._read_margins: set[str] = set()

    def document(self, body: Any) -> Iterator[Block | LeftOut]:
        """The body with its notes, section by section, each with its headers and footers; then what was left out."""
        items = list(_within(body, f"{W}p", f"{W}tbl"))
        ends = [place for place, item in enumerate(items) if item.find(f"{W}pPr/{W}sectPr") is not None]
        starts = [0, *(place + 1 for place in ends)]
        for start, stop, margins in zip(starts, [*ends, len(items)], self._parts.sections(items, body), strict=True):
            yield from self._section(items[start : stop + 1], margins)
        if self._parts.comments:
            yield LeftOut(Left.COMMENTS, self._parts.comments)
        if self._missing_notes:
            yield LeftOut(Left.MISSING_NOTES, self._missing_notes)

    def _section(self, items: list[Any], margins: Margins) -> Iterator[Block]:
        headers = [block for header in margins.headers for block in self._margin(header)]
        for block in self._with_notes(items):
            if block.level:
                # Before its heading it would belong to what the section before is about.
                yield block
                yield from headers
            else:
                yield from headers
                yield block
            headers = []
        yield from headers
        for footer in margins.footers:
            yield from self._margin(footer)

    def _margin(self, part: Any) -> Iterator[Block]:
        for block in self._with_notes(part):
            text = " ".join(block.text.split())
            if text not in self._read_margins:
                self._read_margins.add(text)
                yield replace(block, level=0)

    def _with_notes(self, container: Any) -> Iterator[Block]:
        for block in self._blocks(container):
            if block.text.strip():
                yield block
            yield from self._notes()

    def _notes(self) -> Iterator[Block]:
        """Those that were referred to since, each once: a note that refers to itself, or to many, has an end."""
        while self._referred:
            key = self._referred.popleft()
            note = self._parts.notes.get(key)
            if note is None:
                self._missing_notes += 1
            elif key not in self._read_notes:
                self._read_notes.add(key)
                found = (block for block in self._blocks(note) if block.text.strip())
                yield from (replace(block, level=0, note=True) for block in found)

    def _blocks(self, container: Any) -> Iterator[Block]:
        """Of a body, a cell or a text box; perhaps without text. The XML's own limit on depth bounds the recursion."""
        for item in _within(container, f"{W}p", f"{W}tbl"):
            if item.tag == f"{W}tbl":
                yield from self._rows(item)
                continue
            text, boxes = self._shown(item)
            name = self._style(item)
            left = _CONTENTS.fullmatch(name) or (_NUMBER.fullmatch(text) and _numbers_pages(item))
            yield Block("" if left else text, level=_level(name))
            for box in boxes:
                yield from self._blocks(box)

    def _shown(self, paragraph: Any) -> tuple[str, list[Any]]:
        """A paragraph's text, and the text boxes that hang on it. Notes that it refers to are noted."""
        words: list[str] = []
        boxes: list[Any] = []

        def walk(element: Any) -> None:
            for child in element:
                tag = child.tag
                if tag == f"{W}t":
                    words.append("".join(child.itertext()))
                elif tag in _MARKS:
                    words.append(_MARKS[tag])
                elif tag == f"{W}txbxContent":
                    boxes.append(child)
                elif tag in NOTES:
                    self._referred.append((NOTES[tag], child.get(f"{W}id", "")))
                elif isinstance(tag, str) and tag not in _GONE and not (tag == f"{W}r" and _hidden(child)):
                    walk(child)

        walk(paragraph)
        return "".join(words), boxes

    def _rows(self, table: Any) -> Iterator[Block]:
        above: dict[int, str] = {}
        for row in _within(table, f"{W}tr"):
            if row.find(f"{W}trPr/{W}del") is not None:
                continue
            cells: list[str] = []
            column = _number(row.find(f"{W}trPr/{W}gridBefore"), 0)
            for cell in _within(row, f"{W}tc"):
                text = " ".join(word for block in self._blocks(cell) for word in block.text.split())
                merged = cell.find(f"{W}tcPr/{W}vMerge")
                if merged is not None and merged.get(f"{W}val", "continue") == "continue":
                    # A cell that is merged with the one above it says the same.
                    text = above.get(column, "")
                above[column] = text
                column += _number(cell.find(f"{W}tcPr/{W}gridSpan"), 1)
                if text:
                    cells.append(text)
            if cells:
                yield Block(" | ".join(cells))


def _within(container: Any, *tags: str) -> Iterator[Any]:
    """The nearest elements of these tags, through controls, tracked changes and other wrappers around them."""
    for child in container:
        if child.tag in tags:
            yield child
        elif isinstance(child.tag, str) and child.tag not in _GONE:
            yield from _within(child, *tags)


def _hidden(run: Any) -> bool:
    found = run.find(f"{W}rPr/{W}vanish")
    return found is not None and is_on(found)


def _numbers_pages(paragraph: Any) -> bool:
    instructions = [one.get(f"{W}instr", "") for one in paragraph.iter(f"{W}fldSimple")]
    instructions += [one.text or "" for one in paragraph.iter(f"{W}instrText")]
    return any(map(_PAGE_FIELD.match, instructions))


def _level(style: str) -> int:
    if style.lower() == "title":
        return 1
    found = _HEADING.match(style)
    return int(found[1]) if found else 0


def _number(element: Any, absent: int) -> int:
    value = "" if element is None else element.get(f"{W}val", "")
    return int(value) if value.isascii() and value.isdigit() and len(value) < 10 else absent
