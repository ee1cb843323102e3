"""Many small writes, one commit: whoever writes while the disk is busy shares the next commit with the others.

writer = GroupWriter(database)
await asyncio.wrap_future(writer.submit(lambda session: ...))   # durable when the future has its result
"""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from confide.errors import StateError
from sqlalchemy.orm import Session

from confide_server.state.database import Database

Result = TypeVar("Result")
_AT_ONCE = 256
LINGER_S = 0.05


class GroupWriter:
    """One thread that writes. A write that raises is undone by itself; the others of its commit stand."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queue: deque[tuple[Callable[[Session], Any], Future[Any]]] = deque()
        self._wake = threading.Condition()
        self._ended = self._urgent = False
        self._thread = threading.Thread(target=self._run, name="group-writer", daemon=True)
        self._thread.start()

    def submit(self, write: Callable[[Session], Result], *, patient: bool = False) -> "Future[Result]":
        """The future has the result once it is committed, or what `write` raised. Raises StateError after `close`.

        patient: nobody waits for it; for up to LINGER_S it waits for others to share a commit with.
        """
        future: Future[Result] = Future()
        with self._wake:
            if self._ended:
                raise StateError("the database is closed: this server is stopping")
            self._queue.append((write, future))
            self._urgent = self._urgent or not patient
            if self._urgent or len(self._queue) == 1:
                self._wake.notify()
        return future

    def close(self) -> None:
        """Write what is there, and end."""
        with self._wake:
            self._ended = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._queue and not self._ended:
                    self._wake.wait()
                if not self._urgent and not self._ended:
                    self._wake.wait(LINGER_S)
                if not self._queue:
                    return
                self._urgent = False
                taken = [self._queue.popleft() for _ in range(min(_AT_ONCE, len(self._queue)))]
            self._write(taken)

    def _write(self, taken: list[tuple[Callable[[Session], Any], "Future[Any]"]]) -> None:
        results: list[tuple[Future[Any], Any, Exception | None]] = []
        try:
            with self._database.transaction() as session:
                if len(taken) == 1:  # nobody else's write is undone with it
                    ((write, future),) = taken
                    results.append((future, write(session), None))
                else:
                    results += [self._one(session, write, future) for write, future in taken]
        except Exception as error:  # the commit failed: nobody's write stands
            results = [(future, None, error) for _, future in taken]
        for future, result, failure in results:
            if failure is not None:
                future.set_exception(failure)
            else:
                future.set_result(result)

    @staticmethod
    def _one(
        session: Session, write: Callable[[Session], Any], future: "Future[Any]"
    ) -> "tuple[Future[Any], Any, Exception | None]":
        try:
            with session.begin_nested():
                return future, write(session), None
        except Exception as error:
            session.expire_all()
            return future, None, error
