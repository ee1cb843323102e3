"""HTTP around the routes: bodies within limits, peers that leave, server-sent events."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from confide_server.serving.failures import Refused

BODY_TIMEOUT_S = 30.0
"""From a request's headers to the end of its body."""
KEEP_ALIVE_S = 15.0
"""A stream that has nothing to say says that it lives."""
Result = TypeVar("Result")


class Gone(Exception):
    """Who asked has hung up."""


async def read_body(request: Request, most: int) -> bytes:
    """The whole body. Raises Refused: 415, 413 over `most` bytes, 408 when it does not come; Gone."""
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        # A page in somebody's browser can send other types to this machine unasked.
        raise Refused(415, "send the body as Content-Type: application/json")
    said = request.headers.get("content-length", "")
    if said.isdigit() and int(said) > most:
        raise _too_large(most)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for piece in request.stream():
                body += piece
                if len(body) > most:
                    raise _too_large(most)
    except TimeoutError:
        raise Refused(408, f"the body did not come within {BODY_TIMEOUT_S:g} s; send it again") from None
    except ClientDisconnect:
        raise Gone from None
    return bytes(body)


def _too_large(most: int) -> Refused:
    return Refused(413, f"the body is larger than {most} bytes, which is the most that is read; shorten it")


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of work that stops when who asked hangs up. Raises Gone then. The body must have been read."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_hung_up(request.receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        for one in (watcher, task):
            one.cancel()
        await asyncio.gather(watcher, task, return_exceptions=True)


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events from a generator of documents, which is closed when the peer leaves.

    The generator yields JSON documents; "[DONE]" follows the last. It must not raise but for cancellation. close:
    called at the end in any case, also where the generator never began: then closing it runs nothing of its own.
    """

    def __init__(
        self, documents: AsyncGenerator[dict[str, Any], None], close: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        super().__init__(
            media_type="text/event-stream", headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )
        self._documents, self._close = documents, close
        with contextlib.suppress(KeyError):
            del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the end, or until the peer has gone."""
        sending = asyncio.ensure_future(self._send(send))
        watcher = asyncio.ensure_future(_hung_up(receive))
        try:
            await asyncio.wait({sending, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            for one in (watcher, sending):
                one.cancel()
            await asyncio.gather(watcher, sending, return_exceptions=True)
            await self._documents.aclose()
            if self._close is not None:
                await self._close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        upcoming = asyncio.ensure_future(anext(self._documents, None))
        try:
            while True:
                done, _ = await asyncio.wait({upcoming}, timeout=KEEP_ALIVE_S)
                if not done:
                    await _piece(send, b": still working\n\n")
                    continue
                document = upcoming.result()
                if document is None:
                    break
                await _piece(send, b"data: " + _json(document) + b"\n\n")
                upcoming = asyncio.ensure_future(anext(self._documents, None))
        finally:
            upcoming.cancel()
            await asyncio.gather(upcoming, return_exceptions=True)
        await _piece(send, b"data: [DONE]\n\n")
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _piece(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
