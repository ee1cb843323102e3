"""Models of FedSVD between rounds (Lee et al. 2025): what a node can check of them without ever forming a product.

Guarantee: a model that passes has orthonormal rows in every A, spanning what those of the last model spanned, and its
products B A lie exactly as far from the last model's as `moved` says. docs/sealing.md has the bound.

>>> schema = TensorSchema((("q.lora_A", (1, 2)), ("q.lora_B", (3, 1))))
>>> last = np.array([1, 0, 1, 2, 3], dtype=np.float32)
>>> turned = np.array([-1, 0, -1, -2, -3], dtype=np.float32)
>>> Refactored(schema).moved(turned, last)[0]
0.0
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.codec.tensors import TensorSchema
from confide.errors import FailureName, ProtocolFailure

_TOLERANCE = 1e-4
Matrix = NDArray[Any]


@dataclass(frozen=True)
class _Pair:
    """Where A (rank, in) and B (out, rank) of one layer stand in the flat vector."""

    layer: str
    a_start: int
    a_shape: tuple[int, ...]
    b_start: int
    b_shape: tuple[int, ...]

    def of(self, flat: Matrix) -> tuple[Matrix, Matrix]:
        """A and B in float64."""
        a = flat[self.a_start : self.a_start + math.prod(self.a_shape)].reshape(self.a_shape)
        b = flat[self.b_start : self.b_start + math.prod(self.b_shape)].reshape(self.b_shape)
        return a.astype(np.float64), b.astype(np.float64)


class Refactored:
    """The adapted layers of one schema, and what else is trained."""

    def __init__(self, schema: TensorSchema) -> None:
        places = schema.places()
        self._pairs = []
        self._others = []
        for name, (start, shape) in places.items():
            layer, _, kind = name.rpartition(".")
            if kind == "lora_A":
                self._pairs.append(_Pair(layer, start, shape, *places[f"{layer}.lora_B"]))
            elif kind != "lora_B":
                self._others.append((start, start + math.prod(shape)))

    def check_rows(self, model: Matrix) -> None:
        """Raise MODEL_CHAIN_BROKEN unless the rows of every A are orthonormal."""
        for pair in self._pairs:
            a, _ = pair.of(model)
            if not np.linalg.norm(a @ a.T - np.eye(len(a))) <= _TOLERANCE:
                raise broken(f"the rows of {pair.layer}.lora_A are not orthonormal, as FedSVD has them")

    def moved(self, model: Matrix, last: Matrix) -> tuple[float, float]:
        """(squared distance of all products and of everything else, squared norm that rounding is relative to).

        Raises MODEL_CHAIN_BROKEN when an A spans other rows than before.
        """
        distance = squares = 0.0
        for pair in self._pairs:
            (a, b), (last_a, last_b) = pair.of(model), pair.of(last)
            turn = a @ last_a.T
            outside = a - turn @ last_a
            if not np.linalg.norm(outside) <= _TOLERANCE:
                raise broken(f"the rows of {pair.layer}.lora_A left the space that they spanned before")
            distance += float(np.square(b @ turn - last_b).sum()) + float(((b.T @ b) * (outside @ outside.T)).sum())
            # A is rounded too: by one step a row.
            squares += (1 + math.sqrt(len(a))) ** 2 * float(np.square(last_b).sum())
        for start, stop in self._others:
            old = last[start:stop].astype(np.float64)
            distance += float(np.square(model[start:stop] - old).sum())
            squares += float(np.square(old).sum())
        return distance, squares


def broken(detail: str) -> ProtocolFailure:
    """The chain of models does not hold."""
    return ProtocolFailure(FailureName.MODEL_CHAIN_BROKEN, detail)
