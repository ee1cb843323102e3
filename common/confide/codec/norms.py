"""Lengths of long vectors."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CHUNK = 1 << 18


def l2_norm(vector: NDArray[np.floating[Any]]) -> float:
    """Euclidean norm in float64, by chunk: no copy of the whole.

    >>> l2_norm(np.array([3.0, 4.0], dtype=np.float32))
    5.0
    """
    chunks = (vector[start : start + _CHUNK] for start in range(0, len(vector), _CHUNK))
    return math.sqrt(math.fsum(float(np.square(chunk, dtype=np.float64).sum()) for chunk in chunks))
