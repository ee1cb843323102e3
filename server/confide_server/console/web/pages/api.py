"""What programs read with an API token: the admin API's own messages as JSON, for what the token's owner may see."""

from confide.proto import admin_pb2 as pb
from fastapi import APIRouter, Request
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from starlette.responses import JSONResponse, Response

from confide_server.console.web.looking import look_of

router = APIRouter(prefix="/api/v1")


def _json(message: Message) -> Response:
    return JSONResponse(MessageToDict(message, preserving_proto_field_name=True))


@router.get("/runs", name="api_runs")
def api_runs(request: Request, status: str = "", cursor: str = "") -> Response:
    asked = pb.ListRunsQuery(statuses=[status] if status else [], cursor=cursor, limit=200)
    return _json(look_of(request).runs(asked))


@router.get("/runs/{run_id}", name="api_run")
def api_run(request: Request, run_id: str) -> Response:
    look = look_of(request)
    detail, rounds = look.run(run_id), look.rounds(run_id)
    lines = [MessageToDict(line, preserving_proto_field_name=True) for line in rounds]
    told = MessageToDict(detail, preserving_proto_field_name=True)
    return JSONResponse(told | {"plan": look.plan(run_id), "rounds": lines})


@router.get("/members", name="api_members")
def api_members(request: Request) -> Response:
    return _json(look_of(request).members())


@router.get("/privacy", name="api_privacy")
def api_privacy(request: Request) -> Response:
    look = look_of(request)
    return _json(look.spent(look.acting.organization))


@router.get("/models", name="api_models")
def api_models(request: Request) -> Response:
    return _json(look_of(request).releases())
