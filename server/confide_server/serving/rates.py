"""Rates: so many a minute, with what was not used saved up to one minute's worth.

>>> rate = Rate(60, now=0.0)
>>> rate.wait_s(60, now=0.0); rate.take(60, now=0.0); rate.wait_s(1, now=0.0); rate.wait_s(1, now=1.0)
0.0
1.0
0.0
"""

import time
from collections import OrderedDict


class Rate:
    """A bucket that refills. Used from one thread. per_minute 0: no limit."""

    def __init__(self, per_minute: float, now: float | None = None) -> None:
        self._most = float(per_minute)
        self._left = self._most
        self._at = time.monotonic() if now is None else now

    def wait_s(self, amount: float, now: float | None = None) -> float:
        """After how long so much may be taken; 0: now. More than a minute's worth waits for a full bucket."""
        if not self._most:
            return 0.0
        self._refill(now)
        missing = min(amount, self._most) - self._left
        return max(0.0, missing * 60.0 / self._most)

    def take(self, amount: float, now: float | None = None) -> None:
        """Use it up; a negative amount gives back. What is over the bucket is owed."""
        if self._most:
            self._refill(now)
            self._left = min(self._most, self._left - amount)

    def _refill(self, now: float | None) -> None:
        now = time.monotonic() if now is None else now
        self._left = min(self._most, self._left + max(0.0, now - self._at) * self._most / 60.0)
        self._at = now


class Rates:
    """A rate for each of many names; of the least recently used, beyond `most`, nothing is remembered."""

    def __init__(self, per_minute: float, most: int = 10_000) -> None:
        self._per_minute, self._most = per_minute, most
        self._rates: OrderedDict[str, Rate] = OrderedDict()

    def of(self, name: str) -> Rate:
        """This name's."""
        rate = self._rates.pop(name, None) or Rate(self._per_minute)
        self._rates[name] = rate
        while len(self._rates) > self._most:
            self._rates.popitem(last=False)
        return rate
