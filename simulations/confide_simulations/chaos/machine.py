"""The machine under the product while a seed runs: disk, clock, randomness and small threads are the simulation's.

Everything else, the product's own code above all, is the real thing. Nothing is replaced outside the `with` block.
"""

import contextlib
import itertools
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

from confide.sealing import crash_points
from confide_client.runs import loading, trial
from confide_server.rounds import attendance, cohort, exchange

from confide_simulations.chaos.boundary import Boundaries
from confide_simulations.chaos.chance import Entropy
from confide_simulations.chaos.disk import Disk

_PASSING = [
    import_module(f"confide.sealing.{name}")
    for name in ("member.epoch", "member.slot", "collector.epoch", "collector.slot", "plain")
]
"""Modules in which a named moment of the protocol is passed."""
TICK_S = 1.0
"""How often, in virtual time, those who wait look: each look costs real time."""


class _AtOnce:
    """In place of a thread that gets something ready: it is ready when `start` returns."""

    def __init__(self, *, target: Callable[[], None], name: str = "", daemon: bool = True) -> None:
        self._target = target

    def start(self) -> None:
        self._target()

    def join(self, timeout: float | None = None) -> None: ...

    def is_alive(self) -> bool:
        return False


class _Threading(ModuleType):
    """The threading module with such threads."""

    Thread = _AtOnce

    def __getattr__(self, name: str) -> Any:
        return getattr(threading, name)


def _names() -> Iterator[str]:
    return (f"t{number:07d}" for number in itertools.count())


@contextlib.contextmanager
def simulated(
    disk: Disk, boundaries: Boundaries, entropy: Entropy, unix: Callable[[], float], monotonic: Callable[[], float]
) -> Iterator[None]:
    """Within the block this process stands on them. unix: the clock of whoever's code runs."""
    threads = _Threading("threading")
    replaced: list[tuple[Any, str, Any]] = [
        (os, "fsync", disk.fsync),
        (os, "write", disk.write),
        (os, "urandom", entropy.token_bytes),
        (secrets, "token_bytes", entropy.token_bytes),
        (secrets, "token_hex", entropy.token_hex),
        (secrets, "randbelow", entropy.randbelow),
        (tempfile, "_name_sequence", _names()),
        (time, "time", unix),
        (time, "monotonic", monotonic),
        (loading, "threading", threads),
        (trial, "threading", threads),
        (exchange, "TICK_S", TICK_S),
        (cohort, "PAUSE_S", TICK_S),
        (attendance, "PAUSE_S", TICK_S),
        *((module, "reached", boundaries.reached) for module in (*_PASSING, crash_points)),
    ]
    with contextlib.ExitStack() as undo:
        for owner, name, value in replaced:
            undo.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        yield
