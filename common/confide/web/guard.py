"""The outermost layer of a page's server: what is let in, and what every answer carries.

Guarantee: a page of another site can neither read an answer nor send a change in the user's name (host allow-list,
Fetch Metadata and Origin, beside the forms' own tokens), cannot show these pages in a frame, and no script, style,
image or connection is taken from anywhere but this server: there is no 'unsafe-inline' and no 'unsafe-eval'.
"""

from collections.abc import Iterable, MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES = 1 << 20
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    )
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}
_SAFE_METHODS = frozenset({"GET", "HEAD"})
_METHODS = _SAFE_METHODS | {"POST"}


class Guard:
    """Wraps the app. Refusals are plain text and say what to change."""

    def __init__(
        self, app: ASGIApp, *, hosts: Iterable[str], https: bool, max_body_bytes: int = MAX_BODY_BYTES
    ) -> None:
        """hosts: what a browser may have in its address line, each with its port where that is not the scheme's own."""
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)
        self._scheme = "https" if https else "http"
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let in, or refuse before anything of the request is looked at."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # uvicorn closes a websocket that nobody accepts

        async def finished(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._seal(message)
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await _refuse(*refusal, finished)
            return
        await self._app(scope, _bounded(receive, self._max_body_bytes), finished)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            allowed = ", ".join(sorted(self._hosts))
            return 421, f"this server answers as {allowed}; use one of these addresses, or add yours to its settings"
        if scope["method"] not in _METHODS:
            return 405, "only GET, HEAD and POST are answered"
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self._max_body_bytes:
            return 413, f"a request may have {self._max_body_bytes} bytes; send less"
        if scope["method"] not in _SAFE_METHODS and not self._same_origin(headers, hosts[0].lower()):
            return 403, "this change was asked for by a page of another site; open this server's own page and repeat it"
        return None

    def _same_origin(self, headers: Headers, host: str) -> bool:
        # Browsers send at least one of the two with a POST; programs with a bearer token send neither.
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site is not None and site not in {"same-origin", "none"}:
            return False
        return origin is None or origin.lower() == f"{self._scheme}://{host}"

    def _seal(self, message: MutableMapping[str, Any]) -> None:
        headers = MutableHeaders(raw=message["headers"])
        message["headers"] = headers.raw
        for name, value in HEADERS.items():
            headers[name] = value
        headers.setdefault("cache-control", "no-store")
        if self._scheme == "https":
            headers["strict-transport-security"] = "max-age=31536000"


def _bounded(receive: Receive, most: int) -> Receive:
    """A body without a length, in pieces, is bounded as well."""
    taken = 0

    async def bounded() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > most:
            raise HTTPException(413, f"a request may have {most} bytes; send less")
        return message

    return bounded


async def _refuse(status: int, why: str, send: Send) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": why.encode() + b"\n"})
