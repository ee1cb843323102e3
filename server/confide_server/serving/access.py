"""Who may ask, and how much: what the routes need to know of keys, limits and budgets.

`KeyedAccess` (keyed_access.py) answers from the database; `OpenAccess` lets everybody on this machine ask, unlimited.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

EVERYTHING = "*"


@dataclass(frozen=True)
class Caller:
    """Who asks, and what they may reach: names, or "*"."""

    key_id: str
    name: str
    models: Collection[str]
    collections: Collection[str]
    metrics: bool = False

    def may_use(self, model: str) -> bool:
        """Whether this model is one of theirs."""
        return EVERYTHING in self.models or model in self.models

    def may_read(self, collection: str) -> bool:
        """Whether this collection is one of theirs."""
        return EVERYTHING in self.collections or collection in self.collections


@dataclass(frozen=True)
class Asked:
    """A request as it is accounted: reserved is the most that it can cost, in tokens read and written."""

    route: str
    model: str
    base_sha256: str
    adapter_sha256: str
    reserved: int
    text: str | None = None
    """What was asked, where the operator keeps texts."""


@dataclass(frozen=True)
class Spent:
    """How a request ended."""

    prompt_tokens: int
    completion_tokens: int
    outcome: str
    """done | cancelled | failed"""
    text: str | None = None


class Charge(Protocol):
    """A request under way, whose cost is reserved."""

    def settle(self, spent: Spent) -> None:
        """Charge what it took in place of what was reserved. Must be called, however the request ends."""


class Access(Protocol):
    """Keys, limits and budgets."""

    keeps_text: bool
    """Whether the operator keeps texts."""

    async def caller(self, authorization: str | None, address: str) -> Caller:
        """Who asks. Raises Refused (401, or 429 for who guesses)."""

    def arrived(self, caller: Caller) -> None:
        """A request has come, whatever becomes of it. Raises Refused (429) over the rate of requests."""

    async def begin(self, caller: Caller, asked: Asked) -> Charge:
        """Reserve, durably. Raises Refused: 429 over a rate of tokens or a budget, or too many at once; 401 revoked."""


class _Free:
    """A request that nobody pays for."""

    def settle(self, spent: Spent) -> None:
        """Nothing is kept."""


class OpenAccess:
    """Everybody may ask everything. For an endpoint that only this machine reaches."""

    keeps_text = False

    async def caller(self, authorization: str | None, address: str) -> Caller:
        """Somebody."""
        return Caller("", "anybody", (EVERYTHING,), (EVERYTHING,), metrics=True)

    def arrived(self, caller: Caller) -> None:
        """As many as they like."""

    async def begin(self, caller: Caller, asked: Asked) -> Charge:
        """At no charge."""
        return _Free()
