"""Whether one more run still fits a group's budget, although a coordinator may choose it after seeing earlier results.

A Renyi filter (Feldman and Zrnic 2021, theorem 4.3) at one order adds up the Renyi divergences of what was really
run, whatever was chosen when, and stops before a limit fixed beforehand. The best order differs from history to
history, so several are watched, and a spend is allowed if at least one of them still has room. That choice depends
on the history too; it is paid for by giving each order an equal part of delta:

    limit(a) = epsilon - conversion(a, delta / number of orders)

Guarantee: if `fits` held at every spend, all results together are (epsilon, delta)-differentially private, against
an adversary who picks every next mechanism after seeing all results so far. Proof: docs/privacy.md, "Across runs".

>>> from confide.privacy.events import GaussianRelease
>>> runs = [GaussianRelease(noise_multiplier=2.0)]
>>> fits(runs, Budget(epsilon=3.0, delta=1e-5)), fits(2 * runs, Budget(epsilon=3.0, delta=1e-5))
(True, False)
"""

import math
from collections.abc import Iterable

from confide.privacy.accounting import conversion, renyi
from confide.privacy.events import Event
from confide.runs.budget import Budget as Budget

FILTER_ORDERS: tuple[float, ...] = (2, 3, 4, 5, 7, 10, 16, 28, 64, 160)
"""Fixed for all ledgers. Every further order would make the limit of each a little lower."""


def order_limits(budget: Budget) -> tuple[float, ...]:
    """The Renyi divergence allowed at each of FILTER_ORDERS; below 0: that order can carry nothing."""
    share = budget.delta / len(FILTER_ORDERS)
    return tuple(budget.epsilon - conversion(order, share) for order in FILTER_ORDERS)


def fits(events: Iterable[Event], budget: Budget) -> bool:
    """Whether everything run so far and the candidate, all in `events`, stays within the limit of some order."""
    divergences = renyi(events, FILTER_ORDERS)
    return not any(divergences) or any(
        value <= limit for value, limit in zip(divergences, order_limits(budget), strict=True)
    )


def filter_epsilon(events: Iterable[Event], *, delta: float) -> float:
    """The smallest budget epsilon, at this delta, that `fits` would accept for the events; 0 for none."""
    divergences = renyi(events, FILTER_ORDERS)
    if not any(divergences):
        return 0.0
    share = delta / len(FILTER_ORDERS)
    totals = [value + conversion(order, share) for order, value in zip(FILTER_ORDERS, divergences, strict=True)]
    # The limit must also be at least the divergence in floating point, exactly as `fits` computes it.
    return math.nextafter(max(min(totals), 0.0), math.inf) * (1 + 1e-12)
