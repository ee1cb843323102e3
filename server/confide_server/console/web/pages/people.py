"""Who has an account, and one-time links for those who shall."""

from confide.errors import ConfideError, IdentityError
from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from confide_server.console.roles import Role
from confide_server.console.web.forms import confirm, form_of, visitor_of
from confide_server.console.web.looking import console_of

router = APIRouter()


def _page(request: Request, *, made: str = "", wrong: str = "") -> Response:
    console = console_of(request)
    return console.frame.page(
        request,
        "people.html",
        status_code=403 if wrong else 200,
        people=console.people.all(),
        # Who changes nothing comes first: nobody becomes an administrator by haste.
        roles=sorted(Role, key=lambda role: role is not Role.AUDITOR),
        acts=console.people.acts(),
        made=made,
        wrong=wrong,
    )


@router.get("/people", name="people")
def people(request: Request) -> Response:
    return _page(request)


@router.post("/people/invite", name="people_invite")
def people_invite(request: Request) -> Response:
    console, form = console_of(request), form_of(request)
    try:
        confirm(request)
        if form.get("role", "") not in set(Role):
            raise IdentityError(f"a role is one of {', '.join(Role)}; {form.get('role', '')[:40]!r} is none")
        organization, name = form.get("organization", "").strip(), form.get("name", "").strip()
        handed = console.people.invite(Role(form["role"]), organization, name)
    except IdentityError as error:
        return _page(request, wrong=str(error))
    console.people.note(visitor_of(request).person.name, "link", f"{form['role']} {organization}".strip())
    return _page(request, made=f"{console.address}/welcome?link={handed}")


@router.post("/people/{person_id}/close", name="people_close")
def people_close(request: Request, person_id: str) -> Response:
    console = console_of(request)
    try:
        confirm(request)
        closed = console.people.get(person_id)
        console.people.close(person_id)
    except ConfideError as error:
        return _page(request, wrong=str(error))
    console.people.note(visitor_of(request).person.name, "closed", closed.name)
    return RedirectResponse("/people", 303)
