"""Protobuf in and out of the fleet port's handlers, and errors as Flower answers them.

What Flower's ProtobufTranslationMiddleware and http_error_translator do, by their own functions, in one layer of ASGI:
as two of Starlette's BaseHTTPMiddleware they begin a group of tasks and two streams for each request.
"""

from flwr.supercore.error import ApiErrorCode, FlowerError, http_error_translator
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES, ProtobufTranslationMiddleware
from google.protobuf.message import Message
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as Event


class Translation:
    """ASGI middleware: the request's message stands in its state for the handler, whose answer is sent as one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; what it raises before the answer begins is answered as Flower does."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def sending(event: Event) -> None:
            nonlocal begun
            begun = True
            await send(event)

        try:
            await self._translated(scope, receive, sending)
        except Exception as error:
            if begun:
                raise
            await _answer(error, scope, receive, send)

    async def _translated(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = PROTOBUF_REQUEST_TYPES.get((scope["method"], scope["path"]))
        if kind is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        ProtobufTranslationMiddleware._check_request_media_type(request)
        request.state.protobuf_request = ProtobufTranslationMiddleware._parse_request(await request.body(), kind)
        held = _Held(send)
        await self._app(scope, receive, held)
        if held.start is None:
            return  # an error, which was passed on as it came
        result = getattr(request.state, "protobuf_response", None)
        if not isinstance(result, Message):
            raise FlowerError(
                ApiErrorCode.INVALID_PROTOBUF_RESPONSE, f"the handler gave a {type(result).__name__}, and no message"
            )
        del request.state.protobuf_response
        answer = Response(result.SerializeToString(), held.start["status"], media_type=PROTOBUF_MEDIA_TYPE)
        of_body = (b"content-length", b"content-type")
        answer.headers.raw.extend(header for header in held.start["headers"] if header[0] not in of_body)
        await answer(scope, receive, send)


class _Held:
    """Sends an error at once, and holds back the empty answer that stands for a message."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._passes = False
        self.start: Event | None = None

    async def __call__(self, event: Event) -> None:
        if event["type"] == "http.response.start":
            self._passes = event["status"] >= 400
            self.start = None if self._passes else event
            if self._passes:
                _check_error(Headers(raw=event["headers"]).get("content-type", ""))
        if self._passes:
            await self._send(event)


def _check_error(content_type: str) -> None:
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise FlowerError(
            ApiErrorCode.INVALID_PROTOBUF_RESPONSE, f"an error of the content type {content_type!r} is not passed on"
        )


async def _answer(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    async def failed(_: Request) -> Response:
        raise error

    response = await http_error_translator(Request(scope, receive), failed)
    await response(scope, receive, send)
