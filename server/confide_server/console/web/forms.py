"""What came with a form, and the second factor where an act asks for it again."""

from collections.abc import Mapping

from confide.errors import IdentityError
from fastapi import Request
from starlette.exceptions import HTTPException

from confide_server.console.roles import RULES
from confide_server.console.web.access import Visitor, client_address


def form_of(request: Request) -> Mapping[str, str]:
    """The fields, at most one value each."""
    found: Mapping[str, str] = request.state.form
    return found


def visitor_of(request: Request) -> Visitor:
    """Who asks: `access.admitted` has let them in."""
    found: Visitor = request.state.visitor
    return found


def confirm(request: Request) -> None:
    """Raise IdentityError unless this act's second factor is there: just given, or a code in the form.

    Called first by whoever handles a route whose rule says so; a test goes through all of them.
    """
    rule = RULES[request.scope["route"].name]
    visitor, console = visitor_of(request), request.app.state.console
    if not rule.confirmed or visitor.session is None:
        raise HTTPException(500, "this act asks for no confirmation in roles.RULES")
    if visitor.session.confirmed and not form_of(request).get("code"):
        return
    code = form_of(request).get("code", "")
    if not code:
        raise IdentityError("this act asks for your second factor again: give a code of this moment")
    console.people.check_code(visitor.person, code, client_address(request))
    console.sessions.confirm(visitor.session)
