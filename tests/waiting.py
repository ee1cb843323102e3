"""Waiting for what another thread or process brings about: a generous while, and not a moment longer."""

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")


def until(condition: Callable[[], Found], within_s: float = 60.0, what: str = "the condition") -> Found:
    """The condition's first true value. Fails when there is none within that time, of a machine four times slower."""
    end = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < end, f"{what} did not come true within {within_s:.0f} s"
        time.sleep(0.02)
    return found
