"""What computes embeddings from token ids, for `confide.rag.embedder`.

- `bert`: BERT's encoder, which most sentence embedders are; `bert_shape`: whether a folder holds one
- `general`: every other family, by transformers; `plain_attention`: what it attends with in bfloat16
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Encoder(Protocol):
    """A model in memory. Several threads may use it at once."""

    def batches(self, rows: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        """Places of the rows that are best computed together, about so many tokens each, the short ones first."""

    def vectors(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """(N, D), each of length 1: the means over the tokens of (N) rows of token ids."""
