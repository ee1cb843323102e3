"""The coordinator's database in a seed: the product's own on SQLite, with boundaries around each transaction."""

import contextlib
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from confide.errors import RetryableError
from confide_server.state.database import Database
from sqlalchemy.orm import Session

from confide_simulations.chaos.boundary import Boundaries


class WatchedDatabase(Database):
    """The product's, which a process may die at, and whose disk may be full. What it committed is durable.

    One object serves all seeds of a process, since its compiled statements are worth keeping: `begin` opens the file
    anew, as another process would.
    """

    def __init__(self, path: Path) -> None:
        """path: where the files of one seed after the other lie."""
        self.path = path
        self._boundaries: Boundaries | None = None
        self._full: Callable[[], bool] = lambda: False
        super().__init__(f"sqlite:///{path}")

    def begin(self, clock: Callable[[], float], boundaries: Boundaries, full: Callable[[], bool]) -> None:
        """A process opens it. Raises StateError where its audit log is damaged."""
        self.close()
        self.clock, self._boundaries, self._full = clock, boundaries, full
        self.verify_audit()

    def replace(self, copy: Path) -> None:
        """Another file is in its place."""
        self.close()
        for left in self.path.parent.glob(f"{self.path.name}*"):
            left.unlink()
        shutil.copyfile(copy, self.path)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Session]:
        """As the product's."""
        with super().transaction() as session:
            yield session
            self._reached("commit")
            if self._full():
                raise RetryableError("the database cannot be used: database or disk is full")
        self._reached("committed")

    def _reached(self, boundary: str) -> None:
        if self._boundaries is not None:
            self._boundaries.reached(boundary)

    def copy(self, to: Path) -> None:
        """By SQLite's own backup, which is consistent at any moment."""
        with contextlib.closing(sqlite3.connect(self.path)) as here, contextlib.closing(sqlite3.connect(to)) as there:
            here.backup(there)
