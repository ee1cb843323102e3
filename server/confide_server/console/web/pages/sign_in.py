"""Before somebody is let in: password, second factor, and the one-time link that makes an account.

The seed of a new account's codes is not kept before the account is: it goes to the page and comes back with the first
code, both over this one connection, from somebody who may choose any seed anyway.
"""

import re

from confide.errors import IdentityError
from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from confide_server.console.accounts import codes
from confide_server.console.accounts.people import Link, Person
from confide_server.console.roles import RULES
from confide_server.console.web.access import client_address, cookie_name, local_path
from confide_server.console.web.forms import form_of
from confide_server.console.web.looking import console_of

router = APIRouter()
_SEED = re.compile(r"[A-Z2-7]{32}")


def home(person: Person, back: str = "/") -> str:
    """Where somebody goes first: not to a page that they may not open."""
    if back != "/" or RULES["overview"].allows(person.role):
        return back
    return "/feedback" if RULES["feedback"].allows(person.role) else "/account"


def let_in(request: Request, cookie: str, where: str) -> Response:
    """To a page, with a session's cookie: for this server alone, unreadable for scripts, never sent from elsewhere."""
    answer = RedirectResponse(where, 303)
    answer.set_cookie(
        cookie_name(request), cookie, httponly=True, samesite="strict", secure=console_of(request).https, path="/"
    )
    return answer


@router.get("/sign-in", name="sign_in_page")
def sign_in_page(request: Request, next: str = "/") -> Response:
    console = console_of(request)
    return console.frame.page(request, "sign_in.html", back=local_path(next), wrong="", first=not console.people.any())


@router.post("/sign-in", name="sign_in")
def sign_in(request: Request) -> Response:
    console, form = console_of(request), form_of(request)
    back, address = local_path(form.get("next", "/")), client_address(request)
    try:
        person = console.people.check_password(form.get("name", ""), form.get("password", ""), address)
    except IdentityError as error:
        return console.frame.page(request, "sign_in.html", status_code=403, back=back, wrong=str(error), first=False)
    cookie = console.sessions.begin(person, address, complete=False, instead_of=request.state.session)
    return let_in(request, cookie, f"/sign-in/code?next={back}")


@router.get("/sign-in/code", name="code_page")
def code_page(request: Request, next: str = "/") -> Response:
    console = console_of(request)
    if request.state.session is None:
        return RedirectResponse("/sign-in", 303)
    return console.frame.page(
        request, "code.html", back=local_path(next), wrong="", keys=console.keys.of(request.state.session.person)
    )


@router.post("/sign-in/code", name="code")
def code(request: Request) -> Response:
    console, form, session = console_of(request), form_of(request), request.state.session
    back, address = local_path(form.get("next", "/")), client_address(request)
    if session is None:
        return RedirectResponse("/sign-in", 303)
    try:
        console.people.check_code(session.person, form.get("code", ""), address)
    except IdentityError as error:
        return console.frame.page(
            request, "code.html", status_code=403, back=back, wrong=str(error), keys=console.keys.of(session.person)
        )
    console.people.note(session.person.name, "in", address)
    cookie = console.sessions.begin(session.person, address, complete=True, instead_of=session)
    return let_in(request, cookie, home(session.person, back))


@router.get("/welcome", name="welcome_page")
def welcome_page(request: Request, link: str = "") -> Response:
    console = console_of(request)
    try:
        found = console.people.link(link)
    except IdentityError as error:
        return console.frame.page(request, "message.html", status_code=403, said=str(error))
    return _welcome(request, link, found, codes.new_seed(), "")


def _welcome(request: Request, handed: str, link: Link, seed: str, wrong: str, name: str = "") -> Response:
    console = console_of(request)
    picture = codes.picture(seed, name or link.name or link.role.value, console.issuer)
    return console.frame.page(
        request,
        "welcome.html",
        status_code=403 if wrong else 200,
        link=link,
        handed=handed,
        seed=seed,
        picture=picture,
        wrong=wrong,
        name=name or link.name,
    )


@router.post("/welcome", name="welcome")
def welcome(request: Request) -> Response:
    console, form, address = console_of(request), form_of(request), client_address(request)
    handed, seed, name = form.get("link", ""), form.get("seed", ""), form.get("name", "").strip()
    try:
        console.limits.check("link", address)
        link = console.people.link(handed)
    except IdentityError as error:
        console.limits.failed("link-of-nobody", address)
        return console.frame.page(request, "message.html", status_code=403, said=str(error))
    if not _SEED.fullmatch(seed):
        return _welcome(request, handed, link, codes.new_seed(), "the seed of the codes was changed; scan this new one")
    try:
        if form.get("password", "") != form.get("again", ""):
            raise IdentityError("the two passwords differ; type the same one twice")
        person = console.people.accept(handed, name, form.get("password", ""), seed, form.get("code", ""))
    except IdentityError as error:
        return _welcome(request, handed, link, seed, str(error), name if name.isascii() else "")
    console.people.note(person.name, "account", f"{person.role.value} {person.organization}".strip())
    return let_in(request, console.sessions.begin(person, address, complete=True), home(person))
