"""The lattice on which private sums and their noise are integers. Docs: docs/privacy.md, "Noise on a lattice".

Floating-point noise betrays what it hides: which float32 numbers can come out of an addition depends on what was added
to (Mironov 2012). So everything is an integer until the noise is in. The step of the lattice follows from the clip
and the noise multiplier alone. A unit's clipped contribution is rounded towards zero, which makes no vector longer; so
its L2 norm in steps is at most `bound`. Contributions are added as int64, exactly, and the noise is a real Gaussian
number of standard deviation noise_multiplier * bound, rounded to an integer.

Guarantee: since the sum x is made of integers, x + round(noise) = round(x + noise): the result is the Gaussian
mechanism's with exactly `noise_multiplier`, and then a rounding that depends on no data. Whatever is proved of the
Gaussian mechanism, sampled or not, holds for it unchanged, and all integers are possible results of any data.

>>> lattice = Lattice(clip=0.5, noise_multiplier=1.0)
>>> lattice.bound, lattice.granularity == 0.5 / 2**22
(4194304, True)
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from confide.errors import SpecificationError
from confide.privacy.noise.randomness import SecureRandom

FINEST_BITS = 22
"""A unit's coordinates are then at most 2^22: exact in float32, and 511 of them add up within int32."""

_NOISE_BITS = 26
LEAST_CLIP = 2.0**-30
"""A shorter clip would come near to numbers whose squares float32 cannot hold."""


class Grid(Protocol):
    """Where one unit's clipped contribution becomes integers."""

    @property
    def clip(self) -> float:
        """L2 norm of one unit's contribution, in the contribution's own units."""

    @property
    def granularity(self) -> float:
        """One step in those units: the clip over a power of two, 2^22 at most."""


@dataclass(frozen=True, kw_only=True)
class Lattice:
    """clip: L2 norm of one unit's contribution, in the contribution's own units. noise_multiplier: of the noise on the
    sum, over the clip."""

    clip: float
    noise_multiplier: float

    def __post_init__(self) -> None:
        for name, least in (("clip", LEAST_CLIP), ("noise_multiplier", 0.0)):
            value = getattr(self, name)
            if not (value > 0 and value < math.inf):
                raise SpecificationError(f"{name} of a private step is {value}; it must be positive and finite")
            if value < least:
                raise SpecificationError(f"{name} of a private step is {value}; the least that is allowed is {least:g}")

    @property
    def bits(self) -> int:
        """The clip is 2^bits steps: 22, and one bit less for each doubling of a noise multiplier beyond 16, where
        finer steps would only be drowned."""
        return min(FINEST_BITS, max(0, _NOISE_BITS - math.frexp(self.noise_multiplier)[1]))

    @property
    def bound(self) -> int:
        """Largest L2 norm of one unit's integers."""
        return 1 << self.bits

    @property
    def granularity(self) -> float:
        """One step in the contribution's units: the clip over a power of two."""
        return math.ldexp(self.clip, -self.bits)

    @property
    def noise_stddev(self) -> float:
        """Of the noise before rounding, in steps; exact, as a power of two is."""
        return math.ldexp(self.noise_multiplier, self.bits)

    def noise(self, size: int, random: SecureRandom) -> NDArray[np.int64]:
        """int64, shape (size,): what one sum of units gets."""
        return random.rounded_gaussian(size, stddev=self.noise_stddev)
