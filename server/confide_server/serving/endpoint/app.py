"""The endpoint as an ASGI application: OpenAI's routes over engines, keys and limits.

app = build_app(Parts(catalogue, OpenAccess(), Limits()))
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from confide.errors import ConfideError
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from confide_server.serving.access import Access
from confide_server.serving.catalogue import Catalogue
from confide_server.serving.documents import AskedDocuments, Documents
from confide_server.serving.endpoint.accounting import Desk
from confide_server.serving.endpoint.http import Gone
from confide_server.serving.endpoint.metrics import Metrics
from confide_server.serving.endpoint.routes import CHAT, EMBED, TEXT, Routes
from confide_server.serving.failures import DENIED, Refused, as_refused

log = logging.getLogger(__name__)

Route = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Limits:
    """Bounds of one request.

    body_bytes: of the body. tokens: written where the request names none. seconds: from its beginning to its end.
    hosts: names under which this server is asked; others are refused, so that no web page reaches it by a name of its
    own (DNS rebinding). Empty: any.
    """

    body_bytes: int = 1 << 20
    tokens: int = 512
    seconds: float = 600.0
    hosts: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Parts:
    """What the routes are put together from."""

    catalogue: Catalogue
    access: Access
    limits: Limits = field(default_factory=Limits)
    documents: Documents | None = None


def build_app(parts: Parts) -> FastAPI:
    """The ASGI application, without documentation routes."""
    app = FastAPI(title="Confide", openapi_url=None, docs_url=None, redoc_url=None)
    limits = parts.limits
    desk = Desk(parts.access, Metrics(parts.catalogue), limits.seconds)
    documents = None if parts.documents is None else AskedDocuments(parts.documents)
    routes = Routes(parts.catalogue, desk, documents, limits.body_bytes, limits.tokens)
    for method, path, route in (
        ("POST", CHAT, routes.chat),
        ("POST", TEXT, routes.completions),
        ("POST", EMBED, routes.embeddings),
        ("GET", "/v1/models", routes.models),
        ("GET", "/v1/models/{model:path}", routes.model),
        ("GET", "/metrics", routes.metrics),
        ("GET", "/healthz", routes.health),
    ):
        app.add_api_route(path, _told(route, limits.hosts), methods=[method], response_model=None)
    app.add_exception_handler(HTTPException, _no_route)
    return app


def _told(route: Route, hosts: frozenset[str]) -> Route:
    """The route, its failures told in OpenAI's form."""

    async def told(request: Request) -> Response:
        try:
            _check_host(request, hosts)
            return await route(request)
        except Gone:
            return Response(status_code=499)
        except Exception as error:
            if not isinstance(error, ConfideError):
                log.exception("%s failed", request.url.path)
            return as_refused(error).response()

    return told


def _check_host(request: Request, hosts: frozenset[str]) -> None:
    named = request.headers.get("host", "").rsplit(":", 1)[0].strip("[]").lower()
    if hosts and named not in hosts:
        raise Refused(421, f"this server is not called {named!r}; start it with --host {named} if it is", kind=DENIED)


async def _no_route(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    said = f"{request.method} {request.url.path} is not served here; see docs/serving.md for what is"
    return Refused(status, said, code="unknown_url").response()
