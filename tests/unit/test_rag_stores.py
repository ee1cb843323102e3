"""Every store of passages does the same: one suite over LanceDB, PostgreSQL with pgvector, and Qdrant's engine.

The last behind an HTTP front of the tests' own (tests/qdrant_front.py): no server of Qdrant could be had.
"""

import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from confide.errors import StateError
from confide.rag.access import CollectionName
from confide.rag.stores import open_store
from confide.rag.stores.base import PassageStore, Row, StoreDown
from confide.rag.stores.lance import LanceStore
from confide.rag.stores.postgres import PostgresStore

from tests.vector_stores import pgvector, qdrant  # noqa: F401 - fixtures

DIMENSION = 16
RNG = np.random.default_rng(0)


def vectors(count: int) -> np.ndarray:
    found = RNG.normal(size=(count, DIMENSION)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def rows(document: str, count: int, added: int = 1) -> list[Row]:
    return [Row(f"{document}.{place}", document, added, vector) for place, vector in enumerate(vectors(count))]


class Opened:
    """A store that can be opened again, as another process would."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.name = CollectionName("clinic", f"c{secrets.token_hex(4)}")
        self.store = self.again()

    def again(self, dimension: int = DIMENSION) -> PassageStore:
        return open_store(self.kind, self.folder, self.name, dimension)


@pytest.fixture(params=["lancedb", "pgvector", "qdrant"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opened]:
    kind = "lancedb"
    if request.param == "qdrant":
        kind = request.getfixturevalue("qdrant").url
    if request.param == "pgvector":
        kind = f"postgresql://confide@/postgres?host={request.getfixturevalue('pgvector')}"
    made = Opened(kind, tmp_path / "vectors")
    yield made
    made.store.drop()


def test_nearest_come_first_with_their_cosine(opened: Opened) -> None:
    added = rows("a" * 32, 50)
    opened.store.add(added)
    query = vectors(1)[0]
    expected = sorted(((float(row.vector @ query), row.passage) for row in added), reverse=True)[:7]
    found = opened.store.search(query, 7)
    assert [name for name, _ in found] == [name for _, name in expected]
    assert [score for _, score in found] == pytest.approx([score for score, _ in expected], abs=1e-5)


def test_an_empty_store_finds_nothing(opened: Opened) -> None:
    assert opened.store.search(vectors(1)[0], 5) == []
    assert dict(opened.store.counts()) == {}
    assert dict(opened.store.vectors(["a" * 32 + ".0"])) == {}
    names, added, matrix = opened.store.everything()
    assert (names, added, matrix.shape) == ([], [], (0, DIMENSION))


def test_time_is_a_filter(opened: Opened) -> None:
    opened.store.add([*rows("a" * 32, 5, added=10), *rows("b" * 32, 5, added=20)])
    assert {name[0] for name, _ in opened.store.search(vectors(1)[0], 10, since=15)} == {"b"}
    assert opened.store.search(vectors(1)[0], 10, since=21) == []


def test_vectors_come_back_as_they_were(opened: Opened) -> None:
    added = rows("a" * 32, 30)
    opened.store.add(added)
    found = opened.store.vectors([added[3].passage, added[7].passage, "b" * 32 + ".1"])
    assert set(found) == {added[3].passage, added[7].passage}
    assert np.array_equal(found[added[7].passage], added[7].vector)
    names, times, matrix = opened.store.everything()
    by_name = dict(zip(names, matrix, strict=True))
    assert set(times) == {1} and all(np.array_equal(by_name[row.passage], row.vector) for row in added)


def test_another_process_sees_what_was_added_and_removed(opened: Opened) -> None:
    other = opened.again()
    opened.store.add(rows("a" * 32, 3))
    other.reload()
    assert dict(other.counts()) == {"a" * 32: 3}
    opened.store.add(rows("b" * 32, 2))
    opened.store.remove({"a" * 32})
    other.reload()
    assert dict(other.counts()) == {"b" * 32: 2}
    opened.store.remove({"b" * 32})
    other.reload()
    assert dict(other.counts()) == {}
    other.close()


def test_many_that_begin_at_once_share_one_table(opened: Opened) -> None:
    opened.store.drop()
    barrier, documents = threading.Barrier(6), [f"{number:032x}" for number in range(6)]

    def begin(document: str) -> None:
        barrier.wait()
        store = opened.again()
        store.add(rows(document, 2))
        store.close()

    with ThreadPoolExecutor(len(documents)) as pool:
        for _ in pool.map(begin, documents):
            pass  # raises what went wrong
    opened.store = opened.again()
    assert dict(opened.store.counts()) == dict.fromkeys(documents, 2)


def test_a_reader_goes_on_while_the_table_is_written_anew(opened: Opened) -> None:
    """A catalogue's generation tells readers to reload; until the writer has written that, they know nothing."""
    added = [*rows("a" * 32, 30), *rows("b" * 32, 3)]
    opened.store.add(added)
    reads = {
        "search": lambda store: len(store.search(added[0].vector, 100)),
        "vectors": lambda store: len(store.vectors([row.passage for row in added])),
        "everything": lambda store: len(store.everything()[0]),
        "counts": lambda store: sum(store.counts().values()),
    }
    readers = {what: opened.again() for what in reads}
    opened.store.remove({"b" * 32})
    assert {what: read(readers[what]) for what, read in reads.items()} == dict.fromkeys(reads, 30)
    for reader in readers.values():
        reader.close()


@pytest.mark.parametrize("count", [1, 5, 45, 450])
def test_of_what_is_removed_no_byte_is_left(opened: Opened, count: int) -> None:
    """LanceDB keeps deleted rows on disk where at most a tenth of a fragment goes: `remove` must not."""
    kept, gone = rows("a" * 32, 500), rows("b" * 32, count)
    opened.store.add([*kept, *gone])
    opened.store.remove({"b" * 32})
    assert dict(opened.store.counts()) == {"a" * 32: 500}
    files = opened.store.files()
    if files is not None:
        data = b"".join(path.read_bytes() for path in files)
        assert not any(row.vector.tobytes() in data for row in gone)
        assert b"b" * 32 not in data
        assert all(row.vector.tobytes() in data for row in kept[:20])
    query = gone[0].vector
    assert all(name.startswith("a") for name, _ in opened.store.search(query, 600))


def test_many_small_additions_stay_quick_to_read(opened: Opened) -> None:
    for number in range(40):
        opened.store.add(rows(f"{number:032x}", 1))
    assert len(opened.store.counts()) == 40
    assert len(opened.store.search(vectors(1)[0], 100)) == 40


@pytest.mark.parametrize(
    "name", ["'; DROP TABLE x; --", "a' OR 'a'='a", "a" * 32, "A" * 32 + ".0", "../x", "a" * 32 + ".0\n"]
)
def test_a_name_of_another_form_reaches_no_query(opened: Opened, name: str) -> None:
    with pytest.raises(StateError, match="is no passage's name"):
        opened.store.vectors([name])
    with pytest.raises(StateError, match="is no document's name"):
        opened.store.remove({name + "."})


def test_vectors_of_another_length_are_refused(opened: Opened) -> None:
    opened.store.add(rows("a" * 32, 2))
    with pytest.raises(StateError, match="hold"):
        opened.again(DIMENSION + 1)


def test_a_store_that_is_down_is_named() -> None:
    with pytest.raises(StoreDown, match="cannot be used"):
        open_store("postgresql://confide@/postgres?host=/nowhere", Path(), CollectionName("a", "b"), 4)


def test_a_server_that_was_started_anew_is_connected_to_again(pgvector: Path) -> None:  # noqa: F811
    import psycopg

    url = f"postgresql://confide@/postgres?host={pgvector}"
    store = open_store(url, Path(), CollectionName("clinic", "restarted"), DIMENSION)
    assert isinstance(store, PostgresStore)
    for change in (lambda: store.add(rows("a" * 32, 3)), lambda: store.remove({"b" * 32}), lambda: None):
        with psycopg.connect(url, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s)", (store._open_connection.info.backend_pid,))
        change()
        assert dict(store.counts()) == {"a" * 32: 3}
    store.drop()


def test_what_the_url_says_of_the_connection_goes_first(pgvector: Path) -> None:  # noqa: F811
    url = f"postgresql://confide@/postgres?host={pgvector}&keepalives_idle=7"
    store = open_store(url, Path(), CollectionName("clinic", "lively"), DIMENSION)
    assert isinstance(store, PostgresStore)
    said = store._open_connection.info.get_parameters()
    assert (said["keepalives_idle"], said["keepalives_interval"]) == ("7", "10")
    store.drop()


def test_the_first_table_is_not_made_a_second_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process begins between this one's look at the folder and what it does about it."""
    name, others, begin = CollectionName("a", "b"), [], LanceStore._begin

    def overtaken(self: LanceStore) -> str:
        monkeypatch.setattr(LanceStore, "_begin", begin)
        others.append(open_store("lancedb", tmp_path / "v", name, DIMENSION))
        others[0].add(rows("a" * 32, 3))
        return begin(self)

    monkeypatch.setattr(LanceStore, "_begin", overtaken)
    assert dict(open_store("lancedb", tmp_path / "v", name, DIMENSION).counts()) == {"a" * 32: 3}


def test_a_qdrant_server_that_is_down_is_named() -> None:
    pytest.importorskip("qdrant_client")
    with pytest.raises(StoreDown, match="on Qdrant cannot be used"):
        open_store("qdrant+http://127.0.0.1:1", Path(), CollectionName("a", "b"), 4)


def test_a_damaged_store_is_named(tmp_path: Path) -> None:
    store = open_store("lancedb", tmp_path / "v", CollectionName("a", "b"), DIMENSION)
    store.add(rows("a" * 32, 3))
    for path in (tmp_path / "v").rglob("*.lance"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(StoreDown, match="cannot be used"):
        open_store("lancedb", tmp_path / "v", CollectionName("a", "b"), DIMENSION).search(vectors(1)[0], 1)
    (tmp_path / "v" / "current").write_text("../../etc")
    with pytest.raises(StoreDown, match="names no table"):
        open_store("lancedb", tmp_path / "v", CollectionName("a", "b"), DIMENSION)


@pytest.mark.parametrize("kind", ["chroma", "lancedb:x", "", "mysql://h/d"])
def test_an_unknown_store_is_refused(kind: str) -> None:
    with pytest.raises(StateError, match="is not known"):
        open_store(kind, Path(), CollectionName("a", "b"), 4)


@pytest.mark.parametrize(
    "url", ["postgresql://u:secret@h/d", "postgresql://u@h/d?password=secret", "qdrant+https://u:secret@h:6333"]
)
def test_a_password_is_not_taken_in_a_url(url: str) -> None:
    with pytest.raises(StateError, match="holds a password") as error:
        open_store(url, Path(), CollectionName("a", "b"), 4)
    assert "secret" not in str(error.value)
