"""What needs me? And below: live runs and nodes at a glance."""

import time

from confide.proto import admin_pb2 as pb
from fastapi import APIRouter, Request
from starlette.responses import Response

from confide_server.alerts import needs
from confide_server.console.federation import run_words
from confide_server.console.roles import Role
from confide_server.console.web.looking import console_of, look_of

router = APIRouter()
_CONSORTIUM = frozenset({Role.ADMINISTRATOR, Role.OPERATOR, Role.AUDITOR})


@router.get("/", name="overview")
def overview(request: Request) -> Response:
    look, console = look_of(request), console_of(request)
    whole = look.acting.role in _CONSORTIUM
    look.ahead(ListRuns=pb.ListRunsQuery(statuses=["failed"], limit=20), ListMembers=pb.ListMembersRequest())
    if whole:
        look.ahead(GetServerStatus=pb.GetServerStatusRequest(), ListReleases=pb.ListReleasesRequest(limit=100))
    live = look.runs(pb.ListRunsQuery(statuses=needs.LIVE, limit=50))
    members = look.members()
    seen = needs.Seen(
        status=look.status() if whole else None,
        live=live.runs,
        ended=look.runs(pb.ListRunsQuery(statuses=["failed"], limit=20)).runs,
        members=members.members,
        enrolments=look.enrolments().enrolments if look.acting.role in {Role.ADMINISTRATOR, Role.OPERATOR} else (),
        releases=look.releases().releases if whole else (),
        spent=look.spent_in([run.run_id for run in live.runs if run.privacy_unit != "none"]),
    )
    working = {one.name: one.work for one in members.members if one.HasField("work")}
    heads = {run.run_id: run_words.headline(run, None, working) for run in live.runs}
    return console.frame.page(
        request,
        "overview.html",
        fresh=look.freshness,
        needs=needs.needs(seen, now=live.clock or time.time()),
        live=live,
        heads=heads,
        status=seen.status,
        nodes=sorted((one for one in members.members if one.role == "node"), key=lambda one: one.state != "offline"),
        doing=run_words.doing,
    )
