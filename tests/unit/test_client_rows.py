"""One reader: what is checked is, value for value and type for type, what training reads, in every format."""

import csv
import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from confide.errors import DataError
from confide_client.data.datasets import DataSets
from confide_client.data.readers import FORMATS, Format
from confide_client.data.rows import open_rows, place_of
from hypothesis import given, settings
from hypothesis import strategies as st

_DATES = st.sampled_from(["2024-05-01", "2024-05-01T08:00:00Z", "007", "NA", "1.0", "true", "", " ", "\u2028", "a\rb"])
_TEXT = st.one_of(_DATES, st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
_NUMBERS = st.one_of(st.integers(), st.just(2**60 + 1), st.floats(allow_nan=False, allow_infinity=False))
_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), _NUMBERS, _TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_TEXT, inner, max_size=3)),
    max_leaves=5,
)


@st.composite
def _jsonl_records(draw: st.DrawFn) -> list[dict[str, Any]]:
    """A field has one type, or is null or absent."""
    kinds: dict[str, st.SearchStrategy[Any]] = {
        "text": _TEXT,
        "number": _NUMBERS,
        "flag": st.booleans(),
        "list": st.lists(_VALUES, max_size=3),
        "object": st.dictionaries(_TEXT, _VALUES, max_size=3),
    }
    one = st.fixed_dictionaries(
        {"id": st.integers()}, optional={name: st.one_of(st.none(), kind) for name, kind in kinds.items()}
    )
    return draw(st.lists(one, min_size=1, max_size=8))


def _typed(value: Any) -> Any:
    """Equal only for equal values of equal types, at every depth."""
    if isinstance(value, dict):
        return {name: _typed(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_typed(one) for one in value]
    return type(value), value


def _read(format: Format, path: Path) -> list[dict[str, Any]]:
    """What training reads, which must be what was checked; asked for backwards too."""
    checked = [dict(record) for record in FORMATS[format](path)]
    rows = open_rows(path, format)
    trained = [dict(record) for record in rows]
    assert _typed(trained) == _typed(checked)
    assert _typed([dict(rows[-1 - index]) for index in range(len(rows))]) == _typed(checked[::-1])
    return trained


@settings(max_examples=60)
@given(_jsonl_records(), st.booleans(), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans())
def test_jsonl_is_read_as_it_is_written(
    records: list[dict[str, Any]], ascii_only: bool, end: str, bom: bool, last: bool
) -> None:
    text = end.join(json.dumps(record, ensure_ascii=ascii_only) for record in records) + (end if last else "")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + text.encode())
        assert _typed(_read("jsonl", path)) == _typed(records)


@settings(max_examples=60)
@given(st.lists(st.tuples(_TEXT, _TEXT), min_size=1, max_size=8), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_csv_is_read_as_it_is_written(rows: list[tuple[str, str]], end: str, bom: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        with path.open("w", newline="", encoding="utf-8-sig" if bom else "utf-8") as file:
            # csv writes a carriage return unquoted where it does not end a line, and then does not read it.
            csv.writer(file, lineterminator=end, quoting=csv.QUOTE_ALL).writerows([("one", "two"), *rows])
        assert _read("csv", path) == [{"one": one, "two": two} for one, two in rows]


@settings(max_examples=40)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n")), min_size=1, max_size=8))
def test_txt_is_read_as_it_is_written(lines: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.txt"
        path.write_bytes(("\n".join(lines) + "\n").encode())
        assert [record["text"] for record in _read("txt", path)] == [lines[0].removeprefix("\ufeff"), *lines[1:]]


@settings(max_examples=20)
@given(
    st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.one_of(st.none(), _TEXT)), min_size=1, max_size=700),
    st.integers(1, 300),
)
def test_parquet_is_read_as_it_is_written(rows: list[tuple[int, str | None]], group: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.parquet"
        table = pyarrow.table(
            {
                "n": pyarrow.array([n for n, _ in rows], pyarrow.int64()),
                "text": pyarrow.array([t for _, t in rows], pyarrow.string()),
                "turns": [[{"role": "user", "content": t}] for _, t in rows],
            }
        )
        pyarrow.parquet.write_table(table, path, row_group_size=group)
        assert _typed(_read("parquet", path)) == _typed(table.to_pylist())


@pytest.mark.parametrize("first", [{}, {"note": None}, {"weight": 1}, {"tags": []}])
def test_a_field_that_appears_late_is_read(tmp_path: Path, first: dict[str, Any]) -> None:
    """Behind more bytes than a library would look at to guess types."""
    late = {"note": "late", "weight": 1.5, "tags": ["a"]}
    early = {"question": "Who? " + "x" * 40_000}
    path = tmp_path / "late.jsonl"
    path.write_text((json.dumps(early | first) + "\n") * 400 + json.dumps(early | late) + "\n")
    registry = DataSets(tmp_path / "state")
    entry = registry.add("d", path, evaluation_fraction=0.0)
    records = registry.load("d").train
    assert dict(records[0]) == early | first
    assert dict(records[400]) == early | late
    assert set(entry.fields) == {*early, *first, *late}


def test_a_long_cell_and_a_long_line_are_read(tmp_path: Path) -> None:
    long = "word " * 300_000
    (tmp_path / "a.csv").write_text(f'question,answer\n"Summarise.","{long}"\n')
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": long}) + "\n")
    assert _read("csv", tmp_path / "a.csv")[0]["answer"] == long
    assert _read("jsonl", tmp_path / "a.jsonl")[0]["text"] == long


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"question,answer\na,b\n\n", "line 3 is empty; remove it"),
        ("a.csv", b"question,answer\na,b\n\nc,d\n", "line 3 is empty"),
        ("a.csv", b"question;answer\na;b\n", "line 1 has its columns separated by semicolons"),
        ("a.csv", b'"question";"answer"\n"a, b";"c"\n', "line 1 has its columns separated by semicolons"),
        ("a.csv", b"sep=;\nquestion;answer\n", "separated by semicolons"),
        ("a.csv", b"question\tanswer\na\tb\n", "separated by tabs"),
        ("a.csv", b'a,b\n1,"2\n3,4\n5,6\n', "line 2 is not CSV: a quote that opens .* never closed"),
        ("a.csv", b'a,b\n"x\ny",2\n1\n', "line 4 has 1 cells where the header has 2"),
        ("a.csv", b"a,b\rc,d\r", "line ends of old Macs"),
        ("a.csv", b'a,b\n1,2\n"x\ny",\xff\n', r"line 4 is not UTF-8 \(byte 4\)"),
        ("a.csv", b"", "holds no records"),
        ("a.jsonl", b'{"a": "x"}\n{"a": "\xff"}\n', r"line 2 is not UTF-8 \(byte 8\)"),
        ("a.jsonl", b'{"a": 1, "a": 2}\n', "line 1 has field 'a' twice"),
        ("a.jsonl", b'{"a": NaN}\n', "line 1 holds NaN"),
        ("a.jsonl", b'{"b": "x", "a": ["\\ud800"]}\n', "line 1 field 'a' holds half of a surrogate pair"),
        ("a.jsonl", b'[{"a": 1},\n{"a": 2}]\n', "line 1 is not JSON at column"),
        ("a.jsonl", b'[\n{"a": 1}\n]\n', "line 1 is not JSON but the begin of it"),
        ("a.jsonl", b'[{"a": 1}]\n', "line 1 is not a JSON object with fields but an array"),
        ("a.jsonl", b'{"a": ' + b"[" * 100_000 + b"\n", "line 1 is nested too deeply"),
        ("a.jsonl", b'{"a": ' + b"9" * 5000 + b"}\n", "line 1 holds a whole number with more than 4,300 digits"),
        ("a.jsonl", gzip.compress(b'{"a": 1}\n', mtime=0), "is compressed by gzip; unpack it first"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n', mtime=0), "ends in '.gz': it is compressed; unpack it first"),
        ("a.json", b'[{"a": 1}]', "ends in '.json': write each record"),
        ("a.xlsx", b"PK\x03\x04", "save the sheet as csv"),
        ("a.csv", b"PK\x03\x04", "is a zip archive"),
        ("a.csv", "a,b\n1,2\n".encode("utf-16"), "is not UTF-8 but UTF-16"),
        ("a.txt", b"one\n\xe4\n", r"line 2 is not UTF-8 \(byte 1\)"),
    ],
)
def test_errors_name_the_true_cause(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        DataSets(tmp_path / "state").add("d", tmp_path / name)


def test_a_file_that_changes_while_it_is_read_is_not_read_on(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\n')
    registry = DataSets(tmp_path / "state")
    registry.add("d", path, evaluation_fraction=0.0)
    records = registry.load("d").train
    assert records[0] == {"text": "a"}
    with path.open("r+b") as file:
        file.write(b'{"text": "c"}\n{"text": "dd"}\n')
    with pytest.raises(DataError, match="changed while it was read") as error:
        records[1]
    assert str(tmp_path) not in str(error.value)


def test_places_name_lines(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('a\n"x\ny\nz"\nq\n')
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a": 2}\n{"a": 3}\n')
    assert [place_of(open_rows(tmp_path / "a.csv", "csv"), i) for i in range(2)] == ["line 2", "line 5"]
    assert place_of(open_rows(tmp_path / "a.jsonl", "jsonl").select([2]), 0) == "line 3"
    assert place_of([{}], 0) == "record 1"
