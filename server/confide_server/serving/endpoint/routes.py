"""OpenAI's routes. Every one of them but /healthz asks for a key first, then reads the body, then looks up what the key
may reach."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from confide.errors import PolicyRefusal, StateError
from fastapi import Request
from starlette.responses import JSONResponse, Response

from confide_server.serving.access import Asked, Caller
from confide_server.serving.catalogue import Catalogue, Target
from confide_server.serving.documents import AskedDocuments, Cited, no_collection, readable
from confide_server.serving.encoding import encoded
from confide_server.serving.endpoint import replies
from confide_server.serving.endpoint.accounting import Account, Desk, accounted
from confide_server.serving.endpoint.http import EventStream, read_body, unless_gone
from confide_server.serving.endpoint.texts import ChatForm, TextForm, TextRequest, answered, too_slow
from confide_server.serving.endpoint.wire import ChatRequest, CompletionRequest, EmbeddingRequest, Sampling, parsed
from confide_server.serving.failures import DENIED, SERVER, Refused
from confide_server.serving.port import BASE, Delta, Embedder, Generation

log = logging.getLogger(__name__)
CHAT, TEXT, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
_CITED = 1024
"""Tokens that an answer out of documents stays below: it is a few quotations."""
Result = TypeVar("Result")


@dataclass(frozen=True)
class Routes:
    """All of them. body_bytes, tokens: as in app.Limits."""

    catalogue: Catalogue
    desk: Desk
    documents: AskedDocuments | None
    body_bytes: int
    tokens: int

    async def health(self, _: Request) -> Response:
        """Whether requests can be taken. No key."""
        ready = bool(self.catalogue.targets() or self.catalogue.embedders)
        return JSONResponse({"status": "ok" if ready else "no model"}, 200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        """Prometheus' text form, for keys that may read it."""
        caller = await self._caller(request)
        if not caller.metrics:
            raise Refused(
                403, "this key may not read metrics; make one with `confide serve keys add --metrics`", kind=DENIED
            )
        return Response(self.desk.metrics.render(), media_type="text/plain; version=0.0.4")

    async def models(self, request: Request) -> Response:
        """The models that the key may use."""
        caller = await self._caller(request)
        found = [_described(one) for one in self.catalogue.targets()]
        found += [_model(alias, sha256=one.sha256) for alias, one in self.catalogue.embedders.items()]
        return JSONResponse({"object": "list", "data": [one for one in found if caller.may_use(one["id"])]})

    async def model(self, request: Request) -> Response:
        """One of them."""
        caller = await self._caller(request)
        alias = str(request.path_params["model"])
        embedder = self.catalogue.embedders.get(alias)
        if embedder is not None and caller.may_use(alias):
            return JSONResponse(_model(alias, sha256=embedder.sha256))
        return JSONResponse(_described(self._target(caller, alias)))

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        caller = await self._asker(request)
        asked = parsed(ChatRequest, await read_body(request, self.body_bytes))
        target = self._target(caller, asked.model)
        messages = [message.plain() for message in asked.messages]
        if asked.collections is not None:
            return await self._from_documents(request, caller, target, asked, messages[-1]["content"])
        chars = sum(len(message["content"]) for message in messages)
        ids = await encoded(target.engine.prompts.chat, messages, chars)
        options = {"prompt": ids, "adapter": target.adapter, "max_tokens": self._limit(target, len(ids), asked.limit)}
        wanted = TextRequest(
            route=CHAT,
            caller=caller,
            target=target,
            head=replies.Head("chat", asked.model, target.fingerprint),
            form=ChatForm(),
            read=len(ids),
            generations=_variants(asked, asked.alternatives, **options),
            text=str(messages),
        )
        return await answered(self.desk, request, wanted, asked)

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        caller = await self._asker(request)
        asked = parsed(CompletionRequest, await read_body(request, self.body_bytes))
        target = self._target(caller, asked.model)
        if asked.max_tokens == 0 and not asked.echo:
            raise Refused(400, "max_tokens: 0 writes nothing; give at least 1, or echo", param="max_tokens")
        prompts = [await _ids(target, prompt) for prompt in asked.prompts]
        most = 16 if asked.max_tokens is None else asked.max_tokens
        scored = {"echo": bool(asked.echo) and asked.logprobs is not None, "continues": True}
        options = {"adapter": target.adapter, "max_tokens": most, **scored}
        wanted = TextRequest(
            route=TEXT,
            caller=caller,
            target=target,
            head=replies.Head("completion", asked.model, target.fingerprint),
            form=TextForm(_echoes(target, asked)),
            read=sum(map(len, prompts)),
            generations=[one for ids in prompts for one in _variants(asked, asked.logprobs, prompt=ids, **options)],
            text=str(asked.prompt),
        )
        return await answered(self.desk, request, wanted, asked)

    async def embeddings(self, request: Request) -> Response:
        """POST /v1/embeddings."""
        caller = await self._asker(request)
        asked = parsed(EmbeddingRequest, await read_body(request, self.body_bytes))
        embedder = self._embedder(caller, asked.model)
        if asked.dimensions not in (None, embedder.dimensions):
            raise Refused(400, f"dimensions: this model has {embedder.dimensions}; leave it out", param="dimensions")
        chars = sum(map(len, asked.texts))
        most = await encoded(lambda texts: sum(map(embedder.count, texts)), asked.texts, chars)
        kept = str(asked.texts) if self.desk.access.keeps_text else None
        account_of = Asked(EMBED, asked.model, embedder.sha256, BASE, most, kept)
        async with accounted(self.desk, caller, account_of) as account:
            account.read = most
            vectors, tokens = await unless_gone(request, self._timed(account, embedder.embed(asked.texts)))
        return JSONResponse(replies.embeddings(asked.model, vectors, tokens, packed=asked.encoding_format == "base64"))

    async def _from_documents(
        self, request: Request, caller: Caller, target: Target, asked: ChatRequest, question: str
    ) -> Response:
        """An answer out of documents, with its citations. It is paid for as if the model had written it."""
        names = asked.collections or []
        organization, collections = readable(caller, names)
        documents = self.documents
        if documents is None:
            raise no_collection(names[0])
        if (asked.n or 1) != 1 or asked.logprobs or asked.response_format is not None or asked.stops:
            said = "such an answer is one text of whole quotations; leave n, logprobs, response_format and stop out"
            raise Refused(400, f"collections: {said}")
        if asked.messages[-1].role != "user":
            raise Refused(400, "collections: the last message is the question, and the user's", param="messages")
        base, adapter = target.engine.base_sha256, target.adapter
        read = await _length(target, question)
        kept = question if self.desk.access.keeps_text else None
        account_of = Asked(CHAT, target.alias, base, adapter, read + _CITED, kept)
        async with accounted(self.desk, caller, account_of) as account:
            account.read = read
            work = documents.answer(question, reader=caller.name, organization=organization, collections=collections)
            try:
                found = await unless_gone(request, self._timed(account, work))
            except PolicyRefusal:
                account.read = 0
                raise no_collection(names[0]) from None
            except StateError as error:  # its words are for the operator, and name folders of this machine
                log.error("documents of %s: %s", organization, error)
                raise Refused(
                    503, "these documents cannot be read now; the log of this server says why", kind=SERVER,
                    code="documents_unavailable", retry_after_s=30.0,
                ) from None  # fmt: skip
            account.text = f"{found.text}\n\n({replies.PROSE}) {found.prose}" if found.prose else found.text
            account.written = await _length(target, found.text + found.prose)
        head, usage = replies.Head("chat", asked.model, target.fingerprint), replies.usage(read, account.written)
        if asked.stream:
            return EventStream(_cited_chunks(head, found, usage if asked.wants_usage else None))
        choice = replies.Choice(0, [found.text], tokens=account.written, finish="stop")
        message = replies.chat_choice(choice, found.annotations, found.prose)
        return JSONResponse(head.document(head.whole_kind, [message], usage))

    async def _caller(self, request: Request) -> Caller:
        address = request.client.host if request.client else ""
        return await self.desk.access.caller(request.headers.get("authorization"), address)

    async def _asker(self, request: Request) -> Caller:
        """Who asks for work. It counts before its body is read: what is refused later has cost something too."""
        caller = await self._caller(request)
        self.desk.access.arrived(caller)
        return caller

    def _target(self, caller: Caller, alias: str) -> Target:
        """What is not there and what may not be used look the same."""
        target = self.catalogue.find(alias)
        if target is None or not caller.may_use(alias):
            raise _no_model(alias)
        return target

    def _embedder(self, caller: Caller, alias: str) -> Embedder:
        embedder = self.catalogue.embedders.get(alias)
        if embedder is None or not caller.may_use(alias):
            raise _no_model(alias)
        return embedder

    def _limit(self, target: Target, prompt: int, asked: int | None) -> int:
        """Tokens to write: what was asked, or this server's default as far as there is room."""
        return asked if asked is not None else max(1, min(self.tokens, target.engine.context - prompt))

    async def _timed(self, account: Account, work: Awaitable[Result]) -> Result:
        try:
            async with asyncio.timeout(account.seconds_left):
                return await work
        except TimeoutError:
            raise too_slow(self.desk.seconds) from None


async def _cited_chunks(
    head: replies.Head, found: Cited, usage: dict[str, Any] | None
) -> AsyncGenerator[dict[str, Any], None]:
    """The whole text at once: it was verified as a whole."""
    yield head.document(head.chunk_kind, [replies.chat_chunk(0, None)])
    chunk = replies.chat_chunk(0, Delta(found.text, finish="stop"))
    chunk["delta"]["annotations"] = list(found.annotations)
    if found.prose:
        chunk["delta"][replies.PROSE] = found.prose
    yield head.document(head.chunk_kind, [chunk])
    if usage is not None:
        yield head.document(head.chunk_kind, [], usage)


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
        return await encoded(target.engine.prompts.text, prompt, len(prompt))
    return tuple(prompt)


async def _length(target: Target, text: str) -> int:
    return len(await encoded(target.engine.prompts.text, text, len(text)))


def _echoes(target: Target, asked: CompletionRequest) -> Sequence[str]:
    """What stands before each text."""
    if not asked.echo:
        return [""] * (len(asked.prompts) * (asked.n or 1))
    shown = [one if isinstance(one, str) else target.engine.prompts.decode(one) for one in asked.prompts]
    return [text for text in shown for _ in range(asked.n or 1)]


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
