"""Where sentences begin and end: offsets into a canonical text, never copies that were changed.

>>> text = "Dr. Lee pays 3.5 per cent. Who else? See e.g. section 4."
>>> [text[start:stop] for start, stop in sentence_spans(text, 0, len(text))]
['Dr. Lee pays 3.5 per cent.', 'Who else?', 'See e.g. section 4.']
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator

_END = re.compile(r"[.!?…؟۔।॥]+[\"'”’)\]]*(?=\s)|[。！？]+[」』”’）]*|\n\n|\n(?=\s*[-*•])")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\[\"'“‘])(?:dr|mr|mrs|ms|prof|st|no|nr|art|vs|cf|ca|approx|fig|figs|eq|sec|ch|vol|pp|p|ed|eds|inc|ltd|co|jr|"
    r"sr|al|e\.g|i\.e|z\.b|d\.h|u\.a|bzw|usw|etc|[a-z])\.$",
    re.IGNORECASE,
)
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""Thai, Lao, Burmese, Khmer, kana and Han: written without spaces between words."""
_MOST_CHARS = 1200
"""Of one sentence: a table or a list without ends is cut at a space."""


def sentence_spans(text: str, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of each sentence of text[start:stop], without white space at its ends, in order."""
    begin = start
    for match in _END.finditer(text, start, stop):
        if _ends(text, begin, match):
            yield from _trimmed(text, begin, match.end())
            begin = match.end()
    yield from _trimmed(text, begin, stop)


def _ends(text: str, begin: int, match: re.Match[str]) -> bool:
    if not match[0].startswith("."):
        return True
    if _ABBREVIATION.search(text[max(begin, match.start() - 12) : match.start() + 1]):
        return False
    after = text[match.end() : match.end() + 3].lstrip()[:1]
    return not after.islower()


def _trimmed(text: str, start: int, stop: int) -> Iterator[tuple[int, int]]:
    while start < stop and text[start].isspace():
        start += 1
    while stop > start and text[stop - 1].isspace():
        stop -= 1
    while stop - start > _MOST_CHARS:
        cut = text.rfind(" ", start + 1, start + _MOST_CHARS)
        cut = cut if cut > start else start + _MOST_CHARS
        yield start, cut
        start = cut + (text[cut] == " ")
    if start < stop:
        yield start, stop


def word_count(text: str) -> int:
    """Runs of letters and digits; of scripts without spaces between words, every second character."""
    if text.isascii():
        return sum(1 for _ in re.finditer(r"\w+", text))
    letters = "".join(char for char in text if not unicodedata.category(char).startswith("M"))
    unspaced = sum(1 for _ in _UNSPACED.finditer(letters))
    return unspaced // 2 + sum(1 for _ in re.finditer(r"\w+", _UNSPACED.sub(" ", letters)))


def long_enough(spans: Iterable[tuple[int, int]], text: str, words: int) -> list[tuple[int, int]]:
    """Those of at least so many words: a quotation of one word says nothing."""
    return [(start, stop) for start, stop in spans if word_count(text[start:stop]) >= words]
