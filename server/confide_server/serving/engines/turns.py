"""Two kinds of work that never run at once, each as often at a time as it likes.

    async with turns.taken(True):
        ...                            # nothing that took a turn with False runs

First come, first served: whoever waits for the other kind to end lets nobody past.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator


class Turns:
    """Of one event loop."""

    def __init__(self) -> None:
        """Nothing runs."""
        self._running = {True: 0, False: 0}
        self._entering = asyncio.Lock()
        self._ended = asyncio.Event()

    @contextlib.asynccontextmanager
    async def taken(self, kind: bool) -> AsyncGenerator[None]:
        """Hold a turn of this kind, once nothing of the other kind runs."""
        async with self._entering:
            while self._running[not kind]:
                self._ended.clear()
                await self._ended.wait()
            self._running[kind] += 1
        try:
            yield
        finally:
            self._running[kind] -= 1
            self._ended.set()
