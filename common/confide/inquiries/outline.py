"""About what a node's documents are: one noised mean embedding a collection. Docs: docs/federated-retrieval.md.

A unit is a document, or one record of a jsonl file. It contributes the mean of its passages' embeddings, and its part
of the count. Both together have at most length 1, are rounded towards zero onto a lattice and added as integers;
Gaussian noise of the multiplier that (epsilon, delta) asks for is added to the sum. Division and floats come after.

Guarantee: the outline is one release of the Gaussian mechanism with `noise_multiplier` for each unit under zero-out
adjacency, whatever the collections are, since a unit is in one of them; the ledger is charged exactly that.

>>> units = {"leaflets": np.eye(2, 4, dtype=np.float32)}
>>> made = noised(units, epsilon=2.0, delta=1e-6, random=SecureRandom())
>>> len(made.centroids[0].vector) // 8, vectors(made).shape
(4, (1, 4))
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from confide.errors import DataError
from confide.inquiries.documents import MOST_CENTROIDS, Centroid, Outline
from confide.privacy.calibration import noise_multiplier
from confide.privacy.events import GaussianRelease
from confide.privacy.ledger_entries import RunCost
from confide.privacy.noise.lattice import Lattice
from confide.privacy.noise.randomness import SecureRandom

_COUNT_PART = 0.3
"""Of a unit's length, what its part of the count is to its embedding: a count needs less precision than a direction."""
_SCALE = 1 / math.sqrt(1 + _COUNT_PART**2)


def multiplier(*, epsilon: float, delta: float) -> float:
    """The least noise that keeps (epsilon, delta) for one release. Raises PARAMETERS_IMPOSSIBLE."""
    return noise_multiplier(epsilon=epsilon, delta=delta, sampling_rate=1.0, steps=1)


def cost(noise: float) -> RunCost:
    """What the ledger is charged."""
    return RunCost(slot=(GaussianRelease(noise_multiplier=noise),), slots=1)


def noised(units: Mapping[str, NDArray[np.float32]], *, epsilon: float, delta: float, random: SecureRandom) -> Outline:
    """The outline. units: (N, D) mean embeddings of each collection's units; longer ones are cut to length 1.

    Raises DataError for more collections than a card holds, or for a number that is none.
    """
    if not 1 <= len(units) <= MOST_CENTROIDS:
        raise DataError(f"an outline is of 1 to {MOST_CENTROIDS} collections, and {len(units)} are open to questions")
    noise = multiplier(epsilon=epsilon, delta=delta)
    lattice = Lattice(clip=1.0, noise_multiplier=noise)
    centroids = tuple(_centroid(_summed(rows, lattice), lattice, random) for _, rows in sorted(units.items()))
    return Outline(epsilon=epsilon, delta=delta, noise_multiplier=noise, centroids=centroids)


def _summed(rows: NDArray[np.float32], lattice: Lattice) -> NDArray[np.int64]:
    """(D + 1,): the embeddings' sum, and the count, in steps of the lattice."""
    exact = rows.astype(np.float64)
    if not np.isfinite(exact).all():
        raise DataError("an embedding holds a number that is none; add the documents again with a sound embedder")
    # A hair shorter than 1, so that no rounding of this arithmetic makes it longer than the lattice's bound.
    lengths = np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), 1.0) * (1 + 1e-9)
    whole = np.hstack([exact / lengths, np.full((len(exact), 1), _COUNT_PART * (1 - 1e-9))]) * _SCALE
    total: NDArray[np.int64] = np.trunc(whole / lattice.granularity).astype(np.int64).sum(axis=0)
    return total


def _centroid(total: NDArray[np.int64], lattice: Lattice, random: SecureRandom) -> Centroid:
    released = (total + lattice.noise(len(total), random)) * lattice.granularity / _SCALE
    documents = max(1, round(float(released[-1]) / _COUNT_PART))
    vector = (released[:-1] / documents).astype("<f4")
    stddev = lattice.noise_multiplier / _SCALE / documents
    return Centroid(vector=vector.tobytes().hex(), documents=documents, noise_stddev=stddev)


def vectors(outline: Outline) -> NDArray[np.float32]:
    """(centroids, D), as they came. Raises DataError for different lengths or a number that is none."""
    rows = [np.frombuffer(bytes.fromhex(one.vector), "<f4") for one in outline.centroids]
    if len({len(row) for row in rows}) > 1 or not all(np.isfinite(row).all() for row in rows):
        raise DataError("a card's centroids differ in length or hold a number that is none; its node makes it anew")
    return np.stack(rows) if rows else np.zeros((0, 0), np.float32)
