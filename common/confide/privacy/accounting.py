"""What a list of mechanism events costs: (epsilon, delta) by privacy loss distributions, and Renyi divergences.

Two accountants, for two questions. Within one run every mechanism is fixed before it starts: privacy loss
distributions compose it tightly (Koskela, Jälkö and Honkela 2020; Doroshenko et al. 2022, pessimistic, so never too
low). Across runs, which may be chosen after seeing earlier results, Renyi divergences add up (filter.py).

Guarantee: both numbers are upper bounds on epsilon at the given delta, for zero-out adjacency of the protected unit.

>>> from confide.privacy.events import GaussianRelease
>>> round(epsilon([GaussianRelease(noise_multiplier=1.0)], delta=1e-5), 2)
4.38
"""

import logging
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from confide.errors import LedgerError
from confide.privacy.events import Event, GaussianRelease, SampledGaussian, SkellamRelease

if TYPE_CHECKING:
    # Loaded where a cost is computed: it brings all of scipy, which takes seconds, and most commands compute none.
    from dp_accounting import dp_event

RDP_ORDERS: tuple[float, ...] = (
    *(x / 10 for x in range(17, 71)),
    *range(8, 33),
    *(40, 48, 64, 96, 128, 192, 256, 384, 512),
)
"""Orders over which a Renyi epsilon is minimized."""

_FINEST, _COARSEST = 1e-4, 1e-3


class _QuietOrders(logging.Filter):
    """dp-accounting reports each fractional order that it cannot evaluate; such an order counts as infinite."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "_compute_log_a_frac failed to converge" not in str(record.msg)


logging.getLogger("absl").addFilter(_QuietOrders())


def _dp_event(event: GaussianRelease | SampledGaussian) -> "dp_event.DpEvent":
    from dp_accounting import dp_event

    gaussian = dp_event.GaussianDpEvent(event.noise_multiplier)
    if isinstance(event, GaussianRelease):
        return dp_event.SelfComposedDpEvent(gaussian, event.count)
    sampled = dp_event.PoissonSampledDpEvent(event.sampling_rate, gaussian)
    return dp_event.SelfComposedDpEvent(sampled, event.steps)


def _counted(events: Iterable[Event]) -> dict[Event, int]:
    """Each mechanism, run once, and how often: 1000 equal slots cost one computation."""
    counts: dict[Event, int] = {}
    for event in events:
        count = event.steps if isinstance(event, SampledGaussian) else event.count
        field = "steps" if isinstance(event, SampledGaussian) else "count"
        single: Event = event.model_copy(update={field: 1})
        counts[single] = counts.get(single, 0) + count
    return counts


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise LedgerError(f"delta is {delta}; it must lie between 0 and 1, well below one over the number of records")


def epsilon(events: Sequence[Event], *, delta: float) -> float:
    """The tightest epsilon known for the events, all fixed in advance: PLD, or Renyi where Skellam noise is among them.

    No events cost 0. Raises LedgerError for a delta outside (0, 1).
    """
    _check_delta(delta)
    if any(isinstance(event, SkellamRelease) for event in events):
        return epsilon_by_rdp(events, delta=delta)
    return epsilon_by_pld(events, delta=delta)


@lru_cache(maxsize=4096)
def _pld(events: tuple[Event, ...], delta: float, interval: float) -> float:
    from dp_accounting.pld import pld_privacy_accountant

    accountant = pld_privacy_accountant.PLDAccountant(value_discretization_interval=interval)
    for event in events:
        if isinstance(event, SkellamRelease):
            raise LedgerError("privacy loss distributions are not available for Skellam noise; use epsilon_by_rdp")
        accountant.compose(_dp_event(event))
    return float(accountant.get_epsilon(delta))


def _interval(compositions: int) -> float:
    """Grid of the privacy loss. What it overstates grows with compositions * interval^2: kept near 1e-5 and below."""
    return min(_COARSEST, max(_FINEST, math.sqrt(1e-5 / compositions)))


def epsilon_by_pld(events: Iterable[Event], *, delta: float, coarseness: float = 1.0) -> float:
    """Epsilon at `delta` by composing privacy loss distributions; Gaussian events only.

    coarseness: of the grid. Above 1 is faster and only overstates more, since all rounding is upwards: for searches.
    """
    _check_delta(delta)
    counts = _counted(events)
    merged = tuple(single.times(count) for single, count in counts.items())
    return _pld(merged, delta, coarseness * _interval(sum(counts.values()))) if merged else 0.0


@lru_cache(maxsize=4096)
def _renyi_of_one(event: Event, orders: tuple[float, ...]) -> tuple[float, ...]:
    if isinstance(event, SkellamRelease):
        return tuple(skellam_renyi(order, variance=event.variance, l1=event.l1, l2=event.l2) for order in orders)
    from dp_accounting.rdp import rdp_privacy_accountant

    accountant = rdp_privacy_accountant.RdpAccountant(list(orders))
    return tuple(float(value) for value in accountant.compose(_dp_event(event)).rdp)


def renyi(events: Iterable[Event], orders: Sequence[float]) -> tuple[float, ...]:
    """Renyi divergence bound of all events together at each order > 1; they add up (Mironov 2017, Proposition 1)."""
    totals = np.zeros(len(orders))
    for single, count in _counted(events).items():
        totals += count * np.array(_renyi_of_one(single, tuple(orders)))
    return tuple(totals.tolist())


def epsilon_by_rdp(events: Iterable[Event], *, delta: float, orders: Sequence[float] = RDP_ORDERS) -> float:
    """Epsilon at `delta` from Renyi divergences: the smallest over `orders`."""
    _check_delta(delta)
    divergences = renyi(events, orders)
    if not any(divergences):
        return 0.0
    return min(rdp_to_epsilon(order, value, delta) for order, value in zip(orders, divergences, strict=True))


def conversion(order: float, delta: float) -> float:
    """What (order, r)-Renyi privacy adds to r to become (epsilon, delta): Canonne et al. 2020, Prop. 12."""
    return math.log1p(-1.0 / order) - math.log(delta * order) / (order - 1.0)


def rdp_to_epsilon(order: float, divergence: float, delta: float) -> float:
    """Epsilon at `delta` of a mechanism with that Renyi divergence at that one order; never below 0."""
    return max(0.0, divergence + conversion(order, delta))


def skellam_renyi(order: float, *, variance: float, l1: float, l2: float) -> float:
    """Renyi divergence bound, order > 1, of integer vectors that differ by at most `l2`, `l1`, under Skellam noise.

    Agarwal, Kairouz and Liu 2021, theorem 3.5, proved for integer orders; a fractional order takes the next integer,
    since Renyi divergence grows with its order. With a the order and mu the variance per coordinate:

        a l2^2 / (2 mu) + min( ((2a - 1) l2^2 + 6 l1) / (4 mu^2),  3 l1 / (2 mu) )

    The first term is that of Gaussian noise of the same variance; the second is the price of being discrete.
    """
    if not order > 1:
        raise LedgerError(f"a Renyi order is {order}; it must be above 1")
    a = math.ceil(order)
    correction = min(((2 * a - 1) * l2**2 + 6 * l1) / (4 * variance**2), 3 * l1 / (2 * variance))
    return a * l2**2 / (2 * variance) + correction
