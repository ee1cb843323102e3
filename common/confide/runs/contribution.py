"""What one node gives to one slot, before it is sealed."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from confide.runs.metrics import Metric


@dataclass(frozen=True)
class Contribution:
    """What one node gives to one slot.

    update: float32, shape (parameters,): trained minus received trainable tensors, flattened in schema order,
        not yet weighted. Empty when the slot only evaluates.
    weight: in (0, 1]: 1 for uniform weights, else examples / specification's largest example count.
    metrics: name to value; a name that is absent counts as not reported by this node.
    """

    update: NDArray[np.float32]
    weight: float = 1.0
    metrics: Mapping[Metric, float] = field(default_factory=dict)
