"""Receipts and what was spent of privacy, the audit log, and the server itself."""

from collections.abc import Callable, Iterator
from typing import Any

from confide import __version__, canonical
from confide.errors import StateError
from confide.proto import admin_pb2 as pb

from confide_server.api.grpc.access import Caller
from confide_server.api.grpc.admin.parts import MAX_STREAMS, AdminParts, limited
from confide_server.api.grpc.control import checked_run_id
from confide_server.state.audit_log import signed_head

PART_BYTES = 1 << 18


class RecordMethods:
    """One method each."""

    def __init__(self, parts: AdminParts) -> None:
        self._parts = parts

    def list_receipts(self, caller: Caller, request: pb.ListReceiptsRequest) -> pb.ReceiptPage:
        """In order of arrival; an organization sees its own."""
        organization = request.organization or caller.scope
        caller.check_sees(organization)
        run_id = checked_run_id(request.run_id) if request.run_id else ""
        limit = limited(request.limit, default=100, most=500)
        found, more = self._parts.receipts.page(
            run_id=run_id, organization=organization, after=request.after, limit=limit
        )
        return pb.ReceiptPage(receipts=[_receipt_line(number, entry) for number, entry in found], more=more)

    def get_privacy_spent(self, caller: Caller, request: pb.GetPrivacySpentRequest) -> pb.PrivacySpent:
        """What the newest receipts say, by organization, group of data and run."""
        organization = request.organization or caller.scope
        caller.check_sees(organization)
        return pb.PrivacySpent(spent=privacy_lines(self._parts, organization))

    # --- the audit log

    def list_audit(self, caller: Caller, request: pb.ListAuditRequest) -> pb.AuditPage:
        """Newest first."""
        limit = limited(request.limit, default=100, most=500)
        run_id = checked_run_id(request.run_id) if request.run_id else ""
        found = self._parts.audit.page(limit=limit + 1, before=request.before, run_id=run_id, event=request.event)
        lines = [
            pb.AuditLine(
                number=one.number,
                time=one.time,
                body=canonical.encode(one.body),
                hash=one.hash,
                event=str(one.body.get("event", "")),
                run_id=str(one.body.get("run_id", "")),
                who=one.who,
            )
            for one in found[:limit]
        ]
        return pb.AuditPage(entries=lines, more=len(found) > limit)

    def verify_audit(self, caller: Caller, request: pb.VerifyAuditRequest) -> pb.AuditVerdict:
        """Check the whole chain now."""
        try:
            entries, head = self._parts.audit.verify()
        except StateError as error:
            return pb.AuditVerdict(sound=False, trouble=str(error))
        return pb.AuditVerdict(entries=entries, head=head, sound=True)

    def export_audit(
        self, caller: Caller, request: pb.ExportAuditRequest, active: Callable[[], bool]
    ) -> Iterator[pb.AuditPart]:
        """All lines after a number, and the head over the coordinator's signature."""
        self._parts.audit.note({"event": "audit_exported", "by": caller.by, "after": request.after})
        entries, head = self._parts.audit.verify()
        buffer = b""
        for number, data in enumerate(self._parts.audit.lines(request.after), start=request.after + 1):
            if number > entries:
                break
            buffer += data
            if len(buffer) >= PART_BYTES:
                if not active():
                    return
                yield pb.AuditPart(chunk=buffer)
                buffer = b""
        member = self._parts.member
        yield pb.AuditPart(chunk=buffer + signed_head(member.name, member.identity, entries, head))

    # --- the server

    def get_server_status(self, caller: Caller, request: pb.GetServerStatusRequest) -> pb.ServerStatus:
        """Threads, queues, disks, and what is wrong."""
        facts, member, roster = self._parts.facts(), self._parts.member, self._parts.member.roster.current
        standing = self._parts.standing()
        return pb.ServerStatus(
            release=__version__,
            started_at=facts.started_at,
            coordinator=member.name,
            consortium=roster.consortium,
            demo=roster.demo,
            roster_version=roster.version,
            roster_expires_at=roster.expires_at,
            certificate_expires_at=member.claim.expires_at,
            trouble=facts.trouble,
            trouble_since=facts.trouble_since,
            threads=[pb.ThreadStatus(name=name, alive=alive) for name, alive in facts.threads.items()],
            runs=self._parts.views.counts(),
            enrolments_waiting=len(self._parts.enrolment.pending()),
            nodes_connected=sum(one.online for one in standing.values()),
            nodes_known=len(standing),
            disks=[
                pb.DiskStatus(
                    what=disk.what, path=disk.path, used_bytes=disk.used, free_bytes=disk.free, total_bytes=disk.total
                )
                for disk in facts.disks
            ],
            watchers=self._parts.open_streams,
            max_watchers=MAX_STREAMS,
            max_concurrent_runs=facts.max_concurrent_runs,
        )


def privacy_lines(parts: AdminParts, organization: str = "", run_id: str = "") -> list[pb.PrivacyLine]:
    """By organization, group and run: what its newest receipt says. Claims are the specification's."""
    claims: dict[str, Any] = {}
    lines = []
    for entry in parts.receipts.newest(run_id, organization):
        of_run, receipt = entry["run_id"], entry["receipt"]
        if of_run not in claims:
            claims[of_run] = parts.views.privacy_claim(of_run)
        name, unit, epsilon, delta = claims[of_run]
        spent = _number(receipt, "spent_slots")
        lines.append(
            pb.PrivacyLine(
                organization=entry["node"],
                group=str(receipt.get("group", "")),
                run_id=of_run,
                run_name=name,
                unit=unit,
                spent_slots=spent,
                approved_slots=_number(receipt, "approved_slots"),
                epsilon_claimed=epsilon,
                epsilon_spent_at_most=epsilon if spent else 0.0,
                delta=delta,
            )
        )
    return lines


def _receipt_line(number: int, entry: dict[str, Any]) -> pb.ReceiptLine:
    receipt = entry["receipt"]
    return pb.ReceiptLine(
        number=number,
        run_id=entry["run_id"],
        organization=entry["node"],
        receipt=canonical.encode(receipt),
        signature=bytes.fromhex(entry["signature"]),
        group=str(receipt.get("group", "")),
        slot=_number(receipt, "slot"),
        spent_slots=_number(receipt, "spent_slots"),
        approved_slots=_number(receipt, "approved_slots"),
    )


def _number(receipt: dict[str, Any], name: str) -> int:
    """A node's number; what is none, or does not fit, is 0."""
    value = receipt.get(name, 0)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 32 else 0
