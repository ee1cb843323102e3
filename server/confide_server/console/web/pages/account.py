"""One's own account: password, where one is signed in, API tokens."""

from confide.errors import IdentityError
from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from confide_server.console.accounts.tokens import SCOPES
from confide_server.console.web.access import client_address, cookie_name
from confide_server.console.web.forms import confirm, form_of, visitor_of
from confide_server.console.web.looking import console_of

router = APIRouter()


def account_page(request: Request, *, made: str = "", wrong: str = "") -> Response:
    """The page, with what was just made or what was wrong."""
    console, person = console_of(request), visitor_of(request).person
    return console.frame.page(
        request,
        "account.html",
        status_code=403 if wrong else 200,
        person=person,
        sessions=console.sessions.of(person),
        tokens=console.tokens.of(person),
        keys=console.keys.of(person),
        scopes=SCOPES,
        made=made,
        wrong=wrong,
    )


@router.get("/account", name="account")
def account(request: Request) -> Response:
    return account_page(request)


@router.post("/account/password", name="account_password")
def account_password(request: Request) -> Response:
    console, form, person = console_of(request), form_of(request), visitor_of(request).person
    try:
        if form.get("new", "") != form.get("again", ""):
            raise IdentityError("the two new passwords differ; type the same one twice")
        console.people.change_password(person, form.get("old", ""), form.get("new", ""), client_address(request))
    except IdentityError as error:
        return account_page(request, wrong=str(error))
    console.people.note(person.name, "password")
    return _out(request)


@router.post("/sign-out", name="sign_out")
def sign_out(request: Request) -> Response:
    console_of(request).sessions.end(request.state.session)
    return _out(request)


@router.post("/account/sign-out-everywhere", name="sign_out_everywhere")
def sign_out_everywhere(request: Request) -> Response:
    console, person = console_of(request), visitor_of(request).person
    console.people.note(person.name, "out_everywhere", str(console.sessions.end_all(person)))
    return _out(request)


def _out(request: Request) -> Response:
    answer = RedirectResponse("/sign-in", 303)
    answer.delete_cookie(
        cookie_name(request), path="/", httponly=True, samesite="strict", secure=console_of(request).https
    )
    answer.headers["clear-site-data"] = '"cache"'
    return answer


@router.post("/account/tokens", name="token_make")
def token_make(request: Request) -> Response:
    console, form, person = console_of(request), form_of(request), visitor_of(request).person
    try:
        confirm(request)
        days = int(form["days"]) if form.get("days", "").isdigit() else 0
        made = console.tokens.make(person, form.get("label", ""), form.get("scope", "").split(), days)
    except IdentityError as error:
        return account_page(request, wrong=str(error))
    console.people.note(person.name, "token", form.get("label", ""))
    return account_page(request, made=made)


@router.post("/account/tokens/{token_id}/revoke", name="token_revoke")
def token_revoke(request: Request, token_id: str) -> Response:
    console, person = console_of(request), visitor_of(request).person
    try:
        console.tokens.revoke(person, token_id)
    except IdentityError as error:
        return account_page(request, wrong=str(error))
    console.people.note(person.name, "token_back")
    return RedirectResponse("/account", 303)
