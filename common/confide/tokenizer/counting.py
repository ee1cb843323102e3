"""A node's counts of the candidate pairs in its own text. Exact without privacy; clipped a unit at a time with it.

corpus = Corpus.of([["To be, or not to be"], ["that is the question"]])     # two units of one text each
counts = corpus.counts(state)                                               # of all units together
bounded = corpus.clipped_counts(state, clip=8.0, step=8.0 / 2**22)          # each unit at most 8 long, in steps
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.errors import DataError
from confide.runs.fields import fields_of, text_of
from confide.tokenizer.export import pre_tokenizer, segmenter
from confide.tokenizer.state import TokenizerState, key_of

Counts = NDArray[np.float64]
_BLOCK = 1 << 21
"""Pieces of units that are expanded into pairs at once: bounds memory."""

_ARITHMETIC = 1 - 2.0**-30
"""Of the clip: float64 may lose 2^-53 of a norm for each of up to 2^20 candidates and operations."""


def texts_of(record: Mapping[str, Any]) -> Iterator[str]:
    """Every text of a record that a model would read, in whichever alternative of fields it has. Raises DataError."""
    fields = fields_of("tokenizer", record)
    if fields != ("messages",):
        yield from (text_of(record, name) for name in fields)
        return
    messages = record["messages"]
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise DataError("field 'messages' of a record is not a list of {role, content}")
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            raise DataError("a message of a record has no text in 'content'")
        yield message["content"]


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Text as pieces of the pre-tokenizer. Stays on the node.

    pieces: the distinct ones. unit_offsets, shape (units + 1,): unit u holds unit_pieces[unit_offsets[u] :
    unit_offsets[u + 1]], distinct numbers of pieces, each unit_times often.
    """

    pieces: Sequence[str]
    unit_offsets: NDArray[np.int64]
    unit_pieces: NDArray[np.int64]
    unit_times: NDArray[np.int64]

    @classmethod
    def of(cls, units: Iterable[Iterable[str]]) -> "Corpus":
        """Each unit is its texts."""
        split, numbers = pre_tokenizer(), dict[str, int]()
        offsets, pieces, times = [0], list[int](), list[int]()
        for texts in units:
            found = Counter(
                numbers.setdefault(piece, len(numbers)) for text in texts for piece, _ in split.pre_tokenize_str(text)
            )
            pieces += found.keys()
            times += found.values()
            offsets.append(len(pieces))
        as_array = [np.asarray(column, dtype=np.int64) for column in (offsets, pieces, times)]
        return cls(pieces=list(numbers), unit_offsets=as_array[0], unit_pieces=as_array[1], unit_times=as_array[2])

    @property
    def units(self) -> int:
        """How many records or users."""
        return len(self.unit_offsets) - 1

    def counts(self, state: TokenizerState) -> Counts:
        """Occurrences of each candidate next to each other inside a piece, shape (k,)."""
        starts, found = self._pairs(state)
        times = np.bincount(self.unit_pieces, weights=self.unit_times, minlength=len(self.pieces))
        weights = np.repeat(times, np.diff(starts))
        return np.bincount(found, weights=weights, minlength=len(state.candidates)).astype(np.float64)

    def clipped_counts(self, state: TokenizerState, clip: float, *, step: float) -> NDArray[np.int64]:
        """The sum over units of each one's counts, scaled down to L2 norm `clip` where they are longer; int64, (k,).

        In units of `step`, of which each unit's share is rounded towards zero; clip / step is at most 2^22.
        Guarantee: without any one unit the result differs by at most clip / step in L2 norm, exactly: integers below
        2^53 add up in float64 without rounding.
        """
        starts, found = self._pairs(state)
        total = np.zeros(len(state.candidates), dtype=np.int64)
        for first, last in self._blocks(np.diff(starts)):
            total += self._block(first, last, starts, found, len(total), clip, step).astype(np.int64)
        return total

    def _blocks(self, pairs_of_piece: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
        """Ranges of units whose pairs fit into memory together; a single unit always does."""
        of_unit = np.concatenate([[0], np.cumsum(pairs_of_piece[self.unit_pieces])])[self.unit_offsets]
        first = 0
        while first < self.units:
            last = int(np.searchsorted(of_unit, of_unit[first] + _BLOCK, side="right")) - 1
            last = min(max(last, first + 1), self.units)
            yield first, last
            first = last

    def _block(
        self,
        first: int,
        last: int,
        starts: NDArray[np.int64],
        found: NDArray[np.int64],
        size: int,
        clip: float,
        step: float,
    ) -> Counts:
        begin, end = self.unit_offsets[first], self.unit_offsets[last]
        pieces, times = self.unit_pieces[begin:end], self.unit_times[begin:end]
        unit = np.repeat(np.arange(last - first), np.diff(self.unit_offsets[first : last + 1]))
        lengths = starts[pieces + 1] - starts[pieces]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        candidate = found[np.repeat(starts[pieces], lengths) + within]
        cell, place = np.unique(np.repeat(unit, lengths) * size + candidate, return_inverse=True)
        count = np.bincount(place, weights=np.repeat(times, lengths), minlength=len(cell))
        owner = cell // max(size, 1)
        norms = np.sqrt(np.bincount(owner, weights=count**2, minlength=last - first))
        longest = clip * _ARITHMETIC
        scale = np.minimum(1.0, longest / np.maximum(norms, longest)) / step
        return np.bincount(cell % max(size, 1), weights=np.floor(count * scale[owner]), minlength=size).astype(
            np.float64
        )

    def _pairs(self, state: TokenizerState) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(starts, found): piece p has the candidates numbered found[starts[p] : starts[p + 1]]."""
        encoded = segmenter(state).encode_batch_fast(list(self.pieces), add_special_tokens=False)
        rows = [encoding.ids for encoding in encoded]
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        tokens = np.fromiter((token for row in rows for token in row), dtype=np.int64, count=int(lengths.sum()))
        piece = np.repeat(np.arange(len(rows)), lengths)
        keys = key_of(tokens[:-1], tokens[1:])
        place = np.minimum(np.searchsorted(state.candidates, keys), max(len(state.candidates) - 1, 0))
        asked = piece[:-1] == piece[1:]
        asked &= state.candidates[place] == keys if len(state.candidates) else False
        starts = np.concatenate([[0], np.cumsum(np.bincount(piece[:-1][asked], minlength=len(rows)))])
        return starts.astype(np.int64), place[asked]
