"""What was spent: by organization and group of data sets, as signed receipts tell; and what cannot be known here."""

import re
import time

from confide.proto import admin_pb2 as pb
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from confide_server.alerts import needs
from confide_server.console.federation.reading import Look
from confide_server.console.federation.spending import over_time
from confide_server.console.web.looking import console_of, look_of

router = APIRouter()
MOST_RUNS = 200
_RUN = re.compile(r"[0-9a-f]{32}")


@router.get("/privacy", name="privacy")
def privacy(request: Request, organization: str = "", run: str = "", after: int = 0) -> Response:
    look = look_of(request)
    asked = pb.ListRunsQuery(limit=50)
    of_run = run if _RUN.fullmatch(run) else ""
    look.ahead(ListRuns=asked, ListReceipts=pb.ListReceiptsRequest(run_id=of_run, after=max(0, after), limit=100))
    own = look.acting.organization
    sums = sorted(look.spent_in_all(own).spent, key=lambda line: -line.epsilon_spent_at_most)
    chosen = _chosen(look, organization, sums)
    lines = sorted(look.spent(chosen).spent, key=lambda line: -line.run_at) if chosen else []
    return console_of(request).frame.page(
        request,
        "privacy.html",
        fresh=look.freshness,
        sums=sums,
        highest=sums[0] if sums else None,
        ending=_ending(look),
        chosen=chosen,
        lines=lines[:MOST_RUNS],
        left_out=max(0, len(lines) - MOST_RUNS),
        unprotected=[run for run in look.runs(asked).runs if run.privacy_unit == "none"],
        of_run=of_run,
        receipts=look.receipts(of_run, max(0, after)),
    )


def _ending(look: Look) -> needs.Need | None:
    """The live run whose approved slots end first before its rounds do."""
    live = look.runs(pb.ListRunsQuery(statuses=needs.LIVE, limit=50)).runs
    spent = look.spent_in([run.run_id for run in live if run.privacy_unit != "none"])
    return next((one for one in needs.needs(needs.Seen(live=live, spent=spent), now=0.0) if one.kind == "budget"), None)


def _chosen(look: Look, organization: str, sums: list[pb.PrivacyLine]) -> str:
    """Whose runs are shown one by one: the visitor's own, else who was asked for, else who spent most."""
    if look.acting.organization:
        return look.acting.organization
    return organization[:64] or (sums[0].organization if sums else "")


@router.get("/privacy/series", name="privacy_series")
def privacy_series(request: Request, organization: str = "") -> Response:
    look = look_of(request)
    spent = (
        look.spent(look.acting.organization or organization[:64]) if look.acting.organization or organization else None
    )
    steps = over_time(spent.spent if spent is not None else (), now=spent.clock if spent is not None else time.time())
    texts = console_of(request).frame.texts
    return JSONResponse(steps.columns(texts("privacy.line_spent"), texts("privacy.line_claimed")))
