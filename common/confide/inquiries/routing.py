"""Which nodes to ask: those whose documents are, on the whole, about what the question is about.

A node's score is the cosine of the question with its centroid, both less the mean of all centroids (which is what all
text of one language and kind has in common); of several centroids the best one counts. The length that noise adds is
taken off again, since it would make the cosines of small nodes smaller. Asked are all nodes within `margin` of the
best. A node that says nothing of its documents, or so little that it drowns in its noise, is asked always.

>>> cards = {"a": Known(np.array([[1.0, 0.0]]), np.zeros(1)), "b": Known(np.array([[0.0, 1.0]]), np.zeros(1))}
>>> chosen(np.array([0.9, 0.1]), cards | {"c": Known.nothing(2)}, margin=0.5)
['a', 'c']
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.errors import DataError
from confide.inquiries.documents import IndexCard
from confide.inquiries.outline import vectors

Array = NDArray[np.floating[Any]]
MARGIN, MANY = 0.25, 10
"""Chosen by `confide bench retrieval`, so that 95 of 100 passages stay found; of fewer than MANY nodes the runner-up is
less likely to be the right one, and the margin is smaller in proportion."""
_CLEAR = 1.0
"""How many standard deviations of its own estimate a centroid's squared distance from the mean must be above 0."""
_MOST_NOISE = 0.1
"""Above it a centroid is not even used for the mean of all: at epsilon 1 that of less than about 45 documents."""


@dataclass(frozen=True)
class Known:
    """What a card tells. rows: (centroids, D); noise: (centroids,) standard deviation of each number."""

    rows: Array
    noise: Array

    @classmethod
    def nothing(cls, dimension: int) -> "Known":
        """Of a card without centroids."""
        return cls(np.zeros((0, dimension)), np.zeros(0))


def known_of(card: IndexCard, embedder: str, dimension: int) -> Known:
    """What a card tells to somebody with this embedder (its hash): nothing, where another one made it, or it is odd."""
    if card.outline is None or card.embedder != embedder or not card.outline.centroids:
        return Known.nothing(dimension)
    try:
        found = vectors(card.outline).astype(np.float64)
    except DataError:  # one member's odd card must not keep anybody from asking the others
        return Known.nothing(dimension)
    if found.shape[1] != dimension:
        return Known.nothing(dimension)
    noise = np.array([one.noise_stddev for one in card.outline.centroids])
    quiet = noise <= _MOST_NOISE
    # A mean of unit vectors is no longer than 1: no card moves the mean of all by more than its share.
    lengths = np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1.0)
    return Known((found / lengths)[quiet], noise[quiet])


def scores(question: Array, cards: Mapping[str, Known]) -> dict[str, float]:
    """Of each node that says something. question: (D,), the question's embedding."""
    telling = {node: known for node, known in cards.items() if len(known.rows)}
    if not telling:
        return {}
    middle = np.mean([known.rows.mean(axis=0) for known in telling.values()], axis=0)
    if len(telling) == 1:
        middle = np.zeros_like(middle)
    towards = (question - middle) / max(float(np.linalg.norm(question - middle)), 1e-12)
    found = {node: _best(known, middle, towards) for node, known in telling.items()}
    return {node: score for node, score in found.items() if score is not None}


def _best(known: Known, middle: Array, towards: Array) -> float | None:
    apart = known.rows - middle
    # The noise adds D variances to the squared length on average, and scatters it by sqrt(2 D) of them.
    dimension, variance = apart.shape[1], known.noise**2
    squared = (apart**2).sum(axis=1) - dimension * variance
    clear = squared > np.maximum(_CLEAR * np.sqrt(2 * dimension) * variance, 1e-12)
    if not clear.any():
        return None
    return float((apart[clear] @ towards / np.sqrt(squared[clear])).max())


def margin_of(nodes: int) -> float:
    """How far behind the best a node may be and still be asked, where so many say something.

    >>> margin_of(4), margin_of(20)
    (0.1, 0.25)
    """
    return MARGIN * min(1.0, nodes / MANY)


def chosen(question: Array, cards: Mapping[str, Known], *, margin: float | None = None) -> list[str]:
    """The nodes to ask, the likeliest first, then those of which nothing is known. margin: None for `margin_of`."""
    found = scores(question, cards)
    margin = margin_of(len(found)) if margin is None else margin
    best = max(found.values(), default=0.0)
    near = [node for node in sorted(found, key=lambda node: (-found[node], node)) if found[node] >= best - margin]
    return near + sorted(set(cards) - set(found))
