"""Who is in the consortium, how each node is, who asks to join, and the rosters so far."""

import re
from collections.abc import Sequence

from confide.errors import StateError
from confide.proto import admin_pb2 as pb
from fastapi import APIRouter, Request
from starlette.responses import Response

from confide_server.alerts.needs import CERTIFICATE_S
from confide_server.console.federation import machine_words, run_words
from confide_server.console.roles import Role
from confide_server.console.web.looking import console_of, look_of

router = APIRouter()
STATES = {
    "connected": "good",
    "training": "good",
    "stopped": "calm",
    "offline": "warn",
    "never_seen": "calm",
    "revoked": "bad",
}
_ORDER = {state: place for place, state in enumerate(("offline", "stopped", "never_seen", "connected", "training"))}
_DRIVERS = frozenset({Role.ADMINISTRATOR, Role.OPERATOR})


def places(nodes: Sequence[pb.MemberLine]) -> list[tuple[str, list[pb.MemberLine]]]:
    """Nodes by the group whose sums are opened together, in its absence by block; who needs a look comes first."""
    found: dict[str, list[pb.MemberLine]] = {}
    for one in sorted(nodes, key=lambda node: (_ORDER.get(node.state, 9), node.name)):
        found.setdefault(one.group or one.block, []).append(one)
    return sorted(found.items())


def _by_number(release: str) -> list[int]:
    """So that 0.10 comes after 0.9."""
    return [int(part) for part in re.findall(r"[0-9]{1,9}", release)]


@router.get("/members", name="members")
def members(request: Request) -> Response:
    look = look_of(request)
    page = look.members()
    drives, whole = look.acting.role in _DRIVERS, look.acting.role is not Role.ORGANIZATION
    nodes = [one for one in page.members if one.role == "node"]
    newest = max((one.release for one in nodes), key=_by_number, default="")
    return console_of(request).frame.page(
        request,
        "members.html",
        fresh=look.freshness,
        members=page.members,
        nodes=nodes,
        places=places(nodes),
        roster_version=page.roster_version,
        ending=[one for one in page.members if 0 < one.certificate_expires_at < page.clock + CERTIFICATE_S
                and not one.revoked_at],
        older=[one for one in nodes if one.release and _by_number(one.release) < _by_number(newest)],
        newest=newest,
        away=[one for one in nodes if one.state == "offline"],
        enrolments=look.enrolments().enrolments if drives else [],
        rosters=look.rosters().rosters if whole else [],
        states=STATES,
        doing=run_words.doing,
        machine=machine_words,
        clock=page.clock,
    )  # fmt: skip


@router.get("/members/enrolments/{name}.json", name="enrolment_file")
def enrolment_file(request: Request, name: str) -> Response:
    for one in look_of(request).enrolments().enrolments:
        if one.name == name:
            headers = {"content-disposition": 'attachment; filename="request.json"'}
            return Response(one.request, media_type="application/json", headers=headers)
    raise StateError(f"nobody named {name[:64]!r} asks to join; the request may have been answered")


@router.get("/members/rosters/{version}.json", name="roster_file")
def roster_file(request: Request, version: int) -> Response:
    """As the root signed it."""
    headers = {"content-disposition": f'attachment; filename="roster-{version}.json"'}
    return Response(look_of(request).signed_roster(version), media_type="application/json", headers=headers)
