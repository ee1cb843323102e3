"""One request's account: reserved before any work, settled however it ends, counted for Prometheus.

async with accounted(desk, caller, asked) as account:
    ...
    account.written = 12          # what it took until now: this is charged, also when who asked hangs up
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from confide_server.serving.access import Access, Asked, Caller, Charge, Spent
from confide_server.serving.endpoint.http import Gone
from confide_server.serving.endpoint.metrics import Metrics
from confide_server.serving.port import EngineFailed, Overloaded, Unanswerable


@dataclass(frozen=True)
class Desk:
    """Where requests are accounted. seconds: the longest one."""

    access: Access
    metrics: Metrics
    seconds: float


class Account:
    """A request under way. read, written: tokens until now. text: the answer, where the operator keeps texts."""

    def __init__(self, desk: Desk, asked: Asked, charge: Charge) -> None:
        self.read = self.written = 0
        self.text: str | None = None
        self._desk, self._asked = desk, asked
        self._charge: Charge | None = charge
        self._began = time.monotonic()

    @property
    def seconds_left(self) -> float:
        """Until it is stopped."""
        return max(0.0, self._desk.seconds - (time.monotonic() - self._began))

    def settle(self, outcome: str) -> None:
        """Charge what it took; again is fine."""
        charge, self._charge = self._charge, None
        if charge is None:
            return
        charge.settle(Spent(self.read, self.written, outcome, self.text if self._desk.access.keeps_text else None))
        seconds = time.monotonic() - self._began
        route, model = self._asked.route, self._asked.model
        self._desk.metrics.ended(route, model, outcome, seconds, read=self.read, written=self.written)

    def settle_after(self, error: BaseException) -> None:
        """Charge what it took until it ended by this; nothing where the engine had not begun to write."""
        if isinstance(error, Overloaded | Unanswerable | EngineFailed) and not self.written:
            self.read = 0
        self.settle(ended_as(error))


async def begun(desk: Desk, caller: Caller, asked: Asked) -> Account:
    """Reserve what a request may cost. Raises Refused."""
    return Account(desk, asked, await desk.access.begin(caller, asked))


def ended_as(error: BaseException) -> str:
    """What the records call a request that ended by this."""
    return "cancelled" if isinstance(error, Gone | asyncio.CancelledError | GeneratorExit) else "failed"


@asynccontextmanager
async def accounted(desk: Desk, caller: Caller, asked: Asked) -> AsyncIterator[Account]:
    """Reserve, and settle at the end. Raises Refused before anything is done."""
    account = await begun(desk, caller, asked)
    try:
        yield account
    except BaseException as error:
        account.settle_after(error)
        raise
    account.settle("done")
