"""Where models come from and which are released."""

from confide.proto import admin_pb2 as pb
from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from confide_server.alerts import needs
from confide_server.console.federation.lineage import drawn
from confide_server.console.roles import Role
from confide_server.console.web.forms import form_of
from confide_server.console.web.looking import console_of, look_of
from confide_server.console.web.pages.runs import act, new_key

router = APIRouter()
MOODS = {"created": "warn", "signed": "warn", "published": "good", "superseded": "calm", "withdrawn": "bad"}
GATES = {"not_asked": "calm", "missing": "warn", "passed": "good", "overridden": "warn"}


@router.get("/models", name="models")
def models(request: Request) -> Response:
    return _page(request)


def _page(request: Request, wrong: str = "") -> Response:
    look = look_of(request)
    releases = look.releases().releases
    finished = look.runs(pb.ListRunsQuery(statuses=["finished", "finished_with_fewer"], limit=50)).runs
    released = {release.run_id for release in releases}
    return console_of(request).frame.page(
        request,
        "models.html",
        status_code=403 if wrong else 200,
        fresh=look.freshness,
        releases=releases,
        current=[one for one in releases if one.current],
        open=[one for one in releases if one.status in {"created", "signed"}],
        missing=[one for one in releases if one.status in {"created", "signed"} and one.gate == "missing"],
        gates=GATES,
        finished=finished,
        unreleased=[run for run in finished if run.run_id not in released],
        drawing=drawn(look.lineage() if look.acting.role is not Role.ORGANIZATION else pb.Lineage()),
        moods=MOODS,
        known={*needs.LIVE, *needs.ENDED, *MOODS},
        wrong=wrong,
    )


def _changed(request: Request, wrong: str) -> Response:
    return _page(request, wrong) if wrong else RedirectResponse("/models", 303)


def _number(text: str) -> int:
    return int(text) if text.isdigit() and int(text) < 1 << 31 else 0


@router.post("/models/releases", name="release_create")
def release_create(request: Request) -> Response:
    form = form_of(request)
    asked = pb.CreateReleaseRequest(
        idempotency_key=new_key(), name=form.get("name", ""), run_id=form.get("run_id", ""),
        round=_number(form.get("round", "")), notes=form.get("notes", "")[:2000],
    )  # fmt: skip
    return _changed(request, act(request, "CreateRelease", asked))


@router.post("/models/releases/{name}/{number}/publish", name="release_publish")
def release_publish(request: Request, name: str, number: int) -> Response:
    asked = pb.PublishReleaseRequest(idempotency_key=new_key(), name=name, number=min(number, 1 << 31))
    return _changed(request, act(request, "PublishRelease", asked))


@router.post("/models/releases/{name}/{number}/roll-back", name="release_rollback")
def release_rollback(request: Request, name: str, number: int) -> Response:
    reason = form_of(request).get("reason", "")[:300]
    asked = pb.RollBackReleaseRequest(idempotency_key=new_key(), name=name, number=min(number, 1 << 31), reason=reason)
    return _changed(request, act(request, "RollBackRelease", asked))
