"""The coordinator's chained audit log: search, verify, take away with the coordinator's signature."""

import json

from confide.proto import admin_pb2 as pb
from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from confide_server.console.web.looking import console_of, look_of

router = APIRouter()


@router.get("/audit", name="audit")
def audit(request: Request, event: str = "", run: str = "", before: int = 0) -> Response:
    look = look_of(request)
    asked = pb.ListAuditRequest(before=max(0, before), limit=100, event=event[:64], run_id=run[:32])
    page = look.audit(asked)
    return console_of(request).frame.page(
        request,
        "audit.html",
        fresh=look.freshness,
        verdict=look.verdict(),
        entries=[(line, _facts(line)) for line in page.entries],
        kinds=sorted({line.event for line in page.entries}),
        more=page.more,
        event=event,
        run=run,
    )


def _facts(line: pb.AuditLine) -> str:
    """The body without what has columns of its own."""
    try:
        body = json.loads(line.body)
    except (ValueError, RecursionError):
        return "not JSON"
    if not isinstance(body, dict):
        return "not a JSON object"
    kept = {key: value for key, value in body.items() if key not in {"event", "run_id"} and value != line.who}
    return ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in kept.items())


@router.get("/audit/export", name="audit_export")
def audit_export(request: Request) -> Response:
    chunks = console_of(request).reader.export_audit(look_of(request).acting)
    headers = {"content-disposition": 'attachment; filename="audit.jsonl"'}
    return StreamingResponse(chunks, media_type="application/jsonl", headers=headers)
