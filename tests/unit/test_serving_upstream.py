"""An engine elsewhere answers as the one in process. vLLM needs a torch of its own and is not installed for tests.

What stands in for it is a second endpoint of ours, which speaks the same completions API, with vLLM's two routes for
adapters (as its documentation describes them) over our own engine.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confide.errors import ConfideError, ModelError, StateError
from confide_server.serving.access import OpenAccess
from confide_server.serving.app import Parts, build_app
from confide_server.serving.catalogue import Catalogue, Target
from confide_server.serving.engines.adapted_model import AdaptedModel
from confide_server.serving.engines.local import LocalEngine, Room
from confide_server.serving.engines.upstream import UpstreamEngine
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
