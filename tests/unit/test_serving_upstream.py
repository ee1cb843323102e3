"""An engine elsewhere answers as the one in process. vLLM needs a torch of its own and is not installed for tests.

What stands in for it is a second endpoint of ours, which speaks the same completions API, with vLLM's two routes for
adapters over our own engine. tests/integration/test_serving_vllm.py asks a real one where there is one.
"""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx
import pytest
from confide.errors import ConfideError, ModelError, StateError
from confide.models.store import folder_digest
from confide_server.serving.access import OpenAccess
from confide_server.serving.catalogue import Catalogue, Target
from confide_server.serving.endpoint.app import Parts, build_app
from confide_server.serving.engines.adapted_model import AdaptedModel
from confide_server.serving.engines.local import LocalEngine, Room
from confide_server.serving.engines.turns import Turns
from confide_server.serving.engines.upstream import UpstreamEngine
from confide_server.serving.engines.upstream_wire import logprob_values
from confide_server.serving.port import BASE, Delta, EngineFailed, Generation, Overloaded, Unanswerable
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from tests.served_models import served, strong_adapter, strong_llama

ADAPTER, HOLLOW = "a" * 64, "e" * 64


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return strong_llama(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return strong_adapter(base, tmp_path_factory.mktemp("adapter"), 1)


@pytest.fixture(scope="module")
def local(base: Path) -> Iterator[LocalEngine]:
    engine = LocalEngine(AdaptedModel(base, "cpu"), Room(rows=8, tokens=8192)).start()
    yield engine
    asyncio.run(engine.close())


@pytest.fixture(scope="module")
def url(local: LocalEngine) -> Iterator[str]:
    catalogue = Catalogue()
    catalogue.point(Target(local.base_sha256, local, BASE))
    app = build_app(Parts(catalogue, OpenAccess()))

    async def load_adapter(request: Request) -> Response:
        asked = await request.json()
        name = asked["lora_name"]
        if name != HOLLOW:  # an adapter that is ignored in silence answers with the base
            await local.add_adapter(name, asked["lora_path"])
        catalogue.point(Target(name, local, BASE if name == HOLLOW else name))
        return JSONResponse({})

    async def unload_adapter(request: Request) -> Response:
        catalogue.forget((await request.json())["lora_name"])
        return JSONResponse({})

    app.add_route("/v1/load_lora_adapter", load_adapter, methods=["POST"])
    app.add_route("/v1/unload_lora_adapter", unload_adapter, methods=["POST"])
    with served(app) as url:
        yield url


def with_engine(base: Path, url: str, work: Callable[[UpstreamEngine], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        engine = UpstreamEngine(base, url)
        try:
            await engine.check()
            return await work(engine)
        finally:
            await engine.close()

    return asyncio.run(run())


async def written(engine: Any, generation: Generation) -> list[Delta]:
    return [delta async for delta in engine.generate(generation)]


def told(deltas: list[Delta]) -> tuple[str, int, Any, list[tuple[str, float]]]:
    logprobs = [(one.text, round(one.logprob or 0, 4)) for delta in deltas for one in delta.logprobs]
    return "".join(delta.text for delta in deltas), deltas[-1].tokens, deltas[-1].finish, logprobs


def test_it_answers_as_the_engine_in_process(base: Path, adapter: Path, url: str, local: LocalEngine) -> None:
    async def work(engine: UpstreamEngine) -> None:
        await engine.add_adapter(ADAPTER, str(adapter))
        prompt = engine.prompts.chat([{"role": "user", "content": "How thick must the wall be?"}])
        options: list[dict[str, Any]] = [
            {"adapter": BASE},
            {"adapter": ADAPTER},
            {"adapter": ADAPTER, "temperature": 1.0, "seed": 5, "top_p": 0.9, "logprobs": 2},
            {"stop": ("e",), "max_tokens": 40},
            {"schema": {"enum": ["lime", "sand"]}},
        ]
        for option in options:
            asked = Generation(prompt=prompt, **{"max_tokens": 12, "continues": True, **option})
            assert told(await written(engine, asked)) == told(await written(local, asked)), option
        assert engine.load().running == 0 and engine.load().adapters == (ADAPTER,)

    with_engine(base, url, work)


def test_an_adapter_without_effect_is_refused(base: Path, adapter: Path, url: str) -> None:
    async def work(engine: UpstreamEngine) -> None:
        with pytest.raises(ModelError, match="changes nothing at the upstream"):
            await engine.add_adapter(HOLLOW, str(adapter))
        with pytest.raises(Unanswerable, match="is not loaded"):
            await written(engine, Generation(prompt=(1, 2), adapter=HOLLOW))

    with_engine(base, url, work)


def test_leaving_stops_the_work_there(base: Path, url: str, local: LocalEngine) -> None:
    async def work(engine: UpstreamEngine) -> None:
        stream = engine.generate(Generation(prompt=(5, 6, 7), max_tokens=400, stop=("zzzzzz",)))
        async for delta in stream:
            if delta.tokens > 1:
                break
        await stream.aclose()
        for _ in range(500):
            if local.load().running == 0:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("it goes on")

    with_engine(base, url, work)


def test_what_does_not_fit_is_named(base: Path, url: str) -> None:
    async def work(engine: UpstreamEngine) -> None:
        for asked, said in (
            (Generation(prompt=(1,), grammar="start: /a/"), "no other grammar"),
            (Generation(prompt=(1,) * 500, max_tokens=100), "holds 512"),
        ):
            with pytest.raises(Unanswerable, match=said):
                await written(engine, asked)

    with_engine(base, url, work)
    with pytest.raises(StateError, match="http://"):
        UpstreamEngine(base, "file:///etc/passwd")


def answering(reply: Callable[[], Response]) -> Any:
    """An application that gives one reply to every request for a text."""
    from fastapi import FastAPI

    app = FastAPI()

    async def completions(request: Request) -> Response:
        return reply()

    app.add_route("/v1/completions", completions, methods=["POST"])
    return app


@pytest.mark.parametrize(
    ("status", "kind"), [(429, Overloaded), (400, Unanswerable), (401, EngineFailed), (500, EngineFailed)]
)
def test_refusals_of_the_upstream_are_told_as_ours(base: Path, status: int, kind: type[ConfideError]) -> None:
    body = {"error": {"message": "no \x1b[2J", "type": "x"}}
    with served(answering(lambda: JSONResponse(body, status, {"Retry-After": "7"}))) as url:

        async def ask() -> None:
            engine = UpstreamEngine(base, url)
            try:
                await written(engine, Generation(prompt=(1,)))
            finally:
                await engine.close()

        with pytest.raises(kind) as refused:
            asyncio.run(ask())
    assert "\x1b" not in str(refused.value)


def test_an_upstream_that_is_gone_is_named(base: Path) -> None:
    async def ask() -> None:
        engine = UpstreamEngine(base, "http://127.0.0.1:9")
        try:
            await written(engine, Generation(prompt=(1,)))
        finally:
            await engine.close()

    with pytest.raises(EngineFailed, match="cannot be reached"):
        asyncio.run(ask())


SENT: list[bytes] = [b""]


@pytest.fixture(scope="module")
def junk_url() -> Iterator[str]:
    async def body() -> AsyncIterator[bytes]:
        yield SENT[0]

    with served(answering(lambda: StreamingResponse(body()))) as url:
        yield url


_FIELDS = ["choices", "text", "usage", "completion_tokens", "logprobs", "tokens", "token_logprobs", "error"]
_JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_FIELDS), inner, max_size=4),
    max_leaves=12,
)


def events(documents: list[Any]) -> bytes:
    return b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in documents)


@settings(max_examples=25)
@given(sent=st.binary(max_size=60) | st.lists(_JUNK, max_size=3).map(events))
def test_whatever_an_upstream_sends_is_an_answer_or_a_named_failure(base: Path, junk_url: str, sent: bytes) -> None:
    SENT[0] = sent

    async def ask() -> None:
        engine = UpstreamEngine(base, junk_url)
        try:
            await written(engine, Generation(prompt=(1,)))
        except EngineFailed:
            pass
        finally:
            await engine.close()

    asyncio.run(ask())


class Forgetful:
    """An upstream with models, which can be started anew: then it knows the base alone."""

    def __init__(self, base_sha256: str) -> None:
        self.base, self.loaded = base_sha256, dict[str, str]()
        self.asked: list[dict[str, Any]] = []
        self.loads = 0
        self.finish = "length"
        self.mixes = False
        self.running: list[str] = []
        self.beside: set[frozenset[str]] = set()

    def app(self) -> Any:
        from fastapi import FastAPI

        app = FastAPI()

        async def models(request: Request) -> Response:
            cards: list[dict[str, Any]] = [{"id": self.base, "root": "/base", "parent": None, "max_model_len": 64}]
            cards += [{"id": name, "root": folder, "parent": self.base} for name, folder in self.loaded.items()]
            return JSONResponse({"data": cards})

        async def load_adapter(request: Request) -> Response:
            asked = await request.json()
            if asked["lora_name"] in self.loaded:
                return JSONResponse({"error": {"message": "has already been loaded"}}, 400)
            self.loaded[asked["lora_name"]] = asked["lora_path"]
            self.loads += 1
            return JSONResponse({})

        async def unload_adapter(request: Request) -> Response:
            self.loaded.pop((await request.json())["lora_name"], None)
            return JSONResponse({})

        async def completions(request: Request) -> Response:
            asked = await request.json()
            self.asked.append(asked)
            if asked["model"] not in {self.base, *self.loaded}:
                return JSONResponse({"error": {"message": "The model does not exist"}}, 404)
            self.running.append(asked["model"])
            await asyncio.sleep(0.05)
            self.beside.add(frozenset(self.running))
            spoiled = self.mixes and len(set(self.running)) > 1
            self.running.remove(asked["model"])
            value = -1.0 if asked["model"] == self.base and not spoiled else -2.0
            logprobs = {"tokens": ["x"], "token_logprobs": [value], "top_logprobs": [{"x": value}]}
            sent = [{"choices": [{"text": "x", "logprobs": logprobs, "finish_reason": self.finish}]}]
            return Response(events(sent) + b"data: [DONE]\n\n", media_type="text/event-stream")

        app.add_route("/v1/models", models)
        app.add_route("/v1/load_lora_adapter", load_adapter, methods=["POST"])
        app.add_route("/v1/unload_lora_adapter", unload_adapter, methods=["POST"])
        app.add_route("/v1/completions", completions, methods=["POST"])
        return app


def test_an_upstream_that_was_started_anew_gets_its_adapters_back(base: Path, adapter: Path) -> None:
    there = Forgetful(folder_digest(base))

    async def work(engine: UpstreamEngine) -> None:
        await engine.add_adapter(ADAPTER, str(adapter))
        there.loaded.clear()
        asked = Generation(prompt=(1,), adapter=ADAPTER, max_tokens=1)
        found = await asyncio.gather(*(written(engine, asked) for _ in range(4)))
        assert [deltas[0].text for deltas in found] == ["x"] * 4
        assert there.loaded == {ADAPTER: str(adapter.resolve())} and there.loads == 2

        async def in_vain(path: str, document: Any) -> Any:
            return httpx.Response(500, text="no room")

        there.loaded.clear()
        engine._post = in_vain  # type: ignore[method-assign]
        with pytest.raises(EngineFailed, match="started anew: the upstream does not load"):
            await written(engine, asked)
        there.base = "0" * 64
        with pytest.raises(EngineFailed, match="does not know its model: The model does not exist"):
            await written(engine, Generation(prompt=(1,), max_tokens=1))

    with served(there.app()) as url:
        with_engine(base, url, work)


def test_what_lies_under_a_hash_from_another_folder_is_replaced(base: Path, adapter: Path) -> None:
    there = Forgetful(folder_digest(base))
    there.loaded[ADAPTER] = "/tmp/elsewhere"

    async def work(engine: UpstreamEngine) -> None:
        await engine.add_adapter(ADAPTER, str(adapter))
        await engine.add_adapter(ADAPTER, str(adapter))
        assert there.loaded == {ADAPTER: str(adapter.resolve())} and there.loads == 1

    with served(there.app()) as url:
        with_engine(base, url, work)


def test_an_upstream_that_holds_less_than_the_model_is_asked_for_no_more(base: Path) -> None:
    there = Forgetful(folder_digest(base))

    async def work(engine: UpstreamEngine) -> None:
        await written(engine, Generation(prompt=(1,) * 60, max_tokens=4))
        with pytest.raises(Unanswerable, match="holds 64 in all"):
            await written(engine, Generation(prompt=(1,) * 60, max_tokens=5))
        there.finish = "abort"
        with pytest.raises(EngineFailed, match="gave up"):
            await written(engine, Generation(prompt=(1,), max_tokens=4))

    with served(there.app()) as url:
        with_engine(base, url, work)


def test_a_models_own_sampling_is_taken_back(base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "named"))
    (folder / "generation_config.json").write_text(json.dumps({"top_k": 20, "repetition_penalty": 1.1, "min_p": None}))
    there = Forgetful(folder_digest(folder))

    async def work(engine: UpstreamEngine) -> None:
        await written(engine, Generation(prompt=(1,), max_tokens=1))

    with served(there.app()) as url:
        with_engine(folder, url, work)
    [asked] = there.asked
    assert {name: asked.get(name) for name in ("top_k", "repetition_penalty", "min_p")} == {
        "top_k": 0, "repetition_penalty": 1.0, "min_p": None,
    }  # fmt: skip
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(ModelError, match="restore or remove it"):
        UpstreamEngine(folder, "http://127.0.0.1:9")


@pytest.mark.parametrize("mixes", [False, True])
def test_base_and_adapters_take_turns_where_the_upstream_mixes_them(base: Path, adapter: Path, mixes: bool) -> None:
    there = Forgetful(folder_digest(base))
    there.mixes = mixes

    async def work(engine: UpstreamEngine) -> None:
        await engine.add_adapter(ADAPTER, str(adapter))
        there.beside.clear()
        there.loaded.clear()  # loading it again, from within a request, takes turns too
        asked = [Generation(prompt=(1,), adapter=name, max_tokens=1, logprobs=1) for name in (BASE, ADAPTER) * 4]
        found = await asyncio.gather(*(written(engine, one) for one in asked))
        assert [logprob_values(deltas) for deltas in found] == [[-1.0], [-2.0]] * 4
        assert (frozenset({there.base, ADAPTER}) in there.beside) is not mixes
        prompts = Generation(prompt=(1,), max_tokens=1, logprobs=1, echo=True)
        with pytest.raises(Unanswerable, match="no log-probabilities of prompts") if mixes else nullcontext():
            await written(engine, prompts)

    with served(there.app()) as url:
        with_engine(base, url, work)


def test_who_waits_for_a_turn_lets_nobody_past() -> None:
    order: list[str] = []

    async def one(turns: Turns, name: str, kind: bool) -> None:
        async with turns.taken(kind):
            order.append(name)
            await asyncio.sleep(0.01)
            order.append(name)

    async def run() -> None:
        turns = Turns()
        names = [("a", True), ("b", True), ("c", False), ("d", True)]
        waiting = [asyncio.create_task(one(turns, name, kind)) for name, kind in names]
        gone = asyncio.create_task(one(turns, "gone", False))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(*waiting)

    asyncio.run(run())
    assert order == ["a", "b", "a", "b", "c", "c", "d", "d"]
