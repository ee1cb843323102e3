"""The shape of one sealed vector: everything that both sides must agree on before a single mask is added.

A layout fixes how a flat update of `parameters` float32 values and `scalars` exact integers becomes lanes of
`lane_bits` bits. docs/benchmarks.md shows what it costs; this page is the specification.

Matrix. The update is read as a row-major matrix of 1024 rows and `columns` columns, zeros after its end:
coordinate i stands in row i // columns, column i % columns. `columns` is ceil(parameters / 1024), plus one if
that is even and above 64: an odd stride keeps a column of some weight matrix from falling into few columns here.

Tile. Columns are taken 64 at a time, the last tile may be narrower. Within tile t of width C, the value of row r
and column c is lane t * 65536 + r * C + c. The rotation works on one tile at a time (kernels.py): it mixes every
value with 1023 others spaced evenly over the whole update, so that a layer that moved much does not overflow its
own block, and with three neighbours 16 columns apart.

Scale. Let sigma^2 = clip^2 / (1024 * columns), the mean square of a rotated coordinate of an update of norm `clip`.
In a block of B values (4096, or 1024 where columns are left over) that holds the part E of the squared norm, a rotated
coordinate y satisfies P(|y| > k sqrt(E / B)) <= 2 exp(-k^2 / 2) over the random signs (Hoeffding), close to the normal
tail in practice; blocks are spread over the whole update, so that E / B is near sigma^2 unless fewer values than there
are blocks hold most of the norm. Integers reach +-levels, levels = 2^(bits-1) - 1, and `step` = k sigma / levels, so
zero is exact. What lies beyond k sigma is clamped, never wrapped. With E / B = sigma^2:

| bits | k   | P(clamped), normal | norm lost by clamping / clip | rounding error / clip, at most |
| 4    | 2.5 | 1.2e-2             | 4.9e-2                       | 1.8e-1                         |
| 8    | 4   | 6.3e-5             | 2.5e-3                       | 1.6e-2                         |
| 12   | 6   | 2.0e-9             | 1.0e-5                       | 1.5e-3                         |
| 16   | 8   | 1.2e-15            | < 1e-7                       | 1.2e-4                         |

At 4 bits both together are least at k = 2.5 for an update of norm `clip`: it loses 0.153 of its norm when rounded at
random and 0.113 when rounded to the nearest (error feedback); 0.156 and 0.134 at k = 2, 0.175 and 0.125 at k = 3. An
update of norm 0.7 clip loses 0.208 and 0.147 of its own. Measured on the real updates of a language model.

Ring. Integers are lanes modulo 2^lane_bits, lane_bits = ceil(log2(members * (2^bits - 1) + 1)) + noise_bits, and
are read back as two's complement: a sum of `members` of them cannot wrap.

Noise. With `granularity` a > 0 integers of noise are added before masking (organization-level privacy). Then step =
clip / (a sqrt(1024 * columns)), so that the mean square of a rotated coordinate is a^2 units; what lies beyond 8 a is
clamped before rounding, and `noise_bits` make room for all members' noise (confide.privacy.organization chooses both).
`bits` is then only the base of the exact scalars' digits.

Integers. With `integer_step` above 0 the update is a vector of integers times that step, not rotated: coordinate i is
lane i, zeros follow up to 1024 * columns. Integers beyond +-`integer_levels` are clamped, noise of all members is added
before masking, and `noise_bits` make room for both (confide.privacy.shared_units chooses them). Nothing is rounded, so
that the opened sum is the exact sum of the integers, which record- and user-level shared noise rests on.

Exact scalars. Each is an integer in [0, 2^32), written as ceil(32 / bits) digits of base 2^bits, lowest first, one
lane each, after the vector's lanes. Digit sums are at most members * (2^bits - 1) < 2^lane_bits, hence exact.
Zero lanes fill up to a multiple of 1024.

Packing. 1024 lanes make a group. With words of W = 16 bits (lane_bits <= 16) or 32 bits, a group is W rows of
1024 / W lanes. Column j's W lanes, row 0 first, are one little-endian bit string of W * lane_bits bits, cut into
lane_bits words; word i of column j is the group's word i * (1024 / W) + j. Words are little-endian.

>>> layout = VectorLayout(parameters=10_000_000, scalars=3, bits=8, members=8, clip=1.0, rotation_seed=bytes(32))
>>> layout.lane_bits, layout.lanes, round(8 * layout.wire_bytes / layout.parameters, 3)
(11, 10002432, 11.003)
"""

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from confide.errors import SpecificationError

ROWS = 1024
TILE_COLUMNS = 64
TILE = ROWS * TILE_COLUMNS
GROUP = 1024
SCALAR_BITS = 32
MAX_MEMBERS = 4096
MAX_GRANULARITY = 1 << 12
MAX_INTEGER = 1 << 22
_NOISED_REACH = 8

# bits -> k: how many standard deviations the integers reach. Few bits buy a finer step with a nearer clamp.
_REACH = {4: 2.5, 8: 4.0, 12: 6.0, 16: 8.0}


@dataclass(frozen=True, kw_only=True)
class VectorLayout:
    """How one update becomes lanes. Frozen; its bytes go into the slot's context hash.

    parameters: D, length of the flat float32 update; may be 0.
    scalars: exact extra coordinates (weight, metrics), each an integer in [0, 2^32).
    bits: width of one coordinate before summing: 4, 8, 12 or 16.
    members: n, the largest number of vectors that are summed.
    clip: L2 norm to which every update is clipped; sets the common scale. Finite, above 0.
    rotation_seed: 32 public bytes, fresh per slot, that choose the rotation's signs.
    noise_bits: further bits of room for integer noise added before masking; 0 without.
    granularity: a, integer units in clip / sqrt(coordinates) where such noise is added; 0 without.
    integer_step: what one unit is worth where the update is integers already; 0 elsewhere.
    integer_levels: the largest such integer in size, without noise; at most 2^22, exact in float32.
    """

    parameters: int
    scalars: int
    bits: int
    members: int
    clip: float
    rotation_seed: bytes
    noise_bits: int = 0
    granularity: int = 0
    integer_step: float = 0.0
    integer_levels: int = 0

    def __post_init__(self) -> None:
        _require(0 <= self.parameters < 2**40, "parameters", self.parameters, "0 to 2^40 - 1")
        _require(0 <= self.scalars <= 4096, "scalars", self.scalars, "0 to 4096")
        _require(self.bits in _REACH, "bits", self.bits, "4, 8, 12 or 16")
        _require(1 <= self.members <= MAX_MEMBERS, "members", self.members, f"1 to {MAX_MEMBERS}")
        _require(math.isfinite(self.clip) and self.clip > 0, "clip", self.clip, "a finite norm above 0")
        _require(len(self.rotation_seed) == 32, "rotation_seed", f"{len(self.rotation_seed)} bytes", "32 bytes")
        _require(self.noise_bits >= 0, "noise_bits", self.noise_bits, "0 or more")
        _require(0 <= self.granularity <= MAX_GRANULARITY, "granularity", self.granularity, f"0 to {MAX_GRANULARITY}")
        step, levels = self.integer_step, self.integer_levels
        _require(math.isfinite(step) and step >= 0, "integer_step", step, "0, or a finite step above it")
        _require((levels > 0) == self.integers, "integer_levels", levels, "above 0 with integer_step, else 0")
        _require(levels <= MAX_INTEGER, "integer_levels", levels, f"at most {MAX_INTEGER}")
        _require(not (self.integers and self.granularity), "granularity", self.granularity, "0 with integer_step")
        _require(self.lane_bits <= 32, "lane_bits", self.lane_bits, "32 at most: fewer bits or less noise")

    @property
    def integers(self) -> bool:
        """Whether the update is integers times `integer_step`, not rotated."""
        return self.integer_step > 0

    @property
    def noised(self) -> bool:
        """Whether noise is added before masking."""
        return self.integers or self.granularity > 0

    @property
    def lane_bits(self) -> int:
        """w, bits of one lane: ceil(log2(members * (2^bits - 1) + 1)) + noise_bits."""
        return (self.members * ((1 << self.bits) - 1)).bit_length() + self.noise_bits

    @property
    def lane_dtype(self) -> np.dtype[Any]:
        """Little-endian uint16 when lane_bits <= 16, else uint32; also the unit of the mask keystream."""
        return np.dtype("<u2" if self.lane_bits <= 16 else "<u4")

    @property
    def levels(self) -> int:
        """The largest integer of one coordinate without its noise: 2^(bits-1) - 1, negative values alike; or 8 a."""
        if self.integers:
            return self.integer_levels
        return _NOISED_REACH * self.granularity if self.granularity else (1 << (self.bits - 1)) - 1

    @property
    def reach(self) -> float:
        """k: the clamp stands at k * clip / sqrt(coordinates)."""
        return float(_NOISED_REACH) if self.granularity else _REACH[self.bits]

    @property
    def columns(self) -> int:
        """Columns of the 1024-row matrix; 0 for an empty update."""
        columns = -(-self.parameters // ROWS)
        return columns + 1 if columns > TILE_COLUMNS and columns % 2 == 0 else columns

    @property
    def coordinates(self) -> int:
        """Lanes of the rotated update: 1024 * columns."""
        return ROWS * self.columns

    @property
    def step(self) -> float:
        """The value of one integer unit in the rotated update."""
        if self.integers:
            return self.integer_step
        return self.reach * self.clip / (self.levels * math.sqrt(max(1, self.coordinates)))

    @property
    def digits(self) -> int:
        """Lanes per exact scalar."""
        return -(-SCALAR_BITS // self.bits)

    @property
    def lanes(self) -> int:
        """All lanes, padding included: a multiple of 1024."""
        used = self.coordinates + self.scalars * self.digits
        return -(-used // GROUP) * GROUP

    @property
    def wire_bytes(self) -> int:
        """Exact size of one packed upload."""
        return self.lanes * self.lane_bits // 8

    def to_bytes(self) -> bytes:
        """Canonical bytes: version marker, integers and floats big-endian, seed; their number is each marker's own."""
        integers = (self.parameters, self.scalars, self.bits, self.members, self.noise_bits)
        if self.integers:
            own = struct.pack(">6Q2d", *integers, self.integer_levels, self.integer_step, self.clip)
            return b"confide/v1/integer-layout" + own + self.rotation_seed
        if self.granularity:
            marker = b"confide/v1/noised-layout"
            return marker + struct.pack(">6Qd", *integers, self.granularity, self.clip) + self.rotation_seed
        return b"confide/v1/vector-layout" + struct.pack(">5Qd", *integers, self.clip) + self.rotation_seed


def _require(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise SpecificationError(f"vector layout: {name} is {value}; allowed: {allowed}")
