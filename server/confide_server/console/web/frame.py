"""What each page is shown in: navigation by role, the session's token for forms, how old the data is."""

import functools
import gzip
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

from confide.text import paragraph
from confide.web.pages import Pages
from fastapi import Request
from markupsafe import Markup
from starlette.responses import HTMLResponse

from confide_server.console.accounts.sessions import form_token
from confide_server.console.federation.reading import Freshness
from confide_server.console.federation.run_words import Cell
from confide_server.console.roles import RULES, Role
from confide_server.console.web.access import Visitor
from confide_server.console.words import TEXTS

_MOST_CELLS, _MOST_PARTS = 2048, 32
_PACKED = {"content-encoding": "gzip", "vary": "accept-encoding"}
PACKED_FROM_BYTES, PACKING_LEVEL = 8192, 4
FOLDER = Path(__file__).parent.parent
_NAVIGATION = (
    "overview", "runs", "members", "privacy", "models", "knowledge", "audit", "feedback", "people", "account",
)  # fmt: skip


class Frame:
    """Renders the console's pages."""

    def __init__(self, asset: Any) -> None:
        """asset: name -> address."""
        self.texts = TEXTS
        self.pages = Pages([FOLDER / "templates"], self.texts, asset=asset)
        self._parts: OrderedDict[Hashable, tuple[bytes, bytes]] = OrderedDict()
        """Plain and packed, by what they follow from."""
        self._making = threading.Lock()
        self.pages.environment.filters["cell"] = functools.lru_cache(_MOST_CELLS)(self._cell)

    def _cell(self, cell: Cell) -> Markup:
        # A run's grid has hundreds: each kind is made once.
        state = self.texts(f"cell.{cell.state}")
        title = paragraph(f"{state}: {cell.said}" if cell.said else state)
        mark = self.texts(f"mark.{cell.state}")
        return Markup('<span class="cell {}" title="{}">{}</span>').format(cell.state, title, mark)

    def page(
        self,
        request: Request,
        template: str,
        *,
        status_code: int = 200,
        fresh: Freshness | None = None,
        **given: object,
    ) -> HTMLResponse:
        """A page as an answer."""
        visitor: Visitor | None = getattr(request.state, "visitor", None)
        session = getattr(request.state, "session", None)
        body = self.pages.render(
            template,
            visitor=visitor,
            role=visitor.role if visitor is not None else None,
            may=lambda route: visitor is not None and RULES[route].allows(visitor.role),
            csrf=form_token(session) if session is not None else "",
            confirmed=session.confirmed if session is not None else False,
            issuer=request.app.state.console.issuer,
            provider=request.app.state.console.provider,
            navigation=navigation(visitor.role) if visitor is not None else (),
            path=request.url.path,
            fresh=fresh,
            now=time.time(),
            **given,
        )
        return _answer(request, body.encode(), status_code, packed=visitor is not None)

    def part(
        self, request: Request, template: str, same: Hashable, given: Callable[[], Mapping[str, object]]
    ) -> HTMLResponse:
        """A part of a page, rendered and packed once for all who are to be shown the same.

        same: what `given` follows from, and on whom it depends beside their role. The template knows no visitor and no
        session: what is in it is nobody's own.
        """
        role = request.state.visitor.role
        with self._making:  # one at a time: who waited finds it made
            made = self._parts.get((template, role, same))
            if made is None:
                text = self.pages.render(template, may=lambda route: RULES[route].allows(role), **given()).encode()
                made = self._parts[template, role, same] = (text, _packed(text))
                while len(self._parts) > _MOST_PARTS:
                    self._parts.popitem(last=False)
        return HTMLResponse(made[1], headers=_PACKED) if _takes_packed(request) else HTMLResponse(made[0])


def _answer(request: Request, body: bytes, status_code: int, *, packed: bool) -> HTMLResponse:
    # Secrets that are handed out once (a seed, an API token, a link) are on pages before sign-in, or answer a POST.
    if not (packed and _takes_packed(request) and len(body) >= PACKED_FROM_BYTES):
        return HTMLResponse(body, status_code)
    return HTMLResponse(_packed(body), status_code, _PACKED)


def _takes_packed(request: Request) -> bool:
    return request.method == "GET" and "gzip" in request.headers.get("accept-encoding", "")


def _packed(body: bytes) -> bytes:
    return gzip.compress(body, PACKING_LEVEL, mtime=0)


def navigation(role: Role) -> tuple[str, ...]:
    """The pages that this role may open, by route name."""
    return tuple(name for name in _NAVIGATION if name in RULES and RULES[name].allows(role))
