"""The console, put together: accounts, the coordinator, pages, and the guard around all of it."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from confide.errors import ConfideError, StateError
from confide.secrecy import private_files
from confide.web.assets import Assets
from confide.web.guard import Guard
from confide.web.serving import is_loopback
from fastapi import Depends, FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp

from confide_server.console.accounts.keys import SecurityKeys
from confide_server.console.accounts.limits import Limits
from confide_server.console.accounts.people import People
from confide_server.console.accounts.provider import OpenId
from confide_server.console.accounts.sessions import Sessions
from confide_server.console.accounts.store import AccountStore
from confide_server.console.accounts.tokens import Tokens
from confide_server.console.federation.live import Live
from confide_server.console.federation.reading import Coordinator, Reader, Unanswered
from confide_server.console.roles import Role
from confide_server.console.settings import KnowledgeSettings, Settings
from confide_server.console.web.access import SignInNeeded, admitted
from confide_server.console.web.frame import Frame
from confide_server.console.web.pages import (
    account,
    adjudication,
    api,
    audit,
    feedback,
    keys,
    knowledge,
    live,
    members,
    models,
    overview,
    people,
    privacy,
    provider,
    runs,
    sign_in,
    specification,
)

if TYPE_CHECKING:
    from confide_server.rag.reading_room import ReadingRoom

_LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
PAGES = (
    sign_in,
    account,
    keys,
    provider,
    people,
    overview,
    runs,
    specification,
    members,
    privacy,
    models,
    audit,
    feedback,
    adjudication,
    knowledge,
    live,
    api,
)


def addresses(settings: Settings, port: int) -> list[str]:
    """What a browser's address line may begin with; the first is told to people."""
    scheme, standard = ("https", 443) if settings.certificate else ("http", 80)
    suffix = "" if port == standard else f":{port}"
    return [f"{scheme}://{name}{suffix}" for name in settings.hosts or _LOOPBACK_NAMES]


def _reading_room(settings: KnowledgeSettings | None) -> "ReadingRoom | None":
    # What reads documents is large: a console that shows none does not load it.
    if settings is None:
        return None
    from confide_server.rag.reading_room import ReadingRoom

    reranker = Path(settings.reranker) if settings.reranker else None
    return ReadingRoom(Path(settings.library), Path(settings.embedder), reranker)


class Console:
    """Everything that pages need."""

    def __init__(self, folder: Path, settings: Settings, coordinator: Coordinator, *, issuer: str, port: int) -> None:
        """issuer: what a person's telephone shows beside its codes. port: on which browsers reach it."""
        private_files()
        self.settings, self.issuer, self.port = settings, issuer, port
        self.https = bool(settings.certificate)
        if not self.https and not is_loopback(settings.bind):
            raise StateError(
                f"{settings.bind} is not this machine alone, and passwords would cross a network in the open; give "
                "--certificate and --key, or --bind 127.0.0.1 behind a tunnel"
            )
        self.store = AccountStore(folder / "console.db")
        self.limits = Limits(self.store)
        self.people = People(self.store, self.limits)
        self.sessions = Sessions(self.store, self.people, idle_s=settings.idle_s, absolute_s=settings.absolute_s)
        self.tokens = Tokens(self.store, self.people)
        self.keys = SecurityKeys(self.store, issuer)
        self.provider = (
            None if settings.provider is None else OpenId(settings.provider, self.address + provider.CALLBACK)
        )
        self.feedback = feedback.Feedback(folder / "feedback")
        self.adjudication = adjudication.Adjudication(folder / "feedback")
        self.knowledge = _reading_room(settings.knowledge)
        self.assets = Assets()
        self.frame = Frame(self.assets.address)
        self.reader = Reader(coordinator)
        self.live = Live(self.reader)

    @property
    def address(self) -> str:
        """Under which people open it."""
        return addresses(self.settings, self.port)[0]

    def first_link(self) -> str:
        """While nobody has an account: a one-time link that makes an administrator; else empty."""
        if self.people.any():
            return ""
        return f"{self.address}/welcome?link={self.people.invite(Role.ADMINISTRATOR)}"

    def close(self) -> None:
        """Let go of the file and the stream."""
        self.live.stop()
        self.reader.close()
        if self.knowledge is not None:
            self.knowledge.close()
        self.store.close()

    def app(self) -> ASGIApp:
        """For uvicorn."""
        hosts = [address.partition("://")[2] for address in addresses(self.settings, self.port)]
        return Guard(self.inner_app(), hosts=hosts, https=self.https)

    def inner_app(self) -> FastAPI:
        """Without the guard: for tests of the routes' own checks."""

        @contextlib.asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[None]:
            self.live.start()
            yield
            self.live.stop()

        app = FastAPI(
            docs_url=None, redoc_url=None, openapi_url=None, dependencies=[Depends(admitted)], lifespan=lifespan
        )
        app.state.console = self
        app.get("/health", name="health")(_health)
        app.get("/static/{digest}/{name}", name="asset")(_asset)
        for page in PAGES:
            app.include_router(page.router)
        app.exception_handler(SignInNeeded)(_to_sign_in)
        app.exception_handler(HTTPException)(_refused)
        app.exception_handler(ConfideError)(_failed)
        return app


def _health() -> Response:
    return PlainTextResponse("ok\n")


def _asset(request: Request, digest: str, name: str) -> Response:
    answer: Response = request.app.state.console.assets.serve(request, digest, name)
    return answer


async def _to_sign_in(request: Request, error: Exception) -> Response:
    assert isinstance(error, SignInNeeded)  # noqa: S101 - registered for it alone
    if request.url.path.startswith("/api/"):
        return PlainTextResponse("sign in, or send `Authorization: Bearer TOKEN`\n", 401)
    return RedirectResponse(f"/sign-in?next={error.back}", 303)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it alone
    if request.url.path.startswith("/api/"):
        return PlainTextResponse(f"{error.detail}\n", error.status_code)
    frame: Frame = request.app.state.console.frame
    return frame.page(request, "message.html", status_code=error.status_code, said=str(error.detail))


async def _failed(request: Request, error: Exception) -> Response:
    frame: Frame = request.app.state.console.frame
    status = 503 if isinstance(error, Unanswered) else 404 if isinstance(error, StateError) else 403
    if request.url.path.startswith("/api/"):
        return PlainTextResponse(f"{error}\n", status)
    if isinstance(error, Unanswered):
        return frame.page(request, "unanswered.html", status_code=status, said=str(error))
    return frame.page(request, "message.html", status_code=status, said=str(error))
