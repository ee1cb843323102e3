"""A visitor's view of the federation: what they may see is asked in their name and role."""

from typing import TYPE_CHECKING

from fastapi import Request

from confide_server.console.federation.reading import Acting, Look
from confide_server.console.web.forms import visitor_of

if TYPE_CHECKING:
    from confide_server.console.web.app import Console


def console_of(request: Request) -> "Console":
    """The console that answers."""
    found: Console = request.app.state.console
    return found


def look_of(request: Request) -> Look:
    """For one page."""
    person = visitor_of(request).person
    return console_of(request).reader.look(Acting(person.name, person.role, person.organization))
