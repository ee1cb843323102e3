"""Every request goes through here before its page runs: who asks, whether the table of roles lets them, and whether a
change comes from a page of their own session.

Guarantee: a route that the table does not name answers nobody; a role that it does not name for a route is refused
before anything of the request's content is looked at; a change without the session's own token changes nothing.
"""

from dataclasses import dataclass
from urllib.parse import quote

from confide.errors import IdentityError
from fastapi import Request
from starlette.exceptions import HTTPException

from confide_server.console.accounts.people import Person
from confide_server.console.accounts.sessions import Session, check_csrf
from confide_server.console.roles import RULES, Role, Rule

MAX_FIELDS = 100


class SignInNeeded(Exception):
    """Sent to the sign-in page, which leads back."""

    def __init__(self, back: str) -> None:
        super().__init__(back)
        self.back = back


@dataclass(frozen=True)
class Visitor:
    """Who asks, once they may."""

    person: Person
    session: Session | None
    """None for a program with a token."""

    @property
    def role(self) -> Role:
        """What they may is in roles.RULES."""
        return self.person.role


def client_address(request: Request) -> str:
    """Where a request comes from, as the socket says: no header is believed."""
    return request.client.host if request.client is not None else "unknown"


def cookie_name(request: Request) -> str:
    """With TLS a name that browsers keep from being set by anybody else."""
    return "__Host-confide" if request.app.state.console.https else "confide-console"


async def admitted(request: Request) -> None:
    """Runs before every page. Leaves `request.state.visitor` and, of a change, `request.state.form`."""
    route = request.scope.get("route")
    rule = RULES.get(getattr(route, "name", ""))
    if rule is None:
        raise HTTPException(403, "nobody may open this address")
    request.state.visitor = None
    session = _session(request)
    if request.method == "POST":
        request.state.form = await _fields(request)
    if rule.public:
        request.state.session = session
        return
    visitor = _visitor(request, rule, session)
    if not rule.allows(visitor.role):
        raise HTTPException(403, f"this is not for the role {visitor.role.value}")
    if request.method == "POST":
        _check_change(request, visitor)
    request.state.visitor = visitor
    request.state.session = visitor.session


def _session(request: Request) -> Session | None:
    cookie = request.cookies.get(cookie_name(request))
    found: Session | None = request.app.state.console.sessions.find(cookie) if cookie else None
    return found


def _visitor(request: Request, rule: Rule, session: Session | None) -> Visitor:
    bearer = request.headers.get("authorization", "")
    if bearer:
        kind, _, token = bearer.partition(" ")
        if kind.lower() != "bearer" or not rule.scope or request.method != "GET":
            raise HTTPException(401, "an API token reads /api/v1 and downloads only, as `Authorization: Bearer TOKEN`")
        try:
            return Visitor(request.app.state.console.tokens.check(token, rule.scope), None)
        except IdentityError as error:
            raise HTTPException(401, str(error)) from error
    if session is None or not session.complete:
        raise SignInNeeded(quote(request.url.path, safe="/") if request.method == "GET" else "/")
    return Visitor(session.person, session)


def _check_change(request: Request, visitor: Visitor) -> None:
    if visitor.session is None:
        raise HTTPException(401, "an API token changes nothing")
    given = request.headers.get("x-csrf-token") or request.state.form.get("csrf", "")
    try:
        check_csrf(visitor.session, given)
    except IdentityError as error:
        raise HTTPException(403, str(error)) from error


async def _fields(request: Request) -> dict[str, str]:
    """The form's texts. Files are refused, and so is what is too much."""
    kind = request.headers.get("content-type", "").partition(";")[0]
    if kind == "application/json":
        return {}
    if kind not in {"application/x-www-form-urlencoded", "multipart/form-data", ""}:
        raise HTTPException(415, f"a form was expected; {kind[:60]!r} came")
    form = await request.form(max_files=0, max_fields=MAX_FIELDS)
    fields: dict[str, str] = {}
    for name, value in form.multi_items():
        if isinstance(value, str):
            fields[name] = f"{fields[name]} {value}" if name in fields else value
    return fields


def local_path(given: str) -> str:
    """A path of this server, or its first page: nobody is sent elsewhere by an address.

    >>> local_path("/runs/1"), local_path("//evil.example"), local_path("https://evil.example"), local_path("/\\\\evil")
    ('/runs/1', '/', '/', '/')
    """
    plain = given.isascii() and given.isprintable() and "\\" not in given and ":" not in given
    return given if plain and given.startswith("/") and not given.startswith("//") else "/"
