"""What a tokenizer run passes on from round to round: the merges so far, and the pairs that are counted next.

The state is the run's "model": it travels, is hashed into the model chain, and is public to all members. Tokens 0 to
255 are the bytes; merge i makes token 256 + i of two earlier tokens. It holds no counts.

Bytes: the marker, round, number of merges, number of candidates (4 bytes each), then left and right token of each
merge and of each candidate (4 bytes each); integers big-endian, candidates ascending and distinct.

>>> state = first_state()
>>> state.round, state.size, len(state.candidates)
(0, 256, 65536)
>>> parse_state(state.to_bytes(), Terms(
...     vocabulary=512, special_tokens=(), candidates=65536, max_token_bytes=32, rounds=4)) == state
True
"""

import struct
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from confide.errors import UpdateError
from confide.tokenizer.terms import BYTES, Terms

Pair = tuple[int, int]
Keys = NDArray[np.int64]
"""Pairs as integers left * 2^20 + right, ascending where they are a set."""

_MARKER = b"confide/v1/tokenizer-state"
_COUNTS = struct.Struct(">3I")
_RIGHT_BITS = 20


def key_of(left: NDArray[np.int64] | int, right: NDArray[np.int64] | int) -> Keys:
    """One integer for each pair; tokens below 2^20."""
    return np.asarray(left, dtype=np.int64) << _RIGHT_BITS | np.asarray(right, dtype=np.int64)


def left_of(keys: Keys) -> NDArray[np.int64]:
    """The left tokens of pairs."""
    return keys >> _RIGHT_BITS


def right_of(keys: Keys) -> NDArray[np.int64]:
    """The right tokens of pairs."""
    return keys & ((1 << _RIGHT_BITS) - 1)


@dataclass(frozen=True, eq=False)
class TokenizerState:
    """Merges in order, and the candidates of the next round, shape (k,), ascending."""

    round: int
    """Committed rounds."""
    merges: tuple[Pair, ...]
    candidates: Keys

    @property
    def size(self) -> int:
        """Tokens, special ones left out."""
        return BYTES + len(self.merges)

    @cached_property
    def tokens(self) -> list[bytes]:
        """The bytes of each token."""
        made = [bytes([value]) for value in range(BYTES)]
        for left, right in self.merges:
            made.append(made[left] + made[right])
        return made

    def to_bytes(self) -> bytes:
        """The only encoding of this state."""
        pairs = np.empty((len(self.merges) + len(self.candidates), 2), dtype=">u4")
        pairs[: len(self.merges)] = np.array(self.merges, dtype=np.int64).reshape(-1, 2)
        pairs[len(self.merges) :, 0] = left_of(self.candidates)
        pairs[len(self.merges) :, 1] = right_of(self.candidates)
        return _MARKER + _COUNTS.pack(self.round, len(self.merges), len(self.candidates)) + pairs.tobytes()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenizerState) and self.to_bytes() == other.to_bytes()

    def __hash__(self) -> int:
        return hash(self.to_bytes())


@lru_cache(maxsize=1)
def first_state() -> TokenizerState:
    """Before the first round: no merges, and every pair of bytes is counted."""
    values = np.arange(BYTES, dtype=np.int64)
    return TokenizerState(0, (), key_of(values[:, None], values[None, :]).reshape(-1))


def parse_state(data: bytes | memoryview, terms: Terms) -> TokenizerState:
    """Read and check what `to_bytes` made. Raises UpdateError for anything that the terms do not allow.

    Guarantee: merges join earlier tokens into new ones of bounded length, no more of them than the terms allow after
    that round, and candidates are distinct pairs of existing tokens, no more than may be counted.
    """
    data = bytes(data)
    head = len(_MARKER) + _COUNTS.size
    _require(len(data) >= head and data.startswith(_MARKER), "it is not a tokenizer state of this version")
    number, merges, candidates = _COUNTS.unpack_from(data, len(_MARKER))
    _require(number <= terms.rounds, f"it is of round {number}; the run has {terms.rounds}")
    most = terms.tokens_after(number) - BYTES
    _require(merges <= most, f"it has {merges} merges; after round {number} at most {most} are allowed")
    _require(candidates <= terms.candidates, f"it asks for {candidates} pairs; at most {terms.candidates} are counted")
    wanted = head + 8 * (merges + candidates)
    _require(len(data) == wanted, f"it has {len(data)} bytes; {merges} merges and {candidates} pairs take {wanted}")
    pairs = np.frombuffer(data, dtype=">u4", offset=head).astype(np.int64).reshape(-1, 2)
    _check_merges(pairs[:merges], terms)
    asked = pairs[merges:]
    _require(
        not asked.size or int(asked.max()) < BYTES + merges, "a pair to be counted has a token that does not exist"
    )
    keys = key_of(asked[:, 0], asked[:, 1])
    _require(bool((np.diff(keys) > 0).all()), "the pairs to be counted are not ascending and distinct")
    state = TokenizerState(number, tuple((int(left), int(right)) for left, right in pairs[:merges]), keys)
    tokens = state.tokens
    _require(len(set(tokens)) == len(tokens), "two merges make the same token")
    _require(not set(tokens) & set(terms.special_tokens), "a merge makes a special token")
    return state


def _check_merges(pairs: NDArray[np.int64], terms: Terms) -> None:
    made = BYTES + np.arange(len(pairs))
    earlier = (pairs < made[:, None]).all() if len(pairs) else True
    _require(bool(earlier), "a merge joins tokens that come after it")
    lengths = [1] * BYTES  # before any bytes are joined: what doubles with every merge must not fill the memory
    for left, right in pairs.tolist():
        lengths.append(lengths[left] + lengths[right])
        _require(lengths[-1] <= terms.max_token_bytes, f"a token is longer than {terms.max_token_bytes} bytes")


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise UpdateError(f"the tokenizer state is refused: {what}")
