"""Records of a registered file by number, read from the file itself when they are asked for; nothing is copied.

    rows = open_rows(path, "jsonl")
    rows[17], rows.select([3, 5])[1], rows.place(17)

In memory are 8 bytes a record (where it begins), of parquet one batch. The file stays open; when it is changed
meanwhile, DataError.
"""

import os
import threading
import weakref
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from confide.errors import DataError
from numpy.typing import NDArray

from confide_client.data.readers import TEXT_FORMATS, Format, Record, TextFormat, parquet_batches

_BLOCK_BYTES = 1 << 20


class _Numbered(Sequence[Record]):
    """Records by number, or some of them by slice, as of a list."""

    @abstractmethod
    def _record(self, number: int) -> Record:
        """The record of a number from 0."""

    @abstractmethod
    def place(self, number: int) -> str:
        """Where a record stands in the file, for its operator: "line 18"."""

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        return self._record(range(len(self))[index])


class Rows(_Numbered):
    """All records of a file. Safe to share among threads."""

    def select(self, numbers: Sequence[int]) -> "Selection":
        """Some of the records, in this order."""
        return Selection(self, np.asarray(numbers, dtype=np.int64))


class Selection(_Numbered):
    """Records of a file by number of their own."""

    def __init__(self, rows: Rows, numbers: NDArray[np.int64]) -> None:
        self._rows, self._numbers = rows, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def _record(self, number: int) -> Record:
        return self._rows[int(self._numbers[number])]

    def place(self, number: int) -> str:
        """Where a record stands in the file."""
        return self._rows.place(int(self._numbers[number]))


def place_of(records: Sequence[Any], index: int) -> str:
    """Where a record stands in its file, where that is known; else its number, from 1."""
    place = getattr(records, "place", None)
    return str(place(index)) if place is not None else f"record {index + 1}"


def open_rows(path: Path, format: Format) -> Rows:
    """The file's records. Raises DataError when it is none of this format."""
    if format == "parquet":
        return _ParquetRows(path)
    return _TextRows(TEXT_FORMATS[format](path))


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


class _TextRows(Rows):
    def __init__(self, format: TextFormat) -> None:
        self._format = format
        self._descriptor = os.open(format.path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        self._known = _identity(os.fstat(self._descriptor))
        with open(os.dup(self._descriptor), "rb") as file:
            self._starts = np.fromiter(self._boundaries(file), np.int64)

    def _boundaries(self, file: Any) -> Iterator[int]:
        stop = None
        for piece in self._format.pieces(file):
            yield piece.start
            stop = piece.stop
        if stop is not None:
            yield stop

    def __len__(self) -> int:
        return max(0, len(self._starts) - 1)

    def _record(self, number: int) -> Record:
        if _identity(os.fstat(self._descriptor)) != self._known:
            raise _changed()
        start, stop = int(self._starts[number]), int(self._starts[number + 1])
        data = os.pread(self._descriptor, stop - start, start)
        try:
            return self._format.record(data, number + 1)
        except DataError:
            # It names the path, and errors of training reach the coordinator.
            raise DataError("a record of the data set cannot be read; run `confide data check` on the node") from None

    def place(self, number: int) -> str:
        """The line on which the record begins."""
        end, line = int(self._starts[number]), 1
        for start in range(0, end, _BLOCK_BYTES):
            line += os.pread(self._descriptor, min(_BLOCK_BYTES, end - start), start).count(b"\n")
        return f"line {line}"


class _ParquetRows(Rows):
    """One batch is kept: records are asked for in ascending order, and going back begins a row group again."""

    def __init__(self, path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        self._path = path
        self._known = _identity(path.stat())
        self._lock = threading.Lock()
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"the parquet file cannot be read ({type(error).__name__}); write it again") from None
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        self._group, self._batches = -1, iter(())  # type: tuple[int, Iterator[list[Record]]]
        self._batch: list[Record] = []
        self._first = 0

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _record(self, number: int) -> Record:
        with self._lock:
            if _identity(self._path.stat()) != self._known:
                raise _changed()
            group = int(np.searchsorted(self._starts, number, side="right")) - 1
            if group != self._group or number < self._first:
                self._group, self._batches = group, parquet_batches(self._path, [group])
                self._batch, self._first = [], int(self._starts[group])
            while number >= self._first + len(self._batch):
                self._first += len(self._batch)
                self._batch = next(self._batches)
            return self._batch[number - self._first]

    def place(self, number: int) -> str:
        """Parquet has no lines."""
        return f"row {number + 1}"


def _changed() -> DataError:
    return DataError("the data set's file was changed while it was read; run `confide data add` again")
