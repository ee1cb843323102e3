"""Binds the node that a request speaks of to the key that signed its headers, behind filter and decoder.

Flower's NodeAuthMiddleware does the same with a query of its database and a second check of the signature, for each of
the dozen requests of a message: a fifth of what the coordinator computed in an empty round. The filter has checked the
signature, and the roster's nodes are known by their keys.

Guarantee: a request is handled only if its node id, or the key that it activates, is that of the roster's node whose
key signed its headers, at the moment when its body was complete. One that names neither is refused.
"""

from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER
from google.protobuf.message import Message
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from confide_server.fleet.flower.nodes import KnownNodes
from confide_server.fleet.flower.request_filter import Refused, answer, decoded


class Binding:
    """ASGI middleware, innermost."""

    def __init__(self, app: ASGIApp, nodes: KnownNodes) -> None:
        self._app = app
        self._nodes = nodes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401."""
        if scope["type"] == "http":
            try:
                self._check(scope)
            except Refused as refusal:
                await answer(send, refusal)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        public_key = decoded(dict(scope["headers"]), FLEET_HTTP_PUBLIC_KEY_HEADER)
        node = self._nodes.of_key(public_key)
        asked = getattr(Request(scope).state, "protobuf_request", None)
        if node is None or not isinstance(asked, Message) or not _speaks_of(asked, node.node_id, public_key):
            raise Refused(401, "the request does not speak of the node whose fleet key signed it")
        if not isinstance(asked, ActivateNodeRequest):
            self._nodes.heard(node.node_id)


def _speaks_of(asked: Message, node_id: int, public_key: bytes) -> bool:
    if isinstance(asked, ActivateNodeRequest):
        return bool(asked.public_key == public_key)
    fields = asked.DESCRIPTOR.fields_by_name
    if "node" in fields:
        return bool(asked.node.node_id == node_id)  # type: ignore[attr-defined]
    return "node_id" in fields and bool(asked.node_id == node_id)  # type: ignore[attr-defined]
