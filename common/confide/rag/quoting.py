"""What is quoted: at small models the embedder picks the sentence, and no word is written.

The passage that the search ranks first is asked for the sentence nearest to the question; neighbours that are nearly as
near are quoted with it, since an answer often takes two sentences, and so are the notes to it: a dose without its "not
in pregnancy" is another one. Measured with a model of 135M parameters
(docs/rag.md): this picks the right passage far more often than the model's own likelihood does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from confide.rag.retrieval import Found
from confide.rag.sentences_near import Near

MOST_QUOTE_CHARS = 600
NEIGHBOUR = 0.75
"""A neighbour is quoted too when its cosine is at least so much of the best one's."""


@dataclass(frozen=True)
class Quote:
    """Characters [start, stop) of the passage's document."""

    found: Found
    start: int
    stop: int


def pick(sentences: Sequence[Near], ranked: Sequence[Found], *, most: int = 1) -> list[Quote]:
    """One quotation a passage, from the best `most` passages that have a sentence."""
    quotes: list[Quote] = []
    for one in ranked:
        own = [sentence for sentence in sentences if sentence.found is one]
        if own and len(quotes) < most:
            quotes.append(_widened(own))
    return quotes


def _widened(own: Sequence[Near]) -> Quote:
    best = max(range(len(own)), key=lambda place: own[place].cosine)
    first = last = best
    floor = NEIGHBOUR * own[best].cosine
    while (
        last + 1 < len(own)
        and own[last + 1].cosine >= floor
        and own[last + 1].stop - own[first].start <= MOST_QUOTE_CHARS
    ):
        last += 1
    while first > 0 and own[first - 1].cosine >= floor and own[last].stop - own[first - 1].start <= MOST_QUOTE_CHARS:
        first -= 1
    quoted = own[first : last + 1]
    return _noted(own[best].found, quoted)


def _noted(found: Found, quoted: Sequence[Near]) -> Quote:
    """What is quoted, with its notes where there is room for them."""
    start = min(one.with_notes.start for one in quoted)
    stop = max(one.with_notes.stop for one in quoted)
    if stop - start > MOST_QUOTE_CHARS:
        start, stop = quoted[0].start, quoted[-1].stop
    return Quote(found, start, stop)


def alone(sentence: Near) -> Quote:
    """One sentence, with its notes."""
    return _noted(sentence.found, [sentence])
