"""The client side of the administration service: what people's commands and the console ask of the coordinator.

    with AdminClient.of_member(load_member(folder)) as client:
        for run in client.list_runs(statuses=["running"]).runs: ...
        client.pause_run(run.run_id, "maintenance")

Messages are those of protos/confide/v1/admin.proto; every text in an answer is fit to be shown (confide.text). Each
change gets an idempotency key of its own unless one is given: who asks again after a lost connection gives the same.

    admin_calls    one connection, one way of asking
    admin_runs     runs in and out, listed, watched, changed
    admin_members  members, rosters, enrolment, privacy spent
    admin_models   checkpoints, releases, lineage, preferences
"""

import json
from collections.abc import Iterable, Iterator

from google.protobuf.message import Message

from confide.errors import TransportError
from confide.identity.keys import verify
from confide.identity.roster import Role
from confide.proto import admin_pb2 as pb
from confide.transport.admin_calls import ActingUser
from confide.transport.admin_members import MemberCalls
from confide.transport.admin_models import ModelCalls, check_document
from confide.transport.admin_runs import ENDS, RunCalls, event_data

__all__ = ["ENDS", "ActingUser", "AdminClient", "check_document", "check_export", "event_data", "role_names"]


class AdminClient(RunCalls, MemberCalls, ModelCalls):
    """A connection to a coordinator, with what every member's machine does (ControlClient) and what people ask."""

    def acting_for(self, user: ActingUser) -> "AdminClient":
        """The same connection, on behalf of this person. Closing it closes both."""
        other = object.__new__(AdminClient)
        other.__dict__.update(self.__dict__)
        other.acting = user
        return other

    def ask(self, method: str, request: Message) -> Message:
        """Any one of the service's unary methods by its name, for a caller that treats answers alike."""
        return self._ask(getattr(self._admin, method), request, Message)

    def server_status(self) -> pb.ServerStatus:
        """Threads, queues, disks, and what is wrong."""
        return self._ask(self._admin.GetServerStatus, pb.GetServerStatusRequest(), pb.ServerStatus)

    def list_audit(self, *, before: int = 0, limit: int = 100, run_id: str = "", event: str = "") -> pb.AuditPage:
        """Newest first."""
        request = pb.ListAuditRequest(before=before, limit=limit, run_id=run_id, event=event)
        return self._ask(self._admin.ListAudit, request, pb.AuditPage)

    def verify_audit(self) -> pb.AuditVerdict:
        """Let the coordinator check its chain now."""
        return self._ask(self._admin.VerifyAudit, pb.VerifyAuditRequest(), pb.AuditVerdict)

    def export_audit(self, after: int = 0) -> Iterator[bytes]:
        """JSON lines in chunks; `check_export` verifies them."""
        self._greet()
        with self._failures():
            for part in self._admin.ExportAudit(pb.ExportAuditRequest(after=after), metadata=self._metadata()):
                yield part.chunk


def check_export(lines: Iterable[bytes], public: bytes, *, after: int = 0, previous: str = "") -> tuple[int, str]:
    """(entries, head) of an exported audit log, once its chain and the coordinator's signature hold.

    public: the coordinator's identity key; after, previous: where the export begins, as a checked one ended.
    Raises IdentityError or TransportError naming the first line that does not hold.
    """
    from confide import canonical

    head, number, ended = previous or "0" * 64, after, False
    for line in lines:
        try:
            said = json.loads(line)
            if "signature" in said:
                statement = canonical.encode([said["coordinator"], said["entries"], said["head"]])
                verify(public, "audit-head", statement, bytes.fromhex(said["signature"]))
                ended = True
                if (said["entries"], said["head"]) != (number, head):
                    raise TransportError(f"the export ends with entry {number}, and {said['entries']} were signed")
                break
            number += 1
            fields = canonical.encode({"body": said["body"], "time": said["time"]})
            chained = canonical.hash_fields("confide/v1/audit", bytes.fromhex(head), fields).hex()
            if (said["number"], said["previous"], said["hash"]) != (number, head, chained):
                raise TransportError(f"entry {number} of the export does not follow from the one before it")
            head = chained
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise TransportError(f"line {number + 1} of the export is not an entry: {error}") from error
    if not ended:
        raise TransportError("the export has no signed end: it was cut off")
    return number, head


def role_names() -> tuple[str, ...]:
    """Roles that a person can have."""
    return tuple(role.value for role in Role if role not in (Role.COORDINATOR, Role.CONSOLE))
