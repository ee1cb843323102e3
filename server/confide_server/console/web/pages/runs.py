"""The list of runs, one run, what may be done with it, and several beside each other."""

import csv
import io
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from confide.errors import ConfideError
from confide.proto import admin_pb2 as pb
from fastapi import APIRouter, Query, Request
from google.protobuf.message import Message
from starlette.responses import JSONResponse, RedirectResponse, Response

from confide_server.alerts import needs
from confide_server.console.federation import run_words
from confide_server.console.federation.reading import Look
from confide_server.console.web.forms import confirm, form_of
from confide_server.console.web.looking import console_of, look_of

if TYPE_CHECKING:
    from confide_server.console.web.app import Console

router = APIRouter()
STATUSES = (*needs.LIVE, *needs.ENDED)
PAGE = 50
MOST_COMPARED = 6
MOST_EVENTS = 100
_PLAN_FIRST = frozenset({"draft", "submitted", "offering"})
"""Statuses in which the plan is what one reads: it is shown open."""


@router.get("/runs", name="runs")
def runs(request: Request, q: str = "", status: str = "", organization: str = "", cursor: str = "") -> Response:
    look = look_of(request)
    query = pb.ListRunsQuery(
        name_contains=q[:64], statuses=[status] if status in STATUSES else [], organization=organization[:64],
        cursor=cursor[:200], limit=PAGE,
    )  # fmt: skip
    page = look.runs(query)
    return console_of(request).frame.page(
        request,
        "runs.html",
        fresh=look.freshness,
        found=page,
        q=q,
        status=status,
        organization=organization,
        statuses=STATUSES,
        moods=run_words.MOODS,
        first=not cursor,
    )


@router.get("/runs/{run_id}", name="run")
def run(request: Request, run_id: str, plan: bool = False) -> Response:
    return _run_page(request, run_id, plan=plan)


def _run_page(request: Request, run_id: str, wrong: str = "", *, plan: bool = False) -> Response:
    # plan: the reader has opened it. Nobody else waits for it, but where it is what one reads first.
    look, console = look_of(request), console_of(request)
    asked = _asked(look, console, run_id)
    status = asked.detail.run.status
    opened_plan = plan or status in _PLAN_FIRST
    return console.frame.page(
        request,
        "run.html",
        status_code=403 if wrong else 200,
        fresh=look.freshness,
        plan=look.plan(run_id) if opened_plan else "",
        opened_plan=opened_plan,
        ended=status in needs.ENDED,
        wrong=wrong,
        **_shown(asked),
    )


@router.get("/runs/{run_id}/live", name="run_live")
def run_live(request: Request, run_id: str) -> Response:
    """What of the page changes while the run goes, for those who have it open."""
    look, console = look_of(request), console_of(request)
    asked, fresh = _asked(look, console, run_id), look.freshness
    same = (
        run_id, look.acting.organization, asked.detail.clock, asked.members.clock, len(asked.rounds),
        asked.events[-1].number if asked.events else 0, round(4 * fresh.age_s), round(fresh.silent_s), fresh.trouble,
    )  # fmt: skip
    return console.frame.part(request, "run_live.html", same, lambda: {"fresh": fresh, **_shown(asked)})


class _Asked(NamedTuple):
    detail: pb.RunDetail
    rounds: list[pb.RoundLine]
    members: pb.MemberPage
    events: Sequence[pb.Event]


def _asked(look: Look, console: "Console", run_id: str) -> _Asked:
    look.ahead_of_runs([run_id])
    look.ahead(ListMembers=pb.ListMembersRequest())
    detail = look.run(run_id)
    rounds, members = look.rounds(run_id), look.members()
    return _Asked(detail, rounds, members, console.live.happened.events(detail.run, look.acting))


def _shown(asked: _Asked) -> dict[str, Any]:
    """What run_live.html wants, besides how old it is."""
    run, rounds, events = asked.detail.run, asked.rounds, asked.events
    opened = run_words.open_round(events) if run.status in {"running", "waiting", "paused"} else None
    at_work = {one.name: one.work for one in asked.members.members if one.HasField("work") and one.run_id == run.run_id}
    return {
        "detail": asked.detail,
        "run": run,
        "rounds": rounds,
        "head": run_words.headline(run, opened, at_work),
        "grid": run_words.grid(run, rounds, opened),
        "opened": opened,
        "epoch": run_words.epoch(events),
        "dropped": run_words.dropped(rounds),
        "series": run_words.series(rounds),
        "events": [(event.time, *run_words.event_words(event)) for event in list(reversed(events))[:MOST_EVENTS]],
        "moods": run_words.MOODS,
    }


@router.get("/runs/{run_id}/series", name="run_series")
def run_series(request: Request, run_id: str) -> Response:
    return JSONResponse(run_words.series(look_of(request).rounds(run_id, bare=True)))


@router.get("/runs/{run_id}/rounds.csv", name="run_csv")
def run_csv(request: Request, run_id: str) -> Response:
    rounds = look_of(request).rounds(run_id, most=100_000)
    columns = run_words.series(rounds)
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([*columns, "contributors", "dropped", "seconds", "received_bytes", "committed_at"])
    for number, line in enumerate(rounds):
        lost = " ".join(sorted(part.organization for part in line.participation if part.state == "dropped"))
        figures = [line.contributors, lost, line.seconds, line.received_bytes, line.committed_at]
        writer.writerow([*(columns[name][number] for name in columns), *figures])
    return _download(out.getvalue(), "text/csv; charset=utf-8", f"run-{run_id[:8]}.csv")


@router.get("/runs/{run_id}/specification.toml", name="run_toml")
def run_toml(request: Request, run_id: str) -> Response:
    detail = look_of(request).run(run_id)
    return _download(detail.specification_toml, "application/toml; charset=utf-8", f"run-{run_id[:8]}.toml")


def _download(text: str, kind: str, name: str) -> Response:
    safe = "".join(char for char in name if char.isalnum() or char in "-.")
    headers = {"content-disposition": f'attachment; filename="{safe}"', "content-type": kind}
    return Response(text, headers=headers)


def act(request: Request, method: str, message: Message) -> str:
    """Do a change in the visitor's name; returns what was wrong, empty when it was done."""
    try:
        confirm(request)
        look_of(request).change(method, message)
    except ConfideError as error:
        return str(error)
    return ""


def new_key() -> str:
    """An idempotency key."""
    return secrets.token_urlsafe(24)


def _changed(request: Request, run_id: str, wrong: str) -> Response:
    return _run_page(request, run_id, wrong) if wrong else RedirectResponse(f"/runs/{run_id}", 303)


@router.post("/runs/{run_id}/pause", name="run_pause")
def run_pause(request: Request, run_id: str) -> Response:
    reason = form_of(request).get("reason", "")[:300]
    asked = pb.PauseRunRequest(idempotency_key=new_key(), run_id=run_id, reason=reason)
    return _changed(request, run_id, act(request, "PauseRun", asked))


@router.post("/runs/{run_id}/resume", name="run_resume")
def run_resume(request: Request, run_id: str) -> Response:
    asked = pb.ResumeRunRequest(idempotency_key=new_key(), run_id=run_id)
    return _changed(request, run_id, act(request, "ResumeRun", asked))


@router.post("/runs/{run_id}/priority", name="run_priority")
def run_priority(request: Request, run_id: str) -> Response:
    given = form_of(request).get("priority", "0")
    number = int(given) if given.lstrip("-").isdigit() and abs(int(given)) <= 100 else 0
    asked = pb.SetPriorityRequest(idempotency_key=new_key(), run_id=run_id, priority=number)
    return _changed(request, run_id, act(request, "SetPriority", asked))


@router.get("/compare", name="compare")
def compare(request: Request, run: list[str] = Query(default=[])) -> Response:
    look = look_of(request)
    chosen = list(dict.fromkeys(run))[:MOST_COMPARED]
    look.ahead_of_runs(chosen, bare=True)
    lines = look.runs(pb.ListRunsQuery(run_ids=chosen, limit=MOST_COMPARED)).runs if chosen else ()
    listed = sorted(lines, key=lambda line: chosen.index(line.run_id))
    compared = [(line, run_words.series(look.rounds(line.run_id, bare=True))) for line in listed]
    metrics = sorted({name for _, columns in compared for name in columns if name != "round"})
    return console_of(request).frame.page(
        request, "compare.html", fresh=look.freshness, compared=compared, metrics=metrics, most=MOST_COMPARED,
        moods=run_words.MOODS,
    )  # fmt: skip
