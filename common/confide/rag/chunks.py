"""Passages: what is embedded, searched and quoted from. Each is a range of one canonical text.

A passage follows the document's headings: it does not reach over one unless what stands before is too short to be found
by itself, and never over two records. A paragraph and the notes to it stay together where they fit. Its length counts
tokens of the embedder that will embed it.

>>> from confide.rag.canonical_text import canonical_text
>>> from confide.rag.parsing.blocks import Block
>>> made = canonical_text([Block("Fees", level=1), Block("One two three four."), Block("Five six.")])
>>> count = lambda texts: [len(text.split()) for text in texts]
>>> [made.text[p.start:p.stop] for p in passages(made, count, most_tokens=5, fewest_tokens=1)]
['Fees\\n\\nOne two three four.', 'Five six.']
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from confide.rag.canonical_text import CanonicalText, Mark
from confide.rag.sentences import sentence_spans

CountTokens = Callable[[Sequence[str]], Sequence[int]]
MOST_TOKENS = 400
FEWEST_TOKENS = 64
_HEADING_TOKENS = 40
"""A longer heading is text like any other."""
_CHARS_A_TOKEN = 20
"""No text that is read has more: a tokenizer that makes one token of any long word (WordPiece) would have no end."""


@dataclass(frozen=True)
class Span:
    """Characters [start, stop) of the canonical text are one passage."""

    start: int
    stop: int


@dataclass(frozen=True)
class _Piece:
    """Part of a block that fits into a passage; opens: a heading, before which a passage may end."""

    start: int
    stop: int
    tokens: int
    opens: bool
    record: str | None
    note: bool = False


def passages(
    document: CanonicalText,
    count_tokens: CountTokens,
    *,
    most_tokens: int = MOST_TOKENS,
    fewest_tokens: int = FEWEST_TOKENS,
) -> list[Span]:
    """The document's passages in order, without overlaps; each has at most `most_tokens` where words allow it."""
    spans: list[Span] = []
    current: list[_Piece] = []

    def flush() -> None:
        # Headings without text below them are no passage.
        if any(not piece.opens for piece in current):
            spans.append(Span(current[0].start, current[-1].stop))
        current.clear()

    pieces = _pieces(document, count_tokens, most_tokens)
    for piece, with_notes in zip(pieces, _with_notes(pieces, most_tokens), strict=True):
        tokens = sum(one.tokens for one in current)
        other_record = bool(current) and piece.record != current[-1].record
        begun = not _only_headings(current)
        new_section = piece.opens and tokens >= fewest_tokens
        # A heading stays with the text below it, also where the two are a little too long.
        if other_record or (begun and (new_section or tokens + with_notes > most_tokens)):
            flush()
        current.append(piece)
    flush()
    return spans


def _with_notes(pieces: Sequence[_Piece], most_tokens: int) -> list[int]:
    """Tokens of each piece with the notes that follow it; of itself where those would not fit."""
    needed: list[int] = []
    notes = 0
    for piece in reversed(pieces):
        whole = piece.tokens if piece.note else piece.tokens + notes
        needed.append(whole if whole <= most_tokens else piece.tokens)
        notes = notes + piece.tokens if piece.note else 0
    return needed[::-1]


def _only_headings(pieces: Sequence[_Piece]) -> bool:
    return all(piece.opens for piece in pieces)


def _pieces(document: CanonicalText, count_tokens: CountTokens, most_tokens: int) -> list[_Piece]:
    # What is too long by its characters is not counted as a whole.
    short = [mark for mark in document.marks if mark.stop - mark.start <= most_tokens * _CHARS_A_TOKEN]
    counted = dict(zip(short, _counted(document.text, [(m.start, m.stop) for m in short], count_tokens), strict=True))
    pieces: list[_Piece] = []
    for mark in document.marks:
        tokens = counted.get(mark, most_tokens + 1)
        if tokens <= most_tokens:
            opens = mark.level > 0 and tokens <= _HEADING_TOKENS
            pieces.append(_Piece(mark.start, mark.stop, tokens, opens, mark.record, mark.note))
        else:
            pieces += _cut(document.text, mark, count_tokens, most_tokens)
    return pieces


def _counted(text: str, spans: Sequence[tuple[int, int]], count_tokens: CountTokens) -> list[int]:
    """Tokens of each span, and at least as many as its characters allow."""
    counts = count_tokens([text[start:stop] for start, stop in spans]) if spans else []
    return [max(one, (stop - start) // _CHARS_A_TOKEN) for one, (start, stop) in zip(counts, spans, strict=True)]


def _cut(text: str, mark: Mark, count_tokens: CountTokens, most_tokens: int) -> list[_Piece]:
    """A block that is too long, by sentences, and a sentence that is too long by words."""
    spans = list(sentence_spans(text, mark.start, mark.stop))
    pieces = []
    for (start, stop), tokens in zip(spans, _counted(text, spans, count_tokens), strict=True):
        if tokens <= most_tokens:
            pieces.append(_Piece(start, stop, tokens, False, mark.record, mark.note))
            continue
        # Even text without spaces (a key, a picture in base64) is cut: it has some characters a token.
        step = max(1, (stop - start) * most_tokens // (2 * tokens))
        share = max(1, tokens * step // (stop - start))
        pieces += [
            _Piece(at, min(at + step, stop), share, False, mark.record, mark.note)
            for at in range(start, stop, step)
            if text[at : min(at + step, stop)].strip()
        ]
    return pieces
