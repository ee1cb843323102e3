"""Data sets: strict reading with line and remedy, a fixed split, and nothing of path or content in what may travel."""

import csv
import hashlib
import json
import socket
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from confide.errors import DataError, StateError
from confide_client.data.datasets import DataSets
from hypothesis import given
from hypothesis import strategies as st


def jsonl(path: Path, count: int) -> Path:
    path.write_text("".join(json.dumps({"prompt": f"q{i}", "completion": f"a{i}"}) + "\n" for i in range(count)))
    return path


def as_csv(path: Path) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["text", "label"], ["007", "yes, it is"], ["line\nbreak", "NA"]])
    return path


def as_parquet(path: Path) -> Path:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"], "n": [1, 2]}), path)
    return path


def as_txt(path: Path) -> Path:
    path.write_text("one\ntwo\n\nvier\n")
    return path


@pytest.mark.parametrize(
    ("name", "write", "records"),
    [
        ("a.jsonl", lambda path: jsonl(path, 2), [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(2)]),
        ("a.csv", as_csv, [{"text": "007", "label": "yes, it is"}, {"text": "line\nbreak", "label": "NA"}]),
        ("a.parquet", as_parquet, [{"text": "a", "n": 1}, {"text": "b", "n": 2}]),
        ("a.txt", as_txt, [{"text": "one"}, {"text": "two"}, {"text": ""}, {"text": "vier"}]),
    ],
)
def test_each_format_reads_what_is_written(
    tmp_path: Path,
    name: str,
    write: Callable[[Path], Path],
    records: list[dict[str, object]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_network(*_: object) -> None:
        raise AssertionError("reading a local file must not touch the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    registry = DataSets(tmp_path / "state")
    entry = registry.add("set", write(tmp_path / name), evaluation_fraction=0.0)
    assert entry.records == len(records)
    assert [dict(record) for record in registry.load("set").train] == records


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "line 2 is not JSON at column"),
        ("a.jsonl", b'{"text": "x"}\n[1]\n', "line 2 is not a JSON object"),
        ("a.jsonl", b'{"text": "x"}\n\n', "line 2 is empty"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}\n', "line 2: field 'text' is of another type"),
        ("a.jsonl", b'{"text": "\xff"}\n', "not UTF-8"),
        ("a.jsonl", b"", "no records"),
        ("a.csv", b"a,b\n1,2\n1\n", "line 3 has 1 cells where the header has 2"),
        ("a.csv", b"a,a\n1,2\n", "line 1: the header needs distinct"),
        ("a.csv", b'a,b\n"1"x,2\n', "line 2 is not CSV"),
        ("a.csv", b"a,b\n", "no records"),
        ("a.parquet", b"PAR1garbage", "not a readable parquet"),
        ("a.docx", b"x", "say --format"),
        ("a.txt", b"", "no records"),
    ],
)
def test_malformed_files_are_named_with_line_and_remedy(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        DataSets(tmp_path / "state").add("set", path)
    assert DataSets(tmp_path / "state").all() == {}


def test_an_unreadable_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a file"):
        DataSets(tmp_path / "state").add("set", tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match="is not a file"):
        (tmp_path / "folder.jsonl").mkdir()
        DataSets(tmp_path / "state").add("set", tmp_path / "folder.jsonl")


def test_the_message_never_quotes_the_content(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "patient Zoe"}\n{"text": patient Zoe}\n')
    with pytest.raises(DataError) as error:
        DataSets(tmp_path / "state").add("set", path)
    assert "Zoe" not in str(error.value)


@given(st.integers(1, 300), st.floats(0, 0.9))
def test_the_split_is_a_partition_of_the_stated_sizes(records: int, fraction: float) -> None:
    from confide_client.data.datasets import DataSet

    entry = DataSet(
        path="/x",
        format="txt",
        sha256="0" * 64,
        records=records,
        fields=("text",),
        evaluation_fraction=fraction,
        split_seed="ab" * 32,
        group="g",
        registered_at=0,
    )
    train, evaluation = entry.split()
    assert sorted(train + evaluation) == list(range(records))
    assert len(evaluation) == entry.evaluation_records
    assert train
    assert (len(evaluation) > 0) == (records > 1 and fraction > 0)
    # A split must outlive releases: a node that draws another one would train on what it evaluates on.
    hashes = [hashlib.blake2b(i.to_bytes(8, "big"), key=b"\xab" * 32).digest() for i in range(records)]
    assert evaluation == sorted(sorted(range(records), key=hashes.__getitem__)[: len(evaluation)])


def test_the_split_is_the_nodes_own_and_stays(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", 200)
    first, second = DataSets(tmp_path / "one"), DataSets(tmp_path / "two")
    first.add("set", path, evaluation_fraction=0.5)
    second.add("set", path, evaluation_fraction=0.5)
    assert first.get("set").split() != second.get("set").split()
    before = first.get("set")
    again = first.add("set", path, evaluation_fraction=0.5)
    assert again.split() == before.split()


def test_the_same_file_under_another_name_stays_in_its_group(tmp_path: Path) -> None:
    """A second name is no second budget."""
    registry, path = DataSets(tmp_path / "state"), jsonl(tmp_path / "a.jsonl", 4)
    assert registry.add("notes", path, group="ward").group == "ward"
    assert registry.add("again", path).group == "ward"
    copied = tmp_path / "copy.jsonl"
    copied.write_bytes(path.read_bytes())
    assert registry.add("copy", copied).group == "ward"
    assert registry.add("other", jsonl(tmp_path / "b.jsonl", 5)).group == "other"
    assert registry.add("own", path, group="own").group == "own"


def test_a_changed_file_is_refused_until_it_is_registered_again(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", 10)
    registry = DataSets(tmp_path / "state")
    registry.add("set", path)
    registry.load("set")
    jsonl(path, 11)
    for look in (registry.load, registry.check):
        with pytest.raises(DataError, match="changed since it was registered") as error:
            look("set")
        assert str(tmp_path) not in str(error.value)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read") as error:
        registry.load("set")
    assert str(tmp_path) not in str(error.value)
    jsonl(path, 11)
    registry.add("set", path)
    assert registry.check("set").records == 11


def test_unknown_names_and_a_damaged_register(tmp_path: Path) -> None:
    registry = DataSets(tmp_path)
    with pytest.raises(DataError, match="no data set 'x'"):
        registry.get("x")
    with pytest.raises(DataError, match="cannot register"):
        registry.add("Not A Name", jsonl(tmp_path / "a.jsonl", 2))
    (tmp_path / "datasets.json").write_text("{")
    with pytest.raises(StateError, match="damaged"):
        registry.all()


def test_no_copy_is_made_and_those_of_earlier_releases_go(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", 4)
    registry = DataSets(tmp_path / "state")
    copy = tmp_path / "state" / "cache" / "datasets" / "ab"
    copy.mkdir(parents=True, mode=0o700)
    (copy / "data.arrow").write_text("text")
    registry.add("set", path)
    list(registry.load("set").train)
    registry.remove("set")
    assert path.exists()
    assert registry.all() == {}
    assert {item.name for item in (tmp_path / "state").rglob("*") if item.is_file()} == {"datasets.json"}
    copy.parent.parent.rmdir()
    modes = {item.stat().st_mode & 0o077 for item in (tmp_path / "state").rglob("*")}
    assert (tmp_path / "state" / "datasets.json").stat().st_mode & 0o777 == 0o600
    assert modes <= {0}
