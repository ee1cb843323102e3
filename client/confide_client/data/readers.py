"""One reader of a data set's file: what is checked, registered, planned with and trained on are the same values.

A format says how a file falls into pieces, one a record, and what record a piece is. Checking walks all pieces in
order; training (rows.py) asks for single ones; both make the record by the same function. Types are the file's own: a
csv cell is text, a JSON number stays whole or broken as it is written, nothing is guessed from how a value looks.

A DataError names the line, what is wrong and the remedy. It never quotes the content: an error message may be copied to
where the text must not go.
"""

import csv
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from confide.errors import DataError

Format = Literal["jsonl", "csv", "parquet", "txt"]
Record = Mapping[str, Any]

MOST_BYTES = 256 * 2**20
"""Of one record: more is a file without line ends, or a quote that is never closed."""

_SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".txt": "txt",
}

_REMEDIES = {
    ".gz": "it is compressed; unpack it first, for example with gunzip",
    ".bz2": "it is compressed; unpack it first, for example with bunzip2",
    ".xz": "it is compressed; unpack it first, for example with unxz",
    ".zst": "it is compressed; unpack it first, for example with unzstd",
    ".zip": "it is an archive; unpack it first",
    ".json": "write each record as a JSON object on a line of its own (jsonl), for example with `jq -c '.[]'`",
    ".tsv": "write it with commas instead of tabs (csv)",
    ".xlsx": "save the sheet as csv (UTF-8)",
    ".xls": "save the sheet as csv (UTF-8)",
}

_CONTAINERS = (
    (re.compile(rb"\x1f\x8b"), "is compressed by gzip; unpack it first, for example with gunzip"),
    (re.compile(rb"BZh[1-9]1AY&SY"), "is compressed by bzip2; unpack it first, for example with bunzip2"),
    (re.compile(rb"\xfd7zXZ\x00"), "is compressed by xz; unpack it first, for example with unxz"),
    (re.compile(rb"\x28\xb5\x2f\xfd"), "is compressed by zstd; unpack it first, for example with unzstd"),
    (re.compile(rb"PK\x03\x04"), "is a zip archive, as office documents are; save or unpack it as text"),
    (re.compile(rb"PAR1\x15"), "is a parquet file; say --format parquet"),
    (re.compile(rb"ARROW1\x00"), "is an Arrow file; write it as parquet"),
    (re.compile(rb"SQLite format 3\x00"), "is an SQLite database; write its rows as csv"),
    (re.compile(rb"\xff\xfe|\xfe\xff"), "is not UTF-8 but UTF-16; convert it with `iconv -f UTF-16 -t UTF-8`"),
)

_BOM = b"\xef\xbb\xbf"


def format_of(path: Path) -> Format:
    """The format by the file's ending. Raises DataError for an unknown one."""
    suffix = path.suffix.lower()
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    if suffix in _REMEDIES:
        raise DataError(f"{path.name} ends in {path.suffix!r}: {_REMEDIES[suffix]}")
    raise DataError(f"{path.name} ends in {path.suffix!r}; say --format, one of {', '.join(FORMATS)}")


class Piece(NamedTuple):
    """Where a record stands: its bytes [start, stop) and its first line, from 1."""

    start: int
    stop: int
    line: int


class TextFormat(ABC):
    """A format whose records follow each other in a UTF-8 file, opened at one path."""

    def __init__(self, path: Path) -> None:
        """Raises DataError when the file is none of this format, judged by how it begins."""
        self.path = path
        with path.open("rb") as file:
            head = file.read(16)
        for pattern, fault in _CONTAINERS:
            if pattern.match(head):
                raise DataError(f"{path} {fault}")
        self.first = len(_BOM) if head.startswith(_BOM) else 0

    def pieces(self, file: IO[bytes]) -> Iterator[Piece]:
        """Where each record stands, in order. The default is one record a line."""
        file.seek(self.first)
        start = self.first
        for number, line in enumerate(self._lines(file), start=1):
            yield Piece(start, start + len(line), number)
            start += len(line)

    @abstractmethod
    def record(self, data: bytes, line: int) -> Record:
        """The record of a piece. Raises DataError naming the line."""

    def records(self) -> Iterator[Record]:
        """Every record in order, each checked."""
        with self.path.open("rb") as places, self.path.open("rb") as file:
            for piece in self.pieces(places):
                file.seek(piece.start)
                yield self.record(file.read(piece.stop - piece.start), piece.line)

    def fault(self, line: int, said: str) -> DataError:
        """An error that names the file and the line."""
        return DataError(f"{self.path} line {line} {said}")

    def decoded(self, data: bytes, line: int) -> str:
        """Raises DataError naming the line on which a byte is not UTF-8."""
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            before = data[: error.start]
            column = error.start - (before.rfind(b"\n") + 1) + 1
            said = f"is not UTF-8 (byte {column}); convert the file, for example with `iconv -t UTF-8`"
            raise self.fault(line + before.count(b"\n"), said) from None

    def _lines(self, file: IO[bytes]) -> Iterator[bytes]:
        number = 0
        while line := file.readline(MOST_BYTES + 1):
            number += 1
            if len(line) > MOST_BYTES:
                raise self.fault(number, f"is longer than {MOST_BYTES >> 20} MiB; end each record by a line feed")
            yield line


class JsonLines(TextFormat):
    """One JSON object a line. A field has one type on all lines, if not null; whole numbers and fractions are one."""

    def record(self, data: bytes, line: int) -> Record:
        """The object, its numbers as they are written."""
        text = self.decoded(data, line)
        if not text.strip():
            raise self.fault(line, "is empty; remove it")
        try:
            record = _JSON.decode(text)
        except (ValueError, RecursionError) as error:
            raise self.fault(line, _json_fault(error, text)) from None
        if not isinstance(record, dict) or not record:
            array = " but an array; write its elements on lines of their own" if isinstance(record, list) else ""
            raise self.fault(line, f'is not a JSON object with fields{array or "; wrap it"}: {{"text": ...}}')
        if _HALF.search(text):
            for field, value in record.items():
                if not (_is_unicode(value) and _is_unicode(field)):
                    raise self.fault(line, f"field {field!r} holds half of a surrogate pair; write it as UTF-8")
        return record

    def records(self) -> Iterator[Record]:
        """With the types of their fields compared."""
        kinds: dict[str, type] = {}
        for number, record in enumerate(super().records(), start=1):
            for field, value in record.items():
                kind = float if isinstance(value, int) and not isinstance(value, bool) else type(value)
                if value is not None and kinds.setdefault(field, kind) is not kind:
                    raise DataError(
                        f"{self.path} line {number}: field {field!r} is of another type than on the lines before "
                        f"({kind.__name__}, not {kinds[field].__name__}); make all of them alike"
                    )
            yield record


class _Json(ValueError):
    """What a JSON decoder lets through although it should not; the text is the rest of an error message."""


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        names = [name for name, _ in pairs]
        raise _Json(f"has field {next(name for name in names if names.count(name) > 1)!r} twice; keep one of them")
    return record


def _no_constant(name: str) -> Any:
    raise _Json(f"holds {name}, which is no JSON; write null")


_JSON = json.JSONDecoder(object_pairs_hook=_distinct, parse_constant=_no_constant)
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def _json_fault(error: Exception, text: str) -> str:
    if isinstance(error, _Json):
        return str(error)
    if isinstance(error, RecursionError):
        return "is nested too deeply; make its fields flat"
    if text.strip() in {"{", "["}:
        return "is not JSON but the begin of it; each object stands whole on one line, as `jq -c` writes it"
    if not isinstance(error, json.JSONDecodeError):
        return "holds a whole number with more than 4,300 digits; write it as text"
    return f"is not JSON at column {error.colno}; each line holds one JSON object"


def _is_unicode(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_unicode(name) and _is_unicode(one) for name, one in value.items())
    if isinstance(value, list):
        return all(map(_is_unicode, value))
    return not isinstance(value, str) or not any("\ud800" <= c <= "\udfff" for c in value)


class Csv(TextFormat):
    """RFC 4180 with a header: commas, quotes doubled inside quotes. A cell is text: "007" and "NA" stay."""

    def __init__(self, path: Path) -> None:
        """Raises DataError for a header without distinct names, or with other separators."""
        super().__init__(path)
        csv.field_size_limit(MOST_BYTES)
        with path.open("rb") as file:
            file.seek(self.first)
            self._separator(self.decoded(next(self._lines(file), b""), 1))
            header = next(self._rows(file), None)
            if header is None:
                raise DataError(f"{path} holds no records; a csv file has a header and at least one row")
            file.seek(header.start)
            text = self.decoded(file.read(header.stop - header.start), 1)
        self._names = self._cells(text, 1)
        if len(set(self._names)) != len(self._names) or not all(self._names):
            raise DataError(f"{path} line 1: the header needs distinct, non-empty column names")

    def pieces(self, file: IO[bytes]) -> Iterator[Piece]:
        """Rows behind the header; one may span lines."""
        rows = self._rows(file)
        next(rows)
        yield from rows

    def record(self, data: bytes, line: int) -> Record:
        """Cells by column."""
        cells = self._cells(self.decoded(data, line), line)
        if not cells:
            raise self.fault(line, "is empty; remove it")
        if len(cells) != len(self._names):
            raise self.fault(
                line,
                f"has {len(cells)} cells where the header has {len(self._names)}; "
                "quote cells that hold commas or line breaks",
            )
        return dict(zip(self._names, cells, strict=True))

    def _rows(self, file: IO[bytes]) -> Iterator[Piece]:
        file.seek(self.first)
        feed = _Feed(self, file)
        reader = csv.reader(feed, strict=True)
        while True:
            feed.begin()
            start, line = feed.offset, feed.line + 1
            try:
                next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise self.fault(line, _csv_fault(error)) from None
            yield Piece(start, feed.offset, line)

    def _cells(self, text: str, line: int) -> list[str]:
        try:
            return next(csv.reader([text], strict=True))
        except csv.Error as error:
            raise self.fault(line, _csv_fault(error)) from None

    def _separator(self, header: str) -> None:
        for separator, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
            if len(_columns(header, separator)) > 1 and len(_columns(header, ",")) <= 1:
                raise self.fault(1, f"has its columns separated by {name}; write the file with commas")


class _Feed:
    """A file's lines for a csv reader, with how far it has read."""

    def __init__(self, owner: TextFormat, file: IO[bytes]) -> None:
        self._owner, self._lines = owner, owner._lines(file)
        self.offset, self.line = owner.first, 0
        self._began = (self.offset, 1)

    def begin(self) -> None:
        """A record begins here."""
        self._began = (self.offset, self.line + 1)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        data = next(self._lines)
        self.offset += len(data)
        self.line += 1
        start, line = self._began
        if self.offset - start > MOST_BYTES:
            raise self._owner.fault(line, f"begins a record of over {MOST_BYTES >> 20} MiB; close the quote in it")
        return self._owner.decoded(data, self.line)


def _columns(header: str, separator: str) -> list[str]:
    try:
        return next(csv.reader([header], delimiter=separator), [])
    except csv.Error:
        return []


def _csv_fault(error: csv.Error) -> str:
    """csv's own words, which quote nothing, put into what to do."""
    said = str(error)
    if "new-line character" in said:
        return "has line ends of old Macs (a carriage return alone); write the file with line feeds"
    if "unexpected end" in said:
        return "is not CSV: a quote that opens in the record that begins here is never closed; close it or double it"
    return f"is not CSV: {said}; quote the cell properly"


class Lines(TextFormat):
    """Each line is one record {text}, also an empty one."""

    def record(self, data: bytes, line: int) -> Record:
        """The line without its end."""
        return {"text": self.decoded(data, line).rstrip("\r\n")}


TEXT_FORMATS: dict[str, Callable[[Path], TextFormat]] = {"jsonl": JsonLines, "csv": Csv, "txt": Lines}


def parquet_batches(path: Path, groups: list[int] | None = None) -> Iterator[list[Record]]:
    """Records in order, some hundred at a time, of all or some row groups. Raises DataError."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as file:
            names = file.schema_arrow.names
            if len(set(names)) != len(names) or not all(names):
                raise DataError(f"{path} has columns without a name or with the same name; rename them")
            for batch in file.iter_batches(batch_size=256, row_groups=groups):
                yield batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable parquet file ({type(error).__name__}); write it again") from None


def _parquet(path: Path) -> Iterator[Record]:
    for batch in parquet_batches(path):
        yield from batch


def _of(format: Callable[[Path], TextFormat]) -> Callable[[Path], Iterator[Record]]:
    def records(path: Path) -> Iterator[Record]:
        return format(path).records()

    return records


FORMATS: dict[Format, Callable[[Path], Iterator[Record]]] = {
    "jsonl": _of(JsonLines),
    "csv": _of(Csv),
    "parquet": _parquet,
    "txt": _of(Lines),
}
"""All records of a file in order, each checked. Raises DataError for the first bad one."""
