"""Which sentences of the passages found are near a question: what is quoted, and what the gate looks at."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confide.rag.canonical_text import Mark
from confide.rag.chunks import Span
from confide.rag.collection import Collection
from confide.rag.embedder import Embedder
from confide.rag.retrieval import Found, Passage
from confide.rag.sentences import long_enough, sentence_spans
from confide.rag.verifying import ends_itself

FEWEST_WORDS = 4
_MOST_SENTENCES = 64
_KEPT = 20_000


@dataclass(frozen=True)
class Near:
    """A sentence: characters [start, stop) of its document's canonical text, and its cosine with the question.

    with_notes: characters that also hold the notes to its paragraph, or of a note that paragraph.
    """

    found: Found
    start: int
    stop: int
    text: str
    cosine: float
    with_notes: Span


class SentenceVectors:
    """Embeds sentences once while they are asked for again and again. Used by one thread at a time."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._known: OrderedDict[str, NDArray[np.float32]] = OrderedDict()

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(N, D)."""
        self.know(texts)
        found = np.stack([self._known[text] for text in texts])
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return found

    def know(self, texts: Sequence[str]) -> None:
        """Embed those that are new, all at once."""
        new = list(dict.fromkeys(text for text in texts if text not in self._known))
        if new:
            self._known.update(zip(new, self._embedder.embed(new), strict=True))


@dataclass(frozen=True)
class Sentence:
    """Characters [start, stop) of the document of a passage that was found. with_notes: as in Near."""

    found: Found
    start: int
    stop: int
    text: str
    with_notes: Span


def sentences_of(collection: Collection, found: Sequence[Found]) -> list[Sentence]:
    """Of these passages, passage by passage in reading order, at most _MOST_SENTENCES. Headings are none.

    Nor is what could not be quoted without seeming to be two quotations.
    """
    places: list[Sentence] = []
    for one in found:
        content = collection.content(one.passage.document)
        marks = content.marks_of(Span(one.passage.start, one.passage.stop))
        for place, mark in enumerate(marks):
            if not mark.level:
                start, stop = max(mark.start, one.passage.start), min(mark.stop, one.passage.stop)
                spans = long_enough(sentence_spans(content.text, start, stop), content.text, FEWEST_WORDS)
                texts = [(a, b, content.text[a:b]) for a, b in spans]
                for a, b, text in texts:
                    noted = _with_notes(marks, place, Span(a, b), one.passage)
                    if ends_itself(content.text[noted.start : noted.stop]):
                        noted = Span(a, b)
                    if not ends_itself(text):
                        places.append(Sentence(one, a, b, text, noted))
    return places[:_MOST_SENTENCES]


def _with_notes(marks: Sequence[Mark], place: int, sentence: Span, passage: Passage) -> Span:
    """From a sentence of marks[place] to the last note there that is in the passage; from a note's paragraph on."""
    first = last = place
    while first and marks[first].note:
        first -= 1
    while last + 1 < len(marks) and marks[last + 1].note:
        last += 1
    start = sentence.start if first == place else max(marks[first].start, passage.start)
    return Span(start, sentence.stop if last == first else min(marks[last].stop, passage.stop))


def near(places: Sequence[Sentence], vector: NDArray[np.float32], embed: SentenceVectors) -> list[Near]:
    """Each with its cosine."""
    if not places:
        return []
    cosines = embed([one.text for one in places]) @ vector
    return [
        Near(o.found, o.start, o.stop, o.text, float(c), o.with_notes) for o, c in zip(places, cosines, strict=True)
    ]
