"""Polls in a thread of its own, so that a node that trains can say so: one training at a time, and how long it takes.

    with Receiver(link, busy=runtime.busy, open_runs=lambda: runtime.open_runs) as receiver:
        while (message := receiver.next(timeout_s=1.0)) is None: ...

What comes for the run that is worked for, and whatever ends something, waits in line as it always did. What another run
asks meanwhile is answered at once with BUSY and the seconds that are left: its coordinator need not wait to find out.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from confide.errors import IdentityError, TransportError
from flwr.app import Message, RecordDict

from confide_client.agent.fleet import FleetLink, RunOver

log = logging.getLogger(__name__)

FASTEST_POLL_S = 0.02
SLOWEST_POLL_S = 1.0
SLOWEST_OPEN_POLL_S = 0.25
HELD_POLL_S = 0.2
"""A poll that took longer was held open by the coordinator: the next one may follow at once."""
MOST_WAITING = 64
"""Messages in line; a coordinator that sends more while a node works waits at its port."""
Busy = Callable[[RecordDict], RecordDict | None]


class Pace:
    """How long to wait before the next poll: hardly at all after a message, longer the longer nothing came.

    The pause is a twentieth of the silence so far, so that waiting adds at most 5% to what was waited for.
    """

    def __init__(self) -> None:
        self._last = time.monotonic() - 60.0

    def message(self) -> None:
        """Something came."""
        self._last = time.monotonic()

    def pause_s(self, poll_s: float, open_runs: int) -> float:
        """poll_s: how long the last, empty poll took."""
        if poll_s >= HELD_POLL_S:
            return FASTEST_POLL_S
        slowest = SLOWEST_OPEN_POLL_S if open_runs else SLOWEST_POLL_S
        return min(max(FASTEST_POLL_S, (time.monotonic() - self._last) / 20), slowest)


class Receiver:
    """Takes messages from one connection until it is closed or fails."""

    def __init__(self, link: FleetLink, *, busy: Busy, open_runs: Callable[[], int]) -> None:
        """busy: an answer to give at once, from the polling thread; None for what waits in line."""
        self._link = link
        self._busy = busy
        self._open_runs = open_runs
        self._line: queue.Queue[Message | TransportError | IdentityError] = queue.Queue(MOST_WAITING)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll_on, name="fleet-poll", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # The poll that is out may be held for seconds; whatever it brings is sent again at the next connection.
        self._stop.set()

    def next(self, timeout_s: float) -> Message | None:
        """The next message, or None. Raises what polling raised: TransportError, IdentityError or RunOver."""
        try:
            item = self._line.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(item, Message):
            return item
        raise item

    def _poll_on(self) -> None:
        pace = Pace()
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                message = self._link.receive()
                if message is not None:
                    pace.message()
                    self._take(message)
                    continue
            except RunOver as over:
                self._put(over)
                continue
            except (TransportError, IdentityError) as error:
                self._put(error)
                return
            except Exception as error:
                log.error("polling failed", exc_info=error)
                self._put(TransportError(f"polling failed: {type(error).__name__}"))
                return
            self._stop.wait(pace.pause_s(time.monotonic() - began, self._open_runs()))

    def _take(self, message: Message) -> None:
        answer = self._busy(message.content)
        if answer is None:
            self._put(message)
        else:
            self._link.send(Message(answer, reply_to=message))

    def _put(self, item: Message | TransportError | IdentityError) -> None:
        while not self._stop.is_set():
            try:
                return self._line.put(item, timeout=0.5)
            except queue.Full:
                continue
