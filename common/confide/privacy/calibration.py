"""How much noise a promised (epsilon, delta) needs: the noise multiplier is calculated, never typed.

>>> sigma = noise_multiplier(epsilon=8.0, delta=1e-5, sampling_rate=0.0512, steps=98)
>>> round(sigma, 2)
0.7
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from confide.codec.layout import MAX_GRANULARITY
from confide.errors import FailureName, ProtocolFailure
from confide.privacy.accounting import epsilon_by_pld, epsilon_by_rdp
from confide.privacy.events import SampledGaussian, SkellamRelease
from confide.privacy.noise.rounding import DEFAULT_BETA, squared_norm_bound

TOLERANCE = 1e-3
"""Relative, of the search for the smallest noise."""

_COARSE_ORDERS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256)
_SKELLAM_ORDERS = (*range(2, 65), 80, 96, 128, 192, 256, 384, 512)
_COARSE = 5.0
_DISCRETENESS = 1.01
_LEAST_NOISE, _MOST_NOISE = 1e-2, 1e6


def _impossible(detail: str) -> ProtocolFailure:
    return ProtocolFailure(FailureName.PARAMETERS_IMPOSSIBLE, detail)


def check_target(epsilon: float, delta: float) -> None:
    """Raise ProtocolFailure PARAMETERS_IMPOSSIBLE for an epsilon or delta that promises nothing or cannot be kept."""
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise _impossible(f"epsilon is {epsilon}; it must be above 0 (1 is strong, 8 is weak)")
    if not 0 < delta < 1:
        raise _impossible(f"delta is {delta}; it must lie between 0 and 1, well below one over the number of records")


def _smallest(cost: Callable[[float], float], target: float, start: float) -> float:
    """The smallest noise, to TOLERANCE, at which the falling function `cost` is at most `target`."""
    from scipy import optimize  # where a search is made: loading it takes longer than most commands run

    high = start
    while cost(high) > target:
        high *= 1.25
        if high > _MOST_NOISE:
            raise _impossible(f"no noise up to {_MOST_NOISE:g} keeps epsilon {target}; raise epsilon or delta")
    low = high / 1.25
    while cost(low) <= target:
        high, low = low, low / 1.25
        if low < _LEAST_NOISE:
            return high
    root = float(optimize.brentq(lambda noise: cost(noise) - target, low, high, rtol=TOLERANCE / 4, xtol=1e-12))
    # The root finder may stop just below; the promise is one-sided.
    while cost(root) > target:
        root *= 1 + TOLERANCE / 4
    return root


@lru_cache(maxsize=256)
def noise_multiplier(*, epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """The noise multiplier of `steps` steps of DP-SGD at `sampling_rate` in (0, 1] that keeps (epsilon, delta).

    Guarantee: epsilon by PLD at the returned value is at most `epsilon`; it is within 1 % of the smallest such value.
    Raises ProtocolFailure PARAMETERS_IMPOSSIBLE.
    """
    check_target(epsilon, delta)
    if not 0 < sampling_rate <= 1 or steps < 1:
        raise _impossible(f"sampling rate {sampling_rate} over {steps} steps; it must be in (0, 1], with a step")

    def event(noise: float) -> SampledGaussian:
        return SampledGaussian(noise_multiplier=noise, sampling_rate=sampling_rate, steps=steps)

    def by_rdp(noise: float) -> float:
        return epsilon_by_rdp([event(noise)], delta=delta, orders=_COARSE_ORDERS)

    def by_pld(noise: float, coarseness: float) -> float:
        return epsilon_by_pld([event(noise)], delta=delta, coarseness=coarseness)

    # Slow and tight only at the end: Renyi gives the start, a coarse grid the curve, the fine grid what it overstates.
    start = _smallest(by_rdp, epsilon, 1.0)
    coarse = _smallest(lambda noise: by_pld(noise, _COARSE), epsilon, start)
    overstated = by_pld(coarse, _COARSE) - by_pld(coarse, 1.0)
    sigma = _smallest(lambda noise: by_pld(noise, _COARSE) - overstated, epsilon * (1 - TOLERANCE / 10), coarse)
    while by_pld(sigma, 1.0) > epsilon:
        sigma *= 1 + TOLERANCE / 4
    return sigma


@lru_cache(maxsize=256)
def noise_multiplier_by_rdp(*, epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """The same by Renyi divergences: what a looser accountant would have asked for. For comparison only."""
    check_target(epsilon, delta)

    def cost(noise: float) -> float:
        event = SampledGaussian(noise_multiplier=noise, sampling_rate=sampling_rate, steps=steps)
        return epsilon_by_rdp([event], delta=delta)

    return _smallest(cost, epsilon, 1.0)


@dataclass(frozen=True, kw_only=True)
class SharedNoise:
    """Skellam noise that the members of a sealed sum add together, in integer units.

    variance: mu, per coordinate, of the noise that the adversary does not know, when no more members than allowed
        are missing or collude. It depends on no number of members.
    norm_bound: largest squared L2 norm of a node's rounded vector (noise/rounding.py).
    slot: the event that one slot costs every contributor.
    """

    variance: float
    norm_bound: int
    slot: SkellamRelease

    def per_node(self, *, least_survivors: int, colluding: int) -> float:
        """What every node adds, per coordinate: mu / (s_min - c).

        least_survivors: s_min, the fewest organizations in an opened sum. colluding: c, organizations whose noise the
        adversary may know (a curious member knows its own: it counts).
        Guarantee: any s_min of them, c of those dishonest, add at least mu that the adversary does not know.
        Raises ProtocolFailure PARAMETERS_IMPOSSIBLE when nobody honest is left.
        """
        if colluding < 0 or least_survivors <= colluding:
            raise _impossible(
                f"{colluding} of at least {least_survivors} organizations in a sum collude: nobody honest adds noise"
            )
        return self.variance / (least_survivors - colluding)


def _skellam(variance: float, norm_bound: int, dimension: int) -> SkellamRelease:
    l2 = math.sqrt(norm_bound)
    # Integers: |x| <= x^2 coordinate by coordinate, so the L1 norm is also at most the squared L2 norm.
    return SkellamRelease(variance=variance, l2=l2, l1=l2 * min(math.sqrt(dimension), l2))


@lru_cache(maxsize=256)
def shared_noise(
    *,
    epsilon: float,
    delta: float,
    scaled_clip: float,
    dimension: int,
    slots: int,
    beta: float = DEFAULT_BETA,
) -> SharedNoise:
    """The noise of organization-level privacy: each organization's whole contribution is hidden by (epsilon, delta).

    scaled_clip: s*C, the clipping norm of an update times the scale to integers. dimension: D, padding included.
    slots: sums that may be opened in the run.

    Guarantee: where each of `slots` sums holds noise of at least `variance` that the adversary does not know, all sums
    together are (epsilon, delta)-differentially private for replacing one organization's update by zero.
    Raises ProtocolFailure PARAMETERS_IMPOSSIBLE.
    """
    norm_bound = squared_norm_bound(scaled_clip=scaled_clip, dimension=dimension, beta=beta)
    return noise_within(epsilon=epsilon, delta=delta, norm_bound=norm_bound, dimension=dimension, slots=slots)


@lru_cache(maxsize=256)
def noise_within(*, epsilon: float, delta: float, norm_bound: int, dimension: int, slots: int) -> SharedNoise:
    """The Skellam noise that hides one integer vector of squared L2 norm at most `norm_bound` in each of `slots` sums.

    Guarantee: where each of `slots` sums of integer vectors holds noise of at least `variance` that the adversary does
    not know, all sums together are (epsilon, delta)-differentially private for replacing one such vector by zero.
    Raises ProtocolFailure PARAMETERS_IMPOSSIBLE.
    """
    check_target(epsilon, delta)
    if slots < 1:
        raise _impossible(f"{slots} sums may be opened; at least one is needed")

    def cost(noise: float) -> float:
        event = _skellam(noise**2 * norm_bound, norm_bound, dimension).times(slots)
        return epsilon_by_rdp([event], delta=delta, orders=_SKELLAM_ORDERS)

    variance = _smallest(cost, epsilon, 1.0) ** 2 * norm_bound
    return SharedNoise(
        variance=variance,
        norm_bound=norm_bound,
        slot=_skellam(variance, norm_bound, dimension),
    )


@lru_cache(maxsize=64)
def granularity(*, epsilon: float, delta: float, dimension: int, slots: int) -> int:
    """a: integer units in clip / sqrt(dimension). The smallest power of two at which being discrete costs little:
    the noise, in the update's own units, has at most 1 % more standard deviation than on the finest grid.

    Every doubling costs a bit a coordinate. Rounding itself is far below the noise at any of them.
    """

    def stddev(units: int) -> float:
        noise = shared_noise(
            epsilon=epsilon, delta=delta, scaled_clip=units * math.sqrt(dimension), dimension=dimension, slots=slots
        )
        return math.sqrt(noise.variance) / units

    finest = stddev(MAX_GRANULARITY)
    units = 1
    while stddev(units) > _DISCRETENESS * finest:
        units *= 2
    return units


def check_noise(survivors: int, *, least_survivors: int) -> None:
    """Raise ProtocolFailure NOISE_INSUFFICIENT when a sum would hold less noise than was accounted.

    A node signs no list of fewer (sealing.member) and the coordinator opens none.
    """
    if survivors < least_survivors:
        raise ProtocolFailure(
            FailureName.NOISE_INSUFFICIENT,
            f"{survivors} organizations are in the sum; its noise was calculated for at least {least_survivors}. "
            "The slot is abandoned; repeat it with more organizations, or plan for more missing ones",
        )


def noise_reach(*, variance: float, coordinates: int, failure: float = 1e-9) -> int:
    """An integer that no noise coordinate exceeds in size, but with probability `failure` over all `coordinates`.

    Bernstein's bound for differences of Poisson variables: P(|Z| > t) <= 2 exp(-t^2 / (2 (variance + t/3))).
    """
    exponent = math.log(2 * coordinates / failure)
    return math.ceil(exponent / 3 + math.sqrt((exponent / 3) ** 2 + 2 * exponent * variance))


def ring_bits(*, members: int, levels: int, variance_per_node: float, coordinates: int) -> int:
    """Bits of a lane that hold the sum of `members` integers up to +-levels and all members' noise without wrapping.

    A wrap would not hurt privacy, only the sum.
    """
    reach = members * levels + noise_reach(variance=members * variance_per_node, coordinates=coordinates)
    return (2 * reach + 1).bit_length()
