"""An organization's documents: which collections there are, how their documents stand, and what a question finds.

No address of this page names an organization. Whose collections are asked for follows from the account alone, and
`confide.rag.access` decides once more at every entrance of the library.
"""

from typing import TYPE_CHECKING

from confide.errors import ConfideError
from confide.rag.access import EVERY, Caller
from fastapi import APIRouter, Request
from starlette.responses import Response

from confide_server.console.federation.reading import Freshness
from confide_server.console.roles import Role
from confide_server.console.web.forms import form_of, visitor_of
from confide_server.console.web.looking import console_of

if TYPE_CHECKING:
    from confide_server.rag.reading_room import Knowledge, Reading

router = APIRouter()
MOST_SHOWN = 200
STATES = {"live": "good", "replaced": "calm", "adding": "warn", "erasing": "warn", "erased": "calm"}


def caller_of(request: Request) -> Caller | None:
    """Who reads: a person of an organization its collections, others the consortium's own; None: nobody's."""
    person, settings = visitor_of(request).person, console_of(request).settings.knowledge
    own = person.organization if person.role is Role.ORGANIZATION else settings.organization if settings else ""
    return Caller(name=person.name, organization=own, collections=EVERY) if own else None


@router.get("/knowledge", name="knowledge")
def knowledge(request: Request) -> Response:
    room, caller = console_of(request).knowledge, caller_of(request)
    shelves = room.shelves(caller) if room is not None and caller is not None else ()
    return console_of(request).frame.page(
        request,
        "knowledge.html",
        fresh=Freshness(0.0) if room is not None else None,
        there=room is not None,
        organization=caller.organization if caller is not None else "",
        shelves=shelves,
    )


@router.get("/knowledge/{collection}", name="knowledge_collection")
def knowledge_collection(request: Request, collection: str) -> Response:
    return _collection_page(request, collection)


@router.post("/knowledge/{collection}", name="knowledge_search")
def knowledge_search(request: Request, collection: str) -> Response:
    # A question may hold what is not for a log or a history: it comes in a form's body, never in an address.
    room, caller = _opened(request)
    try:
        reading = room.search(caller, collection, form_of(request).get("question", ""))
    except ConfideError as error:
        return _collection_page(request, collection, wrong=str(error))
    return _collection_page(request, collection, reading=reading)


def _opened(request: Request) -> tuple["Knowledge", Caller]:
    room, caller = console_of(request).knowledge, caller_of(request)
    if room is None or caller is None:
        raise ConfideError("there are no documents here for this account; console.json names the library")
    return room, caller


def _collection_page(
    request: Request, collection: str, *, reading: "Reading | None" = None, wrong: str = ""
) -> Response:
    room, caller = _opened(request)
    documents = room.documents(caller, collection)
    return console_of(request).frame.page(
        request,
        "collection.html",
        status_code=403 if wrong else 200,
        fresh=Freshness(0.0),
        collection=collection,
        documents=documents[:MOST_SHOWN],
        every=len(documents),
        live=sum(one.state.value == "live" for one in documents),
        cut_off=sum(one.state.value in {"adding", "erasing"} for one in documents),
        moods=STATES,
        reading=reading,
        wrong=wrong,
    )
