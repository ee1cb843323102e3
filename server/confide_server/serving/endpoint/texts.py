"""A request for texts that a model writes: whole, or as they come, accounted alike."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from confide.errors import ConfideError
from fastapi import Request
from starlette.responses import JSONResponse, Response

from confide_server.serving.access import Asked, Caller
from confide_server.serving.catalogue import Target
from confide_server.serving.endpoint import replies
from confide_server.serving.endpoint.accounting import Account, Desk, accounted, begun
from confide_server.serving.endpoint.answers import Answer, Part
from confide_server.serving.endpoint.http import EventStream, Gone, unless_gone
from confide_server.serving.endpoint.wire import Sampling
from confide_server.serving.failures import SERVER, Refused, as_refused
from confide_server.serving.port import Delta, Generation

log = logging.getLogger(__name__)

_FIRST_PART_S = 10.0
"""So long a stream waits for its first part before it says 200: what is refused by then has a status of its own."""


class ChatForm:
    """Answers of the assistant."""

    def first(self, index: int) -> dict[str, Any] | None:
        """What a stream begins with."""
        return replies.chat_chunk(index, None)

    def part(self, index: int, delta: Delta) -> dict[str, Any]:
        """A part of a stream."""
        return replies.chat_chunk(index, delta)

    def whole(self, choice: replies.Choice) -> dict[str, Any]:
        """A finished answer."""
        return replies.chat_choice(choice)


class TextForm:
    """Texts that go on. echoes: the prompt of each, where it was asked for."""

    def __init__(self, echoes: Sequence[str]) -> None:
        self._echoes = echoes
        self._ends = [0] * len(echoes)
        """Characters of the tokens that a stream has named, by text."""

    def first(self, index: int) -> dict[str, Any] | None:
        """What a stream begins with: the prompt, if anything."""
        echo = self._echoes[index]
        return replies.text_chunk(index, Delta(echo)) if echo else None

    def part(self, index: int, delta: Delta) -> dict[str, Any]:
        """A part of a stream."""
        begin = self._ends[index]
        self._ends[index] += sum(len(one.text) for one in delta.logprobs)
        return replies.text_chunk(index, delta, begin)

    def whole(self, choice: replies.Choice) -> dict[str, Any]:
        """A finished text."""
        return replies.text_choice(choice, self._echoes[choice.index])


Form = ChatForm | TextForm


@dataclass(frozen=True, kw_only=True)
class TextRequest:
    """What was asked, in the model's terms. read: tokens of all prompts. text: what is kept of them, if anything."""

    route: str
    caller: Caller
    target: Target
    head: replies.Head
    form: Form
    read: int
    generations: Sequence[Generation]
    text: str

    def asked(self, *, keep_text: bool) -> Asked:
        """As it is accounted: read and written at most."""
        most = self.read + sum(one.max_tokens for one in self.generations)
        kept = self.text if keep_text else None
        base, adapter = self.target.engine.base_sha256, self.target.adapter
        return Asked(self.route, self.target.alias, base, adapter, most, kept)


async def answered(desk: Desk, request: Request, wanted: TextRequest, sampling: Sampling) -> Response:
    """The answer, in the way that was asked for. Raises Refused, Gone."""
    if sampling.stream:
        return await _streamed(desk, request, wanted, sampling)
    return await _whole(desk, request, wanted)


async def _whole(desk: Desk, request: Request, wanted: TextRequest) -> Response:
    answer = Answer(wanted.target.engine, wanted.generations)
    asked = wanted.asked(keep_text=desk.access.keeps_text)
    async with accounted(desk, wanted.caller, asked) as account:
        try:
            async with asyncio.timeout(desk.seconds):
                await unless_gone(request, answer.whole())
        except TimeoutError:
            raise too_slow(desk.seconds) from None
        finally:
            _note(account, wanted, answer)
    choices = [wanted.form.whole(choice) for choice in answer.choices]
    return JSONResponse(wanted.head.document(wanted.head.whole_kind, choices, _usage(account)))


async def _streamed(desk: Desk, request: Request, wanted: TextRequest, sampling: Sampling) -> Response:
    """What is refused before anything was written is raised, and has its own status."""
    account = await begun(desk, wanted.caller, wanted.asked(keep_text=desk.access.keeps_text))
    answer = Answer(wanted.target.engine, wanted.generations)
    parts = answer.parts()
    first: asyncio.Future[Part | None] = asyncio.ensure_future(anext(parts, None))
    try:
        await unless_gone(request, _briefly(first))
        if first.done():
            first.result()
    except BaseException as error:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await parts.aclose()
        _note(account, wanted, answer)
        account.settle_after(error)
        raise
    stream = _Stream(desk, wanted, sampling, account, answer, first, parts)
    return EventStream(stream.documents(), stream.close)


@dataclass(frozen=True)
class _Stream:
    """Chunks of an answer."""

    desk: Desk
    wanted: TextRequest
    sampling: Sampling
    account: Account
    answer: Answer
    first: "asyncio.Future[Part | None]"
    parts: AsyncGenerator[Part, None]

    async def documents(self) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks; an error as OpenAI's clients understand it, in place of the rest."""
        ended: BaseException | None = None
        try:
            async with aclosing(self.parts):
                async for choice in self._choices():
                    yield self._chunk([choice])
            if self.sampling.wants_usage:
                yield self.wanted.head.document(self.wanted.head.chunk_kind, [], self._usage())
        except (GeneratorExit, asyncio.CancelledError) as error:
            ended = error
            raise
        except Exception as error:
            ended = error
            yield self._failure(error).document()
        finally:
            self._settle(ended)

    async def close(self) -> None:
        """End it; also where nobody ever asked for its first chunk, so that `documents` never began."""
        self.first.cancel()
        await asyncio.gather(self.first, return_exceptions=True)
        await self.parts.aclose()
        self._settle(Gone())

    def _settle(self, ended: BaseException | None) -> None:
        self.first.cancel()
        _note(self.account, self.wanted, self.answer)
        if ended is None:
            self.account.settle("done")
        else:
            self.account.settle_after(ended)

    async def _choices(self) -> AsyncGenerator[dict[str, Any], None]:
        form = self.wanted.form
        for choice in self.answer.choices:
            opening = form.first(choice.index)
            if opening is not None:
                yield opening
        part = await self._in_time(self.first)
        while part is not None:
            index, delta = part
            if delta.text or delta.logprobs or delta.finish is not None or self.sampling.wants_usage_throughout:
                yield form.part(index, delta)
            part = await self._in_time(anext(self.parts, None))

    async def _in_time(self, coming: Awaitable[Part | None]) -> Part | None:
        """Raises TimeoutError once the request's time is over.

        Each part has a timeout of its own: one around all of them would belong to the task that asked for the first
        chunk, and every chunk is asked for by another.
        """
        async with asyncio.timeout(self.account.seconds_left):
            return await coming

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        document = self.wanted.head.document(self.wanted.head.chunk_kind, choices)
        if self.sampling.wants_usage_throughout:
            return {**document, "usage": self._usage()}
        return {**document, "usage": None} if self.sampling.wants_usage else document

    def _usage(self) -> dict[str, Any]:
        _note(self.account, self.wanted, self.answer)
        return _usage(self.account)

    def _failure(self, error: Exception) -> Refused:
        if isinstance(error, TimeoutError):
            return too_slow(self.desk.seconds)
        if not isinstance(error, ConfideError):
            log.error("a stream failed", exc_info=error)
        return as_refused(error)


def _note(account: Account, wanted: TextRequest, answer: Answer) -> None:
    account.read, account.written, account.text = wanted.read, answer.tokens, answer.text


def _usage(account: Account) -> dict[str, Any]:
    return replies.usage(account.read, account.written)


async def _briefly(first: "asyncio.Future[Part | None]") -> None:
    await asyncio.wait({first}, timeout=_FIRST_PART_S)


def too_slow(seconds: float) -> Refused:
    """A request that took too long."""
    said = f"the answer took longer than {seconds:g} s and was stopped; ask for fewer tokens"
    return Refused(504, said, kind=SERVER, code="timeout")
