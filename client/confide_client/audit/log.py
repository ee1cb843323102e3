"""The audit log: what was asked, allowed, refused and sent, when, and by whom. A hash-chained journal.

Its lines never hold records, keys or paths of data; an operator may show it to anyone who asks.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from confide.journal import Journal
from confide.transport.envelope import Bytes

from confide_client.audit.sentences import sentence

log = logging.getLogger(__name__)


class Audit:
    """Writes the node's audit log. Each entry is durable before the act that it records goes on."""

    def __init__(self, journal: Journal, clock: Callable[[], float] = time.time) -> None:
        """clock: Unix seconds, by which entries say when."""
        self._journal = journal
        self._clock = clock

    def note(self, event: str, **facts: Any) -> None:
        """One entry. Facts are strings, numbers, booleans, lists and dictionaries of these. News is logged as well."""
        self._journal.append({"at": datetime.fromtimestamp(self._clock(), UTC).isoformat(), "event": event, **facts})
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
