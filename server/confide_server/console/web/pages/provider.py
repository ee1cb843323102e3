"""Sign-in at the OpenID provider, and binding its subject to one's account.

The browser comes back from another site, without the session's strict cookie: the last page leads on by itself.
"""

from confide.errors import IdentityError
from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from confide_server.console.accounts.provider import OpenId
from confide_server.console.web.access import client_address, cookie_name, local_path
from confide_server.console.web.forms import confirm, visitor_of
from confide_server.console.web.looking import console_of
from confide_server.console.web.pages.account import account_page
from confide_server.console.web.pages.sign_in import home

router = APIRouter()
COOKIE = "confide-provider"
CALLBACK = "/sign-in/provider/answer"


def _provider(request: Request) -> OpenId:
    found = console_of(request).provider
    if found is None:
        raise HTTPException(404, "this console knows no OpenID provider")
    return found


def _sent(request: Request, back: str, person: str = "") -> Response:
    address, browser = _provider(request).begin(back, person)
    answer = RedirectResponse(address, 303)
    secure = console_of(request).https
    answer.set_cookie(COOKIE, browser, max_age=600, httponly=True, samesite="lax", secure=secure, path=CALLBACK)
    return answer


@router.get("/sign-in/provider", name="provider_begin")
def provider_begin(request: Request, next: str = "/") -> Response:
    return _sent(request, local_path(next))


@router.post("/account/provider", name="provider_bind")
def provider_bind(request: Request) -> Response:
    try:
        confirm(request)
        return _sent(request, "/account", visitor_of(request).person.id)
    except IdentityError as error:
        return account_page(request, wrong=str(error))


@router.get(CALLBACK, name="provider_answer")
def provider_answer(request: Request, state: str = "", code: str = "") -> Response:
    console, address = console_of(request), client_address(request)
    try:
        console.limits.check("provider", address)
        subject, pending = _provider(request).finish(state, request.cookies.get(COOKIE, ""), code)
        if pending.person:
            console.people.bind_provider(console.people.get(pending.person), subject)
        person = console.people.of_provider(subject)
        if person is None:
            raise IdentityError("no account is bound to this subject: sign in with your password once, and bind it")
    except IdentityError as error:
        console.limits.failed("provider", address)
        return console.frame.page(request, "message.html", status_code=403, said=str(error))
    console.people.note(person.name, "bound" if pending.person else "in_by_provider", address)
    answer = console.frame.page(request, "onward.html", to=home(person, pending.back))
    if not pending.person:
        cookie = console.sessions.begin(person, address, complete=True)
        answer.set_cookie(
            cookie_name(request), cookie, httponly=True, samesite="strict", secure=console.https, path="/"
        )
    answer.delete_cookie(COOKIE, path=CALLBACK)
    return answer
