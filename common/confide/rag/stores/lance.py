"""Passages in LanceDB, embedded: a folder of files, no server.

Deleting rows leaves their bytes on disk (measured: at most 10 % of a fragment's rows stay for good), so `remove` writes
a new table without them, points `current` at it, and drops the old one. A crash between leaves a table that `current`
does not name; the next writer drops it. A reader whose table was dropped opens the one that `current` names.
"""

import contextlib
import datetime
import fcntl
import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from confide.errors import StateError
from confide.files import private_folder, write_atomic
from confide.memory import nothing_to_collect
from confide.rag.stores.base import Row, StoreDown, checked_documents, checked_passages, down

T = TypeVar("T")
_TABLE = re.compile(r"passages-[0-9]{1,9}", re.ASCII)
_MOST_FRAGMENTS = 32
_AT_ONCE = 500
_READERS_MAY_TAKE = datetime.timedelta(minutes=10)


class LanceStore:
    """One folder, one table."""

    def __init__(self, folder: Path, dimension: int) -> None:
        """Open or create. Raises StoreDown when the folder is damaged."""
        with nothing_to_collect():
            import lancedb

        self._folder = private_folder(folder)
        self._dimension = dimension
        self._database = lancedb.connect(str(folder))
        self._table: Any = None
        self._name = ""
        self.reload()

    def reload(self) -> None:
        """Open the table that `current` names."""
        name = self._current() or self._begin()
        while True:
            try:
                return self._open(name)
            except StoreDown:
                # A writer may have dropped it between our two looks.
                before, name = name, self._current()
                if name in {before, ""}:
                    raise

    def _current(self) -> str:
        pointer = self._folder / "current"
        with _named_errors(self._folder):
            name = pointer.read_text("ascii") if pointer.exists() else ""
        if name and not _TABLE.fullmatch(name):
            raise StoreDown(f"{pointer} names no table; restore the collection from a backup")
        return name

    def _begin(self) -> str:
        """Make the first table, unless another process was first: that one's is not to be made anew."""
        with _named_errors(self._folder), _alone(self._folder):
            if not self._current():
                self._create("passages-1", [])
            return self._current()

    def _open(self, name: str) -> None:
        with _named_errors(self._folder):
            if name == self._name:
                self._table.checkout_latest()
            else:
                self._table, self._name = self._database.open_table(name), name
            found = self._table.schema.field("vector").type.list_size
        if found != self._dimension:
            raise StateError(
                f"{self._folder} holds vectors of {found} numbers, the collection's have {self._dimension}"
            )

    def _read(self, what: Callable[[Any], T]) -> T:
        """What it gives of the table; of the next one where a writer dropped this one meanwhile."""
        try:
            with _named_errors(self._folder):
                return what(self._table)
        except StoreDown:
            if self._current() in {self._name, ""}:
                raise
        self.reload()
        with _named_errors(self._folder):
            return what(self._table)

    def _schema(self) -> Any:
        import pyarrow

        return pyarrow.schema(
            [
                ("passage", pyarrow.string()),
                ("document", pyarrow.string()),
                ("added", pyarrow.int64()),
                ("vector", pyarrow.list_(pyarrow.float32(), self._dimension)),
            ]
        )

    def _create(self, name: str, batches: Any) -> None:
        if name in self._names():
            self._database.drop_table(name)
        table = self._database.create_table(name, data=batches or None, schema=self._schema())
        write_atomic(self._folder / "current", name.encode("ascii"))
        self._table, self._name = table, name

    def _names(self) -> list[str]:
        return [path.name.removesuffix(".lance") for path in self._folder.glob("*.lance")]

    def add(self, rows: Sequence[Row]) -> None:
        """Append them; many small additions are merged now and then."""
        import pyarrow

        if not rows:
            return
        checked_passages([row.passage for row in rows])
        flat = np.stack([row.vector for row in rows]).astype(np.float32)
        if flat.shape[1] != self._dimension:
            raise StateError(f"an embedding has {flat.shape[1]} numbers; this table's have {self._dimension}")
        vectors = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(flat.ravel()), self._dimension)
        columns = [[row.passage for row in rows], [row.document for row in rows], [row.added for row in rows], vectors]
        with _named_errors(self._folder, changes=True):
            self._table.add(pyarrow.table(columns, schema=self._schema()))
            if self._table.stats()["fragment_stats"]["num_fragments"] > _MOST_FRAGMENTS:
                self._table.optimize(cleanup_older_than=_READERS_MAY_TAKE)

    def search(self, vector: NDArray[np.float32], limit: int, *, since: int = 0) -> list[tuple[str, float]]:
        """By looking at every row: exact."""

        def nearest(table: Any) -> Any:
            query = table.search(np.asarray(vector, dtype=np.float32)).distance_type("cosine").limit(int(limit))
            if since > 0:
                query = query.where(f"added >= {int(since)}", prefilter=True)
            return query.select(["passage", "_distance"]).to_arrow()

        found = self._read(nearest)
        pairs = zip(found["passage"].to_pylist(), found["_distance"].to_pylist(), strict=True)
        return [(name, 1.0 - distance) for name, distance in pairs]

    def vectors(self, passages: Sequence[str]) -> Mapping[str, NDArray[np.float32]]:
        """By name, some hundred at a time."""
        found: dict[str, NDArray[np.float32]] = {}
        names = checked_passages(passages)
        for start in range(0, len(names), _AT_ONCE):
            table = self._read(functools.partial(_of, names[start : start + _AT_ONCE]))
            flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            rows = flat.reshape(-1, self._dimension)
            found.update(zip(table["passage"].to_pylist(), rows, strict=True))
        return found

    def everything(self) -> tuple[list[str], list[int], NDArray[np.float32]]:
        """By reading the table."""
        table = self._read(lambda table: table.to_arrow())
        flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return table["passage"].to_pylist(), table["added"].to_pylist(), flat.reshape(-1, self._dimension)

    def counts(self) -> Mapping[str, int]:
        """By reading one column."""

        def documents(table: Any) -> Any:
            return table.search().select(["document"]).limit(max(1, table.count_rows())).to_arrow()["document"]

        found = self._read(documents)
        return {pair["values"]: pair["counts"] for pair in found.combine_chunks().value_counts().to_pylist()}

    def remove(self, documents: AbstractSet[str]) -> None:
        """Copy what stays into a new table, and drop every other one."""
        import pyarrow.compute

        names = checked_documents(documents)
        with _named_errors(self._folder, changes=True):
            everything = self._table.to_arrow()
            gone = pyarrow.compute.is_in(everything["document"], value_set=pyarrow.array(names, pyarrow.string()))
            kept = everything.filter(pyarrow.compute.invert(gone)).select(["passage", "document", "added", "vector"])
            old = int(self._name.rpartition("-")[2])
            self._create(f"passages-{old + 1}", kept if len(kept) else [])
            self.tidy()

    def tidy(self) -> None:
        """Tables that `current` does not name: what a crash left behind."""
        with _named_errors(self._folder):
            for name in self._names():
                if name != self._name:
                    self._database.drop_table(name)

    def files(self) -> Sequence[Path]:
        """Everything below the folder."""
        return [path for path in self._folder.rglob("*") if path.is_file()]

    def close(self) -> None:
        """Nothing is held between calls."""

    def drop(self) -> None:
        """All tables."""
        for name in self._names():
            self._database.drop_table(name)
        (self._folder / "current").unlink(missing_ok=True)
        self._table, self._name = None, ""


def _of(names: Sequence[str], table: Any) -> Any:
    quoted = ", ".join(f"'{name}'" for name in names)
    return table.search().where(f"passage IN ({quoted})").limit(_AT_ONCE).to_arrow()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait for other processes that are within this block."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _named_errors(folder: Path, *, changes: bool = False) -> Iterator[None]:
    try:
        yield
    except StateError:
        raise
    except (RuntimeError, OSError, ValueError, LookupError) as error:
        raise down(f"the passages in {folder}", error, changes=changes) from error
