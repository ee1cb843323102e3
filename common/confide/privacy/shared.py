"""Noise that no node adds enough of by itself: all members of a sealed sum add it together.

Two promises rest on it. At organization level the whole update of one organization is hidden (organization.py); at
record and user level with `privacy.noise = "shared"` one unit's clipped gradient in each round (shared_units.py). What
both sides calculate is the same: what each member adds, what the run costs, how large an honest sum can be.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from confide.codec.layout import VectorLayout
from confide.errors import DataError, SpecificationError
from confide.privacy import organization, shared_units
from confide.privacy.ledger_entries import RunCost
from confide.privacy.noise.randomness import SecureRandom
from confide.runs.specification import Specification


class SlotNoise(Protocol):
    """What each member of one epoch adds in each slot, and the room that the sum needs."""

    def layout(self, specification: Specification, trained: int, *, scalars: int, rotation_seed: bytes) -> VectorLayout:
        """How a slot's noised updates become lanes."""

    def to_integers(self, random: SecureRandom) -> Callable[[NDArray[np.float64]], NDArray[np.int64]]:
        """What seal_vector.encode_upload asks for: integers with this node's share of the noise."""

    def check(self, contributors: int) -> None:
        """Raise ProtocolFailure NOISE_INSUFFICIENT when a sum would hold less noise than was accounted."""

    def largest_sum(self, contributors: int) -> float:
        """L2 norm, in the update's units, that an honest sum does not exceed."""


def slot_noise(specification: Specification, trained: int, *, members: int) -> SlotNoise:
    """The noise of an epoch of `members` over `trained` parameters. Raises PARAMETERS_IMPOSSIBLE."""
    if specification.privacy.unit == "organization":
        return organization.slot_noise(specification, trained, members=members)
    return shared_units.slot_noise(specification, trained, members=members)


def shared_cost(specification: Specification, trained: int) -> RunCost:
    """What a node's ledger is asked to set aside. Raises PARAMETERS_IMPOSSIBLE for a promise that no noise keeps."""
    if specification.privacy.unit == "organization":
        return organization.organization_noise(specification, trained).cost
    return shared_units.unit_noise(specification, trained).cost


def largest_mean(specification: Specification, trained: int) -> float:
    """L2 norm that the mean of an honest sum does not exceed, whatever epoch it came from: for the model chain."""
    if specification.privacy.unit == "organization":
        return organization.largest_mean(specification, trained)
    return shared_units.largest_mean(specification, trained)


def check_units(specification: Specification, units: int) -> None:
    """Raise SpecificationError unless delta is below one over this node's units; the message holds no count."""
    privacy = specification.privacy
    if units < 1:
        raise DataError(f"the data set has no {privacy.unit}s to train on")
    if (privacy.delta or 1.0) * units >= 1:
        raise SpecificationError(
            f"privacy.delta is {privacy.delta}, which is not below one over the number of {privacy.unit}s on this "
            f"node: publishing a {privacy.unit} at random would keep that promise. Ask for a smaller delta"
        )
