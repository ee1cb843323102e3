"""The audit log: what was asked, allowed, refused and sent, when, and by whom. A hash-chained journal.

Its lines never hold records, keys or paths of data; an operator may show it to anyone who asks.
"""

import hashlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from confide.errors import RetryableError
from confide.journal import Journal
from confide.transport.envelope import Bytes

from confide_client.audit.sentences import sentence

log = logging.getLogger(__name__)

MOST_OWED = 200
"""Entries that wait in memory for room on the disk."""


class Audit:
    """Writes the node's audit log. Each entry is durable before the act that it records goes on.

    What a full disk is no reason to end for (the agent connected, or refused what it could not have written down) waits
    in memory, and is written with its own time before the next entry; how many did not even fit there is an entry too.
    """

    def __init__(self, journal: Journal, clock: Callable[[], float] = time.time) -> None:
        """clock: Unix seconds, by which entries say when."""
        self._journal = journal
        self._clock = clock
        self._one = threading.Lock()
        self._owed: deque[dict[str, Any]] = deque()
        self._left_out = 0

    def note(self, event: str, **facts: Any) -> None:
        """One entry. Facts are strings, numbers, booleans, lists and dictionaries of these. News is logged as well.

        Raises RetryableError where the disk has no room; then nothing is written.
        """
        entry = self._entry(event, facts)
        with self._one:
            self._pay()
            self._journal.append(entry)
        self._tell(event, facts)

    def note_when_there_is_room(self, event: str, **facts: Any) -> None:
        """The same for what goes on also on a full disk: nothing of the node's data or its updates may leave by it."""
        with self._one:
            self._owed.append(self._entry(event, facts))
            try:
                self._pay()
            except RetryableError as error:
                log.warning("the audit log waits for room: %s", error)
                while len(self._owed) > MOST_OWED:
                    self._owed.popleft()
                    self._left_out += 1
        self._tell(event, facts)

    def _entry(self, event: str, facts: Mapping[str, Any]) -> dict[str, Any]:
        return {"at": datetime.fromtimestamp(self._clock(), UTC).isoformat(), "event": event, **facts}

    def _pay(self) -> None:
        """Write what waits. Raises RetryableError; what was written waits no more."""
        if self._left_out:
            self._journal.append(self._entry("entries left out", {"entries": self._left_out}))
            self._left_out = 0
        while self._owed:
            self._journal.append(self._owed[0])
            self._owed.popleft()

    def _tell(self, event: str, facts: Mapping[str, Any]) -> None:
        news = sentence(event, facts)
        if news is not None:
            log.info("%s", news)

    def sent(self, run_id: str, step: str, signed: bytes, payload: Mapping[str, Bytes], *, again: bool) -> None:
        """What leaves the node: sizes and hashes of the reply and of each payload entry."""
        entries = {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in payload.items()
        }
        self.note(
            "sent",
            run=run_id,
            step=step,
            bytes=len(signed),
            sha256=hashlib.sha256(signed).hexdigest(),
            payload=entries,
            again=again,
        )

    def close(self) -> None:
        """Release the journal."""
        self._journal.close()
