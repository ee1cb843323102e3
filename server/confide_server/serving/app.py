"""The endpoint: OpenAI's routes over engines, keys and limits.

    app = build_app(Parts(catalogue, OpenAccess(), Limits()))

Every route but /healthz asks for a key first, then reads the body, then looks up what the key may reach; a stream is
accounted exactly as a whole answer, and so is one whose reader has hung up.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from confide.errors import ConfideError, PolicyRefusal
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from confide_server.serving import replies
from confide_server.serving.access import Access, Asked, Caller, Charge, Spent
from confide_server.serving.answers import Answer, Part
from confide_server.serving.catalogue import Catalogue, Target
from confide_server.serving.documents import Cited, Documents, no_collection, readable
from confide_server.serving.failures import DENIED, Refused, as_refused
from confide_server.serving.http import EventStream, Gone, read_body, unless_gone
from confide_server.serving.metrics import Metrics
from confide_server.serving.port import BASE, Delta, Embedder, Generation
from confide_server.serving.wire import ChatRequest, CompletionRequest, EmbeddingRequest, Sampling, parsed

log = logging.getLogger(__name__)

_CHAT, _TEXT, _EMBED, _MODELS, _METRICS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/models",
    "/metrics",
)
_CITED = 1024
"""Tokens that an answer out of documents stays below: it is a few quotations."""
_FIRST_PART_S = 10.0
"""So long a stream waits for its first part before it says 200: what is refused by then has a status of its own."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one request.

    body_bytes: of the body. tokens: written where the request names none. seconds: from its beginning to its end.
    hosts: names under which this server is asked; others are refused, so that no web page reaches it by a name of its
    own (DNS rebinding). Empty: any.
    """

    body_bytes: int = 1 << 20
    tokens: int = 512
    seconds: float = 600.0
    hosts: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Parts:
    """What the routes are put together from."""

    catalogue: Catalogue
    access: Access
    limits: Limits = field(default_factory=Limits)
    documents: Documents | None = None


def build_app(parts: Parts) -> FastAPI:
    """The ASGI application, without documentation routes."""
    app = FastAPI(title="Confide", openapi_url=None, docs_url=None, redoc_url=None)
    endpoint = Endpoint(parts)
    for method, path, route in (
        ("POST", _CHAT, endpoint.chat),
        ("POST", _TEXT, endpoint.completions),
        ("POST", _EMBED, endpoint.embeddings),
        ("GET", _MODELS, endpoint.models),
        ("GET", _MODELS + "/{model:path}", endpoint.model),
        ("GET", _METRICS, endpoint.metrics),
        ("GET", "/healthz", endpoint.health),
    ):
        app.add_api_route(path, _told(route, parts.limits), methods=[method], response_model=None)
    app.add_exception_handler(HTTPException, _no_route)
    return app


def _told(route: Callable[[Request], Awaitable[Response]], limits: Limits) -> Callable[[Request], Awaitable[Response]]:
    """The route, its failures told in OpenAI's form."""

    async def told(request: Request) -> Response:
        try:
            _check_host(request, limits.hosts)
            return await route(request)
        except Gone:
            return Response(status_code=499)
        except Exception as error:
            if not isinstance(error, ConfideError):
                log.exception("%s failed", request.url.path)
            return as_refused(error).response()

    return told


def _check_host(request: Request, hosts: frozenset[str]) -> None:
    named = request.headers.get("host", "").rsplit(":", 1)[0].strip("[]").lower()
    if hosts and named not in hosts:
        raise Refused(421, f"this server is not called {named!r}; start it with --host {named} if it is", kind=DENIED)


async def _no_route(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    said = f"{request.method} {request.url.path} is not served here; see docs/serving.md for what is"
    return Refused(status, said, code="unknown_url").response()


class Endpoint:
    """The routes."""

    def __init__(self, parts: Parts) -> None:
        self._catalogue, self._access, self._limits = parts.catalogue, parts.access, parts.limits
        self._documents = parts.documents
        self._metrics = Metrics(parts.catalogue)

    async def health(self, _: Request) -> Response:
        """Whether requests can be taken. No key."""
        ready = bool(self._catalogue.targets() or self._catalogue.embedders)
        return JSONResponse({"status": "ok" if ready else "no model"}, 200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        """Prometheus' text form, for keys that may read it."""
        caller = await self._caller(request)
        if not caller.metrics:
            raise Refused(
                403, "this key may not read metrics; make one with `confide serve keys add --metrics`", kind=DENIED
            )
        return Response(self._metrics.render(), media_type="text/plain; version=0.0.4")

    async def models(self, request: Request) -> Response:
        """The models that the key may use."""
        caller = await self._caller(request)
        found = [_described(one) for one in self._catalogue.targets() if caller.may_use(one.alias)]
        found += [
            _model(alias, sha256=one.sha256)
            for alias, one in self._catalogue.embedders.items()
            if caller.may_use(alias)
        ]
        return JSONResponse({"object": "list", "data": found})

    async def model(self, request: Request) -> Response:
        """One of them."""
        caller = await self._caller(request)
        alias = str(request.path_params["model"])
        embedder = self._catalogue.embedders.get(alias)
        if embedder is not None and caller.may_use(alias):
            return JSONResponse(_model(alias, sha256=embedder.sha256))
        return JSONResponse(_described(self._target(caller, alias)))

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        caller = await self._caller(request)
        asked = parsed(ChatRequest, await read_body(request, self._limits.body_bytes))
        target = self._target(caller, asked.model)
        messages = [message.plain() for message in asked.messages]
        if asked.collections:
            return await self._from_documents(request, caller, target, asked, messages[-1]["content"])
        ids = await asyncio.to_thread(target.engine.prompts.chat, messages)
        limit = self._limit(target, len(ids), asked.limit)
        generations = _variants(asked, asked.alternatives, prompt=ids, adapter=target.adapter, max_tokens=limit)
        head = replies.Head("chat", asked.model, target.fingerprint)
        work = _Work(self, caller, target, _CHAT, head, len(ids), generations, str(messages))
        if asked.stream:
            return await work.stream(
                request, _ChatForm(), usage=_Usage(asked.wants_usage, asked.wants_usage_throughout)
            )
        return await work.whole(request, _ChatForm())

    async def _from_documents(
        self, request: Request, caller: Caller, target: Target, asked: ChatRequest, question: str
    ) -> Response:
        """An answer out of documents, with its citations. It is paid for as if the model had written it."""
        organization, collections = readable(caller, asked.collections or [])
        documents = self._documents
        if documents is None:
            raise no_collection((asked.collections or [""])[0])
        if (asked.n or 1) != 1 or asked.logprobs or asked.response_format is not None:
            raise Refused(
                400, "collections: such an answer is one text of quotations; leave n, logprobs and response_format out"
            )
        read = len(await asyncio.to_thread(target.engine.prompts.text, question))
        limit = self._limit(target, read, asked.limit)
        text = question if self.keeps_text else None
        most = Asked(_CHAT, target.alias, target.engine.base_sha256, target.adapter, read + max(limit, _CITED), text)
        began, outcome, written = time.monotonic(), "failed", 0
        charge = await self._access.begin(caller, most)
        found = Cited("")
        try:
            work = asyncio.to_thread(
                documents.answer, question, reader=caller.name, organization=organization, collections=collections
            )
            found = await unless_gone(request, self._timed(work))
            written = len(await asyncio.to_thread(target.engine.prompts.text, found.text))
            outcome = "done"
        except PolicyRefusal:
            raise no_collection((asked.collections or [""])[0]) from None
        except Gone:
            outcome = "cancelled"
            raise
        finally:
            charge.settle(Spent(read, written, outcome, found.text if self.keeps_text else None))
            seconds = time.monotonic() - began
            self._metrics.ended(_CHAT, target.alias, outcome, seconds, read=read, written=written)
        head = replies.Head("chat", asked.model, target.fingerprint)
        if asked.stream:
            return EventStream(_cited_chunks(head, found, replies.usage(read, written), asked))
        choice = replies.Choice(0, [found.text], tokens=written, finish="stop")
        choices = [replies.chat_choice(choice, found.annotations)]
        return JSONResponse(head.document(head.whole_kind, choices, replies.usage(read, written)))

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        caller = await self._caller(request)
        asked = parsed(CompletionRequest, await read_body(request, self._limits.body_bytes))
        target = self._target(caller, asked.model)
        prompts = [await _ids(target, prompt) for prompt in asked.prompts]
        generations: list[Generation] = []
        for ids in prompts:
            if asked.max_tokens == 0 and not asked.echo:
                raise Refused(400, "max_tokens: 0 writes nothing; give at least 1, or echo", param="max_tokens")
            limit = self._limit(target, len(ids), 16 if asked.max_tokens is None else asked.max_tokens)
            echo = bool(asked.echo) and asked.logprobs is not None
            generations += _variants(
                asked, asked.logprobs, prompt=ids, adapter=target.adapter, max_tokens=limit, echo=echo, continues=True
            )
        head = replies.Head("completion", asked.model, target.fingerprint)
        read = sum(map(len, prompts))
        work = _Work(self, caller, target, _TEXT, head, read, generations, str(asked.prompt))
        form = _TextForm(_echoes(target, asked, prompts))
        if asked.stream:
            return await work.stream(request, form, usage=_Usage(asked.wants_usage, asked.wants_usage_throughout))
        return await work.whole(request, form)

    async def embeddings(self, request: Request) -> Response:
        """POST /v1/embeddings."""
        caller = await self._caller(request)
        asked = parsed(EmbeddingRequest, await read_body(request, self._limits.body_bytes))
        embedder = self._embedder(caller, asked.model)
        if asked.dimensions not in (None, embedder.dimensions):
            raise Refused(400, f"dimensions: this model has {embedder.dimensions}; leave it out", param="dimensions")
        began, outcome, tokens = time.monotonic(), "failed", 0
        most = sum(embedder.count(text) for text in asked.texts)
        text = str(asked.texts) if self._access.keeps_text else None
        charge = await self._access.begin(caller, Asked(_EMBED, asked.model, embedder.sha256, BASE, most, text))
        try:
            vectors, tokens = await unless_gone(request, self._timed(embedder.embed(asked.texts)))
            outcome = "done"
        except Gone:
            outcome = "cancelled"
            raise
        finally:
            charge.settle(Spent(tokens if outcome == "done" else most, 0, outcome))
            self._metrics.ended(_EMBED, asked.model, outcome, time.monotonic() - began, read=tokens)
        return JSONResponse(replies.embeddings(asked.model, vectors, tokens, packed=asked.encoding_format == "base64"))

    async def _caller(self, request: Request) -> Caller:
        address = request.client.host if request.client else ""
        return await self._access.caller(request.headers.get("authorization"), address)

    def _target(self, caller: Caller, alias: str) -> Target:
        """What is not there and what may not be used look the same."""
        target = self._catalogue.find(alias)
        if target is None or not caller.may_use(alias):
            raise _no_model(alias)
        return target

    def _embedder(self, caller: Caller, alias: str) -> Embedder:
        embedder = self._catalogue.embedders.get(alias)
        if embedder is None or not caller.may_use(alias):
            raise _no_model(alias)
        return embedder

    def _limit(self, target: Target, prompt: int, asked: int | None) -> int:
        """Tokens to write: what was asked, or this server's default as far as there is room."""
        return asked if asked is not None else max(1, min(self._limits.tokens, target.engine.context - prompt))

    async def _timed(self, work: Awaitable[Any]) -> Any:
        try:
            async with asyncio.timeout(self._limits.seconds):
                return await work
        except TimeoutError:
            raise _too_slow(self._limits.seconds) from None

    async def begin(self, caller: Caller, asked: Asked) -> Charge:
        """Reserve what a request may cost."""
        return await self._access.begin(caller, asked)

    @property
    def keeps_text(self) -> bool:
        """Whether the operator keeps texts."""
        return self._access.keeps_text

    @property
    def seconds(self) -> float:
        """The longest request."""
        return self._limits.seconds

    def ended(self, route: str, model: str, outcome: str, seconds: float, *, read: int, written: int) -> None:
        """Count a request that has ended."""
        self._metrics.ended(route, model, outcome, seconds, read=read, written=written)


@dataclass(frozen=True)
class _Usage:
    """Where a stream says how many tokens it was."""

    at_end: bool
    throughout: bool


class _ChatForm:
    """Answers of the assistant."""

    def first(self, index: int) -> dict[str, Any] | None:
        return replies.chat_chunk(index, None)

    def part(self, index: int, delta: Delta) -> dict[str, Any]:
        return replies.chat_chunk(index, delta)

    def whole(self, choice: replies.Choice) -> dict[str, Any]:
        return replies.chat_choice(choice)


class _TextForm:
    """Texts that go on. echoes: the prompt of each, where it was asked for."""

    def __init__(self, echoes: Sequence[str]) -> None:
        self._echoes = echoes

    def first(self, index: int) -> dict[str, Any] | None:
        echo = self._echoes[index]
        return replies.text_chunk(index, Delta(echo)) if echo else None

    def part(self, index: int, delta: Delta) -> dict[str, Any]:
        return replies.text_chunk(index, delta)

    def whole(self, choice: replies.Choice) -> dict[str, Any]:
        return replies.text_choice(choice, self._echoes[choice.index])


_Form = _ChatForm | _TextForm


class _Work:
    """One request from its reservation to its end."""

    def __init__(
        self,
        endpoint: Endpoint,
        caller: Caller,
        target: Target,
        route: str,
        head: replies.Head,
        read: int,
        generations: Sequence[Generation],
        text: str,
    ) -> None:
        self._endpoint, self._caller, self._target, self._route = endpoint, caller, target, route
        self._head, self._read = head, read
        self._answer = Answer(target.engine, generations)
        most = read + sum(one.max_tokens for one in generations)
        kept = text if endpoint.keeps_text else None
        base, adapter = target.engine.base_sha256, target.adapter
        self._asked = Asked(route, target.alias, base, adapter, most, kept)
        self._began = time.monotonic()
        self._charge: Charge | None = None

    async def whole(self, request: Request, form: _Form) -> Response:
        """The answer in one piece. Raises Gone, Refused."""
        self._charge = await self._endpoint.begin(self._caller, self._asked)
        outcome = "failed"
        try:
            async with asyncio.timeout(self._endpoint.seconds):
                await unless_gone(request, self._answer.whole())
            outcome = "done"
        except TimeoutError:
            raise _too_slow(self._endpoint.seconds) from None
        except (Gone, asyncio.CancelledError):
            outcome = "cancelled"
            raise
        finally:
            self._settle(outcome)
        choices = [form.whole(choice) for choice in self._answer.choices]
        return JSONResponse(self._head.document(self._head.whole_kind, choices, self._usage()))

    async def stream(self, request: Request, form: _Form, *, usage: "_Usage") -> Response:
        """The answer as it comes. What is refused before anything was written is raised, and has its own status."""
        self._charge = await self._endpoint.begin(self._caller, self._asked)
        parts = self._answer.parts()
        first: asyncio.Future[Part | None] = asyncio.ensure_future(anext(parts, None))
        try:
            await unless_gone(request, _briefly(first))
            if first.done():
                first.result()
        except BaseException as error:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            await parts.aclose()
            self._settle("cancelled" if isinstance(error, Gone | asyncio.CancelledError) else "failed")
            raise
        return EventStream(self._documents(first, parts, form, usage))

    async def _documents(
        self,
        first: "asyncio.Future[Part | None]",
        parts: AsyncGenerator[Part, None],
        form: _Form,
        usage: "_Usage",
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Chunks; an error as OpenAI's clients understand it, in place of the rest."""
        outcome, kind, nothing = "cancelled", self._head.chunk_kind, None
        try:
            until = asyncio.timeout(max(0.0, self._endpoint.seconds - (time.monotonic() - self._began)))
            async with until, aclosing(parts):
                for choice in self._answer.choices:
                    opening = form.first(choice.index)
                    if opening is not None:
                        yield self._chunk(kind, [opening], usage)
                part = await first
                while part is not nothing:
                    index, delta = part
                    if delta.text or delta.logprobs or delta.finish is not None or usage.throughout:
                        yield self._chunk(kind, [form.part(index, delta)], usage)
                    part = await anext(parts, nothing)
            outcome = "done"
            if usage.at_end:
                yield self._head.document(kind, [], self._usage())
        except (GeneratorExit, asyncio.CancelledError):
            raise
        except Exception as error:
            outcome = "failed"
            if not isinstance(error, ConfideError | TimeoutError):
                log.exception("a stream failed")
            slow = isinstance(error, TimeoutError)
            yield (_too_slow(self._endpoint.seconds) if slow else as_refused(error)).document()
        finally:
            first.cancel()
            self._settle(outcome)

    def _chunk(self, kind: str, choices: list[dict[str, Any]], usage: "_Usage") -> dict[str, Any]:
        document = self._head.document(kind, choices)
        if usage.throughout:
            return {**document, "usage": self._usage()}
        return {**document, "usage": None} if usage.at_end else document

    def _usage(self) -> dict[str, Any]:
        return replies.usage(self._read, self._answer.tokens)

    def _settle(self, outcome: str) -> None:
        charge, self._charge = self._charge, None
        if charge is None:
            return
        text = self._answer.text if self._endpoint.keeps_text else None
        charge.settle(Spent(self._read, self._answer.tokens, outcome, text))
        seconds = time.monotonic() - self._began
        read, written = self._read, self._answer.tokens
        self._endpoint.ended(self._route, self._target.alias, outcome, seconds, read=read, written=written)


async def _cited_chunks(
    head: replies.Head, found: Cited, usage: dict[str, Any], asked: ChatRequest
) -> AsyncGenerator[dict[str, Any], None]:
    """The whole text at once: it was verified as a whole."""
    yield head.document(head.chunk_kind, [replies.chat_chunk(0, None)])
    chunk = replies.chat_chunk(0, Delta(found.text, finish="stop"))
    chunk["delta"]["annotations"] = list(found.annotations)
    yield head.document(head.chunk_kind, [chunk])
    if asked.wants_usage:
        yield head.document(head.chunk_kind, [], usage)


async def _briefly(first: "asyncio.Future[Part | None]") -> None:
    await asyncio.wait({first}, timeout=_FIRST_PART_S)


def _variants(asked: Sampling, alternatives: int | None, **options: Any) -> list[Generation]:
    """One generation a text that was asked for; each draws from a seed of its own."""
    form = asked.response_format
    schema = None if form is None else form.schema_document
    temperature = 1.0 if asked.temperature is None else asked.temperature
    top_p = 1.0 if asked.top_p is None else asked.top_p
    return [
        Generation(
            temperature=temperature,
            top_p=top_p,
            seed=None if asked.seed is None else (asked.seed + place) % (1 << 63),
            stop=asked.stops,
            logprobs=alternatives,
            schema=schema,
            **options,
        )
        for place in range(asked.n or 1)
    ]


async def _ids(target: Target, prompt: str | list[int]) -> tuple[int, ...]:
    if isinstance(prompt, str):
        return await asyncio.to_thread(target.engine.prompts.text, prompt)
    return tuple(prompt)


def _echoes(target: Target, asked: CompletionRequest, prompts: Sequence[tuple[int, ...]]) -> list[str]:
    """What stands before each text."""
    shown = [one if isinstance(one, str) else target.engine.prompts.decode(one) for one in asked.prompts]
    return [text if asked.echo else "" for text in shown for _ in range(asked.n or 1)]


def _described(target: Target) -> dict[str, Any]:
    return _model(
        target.alias,
        created=target.since,
        context=target.engine.context,
        base_sha256=target.engine.base_sha256,
        adapter_sha256=target.adapter or None,
    )


def _model(alias: str, *, created: int = 0, **more: Any) -> dict[str, Any]:
    return {"id": alias, "object": "model", "created": created, "owned_by": "confide", **more}


def _no_model(alias: str) -> Refused:
    return Refused(
        404,
        f"the model {alias[:64]!r} does not exist here, or this key may not use it; GET /v1/models lists what it may",
        param="model",
        code="model_not_found",
    )


def _too_slow(seconds: float) -> Refused:
    return Refused(
        504,
        f"the answer took longer than {seconds:g} s and was stopped; ask for fewer tokens",
        kind="server_error",
        code="timeout",
    )
