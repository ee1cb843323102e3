"""Documents packed to full sequences, made when they are asked for: what is kept is the tokens, once.

A sequence holds pieces of documents one after another, each with its own positions from 0. A document that does not
fit goes on in the next sequence as a piece of its own.

>>> tokens = Tokens.of(iter([([7, 8, 9], 6), ([7, 9], 2)]), vocabulary=10)
>>> [(s.ids.tolist(), s.positions.tolist(), s.bytes) for s in PackedSequences(tokens, length=4)]
[([7, 8, 9, 7], [0, 1, 2, 0], 4.0)]
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

Document = tuple[list[int], int]
"""Token ids of a text, and the bytes of the text in UTF-8."""


@dataclass(frozen=True)
class Packed:
    """One packed sequence.

    ids: (T,) tokens; positions: (T,) position of each token in its piece, 0 where a piece begins.
    bytes: of text, in UTF-8, behind the tokens that are predicted.
    """

    ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    bytes: float


def token_dtype(vocabulary: int) -> np.dtype[Any]:
    """The smallest unsigned integers that hold every token of a vocabulary.

    >>> token_dtype(256).name, token_dtype(257).name, token_dtype(65537).name
    ('uint8', 'uint16', 'uint32')
    """
    return np.min_scalar_type(max(vocabulary - 1, 0)).newbyteorder("<")


@dataclass(frozen=True)
class Tokens:
    """An encoded corpus, in memory or memory-mapped (confide_client.data.token_files).

    ids: (N,) unsigned, all documents one after another. ends: (D,) int64, where each document ends; every document
    has at least one token. text_bytes: (D,) int64, of each document.
    """

    ids: NDArray[Any]
    ends: NDArray[np.int64]
    text_bytes: NDArray[np.int64]

    @classmethod
    def of(cls, documents: Iterator[Document], vocabulary: int) -> "Tokens":
        """Held in memory."""
        dtype = token_dtype(vocabulary)
        ids, ends, text_bytes = array(dtype.char), array("q"), array("q")
        for document, size in documents:
            ids.extend(document)
            ends.append(len(ids))
            text_bytes.append(size)
        return cls(np.frombuffer(ids, dtype), np.frombuffer(ends, np.int64), np.frombuffer(text_bytes, np.int64))


class PackedSequences(Sequence[Packed]):
    """Sequences of `length` tokens; only the last one may be shorter, and has at least two."""

    def __init__(self, tokens: Tokens, length: int, chosen: NDArray[np.int64] | None = None) -> None:
        """chosen: numbers of the sequences that count; default all."""
        self._tokens, self._length, self._chosen = tokens, length, chosen
        full, rest = divmod(len(tokens.ids), length)
        self._count = full + (rest > 1)

    def choose(self, chosen: NDArray[np.int64]) -> "PackedSequences":
        """Some of all sequences."""
        return PackedSequences(self._tokens, self._length, chosen)

    def __len__(self) -> int:
        return self._count if self._chosen is None else len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> Packed: ...

    @overload
    def __getitem__(self, index: slice) -> list[Packed]: ...

    def __getitem__(self, index: int | slice) -> Packed | list[Packed]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        return self._sequence(number if self._chosen is None else int(self._chosen[number]))

    def _sequence(self, number: int) -> Packed:
        start = number * self._length
        stop = min(start + self._length, len(self._tokens.ids))
        ends = self._tokens.ends
        # Both are look-ups that touch a few places of a mapped file.
        first, last = int(np.searchsorted(ends, start, side="right")), int(np.searchsorted(ends, stop))
        document_ends = np.array(ends[first : last + 1])
        document_starts = np.concatenate([ends[first - 1 : first] if first else [0], document_ends[:-1]])
        piece_starts = np.maximum(document_starts, start)
        lengths = np.minimum(document_ends, stop) - piece_starts
        positions = np.arange(start, stop) - np.repeat(piece_starts, lengths)
        sizes = self._tokens.text_bytes[first : last + 1] * (lengths - 1) / (document_ends - document_starts)
        # A running sum adds from left to right: the same bits on every machine.
        size = float(np.cumsum(sizes)[-1])
        return Packed(self._tokens.ids[start:stop].astype(np.int32), positions.astype(np.int32), size)
