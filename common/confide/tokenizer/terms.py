"""The public rules of one tokenizer run, as they follow from its specification.

>>> terms = Terms(vocabulary=512, special_tokens=(b"<pad>", b"<eos>"), candidates=65536, max_token_bytes=32, rounds=4)
>>> [terms.tokens_after(number) for number in range(5)]
[256, 304, 361, 429, 510]
"""

import math
from dataclasses import dataclass

from confide.runs.specification import Specification

BYTES = 256
"""Tokens that every tokenizer begins with: one a byte, so that no text is unknown."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What every member derives for itself and holds the coordinator to."""

    vocabulary: int
    """Of the finished tokenizer, special tokens included."""
    special_tokens: tuple[bytes, ...]
    """No merge may make one of them."""
    candidates: int
    """Most pairs that are counted in a round: the length of an upload."""
    max_token_bytes: int
    rounds: int

    @classmethod
    def of(cls, specification: Specification) -> "Terms":
        """The terms of a run."""
        asked = specification.tokenizer
        return cls(
            vocabulary=asked.vocabulary,
            special_tokens=tuple(token.encode() for token in asked.special_tokens),
            candidates=asked.candidates,
            max_token_bytes=asked.max_token_bytes,
            rounds=specification.federation.rounds,
        )

    def tokens_after(self, round_number: int) -> int:
        """Most tokens, special ones left out, after a round in [0, rounds].

        They grow by one factor a round: early merges change the counts of nearly everything, late ones of little.
        """
        last = self.vocabulary - len(self.special_tokens)
        return round(BYTES * math.pow(last / BYTES, round_number / self.rounds))
