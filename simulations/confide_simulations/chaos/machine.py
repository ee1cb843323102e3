"""The machine under the product while a seed runs: disk, clock, randomness and small threads are the simulation's.

Everything else, the product's own code above all, is the real thing. Nothing is replaced outside the `with` block.
"""

import contextlib
import functools
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

from confide.identity import keys, roster
from confide.journal import Journal
from confide.sealing import crash_points
from confide_client.policy import policy
from confide_client.runs import loading, trial
from confide_server.rounds import attendance, cohort, exchange, round_loop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confide_simulations.chaos.boundary import Boundaries
from confide_simulations.chaos.chance import Entropy
from confide_simulations.chaos.disk import Disk, noting_closed, noting_journals

_PASSING = [
    import_module(f"confide.sealing.{name}")
    for name in ("member.epoch", "member.slot", "collector.epoch", "collector.slot", "plain")
]
"""Modules in which a named moment of the protocol is passed."""
TICK_S = 1.0
"""How often, in virtual time, those who wait look: each look costs real time."""

_open_roster = functools.lru_cache(maxsize=256)(roster.open_roster)
_parse_policy = functools.lru_cache(maxsize=256)(policy.parse_policy)
"""All parties are one process here: what follows from the same bytes alone is found out once for all of them."""


class _Signatures:
    """Ed25519, in which a signature that was made or found to be good need not be checked again; others always are."""

    def __init__(self) -> None:
        self._good: set[tuple[bytes, bytes, bytes]] = set()
        self._sign, self._check = keys._sign, keys._check

    def sign(self, key: Ed25519PrivateKey, public: bytes, digest: bytes) -> bytes:
        """In place of keys._sign."""
        signature = self._sign(key, public, digest)
        self._good.add((public, digest, signature))
        return signature

    def check(self, public: bytes, digest: bytes, signature: bytes) -> None:
        """In place of keys._check."""
        if (public, digest, signature) not in self._good:
            self._check(public, digest, signature)
            self._good.add((public, digest, signature))


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
    threads, signatures = _Threading("threading"), _Signatures()
    replaced: list[tuple[Any, str, Any]] = [
        (os, "fsync", disk.fsync),
        (Journal, "__init__", noting_journals(Journal.__init__)),
        (Journal, "close", noting_closed(Journal.close)),
        (os, "write", disk.write),
        (os, "urandom", entropy.token_bytes),
        (secrets, "token_bytes", entropy.token_bytes),
        (secrets, "token_hex", entropy.token_hex),
        (secrets, "randbelow", entropy.randbelow),
        (tempfile, "_name_sequence", _names()),
        (keys, "_sign", signatures.sign),
        (keys, "_check", signatures.check),
        (roster, "open_roster", _open_roster),
        (policy, "parse_policy", _parse_policy),
        (exchange, "trim", lambda: None),
        (round_loop, "trim", lambda: None),
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
