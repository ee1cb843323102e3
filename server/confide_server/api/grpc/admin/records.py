"""Receipts and what was spent of privacy, the audit log, and the server itself."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from confide import __version__, canonical
from confide.errors import StateError, TransportError
from confide.proto import admin_pb2 as pb

from confide_server.api.grpc.access import Caller
from confide_server.api.grpc.admin.parts import MAX_STREAMS, AdminParts, limited
from confide_server.api.grpc.control import checked_run_id
from confide_server.state.audit_log import signed_head
from confide_server.state.receipts import Spent, number_of
from confide_server.state.views import MAX_PAGE, PrivacyClaim

PART_BYTES = 1 << 18


class RecordMethods:
    """One method each."""

    def __init__(self, parts: AdminParts) -> None:
        self._parts = parts
        self._sums: tuple[int, list[pb.PrivacyLine]] | None = None

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
        if request.summed:
            return pb.PrivacySpent(spent=self._summed(organization))
        if len(request.run_ids) > MAX_PAGE:
            raise TransportError(f"{len(request.run_ids)} runs were named; at most {MAX_PAGE} are at a time")
        run_ids = [checked_run_id(run_id) for run_id in request.run_ids]
        if request.of_named and not run_ids:
            return pb.PrivacySpent()
        return pb.PrivacySpent(spent=privacy_lines(self._parts, organization, run_ids))

    def _summed(self, organization: str) -> list[pb.PrivacyLine]:
        """Added up anew when a receipt has come; of all, which is the same work, and then of the one."""
        count, known = self._parts.receipts.count, self._sums
        if known is None or known[0] != count:
            known = self._sums = (count, privacy_sums(self._parts))
        return [line for line in known[1] if organization in ("", line.organization)]

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


def privacy_lines(parts: AdminParts, organization: str = "", run_ids: Sequence[str] = ()) -> list[pb.PrivacyLine]:
    """By organization, group and run: what its newest receipt says. Claims are the specification's."""
    newest = parts.receipts.newest(run_ids, organization)
    claims = parts.views.privacy_claims({one.run_id for one in newest})
    return [_privacy_line(one, claims.get(one.run_id, PrivacyClaim())) for one in newest]


def _privacy_line(one: Spent, claim: PrivacyClaim) -> pb.PrivacyLine:
    return pb.PrivacyLine(
        organization=one.organization,
        group=one.group,
        run_id=one.run_id,
        run_name=claim.name,
        unit=claim.unit,
        spent_slots=one.spent_slots,
        approved_slots=one.approved_slots,
        epsilon_claimed=claim.epsilon,
        epsilon_spent_at_most=claim.epsilon if one.spent_slots else 0.0,
        delta=claim.delta,
        run_at=claim.at,
        runs=1,
    )


def privacy_sums(parts: AdminParts) -> list[pb.PrivacyLine]:
    """By organization and group over all runs, added up."""
    newest = parts.receipts.newest()
    claims = parts.views.privacy_claims({one.run_id for one in newest})
    sums: dict[tuple[str, str], pb.PrivacyLine] = {}
    for one in newest:
        key = one.organization, one.group
        found = sums.get(key)
        if found is None:
            found = sums[key] = pb.PrivacyLine(organization=one.organization, group=one.group)
        claim = claims.get(one.run_id)
        epsilon = claim.epsilon if claim is not None else 0.0
        found.runs += 1
        found.spent_slots += one.spent_slots
        found.approved_slots += one.approved_slots
        found.epsilon_claimed += epsilon
        found.epsilon_spent_at_most += epsilon if one.spent_slots else 0.0
        found.delta += claim.delta if claim is not None else 0.0
        found.run_at = max(found.run_at, claim.at if claim is not None else 0.0)
    return list(sums.values())


def _receipt_line(number: int, entry: dict[str, Any]) -> pb.ReceiptLine:
    receipt = entry["receipt"]
    return pb.ReceiptLine(
        number=number,
        run_id=entry["run_id"],
        organization=entry["node"],
        receipt=canonical.encode(receipt),
        signature=bytes.fromhex(entry["signature"]),
        group=str(receipt.get("group", "")),
        slot=number_of(receipt, "slot"),
        spent_slots=number_of(receipt, "spent_slots"),
        approved_slots=number_of(receipt, "approved_slots"),
    )
