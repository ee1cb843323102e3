"""What bounds a request holds for streams and for several texts too, and what is charged of one that is refused."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from confide.errors import ConfideError, ModelError, RetryableError, StateError
from confide_server.serving.access import Asked, Caller, OpenAccess, Spent
from confide_server.serving.catalogue import Catalogue, Target
from confide_server.serving.endpoint import accounting
from confide_server.serving.endpoint.app import Limits, Parts, build_app
from confide_server.serving.port import BASE, Delta, EngineFailed, Generation, Load, Overloaded, Unanswerable

from tests.served_models import served

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


class Prompts:
    """A token a character."""

    def chat(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        return tuple(map(ord, messages[-1]["content"]))

    def text(self, text: str) -> tuple[int, ...]:
        return tuple(map(ord, text))

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def plain(self, text: str) -> str:
        return text


class Scripted:
    """An engine that writes a token every `pace_s`, and refuses where `refusal` is set."""

    base_sha256, context, prompts = "b" * 64, 1000, Prompts()

    def __init__(self, pace_s: float = 0.0) -> None:
        self.pace_s = pace_s
        self.refusal: Exception | None = None
        self.on_token: Callable[[int], None] = lambda token: None
        self.running = self.most_running = 0

    async def generate(self, generation: Generation) -> AsyncGenerator[Delta, None]:
        if self.refusal is not None:
            raise self.refusal
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            for token in range(1, generation.max_tokens + 1):
                await asyncio.sleep(self.pace_s)
                self.on_token(token)
                yield Delta("x", token, finish="length" if token == generation.max_tokens else None)
        finally:
            self.running -= 1

    def together(self, longest: int) -> int:
        return 3

    def load(self) -> Load:
        return Load(self.running)

    async def check(self) -> None: ...

    async def add_adapter(self, sha256: str, folder: str) -> None: ...

    async def remove_adapter(self, sha256: str) -> None: ...

    async def close(self) -> None: ...


class Noted(OpenAccess):
    """Everybody may ask; how each request ended is kept."""

    def __init__(self) -> None:
        self.ends: list[Spent] = []

    async def begin(self, caller: Caller, asked: Asked) -> "Noted":  # type: ignore[override]  # is its own charge
        return self

    def settle(self, spent: Spent) -> None:
        self.ends.append(spent)


@contextmanager
def endpoint(engine: Scripted, access: Noted, **limits: Any) -> Iterator[httpx.Client]:
    catalogue = Catalogue()
    catalogue.point(Target("m", engine, BASE))
    with (
        served(build_app(Parts(catalogue, access, Limits(**limits)))) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        yield client


def body(path: str, **options: Any) -> dict[str, Any]:
    asked = {"messages": [{"role": "user", "content": "why"}]} if path == CHAT else {"prompt": "why"}
    return {"model": "m", "max_tokens": 200, **asked, **options}


def errors_of(reply: httpx.Response) -> list[dict[str, Any]]:
    documents = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
    return [one["error"] for one in documents if "error" in one]


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("texts", [1, 2])
def test_an_answer_ends_when_its_time_is_over(path: str, texts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By clocks of the test's own: the time is over when ten tokens are written, however long they took."""
    engine, access, now = Scripted(pace_s=0.001), Noted(), [0.0]
    monkeypatch.setattr(accounting, "time", SimpleNamespace(monotonic=lambda: now[0]))
    limits: list[asyncio.Timeout] = []
    plain = asyncio.timeout

    def noted(delay: float | None) -> asyncio.Timeout:
        limits.append(plain(delay))
        return limits[-1]

    def over(token: int) -> None:
        if token == 10:
            now[0] += 3600
            for limit in limits:
                with contextlib.suppress(RuntimeError):  # one that has ended
                    limit.reschedule(0)

    engine.on_token = over
    with endpoint(engine, access, seconds=3000) as client:
        reply = client.post(path, json=body(path, stream=True, n=texts))
        (error,) = errors_of(reply)
        assert error["code"] == "timeout" and reply.text.endswith("data: [DONE]\n\n")
        monkeypatch.setattr(asyncio, "timeout", noted)  # what measures an answer in one piece
        assert client.post(path, json=body(path, n=texts)).status_code == 504
    assert [one.outcome for one in access.ends] == ["failed"] * 2 and engine.running == 0
    assert all(0 < one.completion_tokens < 100 for one in access.ends)


def test_who_leaves_before_a_stream_has_begun_is_settled() -> None:
    """What was sent before is unread, so that the head of the answer waits; then the peer has gone."""

    async def leave() -> None:
        app = build_app(Parts(catalogue, access))
        asked = [{"type": "http.request", "body": json.dumps(body(CHAT, stream=True)).encode()}]

        async def receive() -> Any:
            if not asked:
                await gone.wait()
                return {"type": "http.disconnect"}
            return asked.pop()

        async def send(_: Any) -> None:
            gone.set()
            await asyncio.Event().wait()

        gone = asyncio.Event()
        headers = [(b"content-type", b"application/json"), (b"host", b"here")]
        scope = {"type": "http", "method": "POST", "path": CHAT, "headers": headers, "query_string": b""}
        async with asyncio.timeout(60):
            await app(scope, receive, send)  # type: ignore[arg-type]  # a scope has more, which nobody reads here

    engine, access, catalogue = Scripted(), Noted(), Catalogue()
    catalogue.point(Target("m", engine, BASE))
    asyncio.run(leave())
    assert [one.outcome for one in access.ends] == ["cancelled"] and engine.running == 0


@pytest.mark.parametrize(
    ("refusal", "status"), [(Overloaded("busy", 5.0), 429), (Unanswerable("long"), 400), (EngineFailed("down"), 503)]
)
def test_what_the_engine_refuses_costs_nothing(refusal: Exception, status: int) -> None:
    """OpenAI's client tries again by itself: a busy server would use a budget up for nothing."""
    engine, access = Scripted(), Noted()
    engine.refusal = refusal
    with endpoint(engine, access) as client:
        for options in ({}, {"stream": True}, {"n": 2}, {"n": 2, "stream": True}):
            for path in (CHAT, TEXT):
                assert client.post(path, json=body(path, **options)).status_code == status
    assert [(one.prompt_tokens, one.completion_tokens, one.outcome) for one in access.ends] == [(0, 0, "failed")] * 8


def test_one_request_fills_no_queue() -> None:
    engine, access = Scripted(pace_s=0.001), Noted()
    with endpoint(engine, access) as client:
        many = body(TEXT, prompt=["a", "b"] * 10, n=2, max_tokens=3)
        made = client.post(TEXT, json=many).json()
        assert [choice["text"] for choice in made["choices"]] == ["xxx"] * 40 and engine.most_running == 3
        reply = client.post(TEXT, json={**many, "stream": True})
        assert reply.text.count('"finish_reason":"length"') == 40 and engine.most_running == 3
    assert [one.completion_tokens for one in access.ends] == [120, 120]


def test_long_texts_hold_up_nobody_s_short_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """They took all threads, and whoever asked with a key waited behind them."""
    release, plain = threading.Event(), Prompts.chat

    def chat(self: Prompts, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        assert len(messages[-1]["content"]) < 1000 or release.wait(300)
        return plain(self, messages)[:10]

    async def crowd(url: str) -> list[int]:
        long = body(CHAT, messages=[{"role": "user", "content": "x" * 100_000}], max_tokens=2)
        async with httpx.AsyncClient(base_url=url, limits=httpx.Limits(max_connections=80), timeout=300) as asked:
            waiting = [asyncio.create_task(asked.post(CHAT, json=long)) for _ in range(40)]
            await asyncio.sleep(1)
            short = await asyncio.wait_for(asked.post(CHAT, json=body(CHAT, max_tokens=2)), 120)
            release.set()
            return [short.status_code, *(one.status_code for one in await asyncio.gather(*waiting))]

    monkeypatch.setattr(Prompts, "chat", chat)
    try:
        with endpoint(Scripted(), Noted()) as client:
            assert asyncio.run(crowd(str(client.base_url))) == [200] * 41
    finally:
        release.set()


@pytest.mark.parametrize(("error", "status"), [(RetryableError, 503), (StateError, 500), (ModelError, 500)])
def test_what_is_for_the_operator_stands_in_the_log_only(
    error: type[ConfideError], status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody without a key learns where the database is."""

    class Down(Noted):
        async def caller(self, authorization: str | None, address: str) -> Caller:
            raise error("the database postgresql://confide@db.internal/keys cannot be used")

    with endpoint(Scripted(), Down()) as client:
        reply = client.get("/v1/models")
    assert reply.status_code == status and "db.internal" not in reply.text and "db.internal" in caplog.text
    assert ("Retry-After" in reply.headers) == (status == 503)
