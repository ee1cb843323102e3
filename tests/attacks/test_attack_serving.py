"""Attacks on the endpoint: keys, budgets, bodies, and two hundred clients half of whom hang up."""

import asyncio
import http.client
import json
import random
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from confide_server.serving import rates
from confide_server.serving.catalogue import Catalogue, Target
from confide_server.serving.endpoint import http as serving_http
from confide_server.serving.endpoint.app import Limits, Parts, build_app
from confide_server.serving.engines.adapted_model import AdaptedModel
from confide_server.serving.engines.embedding import LocalEmbedder
from confide_server.serving.engines.local import LocalEngine, Room
from confide_server.serving.keyed_access import GUESSES_PER_MINUTE, KeyedAccess
from confide_server.serving.port import BASE
from confide_server.serving.process import open_database
from confide_server.state import serving_requests
from confide_server.state.database import Database
from confide_server.state.serving_keys import KeyTerms, add_key, list_keys
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.served_models import served, slow_steps, strong_adapter, strong_llama
from tests.tiny_models import tiny_bert

ADAPTERS = {"a" * 64: "first", "b" * 64: "second"}
CHAT, TEXT, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
JSON_TYPE = {"Content-Type": "application/json"}


@dataclass
class World:
    url: str
    app: Any
    database: Database
    access: KeyedAccess
    engine: LocalEngine

    def key(self, **terms: Any) -> dict[str, str]:
        """Headers of a new key."""
        return {"Authorization": f"Bearer {add_key(self.database, KeyTerms(**{'name': 'test', **terms}))}"}

    def row(self, headers: dict[str, str]) -> Any:
        key_id = headers["Authorization"].split("-")[1]
        return next(row for row in list_keys(self.database) if row.key_id == key_id)

    def settled(self, headers: dict[str, str]) -> list[Any]:
        """The key's requests, once none is open."""
        key_id = headers["Authorization"].split("-")[1]
        for _ in range(1200):
            rows = list(serving_requests.newest(self.database, 1000, key_id))
            if all(row.outcome != "open" for row in rows):
                return rows
            time.sleep(0.05)
        raise AssertionError("a request stays open")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("attacks")
    base = strong_llama(root)
    model = AdaptedModel(base, "cpu")
    for seed, sha256 in enumerate(ADAPTERS):
        model.add(sha256, strong_adapter(base, root / sha256[:1], seed))
    engine = LocalEngine(model, Room(rows=16, tokens=16384, waiting=256)).start()
    catalogue = Catalogue()
    catalogue.point(Target("base", engine, BASE))
    for sha256, alias in ADAPTERS.items():
        catalogue.point(Target(alias, engine, sha256))
    catalogue.embedders["sentences"] = LocalEmbedder(tiny_bert(root / "bert", head=False), "cpu")
    database = open_database(root / "state")
    access = KeyedAccess(database, "here")
    app = build_app(Parts(catalogue, access, Limits(body_bytes=1 << 16, hosts=frozenset({"127.0.0.1", "localhost"}))))
    with served(app) as url:
        yield World(url, app, database, access, engine)
    asyncio.run(engine.close())
    access.close()
    database.close()


def chat(model: str = "first", **options: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "How thick must the wall be?"}]
    return {"model": model, "messages": messages, "temperature": 0, "max_tokens": 8, **options}


def test_no_route_answers_without_a_key(world: World) -> None:
    with httpx.Client(base_url=world.url, timeout=60) as client:
        for route in world.app.routes:
            for method in route.methods - {"HEAD"}:
                reply = client.request(method, route.path.replace("{model:path}", "first"), headers=JSON_TYPE)
                open_ = route.path == "/healthz"
                assert reply.status_code == (200 if open_ else 401), route.path
                if not open_:
                    assert reply.json()["error"]["code"] == "invalid_api_key" and "WWW-Authenticate" in reply.headers


def test_a_key_reaches_its_models_only_by_any_route(world: World) -> None:
    narrow = world.key(models=("first",))
    bodies: list[tuple[str, dict[str, Any]]] = [
        (CHAT, chat("second")),
        (CHAT, chat("second", stream=True)),
        (TEXT, {"model": "second", "prompt": "x"}),
        (TEXT, {"model": "a" * 64, "prompt": "x"}),
        (EMBED, {"model": "sentences", "input": "x"}),
    ]
    with httpx.Client(base_url=world.url, headers=narrow, timeout=60) as client:
        for path, body in bodies:
            assert client.post(path, json=body).json()["error"]["code"] == "model_not_found"
        there, never = (client.get(f"/v1/models/{name}").json()["error"]["message"] for name in ("second", "nothere"))
        assert there.replace("second", "") == never.replace("nothere", ""), "what is there is not told"
        assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["first"]
        assert client.get("/metrics").status_code == 403
        assert client.post(CHAT, json=chat("first")).status_code == 200
    with httpx.Client(base_url=world.url, headers=world.key(metrics=True), timeout=60) as client:
        assert "confide_serving_requests_total" in client.get("/metrics").text


def test_who_guesses_keys_is_slowed_down(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "time", SimpleNamespace(monotonic=lambda: 100.0))  # nothing is saved up meanwhile
    access = KeyedAccess(world.database, "guessed")
    app = build_app(Parts(Catalogue(), access))
    with served(app) as url, httpx.Client(base_url=url, timeout=60) as client:
        made = random.Random(1)
        statuses = [
            client.get("/v1/models", headers={"Authorization": f"Bearer confide-{made.getrandbits(32):08x}-{'x' * 43}"})
            for _ in range(GUESSES_PER_MINUTE + 3)
        ]
    assert [reply.status_code for reply in statuses] == [401] * GUESSES_PER_MINUTE + [429] * 3
    assert int(statuses[-1].headers["Retry-After"]) >= 1
    access.close()


def test_a_rate_counts_what_is_refused_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that says nothing costs work to read, and no tokens."""
    monkeypatch.setattr(rates, "time", SimpleNamespace(monotonic=lambda: 100.0))  # nothing is saved up meanwhile
    for path, refused in ((CHAT, {}), (TEXT, {"model": "nothere", "prompt": "x"}), (EMBED, {"model": "sentences"})):
        key = world.key(requests_per_minute=3)
        with httpx.Client(base_url=world.url, headers=key, timeout=60) as client:
            statuses = [client.post(path, json=refused).status_code for _ in range(4)]
        assert statuses[:3] in ([400] * 3, [404] * 3) and statuses[3] == 429


def hang_up(world: World, key: dict[str, str], body: dict[str, Any]) -> None:
    """Ask for an answer in one piece, and go while it is written."""
    address = httpx.URL(world.url)
    connection = http.client.HTTPConnection(address.host, address.port, timeout=60)
    connection.request("POST", CHAT, json.dumps(body), {**key, **JSON_TYPE})
    until = time.monotonic() + 60
    while world.engine.load().running == 0 and time.monotonic() < until:
        time.sleep(0.005)
    time.sleep(0.05)
    connection.close()


def test_a_hang_up_is_charged_with_what_was_written(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_steps(monkeypatch)
    for body in (chat(max_tokens=300, stream=True, stop=["zzzzzz"]), chat(max_tokens=300, stop=["zzzzzz"])):
        key = world.key(budget_tokens=700)
        with httpx.Client(base_url=world.url, headers=key, timeout=60) as client:
            if body.get("stream"):
                with client.stream("POST", CHAT, json=body) as reply:
                    lines = reply.iter_lines()
                    while '"content"' not in next(lines):
                        pass
            else:
                hang_up(world, key, body)
        (row,) = world.settled(key)
        assert row.outcome == "cancelled" and 0 < row.completion_tokens < 300, row.outcome
        assert world.row(key).spent_tokens == row.prompt_tokens + row.completion_tokens
    for _ in range(1200):
        if world.engine.load().running == 0:
            return
        time.sleep(0.05)
    raise AssertionError("work goes on that nobody waits for")


def test_a_budget_cannot_be_overrun_by_many_streams_at_once(world: World) -> None:
    key = world.key(budget_tokens=200)

    async def ask(client: httpx.AsyncClient) -> int:
        reply = await client.post(CHAT, json=chat(max_tokens=16, stream=True))
        return reply.status_code

    async def crowd() -> list[int]:
        async with httpx.AsyncClient(base_url=world.url, headers=key, timeout=60) as client:
            return await asyncio.gather(*(ask(client) for _ in range(20)))

    statuses = asyncio.run(crowd())
    assert set(statuses) == {200, 429} and world.row(key).spent_tokens <= 200
    assert all(row.outcome == "done" for row in world.settled(key))


def test_bodies_are_bounded_in_size_and_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    key = world.key()
    with httpx.Client(base_url=world.url, headers={**key, **JSON_TYPE}, timeout=60) as client:
        assert client.post(CHAT, content=b"{" + b" " * (1 << 17)).status_code == 413
        assert client.post(CHAT, content=iter([b"{", b" " * (1 << 17)])).status_code == 413
    monkeypatch.setattr(serving_http, "BODY_TIMEOUT_S", 0.5)
    host, port = world.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as slow:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {key['Authorization']}\r\n"
        slow.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{".encode())
        assert b" 408 " in slow.recv(4096).split(b"\r\n")[0]


def test_a_web_page_cannot_ask_in_somebody_s_browser(world: World) -> None:
    key = world.key()
    with httpx.Client(base_url=world.url, headers=key, timeout=60) as client:
        assert client.post(CHAT, content=json.dumps(chat()), headers={"Content-Type": "text/plain"}).status_code == 415
        assert client.get("/v1/models", headers={"Host": "rebound.example:80"}).status_code == 421
        preflight = client.options(CHAT, headers={"Origin": "https://evil.example"})
        assert preflight.status_code == 405 and "access-control-allow-origin" not in preflight.headers


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from(["first", "user"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_NAMES = ["model", "messages", "prompt", "input", "n", "stop", "stream", "response_format", "logprobs", "echo", "seed"]
_MORE = ["max_tokens", "temperature", "top_p", "stream_options", "logit_bias", "collections", "encoding_format"]


@settings(max_examples=80)
@given(
    path=st.sampled_from([CHAT, TEXT, EMBED]),
    changes=st.dictionaries(st.sampled_from([*_NAMES, *_MORE]), _VALUES, max_size=3),
)
def test_no_body_makes_the_server_fail(world: World, path: str, changes: dict[str, Any]) -> None:
    good: dict[str, dict[str, Any]] = {
        CHAT: chat(max_tokens=2),
        TEXT: {"model": "first", "prompt": "x", "max_tokens": 2},
        EMBED: {"model": "sentences", "input": "x"},
    }
    with httpx.Client(base_url=world.url, headers={**_fuzz_key(world), **JSON_TYPE}, timeout=60) as client:
        body = json.dumps({**good[path], **changes}).encode("utf-8", "surrogatepass")
        reply = client.post(path, content=body)
    assert reply.status_code in (200, 400, 404, 429), (reply.status_code, reply.text)
    if reply.status_code != 200:
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


@settings(max_examples=40)
@given(body=st.binary(max_size=80))
def test_no_bytes_make_the_server_fail(world: World, body: bytes) -> None:
    with httpx.Client(base_url=world.url, headers={**_fuzz_key(world), **JSON_TYPE}, timeout=60) as client:
        assert client.post(CHAT, content=body).status_code == 400


_KEYS: dict[int, dict[str, str]] = {}


def _fuzz_key(world: World) -> dict[str, str]:
    return _KEYS.setdefault(id(world), world.key())


def test_two_hundred_clients_half_of_whom_hang_up(world: World) -> None:
    """Who stays gets what it would get alone, under its own adapter; nothing is left running, open or uncharged."""
    key = world.key(at_once=0)
    aliases, questions = (
        ("base", "first", "second"),
        ("Who pays?", "How thick must the wall be?", "Yes", "Which mortar?"),
    )

    def body(place: int) -> dict[str, Any]:
        messages = [{"role": "user", "content": questions[place % len(questions)]}]
        return chat(aliases[place % 3], messages=messages, stream=True, max_tokens=6 + place % 5)

    async def stays(client: httpx.AsyncClient, place: int) -> str:
        found = []
        async with client.stream("POST", CHAT, json=body(place)) as reply:
            assert reply.status_code == 200, await reply.aread()
            async for line in reply.aiter_lines():
                if line.startswith("data: {"):
                    chunk = json.loads(line[6:])
                    found += [choice["delta"].get("content") or "" for choice in chunk["choices"]]
        return "".join(found)

    async def leaves(client: httpx.AsyncClient, place: int) -> str:
        async with client.stream("POST", CHAT, json=body(place)) as reply:
            async for _ in reply.aiter_lines():
                break
        return ""

    async def crowd() -> tuple[list[str], list[str]]:
        limits = httpx.Limits(max_connections=250)
        async with httpx.AsyncClient(base_url=world.url, headers=key, timeout=120, limits=limits) as client:
            apart = [await stays(client, place) for place in range(60)]
            mixed = await asyncio.gather(*((stays if n % 2 else leaves)(client, n) for n in range(200)))
            return apart, list(mixed)

    apart, mixed = asyncio.run(crowd())
    assert all(mixed[place] == apart[place % 60] for place in range(1, 200, 2))
    rows = world.settled(key)
    assert len(rows) == 260 and {row.outcome for row in rows} <= {"done", "cancelled"}
    assert world.row(key).spent_tokens == sum(row.prompt_tokens + row.completion_tokens for row in rows)
    load = world.engine.load()
    assert (load.running, load.waiting) == (0, 0)
