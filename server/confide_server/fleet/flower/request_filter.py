"""The outermost layer of the fleet port: what may be refused is refused before a body is read.

In this order, from the request line and headers alone: an unknown path (404), a key that the roster does not have, a
signature that does not hold, a clock that is off or headers that were used before (401), a stated length above the
path's limit (413). Then the body is read, counted, and handed on whole; one that turns out longer is refused (413).

Guarantee: someone without an admitted fleet key cannot make the coordinator hold more than a request's headers, and
headers that were overheard open nothing a second time.
"""

import asyncio
import base64
import binascii
import json
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from confide_server.fleet.flower.nodes import KnownNodes, Node

SMALL_BODY_BYTES = 1 << 20
REPORT_BODY_BYTES = 1 << 10
RUN_ENDS_BODY_BYTES = 1 << 14
OBJECT_BODY_BYTES = 8 << 20
"""Flower cuts arrays into chunks of 5 MiB; a small message's body is one object."""
PATH_LIMITS = {
    "/v1/fleet/activate-node": SMALL_BODY_BYTES,
    "/v1/fleet/deactivate-node": SMALL_BODY_BYTES,
    "/v1/fleet/send-node-heartbeat": SMALL_BODY_BYTES,
    "/v1/fleet/pull-messages": SMALL_BODY_BYTES,
    "/v1/fleet/push-messages": SMALL_BODY_BYTES,
    "/v1/fleet/pull-instruction": REPORT_BODY_BYTES,
    "/v1/fleet/push-reply": 2 * SMALL_BODY_BYTES,
    "/v1/fleet/pull-object": SMALL_BODY_BYTES,
    "/v1/fleet/push-object": OBJECT_BODY_BYTES,
    "/v1/fleet/confirm-message-received": SMALL_BODY_BYTES,
    "/v1/fleet/report-progress": REPORT_BODY_BYTES,
    "/v1/fleet/run-ends": RUN_ENDS_BODY_BYTES,
}
"""Everything that this port answers. Flower's other fleet routes (self-registration, code) are not offered."""

BODY_TIMEOUT_S = 120.0
BIG_BODY_BYTES = 256 * 1024
BIG_AT_ONCE = 4
BIG_AT_ONCE_PER_NODE = 2
REPLAY_WINDOW_S = 30.0
"""Headers this much older than a node's newest ones are refused; within it, each is remembered."""


class Refused(Exception):
    """An answer to give instead of passing the request on."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class Replays:
    """Remembers which signed headers were used. One key's timestamps may only move forward, give or take a window."""

    def __init__(self, start: float) -> None:
        self._start = start
        self._newest: dict[bytes, float] = {}
        self._used: dict[bytes, dict[tuple[str, int], float]] = {}

    def use(self, public_key: bytes, timestamp: str, signed_at: float, nonce: int) -> None:
        """Take these headers, or raise Refused when they are used already or too old to tell."""
        newest = self._newest.get(public_key, self._start)
        used = self._used.setdefault(public_key, {})
        # An ECDSA signature (r, s) can be turned into (r, -s) by anyone: r alone identifies it.
        if signed_at < newest - REPLAY_WINDOW_S or (timestamp, nonce) in used:
            raise Refused(401, "these signed headers were used before, or are too old to tell; sign the call again")
        used[timestamp, nonce] = signed_at
        if signed_at > newest:
            self._newest[public_key] = signed_at
        if len(used) % 512 == 0:
            floor = max(signed_at, newest) - REPLAY_WINDOW_S
            self._used[public_key] = {one: when for one, when in used.items() if when >= floor}


def decoded(headers: dict[bytes, bytes], name: str) -> bytes:
    """A base64 header's bytes. Raises Refused without one."""
    try:
        return base64.b64decode(headers[name.lower().encode()], validate=True)
    except (KeyError, binascii.Error, ValueError) as error:
        raise Refused(
            401, f"header {name} is missing or is not base64; this port answers admitted nodes only"
        ) from error


class RequestFilter:
    """ASGI middleware, outermost."""

    def __init__(self, app: ASGIApp, nodes: KnownNodes, clock: Callable[[], float] = time.time) -> None:
        self._app = app
        self._nodes = nodes
        self._clock = clock
        self._replays = Replays(clock())
        self._big = asyncio.Semaphore(BIG_AT_ONCE)
        self._big_of_node: dict[int, asyncio.Semaphore] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Judge, read, and pass on one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        try:
            limit = PATH_LIMITS.get(scope["path"])
            if limit is None or scope["method"] != "POST":
                raise Refused(404, "Not Found")
            headers = dict(scope["headers"])
            node = self._authenticate(headers)
            length = _stated_length(headers, limit)
            async with AsyncExitStack() as stack:
                # Few big bodies at a time, a node's share of them bounded: memory does not grow with the nodes.
                if scope["path"].endswith("/pull-object") or (length or limit) > BIG_BODY_BYTES:
                    own = self._big_of_node.setdefault(node.node_id, asyncio.Semaphore(BIG_AT_ONCE_PER_NODE))
                    await stack.enter_async_context(own)
                    await stack.enter_async_context(self._big)
                body = await _read(receive, limit)
                await self._app(scope, _replay(body, receive), send)
        except Refused as refusal:
            await answer(send, refusal)

    def _authenticate(self, headers: dict[bytes, bytes]) -> Node:
        node = self._nodes.of_key(decoded(headers, FLEET_HTTP_PUBLIC_KEY_HEADER))
        if node is None:
            raise Refused(
                401,
                "this fleet key is not that of an active node in the roster; has the node been admitted, or revoked?",
            )
        signature = decoded(headers, FLEET_HTTP_SIGNATURE_HEADER)
        try:
            timestamp = headers[TIMESTAMP_HEADER.encode()].decode("ascii")
            moment = datetime.fromisoformat(timestamp)
            if moment.tzinfo is None:
                raise ValueError("the timestamp has no time zone")
            nonce, _ = decode_dss_signature(signature)
            node.key.verify(signature, timestamp.encode(), ec.ECDSA(hashes.SHA256()))
        except (KeyError, ValueError, InvalidSignature) as error:
            raise Refused(401, "the timestamp is not signed by the fleet key of these headers") from error
        age = self._clock() - moment.timestamp()
        if not -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE:
            raise Refused(401, f"the signed timestamp is {age:.0f} s old; set the clocks of node and coordinator")
        self._replays.use(node.public_key, timestamp, moment.timestamp(), nonce)
        return node


def _stated_length(headers: dict[bytes, bytes], limit: int) -> int | None:
    text = headers.get(b"content-length")
    if text is None:
        return None
    if not text.isdigit() or int(text) > limit:
        raise Refused(413, f"a body of {text[:20]!r} bytes is announced; at most {limit} are read")
    return int(text)


async def _read(receive: Receive, limit: int) -> bytes:
    parts: list[bytes] = []
    total = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refused(400, "the connection was closed before the body was complete")
                part = message.get("body", b"")
                total += len(part)
                if total > limit:
                    raise Refused(413, f"the body is longer than {limit} bytes")
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError as error:
        raise Refused(408, f"the body did not arrive within {BODY_TIMEOUT_S:.0f} s") from error


def _replay(body: bytes, receive: Receive) -> Receive:
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


async def answer(send: Send, refusal: Refused) -> None:
    """Answer instead of passing the request on; the connection is closed."""
    body = json.dumps({"detail": refusal.detail}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
