"""Streaming DiLoCo on a node (Douillard et al. 2025): all parameters are trained, a fragment is exchanged each round.

Between its exchanges a fragment goes on from this node's own values, which stay on this node's disk; what is sent of it
is its whole way since the last exchange. A node that lost its values, or missed a round, starts from the shared ones.
"""

from pathlib import Path

import numpy as np
from confide.errors import TrainingError, UpdateError
from confide.files import private_folder, write_atomic
from confide.models.sent_coordinates import SentCoordinates
from numpy.typing import NDArray

from confide_client.kept_files import VALUES, path_of, rounds_of

Flat = NDArray[np.float32]


class LocalValues:
    """This node's own values of the fragments that were not exchanged, one file per round."""

    def __init__(self, coordinates: SentCoordinates, folder: Path) -> None:
        self._coordinates, self._folder = coordinates, folder

    def _path(self, round: int) -> Path:
        return path_of(self._folder, VALUES, round)

    def start(self, received: Flat, round: int) -> Flat:
        """Where training of `round` begins: the shared value of what was exchanged last, own values of the rest."""
        path = self._path(round - 1)
        if not self._coordinates.fragmented or not path.exists():
            return received
        try:
            own = self._coordinates.schema.decode(path.read_bytes()).copy()
        except (OSError, UpdateError) as error:
            raise TrainingError(f"{path.name} is damaged; delete it, and training starts from shared values") from error
        self._coordinates.scatter(self._coordinates.gather(received, round - 1), round - 1, own)
        return own

    def keep(self, trained: Flat, round: int) -> None:
        """Remember where this round ended and forget what no retry can need."""
        if not self._coordinates.fragmented:
            return
        private_folder(self._folder)
        write_atomic(self._path(round), trained.tobytes())
        for path in rounds_of(self._folder, VALUES):
            if path < self._path(round - 1):
                path.unlink()

    def exchanged(self, change: Flat, round: int) -> Flat:
        """The part of the change that is sent in this round; zero elsewhere."""
        if not self._coordinates.fragmented:
            return change
        sent = np.zeros_like(change)
        self._coordinates.scatter(self._coordinates.gather(change, round), round, sent)
        return sent
