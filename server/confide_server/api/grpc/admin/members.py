"""Members and how they stand, rosters, who asks to come in. What lets somebody in or out is the root's signature."""

import time
from collections.abc import Mapping
from typing import Any

from confide.errors import StateError, TransportError
from confide.identity.enrolment import read_admission, read_request
from confide.identity.roster import Member, Role, Roster, open_roster
from confide.proto import admin_pb2 as pb
from confide.proto.fleet_pb2 import Hardware

from confide_server.api.grpc.access import Caller
from confide_server.api.grpc.admin.parts import AdminParts, limited
from confide_server.fleet.port import Standing
from confide_server.state.sightings import Seen

MAX_REPLY_BYTES = 1 << 20


class MemberMethods:
    """One method each."""

    def __init__(self, parts: AdminParts) -> None:
        self._parts = parts
        self._roster = parts.member.roster

    def list_members(self, caller: Caller, request: pb.ListMembersRequest) -> pb.MemberPage:
        """Everybody of the newest roster, by name; an organization sees itself."""
        if request.role and request.role not in set(Role):
            raise TransportError(f"{request.role[:40]!r} is no role; there are {', '.join(Role)}")
        roster = self._roster.current
        standing, seen = self._parts.standing(), self._parts.sightings.all()
        working, offers = self._parts.journal.progress.working(), self._parts.views.newest_offers()
        page = pb.MemberPage(roster_version=roster.version)
        for member in roster.members:
            if request.role in ("", member.role) and caller.scope in ("", member.name):
                line = _line(member, standing.get(member.name), seen.get(member.name))
                _add_work(line, working.get(member.name), offers.get(member.name, {}))
                page.members.append(line)
        return page

    def get_signed_roster(self, caller: Caller, request: pb.GetSignedRosterRequest) -> pb.SignedRosterReply:
        """As the root signed it."""
        current = self._roster.current
        if request.version in (0, current.version):
            return pb.SignedRosterReply(version=current.version, roster=self._roster.signed)
        for version, _, signed in self._parts.views.rosters(before=request.version + 1, limit=1):
            if version == request.version:
                return pb.SignedRosterReply(version=version, roster=signed)
        raise StateError(f"version {request.version} of the roster is not kept here; ListRosters says which are")

    def list_rosters(self, caller: Caller, request: pb.ListRostersRequest) -> pb.RosterPage:
        """Newest first, with what changed against the version before."""
        limit = limited(request.limit, default=50, most=200)
        found = self._parts.views.rosters(before=request.before_version, limit=limit + 1)
        rosters = [(sha256, open_roster(signed, self._parts.member.root_public)) for _, sha256, signed in found]
        page = pb.RosterPage()
        for index, (sha256, roster) in enumerate(rosters[:limit]):
            before = rosters[index + 1][1] if index + 1 < len(rosters) else None
            admitted, revoked = _changes(before, roster)
            line = pb.RosterLine(
                version=roster.version,
                sha256=sha256,
                issued_at=roster.issued_at,
                expires_at=roster.expires_at,
                members=len(roster.members),
                admitted=admitted,
                revoked=revoked,
            )
            page.rosters.append(line)
        return page

    def take_roster(self, caller: Caller, request: pb.TakeRosterRequest) -> pb.RosterTaken:
        """Take a newer roster: who is revoked in it is cut off before this returns."""
        before = self._roster.current
        roster = self._parts.intake.accept(request.roster)
        admitted, revoked = _changes(before, roster)
        return pb.RosterTaken(version=roster.version, admitted=admitted, revoked=revoked)

    def list_enrolments(self, caller: Caller, request: pb.ListEnrolmentsRequest) -> pb.EnrolmentPage:
        """Requests that nobody has answered, by name, as many as fit into one message."""
        known = {member.name for member in self._roster.current.members}
        page, size = pb.EnrolmentPage(), 0
        for data in self._parts.enrolment.pending():
            asked = read_request(data)
            if asked.name <= request.after:
                continue
            size += len(data) + 512
            if size > MAX_REPLY_BYTES and page.enrolments:
                page.next_after = page.enrolments[-1].name
                break
            line = pb.EnrolmentLine(
                name=asked.name,
                role=asked.role.value,
                identity_key=asked.identity_key,
                asked_at=asked.created_at,
                invited=bool(asked.invitation_proof),
                renewal=asked.name in known,
                request=data,
            )
            page.enrolments.append(line)
        return page

    def admit_member(self, caller: Caller, request: pb.AdmitMemberRequest) -> pb.MemberAdmitted:
        """Take the root's answer to a request, with the roster in it, and keep it for its member."""
        root = self._parts.member.root_public.hex()
        admission, _ = read_admission(request.admission, time.time(), root=root)
        name = admission.membership.name
        self._parts.intake.accept(admission.roster.encode())
        self._parts.enrolment.answer(name, request.admission)
        self._parts.audit.note({"event": "member_admitted", "name": name, "by": caller.by})
        return pb.MemberAdmitted(name=name, roster_version=self._roster.current.version)


def _line(member: Member, standing: Standing | None, seen: Seen | None) -> pb.MemberLine:
    last_seen = max(standing.last_seen if standing else 0.0, seen.at if seen else 0.0)
    return pb.MemberLine(
        name=member.name,
        role=member.role.value,
        state=_state(member, standing, last_seen),
        last_seen=last_seen,
        release=seen.release if seen else "",
        certificate_expires_at=seen.certificate_expires_at if seen else 0.0,
        admitted_at=member.admitted_at,
        revoked_at=member.revoked_at or 0.0,
        identity_key=member.identity_key,
        group=member.group,
        block=member.block,
    )


def _state(member: Member, standing: Standing | None, last_seen: float) -> str:
    if member.revoked_at is not None:
        return "revoked"
    if member.role is not Role.NODE:
        return "seen" if last_seen else "never_seen"
    if standing is None or not standing.last_seen:
        return "never_seen"
    if standing.online:
        return "connected"
    return "stopped" if standing.stopped else "offline"


def _add_work(line: pb.MemberLine, work: tuple[str, dict[str, Any]] | None, offer: Mapping[str, Any]) -> None:
    line.precision, line.round_s = offer.get("precision", ""), offer.get("round_s", 0.0)
    line.hardware.CopyFrom(Hardware(**offer.get("hardware", {})))
    if work is not None and line.state == "connected":
        line.run_id, line.state = work[0], "training"
        line.work.CopyFrom(pb.WorkProgress(**work[1]))


def _changes(before: Roster | None, after: Roster) -> tuple[list[str], list[str]]:
    """(admitted, revoked) names."""
    known = {member.name: member.revoked_at for member in before.members} if before is not None else {}
    admitted = [member.name for member in after.members if member.name not in known]
    revoked = [member.name for member in after.members if member.revoked_at is not None and not known.get(member.name)]
    return admitted, revoked
