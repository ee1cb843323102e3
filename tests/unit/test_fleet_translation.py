"""The fleet port's one layer for protobuf and errors answers what Flower's two answer."""

import asyncio
from typing import Annotated, Any

import pytest
from confide_server.fleet.flower.translation import Translation
from fastapi import APIRouter, Depends, FastAPI, HTTPException
from fastapi.responses import PlainTextResponse
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.supercore.error import http_error_translator
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.protobuf.routing import ProtobufRoute
from flwr.supercore.protobuf.translation import ProtobufTranslationMiddleware, get_protobuf_request
from google.protobuf.message import Message
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request

PATH = "/v1/fleet/send-node-heartbeat"
ANSWERED, FORBIDDEN, BROKEN = 30.0, 7.0, 8.0


async def _asked(request: Request) -> Message:
    return get_protobuf_request(request)


def _app(*layers: Middleware) -> FastAPI:
    router = APIRouter(prefix="/v1/fleet", route_class=ProtobufRoute)

    @router.post("/send-node-heartbeat")
    async def heartbeat(asked: Annotated[Message, Depends(_asked)]) -> SendNodeHeartbeatResponse:
        assert isinstance(asked, SendNodeHeartbeatRequest)
        if asked.heartbeat_interval == FORBIDDEN:
            raise HTTPException(403, "somebody else's", headers={"x-why": "key"})
        if asked.heartbeat_interval == BROKEN:
            raise ValueError("a secret of the machine")
        return SendNodeHeartbeatResponse(success=True)

    app = FastAPI(middleware=list(layers))
    app.include_router(router)
    app.add_api_route("/v1/fleet/get-run", lambda: PlainTextResponse("no message"), methods=["POST"])
    app.add_api_route("/v1/fleet/get-fab", lambda: PlainTextResponse("no JSON", 410), methods=["POST"])
    return app


async def _call(app: FastAPI, path: str, body: bytes, content_type: str) -> tuple[int, list[Any], bytes]:
    events: list[Any] = []
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "https",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", content_type.encode())],
        "client": ("node", 1),
        "server": ("coordinator", 2),
    }
    left = [body[:3], body[3:]]

    async def receive() -> Any:
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(event: Any) -> None:
        events.append(event)

    await app(scope, receive, send)
    start, *rest = events
    return start["status"], sorted(start["headers"]), b"".join(event.get("body", b"") for event in rest)


def _beat(interval: float) -> bytes:
    return SendNodeHeartbeatRequest(heartbeat_interval=interval).SerializeToString()


@pytest.mark.parametrize(
    ("status", "path", "body", "content_type"),
    [
        (200, PATH, _beat(ANSWERED), PROTOBUF_MEDIA_TYPE),
        (403, PATH, _beat(FORBIDDEN), PROTOBUF_MEDIA_TYPE),
        (500, PATH, _beat(BROKEN), PROTOBUF_MEDIA_TYPE),
        (415, PATH, _beat(ANSWERED), "text/plain"),
        (400, PATH, b"\xff\xff\xff\xff", PROTOBUF_MEDIA_TYPE),
        (404, "/v1/fleet/nothing", b"", PROTOBUF_MEDIA_TYPE),
        (500, "/v1/fleet/get-run", b"", PROTOBUF_MEDIA_TYPE),
        (500, "/v1/fleet/get-fab", b"", PROTOBUF_MEDIA_TYPE),
    ],
)
def test_every_answer_is_that_of_flowers_own_layers(status: int, path: str, body: bytes, content_type: str) -> None:
    flowers = _app(
        Middleware(BaseHTTPMiddleware, dispatch=http_error_translator), Middleware(ProtobufTranslationMiddleware)
    )
    answers = [asyncio.run(_call(app, path, body, content_type)) for app in (flowers, _app(Middleware(Translation)))]
    assert answers[0] == answers[1]
    assert answers[1][0] == status and b"secret" not in answers[1][2]


def test_an_answer_that_has_begun_is_not_begun_again() -> None:
    """What goes wrong in the middle of an answer is for the server, which breaks the connection."""

    async def half(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 503, "headers": [(b"content-type", b"application/json")]})
        raise RuntimeError("in the middle")

    events: list[Any] = []

    async def send(event: Any) -> None:
        events.append(event)

    async def receive() -> Any:
        return {"type": "http.request", "body": _beat(ANSWERED), "more_body": False}

    scope = {
        "type": "http",
        "method": "POST",
        "path": PATH,
        "headers": [(b"content-type", PROTOBUF_MEDIA_TYPE.encode())],
    }
    with pytest.raises(RuntimeError, match="in the middle"):
        asyncio.run(Translation(half)(scope, receive, send))
    assert [event["type"] for event in events] == ["http.response.start"]
