"""Word documents (docx), by python-docx: paragraphs and tables of the body in order."""

import io
import re
import zipfile
from collections.abc import Iterator
from typing import Any

from confide.rag.parsing.blocks import Block, Unreadable

MOST_UNPACKED_BYTES = 256 * 2**20
_OLD_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_HEADING = re.compile(r"(?:heading|überschrift|titre|título|titolo|kop|rubrik)\s*([1-6])", re.IGNORECASE)


def parse_docx(data: bytes) -> Iterator[Block]:
    """Headings by their style, paragraphs, and tables a row a block. Raises Unreadable."""
    from docx import Document

    if data.startswith(_OLD_OFFICE):
        raise Unreadable("is encrypted, or an old .doc; take the password off, or save it as .docx")
    _check_size(data)
    try:
        body = Document(io.BytesIO(data)).iter_inner_content()
    except Exception as error:  # the library raises many kinds for damaged input
        raise Unreadable(f"is no docx document that can be opened ({type(error).__name__}); save it again") from None
    for item in body:
        if hasattr(item, "rows"):
            yield from _rows(item)
        elif item.text.strip():
            yield Block(item.text, level=_level(item))


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


def _level(paragraph: Any) -> int:
    name = (paragraph.style.name if paragraph.style is not None else "") or ""
    if name.lower() == "title":
        return 1
    found = _HEADING.match(name)
    return int(found[1]) if found else 0


def _rows(table: Any) -> Iterator[Block]:
    for row in table.rows:
        cells: list[str] = []
        for cell in row.cells:
            text = " ".join(cell.text.split())
            # A merged cell comes once for every column that it spans.
            if text and (not cells or cells[-1] != text):
                cells.append(text)
        if cells:
            yield Block(" | ".join(cells))
