"""PDF, by pypdfium2 (PDFium): the text of each page, with headings from the document's outline.

PDFium gives lines as they are set. Lines of one paragraph are joined again by `canonical_text`; a line that the outline
names is a heading.
"""

import contextlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from confide.rag.parsing.blocks import Block, Unreadable

MOST_PAGES = 5000
_MOST_OUTLINE = 20_000
_ENDS = (".", "!", "?", ":", ";", "。")
_LEADER = re.compile(r"\.(?: ?\.){3,}")
"""The dots between a title and its page in a table of contents: a token each, and no text."""
_ITEM = re.compile(r"(?:[-*•–◦▪]|\(?\d{1,3}[.)]|\(?[a-z][.)])\s")


def parse_pdf(data: bytes) -> Iterator[Block]:
    """Paragraphs of every page. Raises Unreadable when it is encrypted, damaged, too long, or only pictures."""
    import pypdfium2 as pdfium

    try:
        document = pdfium.PdfDocument(data)
    except pdfium.PdfiumError as error:
        if "password" in str(error).lower():
            raise Unreadable("is encrypted; take the password off, for example with `qpdf --decrypt`") from None
        raise Unreadable("is no PDF that can be opened, or a damaged one; save it again") from None
    pages = len(document)
    if pages > MOST_PAGES:
        raise Unreadable(f"has {pages} pages; at most {MOST_PAGES} are read. Split it")
    headings = _outline(document)
    texts = [_lines(_page(document, number)) for number in range(pages)]
    running = _running_lines(texts)
    found = False
    for number, lines in enumerate(texts):
        kept = [line for place, line in enumerate(lines) if not _runs(place, lines, running)]
        for block in _blocks(kept, number + 1, headings[number]):
            found = True
            yield block
    if not found:
        raise Unreadable(f"has {pages} pages and no text: it is made of pictures. Run text recognition over it first")


def _page(document: Any, number: int) -> str:
    try:
        page = document[number]
        text = page.get_textpage()
        return str(text.get_text_bounded())
    except Exception as error:  # PDFium's bindings raise several kinds for a damaged page
        raise Unreadable(f"has a damaged page {number + 1} ({type(error).__name__}); save it again") from None


def _outline(document: Any) -> dict[int, dict[str, int]]:
    """By page, from 0: the titles that the outline names there, and how deep they stand."""
    found: dict[int, dict[str, int]] = defaultdict(dict)
    # An outline that is damaged, or that goes in a circle, costs headings and nothing else.
    with contextlib.suppress(Exception):
        for count, entry in enumerate(document.get_toc(max_depth=6)):
            target = entry.get_dest()
            page = target.get_index() if target is not None else None
            if count < _MOST_OUTLINE and page is not None:
                found[page][_squeezed(entry.get_title())] = min(6, entry.level + 1)
    return found


def _squeezed(text: str) -> str:
    return "".join(char for char in text.casefold() if char.isalnum()).lstrip("0123456789")


def _lines(text: str) -> list[str]:
    # PDFium writes U+0002 or U+FFFE for a hyphen at the end of a line that is none of the word's own.
    text = re.sub(r"[\x02\ufffe]\s*", "", text.replace("\r\n", "\n").replace("\r", "\n"))
    return [_LEADER.sub("…", line.strip()) for line in text.strip("\n ").split("\n")]


def _running_lines(pages: list[list[str]]) -> frozenset[str]:
    """First and last lines that come back on many pages, page numbers aside: headers and footers."""
    counts = Counter(key for lines in pages for key in {_running_key(line) for line in (lines[0], lines[-1])})
    return frozenset(key for key, count in counts.items() if key and count >= max(3, len(pages) // 60))


def _running_key(line: str) -> str:
    return re.sub(r"[0-9ivxlc]+(?=\s|$)", "#", line)


def _runs(place: int, lines: list[str], running: frozenset[str]) -> bool:
    return place in {0, len(lines) - 1} and (_running_key(lines[place]) in running or lines[place].isdigit())


def _blocks(lines: list[str], page: int, headings: dict[str, int]) -> Iterator[Block]:
    width = max(map(len, lines), default=0)
    paragraph: list[str] = []
    for line in lines:
        level = headings.get(_squeezed(line), 0) if line else 0
        if paragraph and (not line or level or _ITEM.match(line) or _ended(paragraph[-1], width)):
            yield Block("\n".join(paragraph), page=page)
            paragraph = []
        if level:
            yield Block(line, level=level, page=page)
        elif line:
            paragraph.append(line)
    if paragraph:
        yield Block("\n".join(paragraph), page=page)


def _ended(line: str, width: int) -> bool:
    """A short line that ends a sentence ends a paragraph."""
    return line.endswith(_ENDS) and len(line) < 0.75 * width
