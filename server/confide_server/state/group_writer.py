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


class GroupWriter:
    """One thread that writes. A write that raises is undone by itself; the others of its commit stand."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queue: deque[tuple[Callable[[Session], Any], Future[Any]]] = deque()
        self._wake = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="group-writer", daemon=True)
        self._thread.start()

    def submit(self, write: Callable[[Session], Result]) -> "Future[Result]":
        """The future has the result once it is on disk, or what `write` raised. Raises StateError after `close`."""
        future: Future[Result] = Future()
        with self._wake:
            if self._ended:
                raise StateError("the database is closed: this server is stopping")
            self._queue.append((write, future))
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
                if not self._queue:
                    return
                taken = [self._queue.popleft() for _ in range(min(_AT_ONCE, len(self._queue)))]
            self._write(taken)

    def _write(self, taken: list[tuple[Callable[[Session], Any], "Future[Any]"]]) -> None:
        results: list[tuple[Future[Any], Any, Exception | None]] = []
        try:
            with self._database.transaction() as session:
                for write, future in taken:
                    try:
                        with session.begin_nested():
                            results.append((future, write(session), None))
                    except Exception as error:
                        session.expire_all()
                        results.append((future, None, error))
        except Exception as error:  # the commit failed: nobody's write stands
            results = [(future, None, error) for _, future in taken]
        for future, result, failure in results:
            if failure is not None:
                future.set_exception(failure)
            else:
                future.set_result(result)
