"""Security keys: added on the account's page, asked for at sign-in, and again for acts that need confirming.

Each exchange is two requests: options with a challenge of this session, and the browser's answer to it.
"""

from confide.errors import IdentityError
from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from confide_server.console.accounts.keys import Site
from confide_server.console.accounts.sessions import Session, check_csrf
from confide_server.console.web.access import client_address, local_path
from confide_server.console.web.forms import confirm, form_of, visitor_of
from confide_server.console.web.looking import console_of
from confide_server.console.web.pages.account import account_page
from confide_server.console.web.pages.sign_in import home, let_in

router = APIRouter()
MOST_CHARS = 20_000


def site_of(request: Request) -> Site:
    """As the browser's address line has it; the guard has checked the host."""
    scheme = "https" if console_of(request).https else "http"
    return Site(f"{scheme}://{request.headers['host'].lower()}")


def _session(request: Request) -> Session:
    """Also one that is not complete. Raises HTTPException."""
    session: Session | None = request.state.session
    if session is None:
        raise HTTPException(401, "sign in first")
    try:
        check_csrf(session, request.headers.get("x-csrf-token") or form_of(request).get("csrf", ""))
    except IdentityError as error:
        raise HTTPException(403, str(error)) from error
    return session


def _json(text: str) -> Response:
    return Response(text, media_type="application/json")


def _answer(request: Request) -> str:
    return form_of(request).get("credential", "")[:MOST_CHARS]


@router.post("/sign-in/key/options", name="key_options")
def key_options(request: Request) -> Response:
    console, session = console_of(request), _session(request)
    return _json(console.keys.assertion(session.person, site_of(request), console.sessions.challenge(session)))


@router.post("/sign-in/key", name="key")
def key(request: Request) -> Response:
    console, session, address = console_of(request), _session(request), client_address(request)
    back = local_path(form_of(request).get("next", "/"))
    try:
        console.limits.check(session.person.name, address)
        console.keys.check(session.person, site_of(request), console.sessions.take_challenge(session), _answer(request))
    except IdentityError as error:
        console.limits.failed(session.person.name, address)
        keys = console.keys.of(session.person)
        return console.frame.page(request, "code.html", status_code=403, back=back, wrong=str(error), keys=keys)
    console.limits.succeeded(session.person.name)
    console.people.note(session.person.name, "in_by_key", address)
    cookie = console.sessions.begin(session.person, address, complete=True, instead_of=session)
    return let_in(request, cookie, home(session.person, back))


@router.post("/account/confirm", name="confirm_by_key")
def confirm_by_key(request: Request) -> Response:
    console, session = console_of(request), _session(request)
    try:
        console.limits.check(session.person.name, client_address(request))
        console.keys.check(session.person, site_of(request), console.sessions.take_challenge(session), _answer(request))
    except IdentityError as error:
        console.limits.failed(session.person.name, client_address(request))
        raise HTTPException(403, str(error)) from error
    console.sessions.confirm(session)
    return RedirectResponse(local_path(form_of(request).get("next", "/")), 303)


@router.post("/account/keys/options", name="key_registration")
def key_registration(request: Request) -> Response:
    console, session = console_of(request), _session(request)
    return _json(console.keys.registration(session.person, site_of(request), console.sessions.challenge(session)))


@router.post("/account/keys", name="key_add")
def key_add(request: Request) -> Response:
    console, person, session = console_of(request), visitor_of(request).person, _session(request)
    try:
        confirm(request)
        label = form_of(request).get("label", "")
        challenge = console.sessions.take_challenge(session)
        console.keys.register(person, site_of(request), challenge, _answer(request), label)
    except IdentityError as error:
        return account_page(request, wrong=str(error))
    console.people.note(person.name, "key", label)
    return RedirectResponse("/account", 303)


@router.post("/account/keys/{key_id}/remove", name="key_remove")
def key_remove(request: Request, key_id: str) -> Response:
    console, person = console_of(request), visitor_of(request).person
    try:
        confirm(request)
        console.keys.remove(person, key_id)
    except IdentityError as error:
        return account_page(request, wrong=str(error))
    console.people.note(person.name, "key_removed")
    return RedirectResponse("/account", 303)
