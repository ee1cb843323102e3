"""Headings of a PDF: those its outline names, else the lines that are set like headings.

Word processors write no outline unless they are asked to. What a reader takes for a heading then are lines in larger
type than the text's, or few words that are bold all through. Headings are not quoted: what reads like a sentence is
none, however it is set, since a warning in large type is what somebody will ask for.
"""

import contextlib
import ctypes
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_MOST_OUTLINE = 20_000
_LARGER = 1.1
"""Than the size that most characters of the document have."""
_HEAVY = 600
"""Least weight of a bold font in the scale of CSS, on which 400 is regular."""
_BOLD = re.compile(rb"bold|black|heavy", re.IGNORECASE)
"""What bold fonts are called; a font may come without its weight."""
_FONT_NAME_BYTES = 200
_MOST_WORDS, _MOST_BOLD_WORDS = 25, 12
_MOST_LEVELS = 6
_LEAST_SHARE = 0.6
"""Of the characters that are set alike, where there is a text to stand out of: recognized text has a size of its own in
every line."""
_SENTENCE = (".", "!", ",", ";", "。", "！")
_GOES_ON = (*_SENTENCE, ":", "…")
_BEGINS = re.compile(r"[^\W_a-z]")
_NUMBERED = re.compile(r"\d[\d.]*(?:\s|$)")
_NUMBER = re.compile(r"^\d{1,5}\b|\b\d{1,5}$", re.ASCII)
"""Of a page, at either end of its header or footer."""
_FEWEST_PAGES = 3
_TITLE_CHARS = 200


@dataclass(frozen=True)
class Headings:
    """levels: by page, from 0, the squeezed lines that are headings, and how deep they stand (1 to 6).

    lines: whether they are lines as they are set, of which two may be one title, or whole titles.
    """

    levels: Mapping[int, Mapping[str, int]]
    lines: bool = False

    def of(self, page: int, line: str) -> int:
        """The level of a line; 0 for one that is no heading."""
        return self.levels.get(page, {}).get(squeezed(line), 0)

    def goes_on(self, line: str) -> bool:
        """Whether a heading right behind another of its level belongs to the same title."""
        return self.lines and not _NUMBERED.match(line)


@dataclass(frozen=True)
class _Set:
    """How a line is set. size: height of its characters in points; what differs by less than half a point is alike."""

    size: float
    bold: bool


_MIXED = _Set(0.0, False)


def headings_of(document: Any) -> Headings:
    """The headings of a document of pypdfium2's; nothing where they cannot be told."""
    found = _outline(document)
    if found:
        return Headings(found)
    # What is damaged here costs headings and nothing else.
    with contextlib.suppress(Exception):
        return Headings(_by_setting(document), lines=True)
    return Headings({})


def squeezed(text: str) -> str:
    """What a line and its title in the outline have in common: letters and digits, without a number in front."""
    return _letters(text).lstrip("0123456789")


def _letters(text: str) -> str:
    return "".join(char for char in text.casefold() if char.isalnum())


def _outline(document: Any) -> dict[int, dict[str, int]]:
    found: dict[int, dict[str, int]] = defaultdict(dict)
    with contextlib.suppress(Exception):  # damaged, or going in a circle
        for count, entry in enumerate(document.get_toc(max_depth=_MOST_LEVELS)):
            target = entry.get_dest()
            page = target.get_index() if target is not None else None
            if count < _MOST_OUTLINE and page is not None:
                found[page][squeezed(entry.get_title())] = min(_MOST_LEVELS, entry.level + 1)
    return found


def _by_setting(document: Any) -> dict[int, dict[str, int]]:
    pages = [list(_set_lines(document[number])) for number in range(len(document))]
    characters: Counter[_Set] = Counter()
    for lines in pages:
        for text, how in lines:
            characters[how] += len(text) * (how != _MIXED)
    if not characters.total():
        return {}
    body, count = characters.most_common(1)[0]
    if count < _LEAST_SHARE * characters.total():
        return {}
    numbered = _with_page_numbers(pages)
    titles = {
        (page, text): how
        for page, lines in enumerate(pages)
        for how, texts in _runs(lines)
        if _is_title(" ".join(texts), how, body)
        for text in texts
        if squeezed(text) and (page, text) not in numbered
    }
    ranks = sorted(set(titles.values()), key=lambda how: (-how.size, not how.bold))
    found: dict[int, dict[str, int]] = defaultdict(dict)
    for (page, text), how in titles.items():
        found[page][squeezed(text)] = min(_MOST_LEVELS, ranks.index(how) + 1)
    return found


def _with_page_numbers(pages: Sequence[Sequence[tuple[str, _Set]]]) -> set[tuple[int, str]]:
    """(page, line) of headers and footers: first or last lines with a number that counts the pages."""
    ends = {(page, lines[place][0]) for page, lines in enumerate(pages) if lines for place in (0, -1)}
    distances = [(end, int(number) - end[0]) for end in ends for number in _NUMBER.findall(end[1])]
    counts = Counter(distance for _, distance in distances)
    return {end for end, distance in distances if counts[distance] >= max(_FEWEST_PAGES, len(pages) // 10)}


def _runs(lines: Sequence[tuple[str, _Set]]) -> Iterator[tuple[_Set, list[str]]]:
    """Lines that follow each other and are set alike: one title, or one sentence. A number begins another one."""
    run: list[str] = []
    for place, (text, how) in enumerate(lines):
        if run and (how != lines[place - 1][1] or _NUMBERED.match(text)):
            yield lines[place - 1][1], run
            run = []
        run.append(text)
    if run:
        yield lines[-1][1], run


def _is_title(text: str, how: _Set, body: _Set) -> bool:
    words = len(text.split())
    if len(text) > _TITLE_CHARS or words > _MOST_WORDS or not squeezed(text) or not _BEGINS.match(text):
        return False
    if how.size >= _LARGER * body.size:
        return not text.endswith(_SENTENCE)
    bold = how.bold and not body.bold and how.size >= body.size
    return bold and words <= _MOST_BOLD_WORDS and not text.endswith(_GOES_ON)


def _set_lines(page: Any) -> Iterator[tuple[str, _Set]]:
    """Each line with how it is set; with what no text is set in where that is in more than one way."""
    import pypdfium2.raw as raw

    text = page.get_textpage()
    begun: list[int] = []
    for index in range(text.count_chars() + 1):
        code = raw.FPDFText_GetUnicode(text, index) if index < text.count_chars() else 13
        if code not in {10, 13}:
            begun.append(index)
        elif begun:
            line = "".join(chr(raw.FPDFText_GetUnicode(text, one)) for one in begun).strip()
            shown = [one for one in begun if chr(raw.FPDFText_GetUnicode(text, one)).isalnum()]
            # Three of its characters stand for all.
            ways = {_how(raw, text, shown[place]) for place in (0, len(shown) // 2, -1)} if shown else set()
            if line:
                yield line, ways.pop() if len(ways) == 1 else _MIXED
            begun = []


def _how(raw: Any, text: Any, index: int) -> _Set:
    box = raw.FS_RECTF()
    raw.FPDFText_GetLooseCharBox(text, index, ctypes.byref(box))
    height = abs(box.top - box.bottom)
    name = ctypes.create_string_buffer(_FONT_NAME_BYTES)
    raw.FPDFText_GetFontInfo(text, index, name, _FONT_NAME_BYTES, None)
    bold = raw.FPDFText_GetFontWeight(text, index) >= _HEAVY or _BOLD.search(name.value) is not None
    return _Set(round(2 * height) / 2, bold)
