"""Streaming DiLoCo on a node (Douillard et al. 2025): all parameters are trained, a fragment is exchanged each round.

Between its exchanges a fragment goes on from this node's own values, which stay on this node's disk; what is sent of it
is its whole way since the last exchange. A node that lost its values, or missed a round, starts from the shared ones.
"""

from pathlib import Path

import numpy as np
from confide.codec.tensors import TensorSchema
from confide.errors import TrainingError, UpdateError
from confide.files import private_folder, write_atomic
from confide.models.aggregation import active_coordinates
from confide.runs.specification import Specification
from numpy.typing import NDArray

Flat = NDArray[np.float32]


class LocalValues:
    """This node's own values of the fragments that were not exchanged, one file per round."""

    def __init__(self, specification: Specification, schema: TensorSchema, folder: Path) -> None:
        self._specification, self._schema, self._folder = specification, schema, folder

    def _path(self, round: int) -> Path:
        return self._folder / f"values-{round:06d}.f32"

    def start(self, received: Flat, round: int) -> Flat:
        """Where training of `round` begins: the shared value of what was exchanged last, own values of the rest."""
        path = self._path(round - 1)
        if self._specification.federation.fragments == 1 or not path.exists():
            return received
        try:
            own = self._schema.decode(path.read_bytes())
        except (OSError, UpdateError) as error:
            raise TrainingError(f"{path.name} is damaged; delete it, and training starts from shared values") from error
        return np.where(active_coordinates(self._specification, self._schema, round - 1), received, own)

    def keep(self, trained: Flat, round: int) -> None:
        """Remember where this round ended and forget what no retry can need."""
        if self._specification.federation.fragments == 1:
            return
        private_folder(self._folder)
        write_atomic(self._path(round), trained.tobytes())
        for path in self._folder.glob("values-*.f32"):
            if path < self._path(round - 1):
                path.unlink()

    def exchanged(self, change: Flat, round: int) -> Flat:
        """The part of the change that is sent in this round; zero elsewhere."""
        if self._specification.federation.fragments == 1:
            return change
        return np.where(active_coordinates(self._specification, self._schema, round), change, np.float32(0))
