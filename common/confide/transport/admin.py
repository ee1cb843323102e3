"""The client side of the administration service: what people's commands and the console ask of the coordinator.

    with AdminClient.of_member(load_member(folder)) as client:
        for run in client.list_runs(statuses=["running"]).runs: ...
        client.pause_run(run.run_id, "maintenance")

Messages are those of protos/confide/v1/admin.proto; every text in an answer is fit to be shown (confide.text). Each
change gets an idempotency key of its own unless one is given: who asks again after a lost connection gives the same.
"""

import hashlib
import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import Message

from confide.errors import IdentityError, TransportError
from confide.identity.keys import SigningKey, verify
from confide.identity.roster import Role, Roster
from confide.identity.submission import (
    VALID_S,
    SignedSubmission,
    sign_cosignature,
    sign_override,
    sign_release,
    sign_stop,
    sign_submission,
    verify_submission,
)
from confide.proto import admin_pb2 as pb
from confide.proto.admin_pb2_grpc import AdminStub
from confide.runs.specification import Specification
from confide.text import cleaned_message
from confide.transport.control import CALL_TIMEOUT_S, ControlClient
from confide.transport.failures import ACTING_ORGANIZATION_KEY, ACTING_ROLE_KEY, ACTING_USER_KEY, own_metadata

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, kw_only=True)
class ActingUser:
    """The person for whom a console calls."""

    name: str
    role: str
    """administrator, operator, auditor, annotator, or node for a person of an organization."""
    organization: str = ""
    """With role node: which."""


class AdminClient(ControlClient):
    """A connection to a coordinator, with the control service's methods and these."""

    acting: ActingUser | None = None
    """Set by a console, for each person anew (`acting_for`)."""

    def acting_for(self, user: ActingUser) -> "AdminClient":
        """The same connection, on behalf of this person. Closing it closes both."""
        other = object.__new__(AdminClient)
        other.__dict__.update(self.__dict__)
        other.acting = user
        return other

    def ask(self, method: str, request: Message) -> Message:
        """Any one of the service's unary methods by its name, for a caller that treats answers alike."""
        return self._ask(getattr(self._admin, method), request, Message)

    # --- the server and its runs

    def server_status(self) -> pb.ServerStatus:
        """Threads, queues, disks, and what is wrong."""
        return self._ask(self._admin.GetServerStatus, pb.GetServerStatusRequest(), pb.ServerStatus)

    def list_runs(
        self,
        *,
        statuses: Iterable[str] = (),
        name_contains: str = "",
        organization: str = "",
        administrator: str = "",
        method: str = "",
        parent_run_id: str = "",
        run_id_prefix: str = "",
        limit: int = 50,
        cursor: str = "",
    ) -> pb.RunPage:
        """One page of runs, newest first; `next_cursor` brings the next one."""
        query = pb.ListRunsQuery(
            statuses=list(statuses),
            name_contains=name_contains,
            organization=organization,
            administrator=administrator,
            method=method,
            parent_run_id=parent_run_id,
            run_id_prefix=run_id_prefix,
            limit=limit,
            cursor=cursor,
        )
        return self._ask(self._admin.ListRuns, query, pb.RunPage)

    def all_runs(self, statuses: Iterable[str] = ()) -> Iterator[pb.RunLine]:
        """Every run of these statuses (none: all but deleted ones), newest first, page by page."""
        wanted, cursor = list(statuses), ""
        while True:
            page = self.list_runs(statuses=wanted, limit=200, cursor=cursor)
            yield from page.runs
            cursor = page.next_cursor
            if not cursor:
                return

    def get_run(self, run_id: str) -> pb.RunDetail:
        """Everything about one run but its rounds and events."""
        return self._ask(self._admin.GetRun, pb.GetRunRequest(run_id=run_id), pb.RunDetail)

    def list_rounds(self, run_id: str, *, after: int = 0, limit: int = 100) -> pb.RoundPage:
        """Committed rounds after round `after`."""
        return self._ask(
            self._admin.ListRounds, pb.ListRoundsRequest(run_id=run_id, after_round=after, limit=limit), pb.RoundPage
        )

    def all_rounds(self, run_id: str) -> list[pb.RoundLine]:
        """Every committed round, page by page."""
        rounds: list[pb.RoundLine] = []
        while True:
            page = self.list_rounds(run_id, after=rounds[-1].round if rounds else 0, limit=500)
            rounds += page.rounds
            if not page.more or not page.rounds:
                return rounds

    def stream_events(self, run_id: str = "", *, after: int = 0, newest_only: bool = False) -> Iterator[pb.Event]:
        """Events after number `after`, then as they happen; "alive" every few seconds. Close it to leave.

        Raises TransportError when the connection is lost: go on from the last event's number.
        """
        self._greet()
        request = pb.StreamEventsRequest(run_id=run_id, after=after, newest_only=newest_only)
        with self._failures():
            call = self._admin.StreamEvents(request, metadata=self._metadata())
            try:
                yield from map(cleaned_message, call)
            finally:
                call.cancel()

    # --- changes of runs

    def pause_run(self, run_id: str, reason: str = "", *, key: str = "") -> pb.RunLine:
        """Let it rest once its open round has ended."""
        request = pb.PauseRunRequest(run_id=run_id, reason=reason, idempotency_key=key or _key())
        return self._ask(self._admin.PauseRun, request, pb.RunChanged).run

    def resume_run(self, run_id: str, *, key: str = "") -> pb.RunLine:
        """Let it go on."""
        return self._ask(
            self._admin.ResumeRun, pb.ResumeRunRequest(run_id=run_id, idempotency_key=key or _key()), pb.RunChanged
        ).run

    def set_priority(self, run_id: str, priority: int, *, key: str = "") -> pb.RunLine:
        """From -100 to 100; higher goes first."""
        request = pb.SetPriorityRequest(run_id=run_id, priority=priority, idempotency_key=key or _key())
        return self._ask(self._admin.SetPriority, request, pb.RunChanged).run

    def order_stop(self, run_id: str, identity: SigningKey, *, key: str = "") -> pb.RunLine:
        """Stop it, by this administrator's signed order."""
        return self.pass_stop(run_id, "", sign_stop(identity, run_id), key=key)

    def pass_stop(self, run_id: str, administrator: str, signature: bytes, *, key: str = "") -> pb.RunLine:
        """Hand over an order that an administrator signed elsewhere."""
        request = pb.OrderStopRequest(
            run_id=run_id, administrator=administrator, signature=signature, idempotency_key=key or _key()
        )
        return self._ask(self._admin.OrderStop, request, pb.RunChanged).run

    def delete_run(self, run_id: str, *, key: str = "") -> None:
        """Remove what is kept of a run that has ended."""
        self._ask(
            self._admin.DeleteRun, pb.DeleteRunRequest(run_id=run_id, idempotency_key=key or _key()), pb.RunChanged
        )

    def continue_run(
        self,
        specification: Specification,
        identity: SigningKey,
        *,
        parent_run_id: str,
        parent_round: int,
        model_sha256: bytes,
        valid_s: int = VALID_S,
        key: str = "",
    ) -> pb.RunLine:
        """Sign and submit a run that begins with the model of another run's round (its digest: 32 bytes)."""
        document = specification.canonical_bytes()
        signed = sign_submission(
            identity,
            self._claim.name,
            document,
            model_sha256,
            valid_s=valid_s,
            parent_run_id=parent_run_id,
            parent_round=parent_round,
        )
        request = pb.ContinueRunRequest(
            idempotency_key=key or _key(),
            specification=document,
            initial_model_sha256=model_sha256,
            signature=signed.signature,
            run_id=signed.run_id,
            nonce=signed.nonce,
            expires_at=signed.expires_at,
            parent_run_id=parent_run_id,
            parent_round=parent_round,
        )
        return self._ask(self._admin.ContinueRun, request, pb.RunChanged).run

    def cosign_run(self, detail: pb.RunDetail, identity: SigningKey, roster: Roster, *, key: str = "") -> pb.RunLine:
        """Sign a draft as this administrator, once the first one's signature holds.

        Guarantee: what is signed is the specification in `detail`, for its run id, nonce, expiry, first model, parent.
        """
        run = detail.run
        signed = SignedSubmission(
            run_id=run.run_id,
            nonce=detail.nonce,
            expires_at=int(detail.expires_at),
            specification=detail.specification,
            initial_model_sha256=bytes.fromhex(detail.initial_model_sha256),
            administrator=run.administrator,
            signature=detail.signature,
            parent_run_id=run.parent_run_id,
            parent_round=run.parent_round,
        )
        verify_submission(roster, signed, complete=False)
        request = pb.CosignRunRequest(
            run_id=run.run_id, signature=sign_cosignature(identity, signed), idempotency_key=key or _key()
        )
        return self._ask(self._admin.CosignRun, request, pb.RunChanged).run

    # --- members

    def list_members(self, role: str = "") -> pb.MemberPage:
        """By name."""
        return self._ask(self._admin.ListMembers, pb.ListMembersRequest(role=role), pb.MemberPage)

    def get_signed_roster(self, version: int = 0) -> pb.SignedRosterReply:
        """As the root signed it; 0 is the newest."""
        return self._ask(self._admin.GetSignedRoster, pb.GetSignedRosterRequest(version=version), pb.SignedRosterReply)

    def list_rosters(self, *, limit: int = 50, before: int = 0) -> pb.RosterPage:
        """Newest first."""
        return self._ask(
            self._admin.ListRosters, pb.ListRostersRequest(limit=limit, before_version=before), pb.RosterPage
        )

    def take_roster(self, roster: bytes, *, key: str = "") -> pb.RosterTaken:
        """Hand over a newer roster that the root signed: who is revoked in it is cut off at once."""
        return self._ask(
            self._admin.TakeRoster, pb.TakeRosterRequest(roster=roster, idempotency_key=key or _key()), pb.RosterTaken
        )

    def list_enrolments(self) -> pb.EnrolmentPage:
        """Who asks to come in."""
        return self._ask(self._admin.ListEnrolments, pb.ListEnrolmentsRequest(), pb.EnrolmentPage)

    def admit_member(self, admission: bytes, *, key: str = "") -> pb.MemberAdmitted:
        """Hand over the root's answer to a request."""
        request = pb.AdmitMemberRequest(admission=admission, idempotency_key=key or _key())
        return self._ask(self._admin.AdmitMember, request, pb.MemberAdmitted)

    # --- privacy

    def list_receipts(
        self, *, run_id: str = "", organization: str = "", after: int = 0, limit: int = 100
    ) -> pb.ReceiptPage:
        """In order of arrival."""
        request = pb.ListReceiptsRequest(run_id=run_id, organization=organization, after=after, limit=limit)
        return self._ask(self._admin.ListReceipts, request, pb.ReceiptPage)

    def privacy_spent(self, organization: str = "") -> pb.PrivacySpent:
        """By organization, group of data and run."""
        return self._ask(
            self._admin.GetPrivacySpent, pb.GetPrivacySpentRequest(organization=organization), pb.PrivacySpent
        )

    # --- models

    def put_candidates(
        self, name: str, candidates: Sequence[bytes], *, source: str, licence: str, key: str = ""
    ) -> pb.PreferencesKept:
        """Hand over answers that annotators are to compare; at most 500 at once."""
        request = pb.PutCandidatesRequest(
            name=name, source=source, licence=licence, candidates=candidates, idempotency_key=key or _key()
        )
        return self._ask(self._admin.PutCandidates, request, pb.PreferencesKept)

    def put_ratings(self, ratings: Sequence[bytes], *, key: str = "") -> pb.PreferencesKept:
        """Hand over this annotator's own judgements, all or none; at most 500 at once."""
        request = pb.PutRatingsRequest(ratings=ratings, idempotency_key=key or _key())
        return self._ask(self._admin.PutRatings, request, pb.PreferencesKept)

    def list_ratings(self, *, after: int = 0, limit: int = 500) -> pb.RatingPage:
        """Judgements that stand, in order."""
        request = pb.ListRatingsRequest(after=after, limit=limit)
        return self._ask(self._admin.ListRatings, request, pb.RatingPage)

    def list_checkpoints(
        self, run_id: str, *, after: int = 0, from_first: bool = False, limit: int = 100
    ) -> pb.CheckpointPage:
        """Models after a run's rounds."""
        request = pb.ListCheckpointsRequest(run_id=run_id, after_round=after, from_first=from_first, limit=limit)
        return self._ask(self._admin.ListCheckpoints, request, pb.CheckpointPage)

    def create_release(self, name: str, run_id: str, round: int = 0, notes: str = "", *, key: str = "") -> pb.Release:
        """A document that administrators sign next."""
        request = pb.CreateReleaseRequest(
            name=name, run_id=run_id, round=round, notes=notes, idempotency_key=key or _key()
        )
        return self._ask(self._admin.CreateRelease, request, pb.Release)

    def create_aligned_release(self, name: str, aligned: bytes, notes: str = "", *, key: str = "") -> pb.Release:
        """The same of an adapter that was optimised centrally. aligned: its document, as `rlhf train` wrote it."""
        request = pb.CreateReleaseRequest(name=name, aligned=aligned, notes=notes, idempotency_key=key or _key())
        return self._ask(self._admin.CreateRelease, request, pb.Release)

    def sign_release(self, release: pb.Release, identity: SigningKey, *, key: str = "") -> pb.Release:
        """Sign a release's document as this administrator. Raises IdentityError when it says something else.

        Guarantee: what is signed names the model, run and round that `release` shows, whoever passed it on.
        """
        check_document(release)
        return self.pass_signature(release, "", sign_release(identity, release.document), key=key)

    def pass_signature(self, release: pb.Release, administrator: str, signature: bytes, *, key: str = "") -> pb.Release:
        """Hand over a signature that an administrator made elsewhere."""
        request = pb.SignReleaseRequest(
            name=release.name,
            number=release.number,
            administrator=administrator,
            signature=signature,
            idempotency_key=key or _key(),
        )
        return self._ask(self._admin.SignRelease, request, pb.Release)

    def attach_evidence(
        self, name: str, number: int, evidence: bytes, *, signer: str = "", key: str = ""
    ) -> pb.Release:
        """Hand over the gate's evidence of a release's model. signer: who signed it; empty: this member."""
        request = pb.AttachEvidenceRequest(
            name=name, number=number, signer=signer, evidence=evidence, idempotency_key=key or _key()
        )
        return self._ask(self._admin.AttachEvidence, request, pb.Release)

    def override_gate(self, release: pb.Release, reason: str, identity: SigningKey, *, key: str = "") -> pb.Release:
        """Sign as this administrator that a release goes without the gate's evidence. Raises as `sign_release`."""
        check_document(release)
        request = pb.OverrideGateRequest(
            name=release.name, number=release.number, reason=reason,
            signature=sign_override(identity, release.document, reason), idempotency_key=key or _key(),
        )  # fmt: skip
        return self._ask(self._admin.OverrideGate, request, pb.Release)

    def publish_release(self, name: str, number: int, *, key: str = "") -> pb.Release:
        """Let the name stand for it."""
        request = pb.PublishReleaseRequest(name=name, number=number, idempotency_key=key or _key())
        return self._ask(self._admin.PublishRelease, request, pb.Release)

    def roll_back_release(self, name: str, number: int, reason: str = "", *, key: str = "") -> pb.Release:
        """Let the name stand for an earlier one again."""
        request = pb.RollBackReleaseRequest(name=name, number=number, reason=reason, idempotency_key=key or _key())
        return self._ask(self._admin.RollBackRelease, request, pb.Release)

    def list_releases(self, name: str = "", *, limit: int = 50, cursor: str = "") -> pb.ReleasePage:
        """Newest first."""
        request = pb.ListReleasesRequest(name=name, limit=limit, cursor=cursor)
        return self._ask(self._admin.ListReleases, request, pb.ReleasePage)

    def get_lineage(self, run_id: str = "") -> pb.Lineage:
        """Base models, runs and releases."""
        return self._ask(self._admin.GetLineage, pb.GetLineageRequest(run_id=run_id), pb.Lineage)

    # --- the audit log

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

    @property
    def _admin(self) -> AdminStub:
        stub: AdminStub | None = self.__dict__.get("_admin_stub")
        if stub is None:
            stub = AdminStub(self._channel)  # type: ignore[no-untyped-call]  # generated
            self.__dict__["_admin_stub"] = stub
        return stub

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        if self.acting is None:
            return own_metadata()
        who = (
            (ACTING_USER_KEY, self.acting.name),
            (ACTING_ROLE_KEY, self.acting.role),
            (ACTING_ORGANIZATION_KEY, self.acting.organization),
        )
        return (*own_metadata(), *who)

    def _ask(self, method: Callable[..., Any], request: Message, kind: type[M]) -> M:
        self._greet()
        with self._failures():
            reply: M = method(request, metadata=self._metadata(), timeout=CALL_TIMEOUT_S)
        return cleaned_message(reply)


def check_document(release: pb.Release) -> dict[str, Any]:
    """A release's document. Raises IdentityError when the document says something else than the message beside it."""
    try:
        said = json.loads(release.document)
        shown = {"name": release.name, "number": release.number, "run_id": release.run_id, "round": release.round}
        shown["model_sha256"] = release.model_sha256
        same = all(said[key] == value for key, value in shown.items())
    except (ValueError, KeyError, TypeError, RecursionError):
        same = False
    if not same or hashlib.sha256(release.document).hexdigest() != release.sha256:
        raise IdentityError(
            f"the document of release {release.name}/{release.number} says something else than what is shown of it; "
            "do not sign it, and tell the coordinator's operator"
        )
    found: dict[str, Any] = said
    return found


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


def _key() -> str:
    return secrets.token_hex(16)
