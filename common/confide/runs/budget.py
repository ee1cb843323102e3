"""What privacy may be lost: one range of epsilon and delta, for specifications, policies and ledgers alike.

>>> Budget(epsilon=8.0, delta=1e-6).epsilon
8.0
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

LARGEST_EPSILON = 1000.0
"""Far beyond any meaning; accounting is tested up to it."""
LARGEST_DELTA = 0.01

Epsilon = Annotated[float, Field(gt=0, le=LARGEST_EPSILON, allow_inf_nan=False)]
Delta = Annotated[float, Field(gt=0, lt=LARGEST_DELTA, allow_inf_nan=False)]


class Budget(BaseModel):
    """What may be lost together, per protected unit."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    epsilon: Epsilon
    delta: Delta
