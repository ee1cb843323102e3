"""Changes that were done already, by their callers' keys: the same request again gets the same answer and does nothing.

A key belongs to its caller and to one request. What is kept is the answer; a crash between a change and its answer's
being kept lets the change be asked for again, so every change is one that may be done twice (pause a paused run).
"""

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from confide.errors import StateError, TransportError
from sqlalchemy import Float, LargeBinary, String, delete
from sqlalchemy.orm import Mapped, mapped_column

from confide_server.state.database import Base, Database

KEPT_S = 30 * 86400.0
_KEY = re.compile(r"[0-9A-Za-z_-]{16,64}")


class Remembered(Base):
    """One change that was answered."""

    __tablename__ = "idempotency"
    caller: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    method: Mapped[str] = mapped_column(String(64))
    request_sha256: Mapped[str] = mapped_column(String(64))
    reply: Mapped[bytes] = mapped_column(LargeBinary)
    at: Mapped[float] = mapped_column(Float)


class Idempotency:
    """Does each change once. One object a coordinator."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        self._lock = threading.Lock()
        self._busy: set[tuple[str, str]] = set()

    def once(self, caller: str, key: str, method: str, request: bytes, work: Callable[[], bytes]) -> bytes:
        """What `work` returned, now or when this caller sent this request under this key before.

        Raises TransportError for a key of another form, and StateError for one that served another request, or whose
        first request is still being worked on.
        """
        if not _KEY.fullmatch(key):
            raise TransportError(
                f"{method} came with the idempotency key {key[:70]!r}; a change needs 16 to 64 characters of "
                "[0-9A-Za-z_-], drawn anew for each change"
            )
        digest = hashlib.sha256(request).hexdigest()
        with self._alone(caller, key):
            known = self._known(caller, key)
            if known is not None:
                if (known.method, known.request_sha256) != (method, digest):
                    raise StateError(
                        f"the idempotency key {key[:16]} served another request ({known.method}) of {caller}; draw a "
                        "new one for a new change"
                    )
                return known.reply
            reply = work()
            self._keep(Remembered(caller=caller, key=key, method=method, request_sha256=digest, reply=reply, at=0.0))
        return reply

    @contextmanager
    def _alone(self, caller: str, key: str) -> Iterator[None]:
        with self._lock:
            if (caller, key) in self._busy:
                raise StateError("the same change is being made just now; ask again in a moment, under the same key")
            self._busy.add((caller, key))
        try:
            yield
        finally:
            with self._lock:
                self._busy.discard((caller, key))

    def _known(self, caller: str, key: str) -> Remembered | None:
        with self._database.reading() as session:
            return session.get(Remembered, (caller, key))

    def _keep(self, done: Remembered) -> None:
        done.at = self._clock()
        with self._database.transaction() as session:
            session.execute(delete(Remembered).where(Remembered.at < done.at - KEPT_S))
            session.merge(done)
