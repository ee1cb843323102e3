"""What was spent: by organization and group of data sets, as signed receipts tell; and what cannot be known here."""

from collections import defaultdict

from confide.proto import admin_pb2 as pb
from fastapi import APIRouter, Request
from starlette.responses import Response

from confide_server.console.web.looking import console_of, look_of

router = APIRouter()


@router.get("/privacy", name="privacy")
def privacy(request: Request, after: int = 0) -> Response:
    look = look_of(request)
    spent = look.spent(look.acting.organization)
    groups: dict[tuple[str, str], list[pb.PrivacyLine]] = defaultdict(list)
    for line in spent.spent:
        groups[line.organization, line.group].append(line)
    totals = {
        key: (sum(line.epsilon_spent_at_most for line in lines), sum(line.epsilon_claimed for line in lines), lines)
        for key, lines in sorted(groups.items())
    }
    return console_of(request).frame.page(
        request,
        "privacy.html",
        fresh=look.freshness,
        totals=totals,
        highest=max(totals.items(), key=lambda item: item[1][0], default=None),
        unprotected=[run for run in look.runs(pb.ListRunsQuery(limit=50)).runs if run.privacy_unit == "none"],
        receipts=look.receipts(after=max(0, after)),
    )
