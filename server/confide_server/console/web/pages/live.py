"""Ticks for open pages. What happened is not told here: the page asks again, as itself."""

from collections.abc import AsyncIterable

from confide.proto import admin_pb2 as pb
from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import EventSourceResponse, ServerSentEvent

from confide_server.console.roles import Role
from confide_server.console.web.looking import console_of, look_of

router = APIRouter()


@router.get("/live", name="live", response_class=EventSourceResponse)
async def live(request: Request) -> AsyncIterable[ServerSentEvent]:
    """Ends when the session does: whoever was signed out hears nothing more."""
    console, run_ids = console_of(request), await run_in_threadpool(_runs_of, request)
    session = request.state.session
    with console.live.watching(run_ids) as watcher:
        yield ServerSentEvent(event="begun", retry=3000, data="")
        async for tick in watcher.ticks():
            if not await run_in_threadpool(console.sessions.holds, session):
                return
            yield ServerSentEvent(event=tick, data="")


def _runs_of(request: Request) -> frozenset[str] | None:
    """None: of every run. An organization hears of its own."""
    look = look_of(request)
    if look.acting.role is not Role.ORGANIZATION:
        return None
    return frozenset(run.run_id for run in look.runs(pb.ListRunsQuery(limit=200)).runs)
