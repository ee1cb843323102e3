"""Routes of the node's page. Guarantee: loopback only, and only for the browser that opened the one-time link."""

import getpass
import hmac
import logging
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

from confide.errors import ConfideError, IdentityError
from confide.text import line
from confide.web.assets import Assets
from confide.web.guard import Guard
from confide.web.pages import Pages
from confide.web.secrets import OneTimeLink, digest, new_secret
from confide.web.serving import listening, server
from confide.web.texts import Texts
from fastapi import Depends, FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp

from confide_client.page import findings, words
from confide_client.page.spending import Spending
from confide_client.policy.policy import load_policy
from confide_client.state import StateFolder

FOLDER = Path(__file__).parent
COOKIE = "confide-node"
IDLE_S = 3600.0
PUBLIC = frozenset({"asset", "open"})
log = logging.getLogger(__name__)


class NodePage:
    """One node's page, for one browser."""

    def __init__(self, state: StateFolder, port: int) -> None:
        self.state, self.port = state, port
        self.link = OneTimeLink()
        self.assets = Assets()
        self.texts = Texts.read(FOLDER / "texts.en.toml")
        self._pages = Pages([FOLDER / "templates"], self.texts, asset=self.assets.address, now=time.time)
        self._plans = findings.Plans(state)
        self._spending = Spending(state)
        self._session: bytes | None = None
        self._seen = 0.0
        self.csrf = ""

    @property
    def address(self) -> str:
        """The one-time link."""
        return f"http://127.0.0.1:{self.port}/open?link={self.link.handed}"

    def app(self) -> ASGIApp:
        """For uvicorn."""
        hosts = [f"{name}:{self.port}" for name in ("127.0.0.1", "localhost", "[::1]")]
        return Guard(self._routes(), hosts=hosts, https=False)

    def _routes(self) -> FastAPI:
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, dependencies=[Depends(self.admitted)])
        app.get("/static/{digest}/{name}", name="asset")(self.assets.serve)
        app.get("/open", name="open")(self.open)
        app.get("/", name="node")(self.node)
        app.get("/spent/series", name="spent_series")(self.spent_series)
        app.post("/runs/{run_id}/approve", name="approve")(self.approve)
        app.post("/runs/{run_id}/refuse", name="refuse")(self.refuse)
        app.post("/pause", name="pause")(self.pause)
        app.post("/resume", name="resume")(self.resume)
        app.post("/policy/try", name="policy_try")(self.policy_try)
        app.exception_handler(HTTPException)(self.refused)
        app.exception_handler(ConfideError)(self.failed)
        return app

    # --- who may open it

    async def admitted(self, request: Request) -> None:
        """Runs before every page."""
        if request.scope["route"].name in PUBLIC:
            return
        given = digest(request.cookies.get(COOKIE, ""))
        known = self._session is not None and time.monotonic() - self._seen < IDLE_S
        if not known or not hmac.compare_digest(self._session or b"", given):
            raise HTTPException(403, self.texts("page.closed"))
        self._seen = time.monotonic()
        if request.method == "POST":
            form = await request.form(max_files=0, max_fields=20)
            request.state.form = {name: value for name, value in form.items() if isinstance(value, str)}
            if not hmac.compare_digest(self.csrf.encode(), request.state.form.get("csrf", "").encode()):
                raise HTTPException(403, self.texts("page.foreign_form"))

    def open(self, request: Request, link: str = "") -> Response:
        """The one-time link: the first browser gets the page."""
        if not self.link.open(link):
            raise HTTPException(403, self.texts("page.closed"))
        handed, self._session = new_secret()
        self.csrf, self._seen = new_secret()[0], time.monotonic()
        answer = RedirectResponse("/", 303)
        answer.set_cookie(COOKIE, handed, httponly=True, samesite="strict", path="/")
        return answer

    # --- pages

    def node(self, request: Request) -> Response:
        return self._page()

    def _page(self, *, wrong: str = "", done: str = "", tried: str | None = None, verdicts: Any = None) -> Response:
        status, pause = findings.status_of(self.state), self.state.pause()
        waiting = [run for run in status["runs"] if run.get("status") == "waiting"]
        policy = None if "error" in status["policy"] else load_policy(self.state.policy)
        try:
            spent, ledger_trouble = self._spending.groups(), ""
        except ConfideError as error:
            spent, ledger_trouble = [], str(error)
        newest = status["audit"]["newest"]
        body = self._pages.render(
            "node.html",
            status=status,
            membership=status["membership"],
            head=words.headline(status, waiting, pause),
            waiting=[(run, self._plans.of(run["run"])) for run in waiting],
            answered=[run for run in reversed(status["runs"]) if run.get("status") != "waiting"],
            sent=[entry for entry in reversed(newest) if entry["event"] == "sent"][: findings.SENT_SHOWN],
            entries=[(entry, words.audit_words(entry)) for entry in reversed(newest)][:100],
            policy_words=words.policy_words(policy) if policy is not None else [],
            policy_text=tried if tried is not None else self._policy_text(),
            verdicts=verdicts,
            spent=spent,
            ledger_trouble=ledger_trouble,
            ledger_stamp=self._spending.stamp,
            run_names={run["run"]: run.get("name", "") for run in status["runs"]},
            pause=pause,
            csrf=self.csrf,
            wrong=wrong,
            done=done,
        )
        return HTMLResponse(body, 403 if wrong else 200)

    def spent_series(self, request: Request, group: str = "") -> Response:
        """One group's epsilon over time, for drawing."""
        found = next((one for one in self._spending.groups() or () if one.group == group), None)
        if found is None:
            return JSONResponse({"time": []})
        names = self.texts("spent.spent"), self.texts("spent.held"), self.texts("spent.budget")
        return JSONResponse(found.columns(names, time.time()))

    def _policy_text(self) -> str:
        path = self.state.policy
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    # --- acts

    def approve(self, request: Request, run_id: str) -> Response:
        self._same_offer(request, run_id)
        fine, said = findings.command(["node", "approve", str(self.state.root), run_id])
        return self._page(done=said) if fine else self._page(wrong=said)

    def refuse(self, request: Request, run_id: str) -> Response:
        self._same_offer(request, run_id)
        reason = line(request.state.form.get("reason", ""), 300)
        fine, said = findings.command(["node", "refuse", str(self.state.root), run_id, "--reason", reason])
        return self._page(done=said) if fine else self._page(wrong=said)

    def _same_offer(self, request: Request, run_id: str) -> None:
        """What is answered is what was shown. Raises IdentityError."""
        known = next((run for run in findings.status_of(self.state)["runs"] if run["run"] == run_id), None)
        if known is None or known.get("offer_sha256") != request.state.form.get("offer"):
            raise IdentityError("what was offered is not what this page showed; look again before you answer")

    def pause(self, request: Request) -> Response:
        findings.pause(self.state, getpass.getuser(), line(request.state.form.get("reason", ""), 300))
        return RedirectResponse("/", 303)

    def resume(self, request: Request) -> Response:
        findings.resume(self.state)
        return RedirectResponse("/", 303)

    def policy_try(self, request: Request) -> Response:
        text = request.state.form.get("policy", "").replace("\r\n", "\n")
        try:
            return self._page(tried=text, verdicts=findings.dry_run(self.state, text))
        except ConfideError as error:
            return self._page(tried=text, wrong=str(error))

    async def refused(self, request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 403
        return HTMLResponse(self._pages.render("closed.html", said=str(getattr(error, "detail", error))), status)

    async def failed(self, request: Request, error: Exception) -> Response:
        return HTMLResponse(self._pages.render("closed.html", said=str(error)), 403)


def serve(state: StateFolder, port: int, say: Any) -> None:
    """Until SIGTERM or Ctrl-C. say: prints a line."""
    with listening("127.0.0.1", port) as listener:
        page = NodePage(state, listener.getsockname()[1])
        say(f"open once, within 15 minutes, on this machine: {page.address}")
        web = server(page.app())

        def on_signal(number: int, frame: FrameType | None) -> None:
            web.should_exit = True

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, on_signal)
        web.run(sockets=[listener])
