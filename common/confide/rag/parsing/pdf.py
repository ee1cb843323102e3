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
_NUMBER = re.compile(r"\b(?:[0-9]{1,9}|[ivxlc]+)\b", re.ASCII)
_FEWEST_LINES = 4
"""Of a page that tells what headers and footers are: on a slide each line is text."""
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
        kept = [line for place, line in enumerate(lines) if (number, place) not in running]
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


def _running_lines(pages: list[list[str]]) -> set[tuple[int, int]]:
    """(page, place) of headers and footers: first and last lines that come back on many pages.

    Each number in them must come back too, or count the pages: a row "Total 12" is no footer. The first of its kind
    stays, since what it says may stand nowhere else, unless it is a number alone.
    """
    ends = [
        (page, place, lines[place]) for page, lines in enumerate(pages) for place in dict.fromkeys((0, len(lines) - 1))
    ]
    least = max(3, len(pages) // 60)
    telling = ((page, line) for page, _, line in ends if len(pages[page]) >= _FEWEST_LINES)
    counts = Counter(kind for page, line in telling for either in _kinds(page, line) for kind in set(either))
    seen: set[str] = set()
    running: set[tuple[int, int]] = set()
    for page, place, line in ends:
        key = _NUMBER.sub("#", line)
        comes_back = all(max(counts[one], counts[other]) >= least for one, other in _kinds(page, line))
        said = key in seen or not any(map(str.isalpha, key))
        if line == str(page + 1) or (comes_back and said):
            running.add((page, place))
        if comes_back:
            seen.add(key)
    return running


_Kind = tuple[str, int, str, int]


def _kinds(page: int, line: str) -> list[tuple[_Kind, _Kind]]:
    """The line without its numbers (twice), and each number as it is, or as its distance from the page's."""
    key = _NUMBER.sub("#", line)
    found: list[tuple[_Kind, _Kind]] = [((key, -1, "line", 0), (key, -1, "line", 0))]
    for place, number in enumerate(_NUMBER.findall(line)):
        value = int(number) if number.isdigit() else _roman(number)
        found.append(((key, place, "value", value), (key, place, "distance", value - page)))
    return found


def _roman(number: str) -> int:
    digits = [{"i": 1, "v": 5, "x": 10, "l": 50, "c": 100}[one] for one in number]
    return sum(-one if one < after else one for one, after in zip(digits, [*digits[1:], 0], strict=True))


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
