"""The store over Qdrant's engine, refused and killed: what a server does that an in-memory stand-in does not.

The front is the tests' own (tests/qdrant_front.py); what it refuses was read in the source of Qdrant 1.19.0.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confide.errors import StateError
from confide.rag.access import Caller, CollectionName
from confide.rag.library import Library
from confide.rag.stores import open_store
from confide.rag.stores import qdrant as qdrant_store
from confide.rag.stores.base import Row, StoreDown
from confide.rag.stores.qdrant import QdrantStore

from tests.qdrant_front import Fault
from tests.qdrant_server import QdrantServer
from tests.rag_worlds import World, embedder
from tests.vector_stores import qdrant, qdrant_started  # noqa: F401 - one is a fixture

pytestmark = pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
DIMENSION = 16
NAME = CollectionName("clinic", "leaflets")
RNG = np.random.default_rng(0)
ONE, TWO = "a" * 32, "b" * 32


def rows(document: str, count: int, dimension: int = DIMENSION, added: int = 1) -> list[Row]:
    found = RNG.normal(size=(count, dimension)).astype(np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return [Row(f"{document}.{place}", document, added, vector) for place, vector in enumerate(found)]


def opened(server: QdrantServer, name: CollectionName = NAME, dimension: int = DIMENSION) -> QdrantStore:
    store = open_store(server.url, Path(), name, dimension)
    assert isinstance(store, QdrantStore)
    return store


def collections(store: QdrantStore) -> list[str]:
    client = qdrant_store.connected(store._url)
    found = [one.name for one in client.get_collections().collections if one.name.startswith(store._alias)]
    client.close()
    return found


@pytest.fixture
def fresh() -> Iterator[QdrantServer]:
    """A server that a test may kill."""
    with qdrant_started() as server:
        yield server


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client would have waited between its tries."""
    found: list[float] = []
    monkeypatch.setattr("confide.rag.stores.qdrant.time.sleep", found.append)
    return found


@pytest.mark.parametrize("dimension", [1, 384, 4096, 65_536])
def test_a_page_of_the_longest_numbers_fits_into_a_request(dimension: int) -> None:
    longest = np.full(dimension, np.float32(-1.1754942106924411e-38))
    count = qdrant_store.points_at_once(dimension)
    point = qdrant_store._point_of((f"{ONE}.99999999", ONE, 2**40, longest)).model_dump(mode="json")
    assert 1 <= count <= 1000
    assert count * len(json.dumps(point)) <= qdrant_store._MOST_BYTES


def test_a_wide_embedder_is_sent_in_requests_that_a_server_takes() -> None:
    with qdrant_started(max_request_size_mb=8) as server:
        store = opened(server, dimension=4096)
        added = rows(ONE, 120, 4096)
        store.add(added)
        assert store.search(added[7].vector, 1)[0][0] == added[7].passage
        assert dict(store.counts()) == {ONE: 120}


def test_a_body_that_is_too_large_all_the_same_is_named() -> None:
    with qdrant_started(max_request_size_mb=1) as server:
        store = opened(server, dimension=4096)
        with pytest.raises(StoreDown, match=r"used: JSON .* is larger than allowed .* \(400\)\. It may have been done"):
            store.add(rows(ONE, 60, 4096))
        assert dict(store.counts()) == {}


@pytest.mark.parametrize(
    "limits",
    [
        {"unindexed_filtering_retrieve": False, "unindexed_filtering_update": False, "max_payload_index_count": 1},
        {"search_allow_exact": False},
        {"max_query_limit": 20},
        {"upsert_max_batchsize": 20},
        {"write_rate_limit": 20},
        {"read_rate_limit": 20},
    ],
    ids=lambda limits: next(iter(limits)),
)
def test_strict_mode_is_kept_to(limits: dict[str, Any]) -> None:
    with qdrant_started(strict_mode={"enabled": True, **limits}) as server:
        store = opened(server)
        added = [*rows(ONE, 45, added=10), *rows(TWO, 15, added=20)]
        store.add(added)
        for query, since in ((added[3], 0), (added[50], 15)):
            scores = [(float(row.vector @ query.vector), row.passage) for row in added if row.added >= since]
            expected = [name for _, name in sorted(scores, reverse=True)][:50]
            assert [name for name, _ in store.search(query.vector, 50, since=since)] == expected
        assert len(store.vectors([row.passage for row in added])) == len(store.everything()[0]) == 60
        store.remove({ONE})
        assert dict(store.counts()) == {TWO: 15}
        assert len(store.search(added[50].vector, 50, since=15)) == 15


def test_a_server_that_says_too_early_is_asked_again(fresh: QdrantServer, pauses: list[float]) -> None:
    store = opened(fresh)
    fresh.suffer(
        Fault("PUT .*/points", times=2, status=429, headers={"Retry-After": "7"}),
        Fault("POST .*/query", times=3, status=503),
    )
    store.add(rows(ONE, 3))
    assert len(store.search(rows(TWO, 1)[0].vector, 5)) == 3
    assert pauses == [7.0, 7.0, 0.5, 1.0, 2.0]


@pytest.mark.parametrize(("status", "headers"), [(503, {}), (429, {"Retry-After": "20"}), (429, {})])
def test_one_that_says_so_for_ever_is_down(
    fresh: QdrantServer, pauses: list[float], status: int, headers: dict[str, str]
) -> None:
    store = opened(fresh)
    fresh.suffer(Fault("POST .*/query", times=99, status=status, headers=headers))
    with pytest.raises(StoreDown, match=r"told to fail.*\. Nothing was changed"):
        store.search(rows(TWO, 1)[0].vector, 5)
    assert sum(pauses) <= 60 and bool(pauses) == (status == 503 or bool(headers))


def test_one_that_answers_nothing_is_down(fresh: QdrantServer, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(fresh)
    store._open_client.close()
    store._open_client = None  # the next one is not as patient; opening took as long as it took
    monkeypatch.setattr(qdrant_store, "_TIMEOUT_S", 1)
    fresh.suffer(Fault("PUT .*/points", hold_s=1.5))
    with pytest.raises(StoreDown, match=r"timed out\. It may have been done in part"):
        store.add(rows(ONE, 3))


def test_an_answer_before_the_deed_is_no_answer(fresh: QdrantServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server acknowledges what it was not asked to wait for; whatever the reason, nothing was stored then."""
    store = opened(fresh)
    client = store._open_client
    monkeypatch.setattr(
        client, "upsert", lambda *given, **named: type(client).upsert(client, *given, **named | {"wait": False})
    )
    with pytest.raises(StoreDown, match="acknowledged where it was to wait"):
        store.add(rows(ONE, 3))


def test_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with qdrant_started(api_key="right") as server:
        monkeypatch.delenv("QDRANT_API_KEY", raising=False)
        with pytest.raises(
            StoreDown, match=r"Must provide an API key .* \(401\); the key is taken from QDRANT_API_KEY"
        ):
            opened(server)
        monkeypatch.setenv("QDRANT_API_KEY", "wrong")
        with pytest.raises(StoreDown, match=r"Invalid API key or JWT \(401\); the key") as error:
            opened(server)
        assert "wrong" not in str(error.value)
        monkeypatch.setenv("QDRANT_API_KEY", "right")
        store = opened(server)
        store.add(rows(ONE, 3))
        assert dict(store.counts()) == {ONE: 3}


def test_a_server_that_is_too_old_is_named() -> None:
    with qdrant_started(version="1.9.7") as server, pytest.raises(StateError, match=r"version 1\.9\.7.*1\.10 or later"):
        opened(server)


def test_a_server_that_holds_no_more_collections_is_named() -> None:
    with qdrant_started(max_collections=1) as server:
        store = opened(server)
        store.add([*rows(ONE, 3), *rows(TWO, 2)])
        with pytest.raises(StoreDown, match="Max collections limit reached"):
            store.remove({TWO})
        assert dict(store.counts()) == {ONE: 3, TWO: 2}


@pytest.mark.parametrize("kill", ["before", "after"])
def test_a_server_killed_while_passages_are_added(fresh: QdrantServer, kill: str) -> None:
    store = opened(fresh)
    store.add(rows(ONE, 30))
    fresh.suffer(Fault("PUT .*/points", after=1, kill=kill))
    with pytest.raises(StoreDown, match="It may have been done in part"):
        store.add(rows(TWO, 1500))
    assert fresh.died()
    with pytest.raises(StoreDown, match="Nothing was changed"):
        store.counts()
    with pytest.raises(StoreDown):
        opened(fresh)
    fresh.start()
    assert dict(store.counts()) == {ONE: 30, TWO: 1000 if kill == "before" else 1500}
    store.remove({TWO})
    assert dict(store.counts()) == {ONE: 30}


@pytest.mark.parametrize(
    ("request_", "kill", "done"),
    [
        ("PUT /collections/[^/]+", "after", False),
        ("PUT .*/points", "before", False),
        ("PUT .*/points", "after", False),
        ("POST /collections/aliases", "before", False),
        ("POST /collections/aliases", "within", True),
        ("POST /collections/aliases", "after", True),
        ("DELETE .*", "before", True),
        ("DELETE .*", "after", True),
    ],
)
def test_a_server_killed_while_passages_are_removed(fresh: QdrantServer, request_: str, kill: str, done: bool) -> None:
    store = opened(fresh)
    store.add([*rows(ONE, 30), *rows(TWO, 20)])
    fresh.suffer(Fault(request_, kill=kill))
    with pytest.raises(StoreDown, match="It may have been done in part"):
        store.remove({TWO})
    assert fresh.died()
    fresh.start()
    other = opened(fresh)
    assert dict(other.counts()) == ({ONE: 30} if done else {ONE: 30, TWO: 20})
    other.tidy()
    assert len(collections(other)) == 1
    other.remove({TWO})
    assert dict(other.counts()) == dict(store.counts()) == {ONE: 30}
    assert len(collections(other)) == 1


@pytest.mark.parametrize("moment", ["PUT /collections/[^/]+", "POST /collections/aliases"])
@pytest.mark.parametrize("kill", ["before", "after"])
def test_a_server_killed_while_a_store_is_made(fresh: QdrantServer, moment: str, kill: str) -> None:
    fresh.suffer(Fault(moment, kill=kill))
    with pytest.raises(StoreDown):
        opened(fresh)
    assert fresh.died()
    fresh.start()
    store = opened(fresh)
    store.add(rows(ONE, 3))
    assert store.search(rows(TWO, 1)[0].vector, 5, since=1) and len(collections(store)) == 1


@pytest.mark.parametrize("moment", ["_create", "_point"])
def test_two_processes_that_begin_at_once_share_one_collection(
    qdrant: QdrantServer,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    """The second comes in between the first one's look for an alias and what the first does about it."""
    name, others = CollectionName("clinic", f"begun-{moment}"), []
    real = getattr(QdrantStore, moment)

    def overtaken(self: QdrantStore, *given: Any) -> None:
        monkeypatch.setattr(QdrantStore, moment, real)
        others.append(opened(qdrant, name))
        others[0].add([*rows(ONE, 3), *rows("c" * 32, 1)])
        if moment == "_create":
            others[0].remove({"c" * 32})
        real(self, *given)

    monkeypatch.setattr(QdrantStore, moment, overtaken)
    store = opened(qdrant, name)
    store.add(rows(TWO, 2))
    store.tidy()
    store.remove({"c" * 32})
    assert dict(store.counts()) == dict(others[0].counts()) == {ONE: 3, TWO: 2}
    store.drop()
    assert collections(store) == []


def test_an_alias_that_somebody_deleted_is_named_and_nothing_is_lost(fresh: QdrantServer) -> None:
    from qdrant_client import models

    store = opened(fresh)
    store.add([*rows(ONE, 3), *rows(TWO, 1)])
    store.remove({TWO})
    (held,) = collections(store)
    gone = models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=store._alias))
    store._open_client.update_collection_aliases([gone])
    store.tidy()
    with pytest.raises(StoreDown, match=f"has no alias {store._alias}, but {held}"):
        opened(fresh)
    store._point(store._open_client, held)
    assert dict(opened(fresh).counts()) == {ONE: 3}


def test_a_second_library_with_a_collection_of_that_name_is_refused(tmp_path: Path) -> None:
    """Names on the server come from organization and collection: it would take the first one's passages away."""
    first, second = World(tmp_path / "one"), World(tmp_path / "two")
    fees = first.file("fees.txt", "A visit costs forty crowns.")
    with qdrant_started(record=True) as server:
        first.add([fees], store=server.url)
        with pytest.raises(StateError, match="another library's collection of this name"):
            second.add([fees], store=server.url)
        first.add([first.file("walls.txt", "The wall must be twelve centimetres thick.")], store=server.url)
        assert len(first.library.search(Caller.operator("clinic"), "leaflets", "wall", embedder()).found) == 2
        seen = json.dumps(server.seen())
    assert "confide_passages_" in seen
    assert not any(chosen in seen for chosen in ("clinic", "leaflets", "fees", "crowns", "wall"))


def test_a_library_goes_on_after_its_server_was_killed(tmp_path: Path, fresh: QdrantServer) -> None:
    world, caller = World(tmp_path), Caller.operator("clinic")
    world.add([world.file("fees.txt", "A visit costs forty crowns.")], store=fresh.url)
    fresh.suffer(Fault("PUT .*/points", kill="after"))
    walls = world.file("walls.txt", "The wall must be twelve centimetres thick.")
    with pytest.raises(StoreDown, match="the next command puts that right"):
        world.add([walls], store=fresh.url)
    assert fresh.died()
    fresh.start()
    library = Library(world.library.root)
    assert {one.passage.document.source for one in library.search(caller, "leaflets", "wall", embedder()).found} == {
        "fees.txt"
    }
    world.add([walls], store=fresh.url)
    assert any("adding it was cut off" in said for said in world.said)
    fresh.suffer(Fault("POST /collections/aliases", kill="after"))
    with pytest.raises(StoreDown):
        world.library.erase(caller, "leaflets", "fees.txt", world.said.append)
    assert fresh.died()
    fresh.start()
    world.library.erase(caller, "leaflets", "fees.txt", world.said.append)
    found = library.search(caller, "leaflets", "wall", embedder()).found
    assert {one.passage.document.source for one in found} == {"walls.txt"}
