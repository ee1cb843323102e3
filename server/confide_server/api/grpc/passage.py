"""The control port's front: gRPC gives no say in whom it accepts, so it listens on loopback and this hands bytes on.

Decided here, before gRPC hears of a connection: the address's quota, and that the first bytes are a ClientHello that
offers TLS 1.3 (gRPC would speak 1.2 with who offers nothing better), within HANDSHAKE_TIMEOUT_S. TLS itself, and with
it who calls, stays between the caller and gRPC: nothing is decrypted here. A peer that does not read is dropped.
"""

import asyncio
import contextlib
import errno
import socket
import threading

from confide_server.quota import HANDSHAKE_TIMEOUT_S, WRITE_TIMEOUT_S, Quota, Ticket

CHUNK_BYTES = 1 << 16
MAX_HELLO_BYTES = 16384
_TLS_1_3 = b"\x03\x04"
_SUPPORTED_VERSIONS = 43
_BREATH_S = 0.1


def offers_tls13(hello: bytes) -> bool:
    """Whether a TLS record's ClientHello offers version 1.3 (RFC 8446, 4.1.2 and 4.2.1). Anything else is False."""
    try:
        if hello[0] != 0x16 or hello[5] != 1:
            return False
        at = 5 + 4 + 2 + 32  # record header, handshake header, legacy version, random
        at += 1 + hello[at]  # session id
        at += 2 + int.from_bytes(hello[at : at + 2], "big")  # cipher suites
        at += 1 + hello[at]  # compression methods
        end = at + 2 + int.from_bytes(hello[at : at + 2], "big")
        at += 2
        while at + 4 <= min(end, len(hello)):
            kind, length = (int.from_bytes(hello[i : i + 2], "big") for i in (at, at + 2))
            if kind == _SUPPORTED_VERSIONS:
                offered = hello[at + 5 : at + 5 + hello[at + 4]]
                return _TLS_1_3 in (offered[i : i + 2] for i in range(0, len(offered), 2))
            at += 4 + length
    except IndexError:
        return False
    return False


class Passage:
    """A listening socket whose connections go on to `backend` (host, port) on this machine."""

    def __init__(self, listener: socket.socket, backend: tuple[str, int], quota: Quota) -> None:
        self._listener = listener
        self._backend = backend
        self._quota = quota
        self._loop = asyncio.new_event_loop()
        self._open: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, name="control-passage", daemon=True)

    def start(self) -> int:
        """Accept connections; returns the port."""
        self._listener.setblocking(False)
        self._thread.start()
        return int(self._listener.getsockname()[1])

    def stop(self) -> None:
        """Close the listener and every connection. Idempotent."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._cancel)
            self._thread.join()
        self._listener.close()

    def _cancel(self) -> None:
        for task in asyncio.all_tasks(self._loop):
            task.cancel()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._accept())
        except asyncio.CancelledError:
            pass
        finally:
            if self._open:
                self._loop.run_until_complete(asyncio.wait(self._open))
            self._loop.close()

    async def _accept(self) -> None:
        while True:
            try:
                connection, address = await self._loop.sock_accept(self._listener)
            except OSError as error:
                if error.errno in {errno.EBADF, errno.EINVAL}:
                    return
                await asyncio.sleep(_BREATH_S)
                continue
            ticket = self._quota.admit(str(address[0]))
            if ticket is None:
                connection.close()
                continue
            task = self._loop.create_task(self._pass(connection, ticket))
            self._open.add(task)
            task.add_done_callback(self._open.discard)

    async def _pass(self, connection: socket.socket, ticket: Ticket) -> None:
        inner = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            with contextlib.suppress(OSError, TimeoutError, asyncio.CancelledError):
                for each in (connection, inner):
                    each.setblocking(False)
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                    hello = await self._hello(connection)
                if not offers_tls13(hello):
                    return
                await self._loop.sock_connect(inner, self._backend)
                await self._loop.sock_sendall(inner, hello)
                await self._both(connection, inner)
        finally:
            inner.close()
            connection.close()
            ticket.release()

    async def _hello(self, connection: socket.socket) -> bytes:
        """The first TLS record, whole; what is no TLS or too long comes back as far as it was read."""
        data = b""
        while len(data) < 5 or len(data) < min(MAX_HELLO_BYTES, 5 + int.from_bytes(data[3:5], "big")):
            part = await self._loop.sock_recv(connection, CHUNK_BYTES)
            if not part:
                return b""
            data += part
        return data

    async def _both(self, connection: socket.socket, inner: socket.socket) -> None:
        """Until one side closes; what it sent before is handed on."""
        ways = [self._loop.create_task(self._one_way(*way)) for way in ((connection, inner), (inner, connection))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _one_way(self, source: socket.socket, target: socket.socket) -> None:
        while part := await self._loop.sock_recv(source, CHUNK_BYTES):
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await self._loop.sock_sendall(target, part)
