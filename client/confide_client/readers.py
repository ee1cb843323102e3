"""Reading a data set's file: strict checking for the operator, memory-mapped records for training.

Each checker walks one format record by record and raises DataError with the line, what is wrong and the remedy.
It never quotes the content: an error message may be copied to where the text must not go.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from confide.errors import DataError

Format = Literal["jsonl", "csv", "parquet", "txt"]

_SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".txt": "txt",
}


def format_of(path: Path) -> Format:
    """The format by the file's ending. Raises DataError for an unknown one."""
    found = _SUFFIXES.get(path.suffix.lower())
    if found is None:
        raise DataError(f"{path.name} ends in {path.suffix!r}; say --format, one of {', '.join(FORMATS)}")
    return found


def _jsonl(path: Path) -> Iterator[Mapping[str, Any]]:
    kinds: dict[str, type] = {}
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                raise DataError(f"{path} line {number} is empty; remove it")
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                where = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
                raise DataError(f"{path} line {number} is not JSON{where}; each line holds one JSON object") from error
            if not isinstance(record, dict) or not record:
                raise DataError(f'{path} line {number} is not a JSON object with fields; wrap it: {{"text": ...}}')
            _same_kinds(path, number, record, kinds)
            yield record


def _same_kinds(path: Path, number: int, record: Mapping[str, Any], kinds: dict[str, type]) -> None:
    for field, value in record.items():
        kind = float if isinstance(value, int) and not isinstance(value, bool) else type(value)
        if value is not None and kinds.setdefault(field, kind) is not kind:
            raise DataError(
                f"{path} line {number}: field {field!r} is of another type than on the lines before "
                f"({kind.__name__}, not {kinds[field].__name__}); make all of them alike"
            )


def _csv(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
            if not header or len(set(header)) != len(header) or not all(header):
                raise DataError(f"{path} line 1: the header needs distinct, non-empty column names")
            for row in reader:
                if len(row) != len(header):
                    raise DataError(
                        f"{path} line {reader.line_num} has {len(row)} cells where the header has {len(header)}; "
                        "quote cells that hold commas or line breaks"
                    )
                yield dict(zip(header, row, strict=True))
        except csv.Error as error:
            raise DataError(f"{path} line {reader.line_num} is not CSV: {error}; quote the cell properly") from error


def _parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable parquet file; write it again") from error


def _txt(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for line in file:
            yield {"text": line.rstrip("\r\n")}


FORMATS: dict[Format, Callable[[Path], Iterator[Mapping[str, Any]]]] = {
    "jsonl": _jsonl,
    "csv": _csv,
    "parquet": _parquet,
    "txt": _txt,
}

_BUILDERS: dict[Format, str] = {"jsonl": "json", "csv": "csv", "parquet": "parquet", "txt": "text"}


def read_records(path: Path, format: Format, cache: Path) -> Any:
    """All records as a memory-mapped `datasets.Dataset` (a sequence of dictionaries), through the datasets library.

    cache: folder of mode 0700 for the library's copy in Arrow form; it never touches the network.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        options: dict[str, Any] = {}
        if format == "csv":
            # A cell is text: "007" stays "007", and "NA" is not a missing value.
            with path.open(encoding="utf-8-sig", newline="") as file:
                columns = next(csv.reader(file))
            text = datasets.Features({column: datasets.Value("string") for column in columns})
            options = {"features": text, "na_filter": False}
        return datasets.load_dataset(
            _BUILDERS[format],
            data_files={"train": str(path)},
            split="train",
            cache_dir=str(cache),
            **options,
        )
    except Exception as error:  # the library raises many kinds; its text may quote records
        raise DataError(
            f"the data set's file could not be read as {format} ({type(error).__name__}); run `confide data check`"
        ) from None
