"""An HTTP port's connections: counted before TLS begins, and bounded in time and size until a request is there.

In this order: the address's quota, TLS 1.3 within HANDSHAKE_TIMEOUT_S, a request's headers within HEADER_TIMEOUT_S and
MAX_HEADER_BYTES; then the application judges them. A peer that does not read its answer is dropped after
WRITE_TIMEOUT_S.
"""

import asyncio
import contextlib
import errno
import logging
import math
import socket
import ssl
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from confide_server.quota import HANDSHAKE_TIMEOUT_S, SAYING_EVERY_S, WRITE_TIMEOUT_S, Quota, Ticket

HEADER_TIMEOUT_S = 10.0
MAX_HEADER_BYTES = 16384
_BREATH_S = 0.1
PIECE_BYTES = 64 * 1024


class _Limit:
    """A moment at which a connection is dropped, unless it is called off."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, loop: asyncio.AbstractEventLoop, seconds: float, drop: Callable[[], None]) -> None:
        """From now on, if it has not begun already."""
        if self._timer is None:
            self._timer = loop.call_later(seconds, drop)

    def end(self) -> None:
        """What was waited for has come."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Pieces:
    """A transport that is given what is to be written piece by piece.

    TLS's outgoing buffer keeps the size of the biggest piece for as long as the connection lives: what was sent once to
    each of a thousand nodes would stay in memory a thousand times.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def write(self, data: bytes) -> None:
        """All of it, at once as far as the caller sees."""
        view = memoryview(data)
        for start in range(0, len(view), PIECE_BYTES):
            self._transport.write(bytes(view[start : start + PIECE_BYTES]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class BoundedProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # uvicorn chooses at import
    """HTTP/1.1 on one connection."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.ticket: Ticket | None = None
        self._headers, self._unread = _Limit(), _Limit()
        self._header_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:
        """TLS is set up: the first request's headers are awaited."""
        super().connection_made(_Pieces(transport))
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        """Bytes of headers or of a body. The parser makes a new cycle when a request's headers are complete."""
        before = self.cycle
        idle = before is None or before.response_complete
        super().data_received(data)
        if self.cycle is not before:
            self._header_bytes = 0
            self._headers.end()
        elif idle:
            self._header_bytes += len(data)
            self._await_headers()
            if self._header_bytes > MAX_HEADER_BYTES:
                self.transport.abort()

    def _await_headers(self) -> None:
        self._headers.begin(self.loop, HEADER_TIMEOUT_S, self.transport.abort)

    def pause_writing(self) -> None:
        """The peer does not read as quickly as it asks."""
        super().pause_writing()
        self._unread.begin(self.loop, WRITE_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        """It has read."""
        self._unread.end()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Its place is free."""
        self._headers.end()
        self._unread.end()
        if self.ticket is not None:
            self.ticket.release()
        super().connection_lost(exc)


class _Seldom(logging.Filter):
    """Warnings that anybody can bring about by what they send: each once in SAYING_EVERY_S, with how often it was."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._said: dict[str, tuple[float, int]] = {}
        """When, and how often it was kept back since. uvicorn has a handful of such texts."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is said now."""
        if record.levelno != logging.WARNING:
            return True
        with self._lock:
            said_at, kept_back = self._said.get(record.msg, (-math.inf, 0))
            now = time.monotonic()
            if now < said_at + SAYING_EVERY_S:
                self._said[record.msg] = said_at, kept_back + 1
                return False
            self._said[record.msg] = now, 0
        if kept_back:
            record.msg = f"{record.msg} ({kept_back} times more since this was last said)"
        return True


_SELDOM = _Seldom()


class BoundedServer(uvicorn.Server):
    """uvicorn with an accept loop of its own: uvicorn's would take, and shake hands with, whatever comes."""

    def __init__(self, config: uvicorn.Config, quota: Quota) -> None:
        config.http = BoundedProtocol
        logging.getLogger("uvicorn.error").addFilter(_SELDOM)
        super().__init__(config)
        self._quota = quota
        self._tasks: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on these sockets."""
        await super().startup(sockets=[])
        for listener in sockets or []:
            listener.setblocking(False)
            self._spawn(self._accept(listener))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, then end as uvicorn does."""
        for task in list(self._tasks):
            task.cancel()
        await super().shutdown(sockets)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listener)
            except OSError as error:
                if error.errno in {errno.EBADF, errno.EINVAL}:
                    return  # the listener was closed
                await asyncio.sleep(_BREATH_S)  # out of descriptors, or the peer is gone already
                continue
            ticket = self._quota.admit(str(address[0]))
            if ticket is None:
                connection.close()
            else:
                self._spawn(self._greet(connection, ticket))

    async def _greet(self, connection: socket.socket, ticket: Ticket) -> None:
        loop, context = asyncio.get_running_loop(), self.config.ssl
        protocol = BoundedProtocol(self.config, self.server_state, self.lifespan.state, loop)
        protocol.ticket = ticket
        limits = {} if context is None else {"ssl_handshake_timeout": HANDSHAKE_TIMEOUT_S}
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.connect_accepted_socket(lambda: protocol, connection, ssl=context, **limits)
        except (OSError, ssl.SSLError, asyncio.CancelledError, TimeoutError):
            # No TLS 1.3, no handshake in time, gone: nobody's request is lost.
            ticket.release()
            with contextlib.suppress(OSError):
                connection.close()
