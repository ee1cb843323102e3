"""The coordinator's gRPC control service (protos/confide/v1/control.proto): what nodes need, and submissions.

Every method has a rule in access.RULES, which is applied before its request is parsed.
"""

import itertools
import re
import threading
import time
from collections.abc import Callable, Iterator

from confide import canonical
from confide.codec.tensors import model_digest
from confide.errors import IdentityError, SpecificationError, StateError, TransportError
from confide.identity.enrolment import read_admission
from confide.identity.member import LocalMember
from confide.identity.roster import open_roster
from confide.identity.submission import SignedSubmission, verify_submission
from confide.proto import control_pb2 as pb
from confide.sealing.manifest import sign_manifest

from confide_server.api.grpc.access import Caller, check_listed
from confide_server.api.grpc.incoming_model import CHUNK_BYTES, IncomingModels
from confide_server.membership.enrolment import EnrolmentQueue
from confide_server.membership.intake import RosterIntake
from confide_server.state.events import END_KINDS
from confide_server.state.receipts import ReceiptStore
from confide_server.state.round_log import RoundLog
from confide_server.state.run_service import RunService, RunSummary, Submission

MAX_WATCHERS = 24
WATCH_POLL_S = 2.0
MAX_PROVERS = 4
"""Each may hold a model's files in memory, one at a time."""
_RUN_ID = re.compile(r"[0-9a-f]{32}")


class ControlService:
    """What each method does. Every function takes the caller, who was let in by its rule, and the request."""

    def __init__(
        self,
        *,
        member: LocalMember,
        run_service: RunService,
        enrolment: EnrolmentQueue,
        receipts: ReceiptStore,
        intake: RosterIntake,
        incoming: IncomingModels,
        round_log: RoundLog | None = None,
    ) -> None:
        self._member = member
        self._roster = member.roster
        self._run_service = run_service
        self._enrolment = enrolment
        self._receipts = receipts
        self._accept = intake.accept
        self._incoming = incoming
        self._round_log = round_log
        self._provers = threading.BoundedSemaphore(MAX_PROVERS)
        self._watchers = threading.BoundedSemaphore(MAX_WATCHERS)

    def hello(self, caller: Caller, request: pb.HelloRequest) -> pb.HelloReply:
        """Prove that this is the coordinator, to this caller only; hand over a newer roster."""
        if len(request.nonce) != 32:
            raise TransportError(f"Hello came with a nonce of {len(request.nonce)} bytes; 32 are needed")
        body = canonical.encode([request.nonce.hex(), caller.name, caller.claim.tls_key])
        roster = self._roster.current
        newer = roster.version > request.roster_version
        return pb.HelloReply(
            coordinator=self._member.name,
            signature=self._member.identity.sign("hello", body),
            roster_version=roster.version,
            roster=self._roster.signed if newer else b"",
        )

    def publish_roster(self, caller: Caller, request: pb.PublishRosterRequest) -> pb.PublishRosterReply:
        """Take a newer roster of the root's. Whoever brings it must stand in it, so that strangers cost nothing."""
        check_listed(caller.claim, open_roster(request.roster, self._member.root_public))
        return pb.PublishRosterReply(version=self._accept(request.roster).version)

    def enrol(self, caller: Caller, request: pb.EnrolRequest) -> pb.EnrolReply:
        """Keep a request until the root answers it."""
        if caller.listed is None:
            self._enrolment.put_first(caller.name, request.request)
        else:
            self._enrolment.put_renewal(caller.name, caller.listed.identity_key, request.request)
        return pb.EnrolReply()

    def fetch_admission(self, caller: Caller, request: pb.FetchAdmissionRequest) -> pb.FetchAdmissionReply:
        """The caller's own admission, or nothing yet."""
        return pb.FetchAdmissionReply(admission=self._enrolment.admission(caller.name))

    def get_roster(self, caller: Caller, request: pb.GetRosterRequest) -> pb.GetRosterReply:
        """The newest signed roster."""
        return pb.GetRosterReply(roster=self._roster.signed)

    def put_receipt(self, caller: Caller, request: pb.PutReceiptRequest) -> pb.PutReceiptReply:
        """Keep a node's ledger receipt."""
        if caller.member is None:
            raise IdentityError("only a node of the roster sends receipts")
        self._receipts.put(caller.member, checked_run_id(request.run_id), request.receipt, request.signature)
        return pb.PutReceiptReply()

    def prove_run(
        self, caller: Caller, request: pb.ProveRunRequest, active: Callable[[], bool]
    ) -> Iterator[pb.RunProofPart]:
        """The log of rounds of a run that the caller accepted, with proofs, and the files of one round."""
        if caller.member is None or self._round_log is None:
            raise IdentityError("only a node of the roster checks a run, at a coordinator that keeps a log of rounds")
        if not self._provers.acquire(blocking=False):
            raise StateError(f"{MAX_PROVERS} nodes check a run already; try again in a minute")
        try:
            run_id = checked_run_id(request.run_id)
            for part in self._round_log.prove(run_id, caller.name, request.round, CHUNK_BYTES):
                if not active():
                    return
                yield part
        finally:
            self._provers.release()

    def list_requests(self, caller: Caller, request: pb.ListRequestsRequest) -> pb.ListRequestsReply:
        """Requests that nobody has answered, as many as fit into one message."""
        reply, size = pb.ListRequestsReply(), 0
        for data in self._enrolment.pending():
            size += len(data) + 16
            if size > CHUNK_BYTES:
                break
            reply.requests.append(data)
        return reply

    def publish_admission(self, caller: Caller, request: pb.PublishAdmissionRequest) -> pb.PublishAdmissionReply:
        """Keep the root's answer for its member, and take the roster in it."""
        admission, _ = read_admission(request.admission, time.time(), root=self._member.root_public.hex())
        self._accept(admission.roster.encode())
        self._enrolment.answer(admission.membership.name, request.admission)
        return pb.PublishAdmissionReply()

    def submit_run(self, caller: Caller, parts: Iterator[pb.SubmitRunRequest]) -> pb.SubmitRunReply:
        """Check what the administrator signed, then hand it to the run service."""
        first = next(parts, None)
        if first is None or first.WhichOneof("part") != "header":
            raise TransportError("a submission must begin with its header")
        header = first.header
        # Before the model is read: a forged or repeated submission costs the coordinator one small message.
        signed = SignedSubmission(
            run_id=header.run_id,
            nonce=header.nonce,
            expires_at=header.expires_at,
            specification=header.specification,
            initial_model_sha256=header.initial_model_sha256,
            administrator=caller.name,
            signature=header.signature,
            parent_run_id=header.parent_run_id,
            parent_round=header.parent_round,
        )
        verify_submission(self._roster.current, signed, complete=False)
        self._run_service.check_new(signed)
        model = self._incoming.receive(header.initial_model_bytes, _chunks(parts))
        found = model_digest(model)
        if found != header.initial_model_sha256:
            raise SpecificationError(
                f"the first model that came has the digest {found.hex()[:16]}, and "
                f"{header.initial_model_sha256.hex()[:16]} was signed; submit again"
            )
        submission = Submission(signed=signed, initial_model=model, schema=header.schema)
        return pb.SubmitRunReply(run_id=self._run_service.submit(submission))

    def list_runs(self, caller: Caller, request: pb.ListRunsRequest) -> pb.ListRunsReply:
        """Newest first; the newest 2000."""
        runs = list(self._run_service.runs())[:2000]
        return pb.ListRunsReply(runs=[_summary(run) for run in runs])

    def watch_run(
        self, caller: Caller, request: pb.WatchRunRequest, active: Callable[[], bool]
    ) -> Iterator[pb.RunEvent]:
        """Events as they happen, until the run has ended or the caller went away."""
        run_id, after, heard = checked_run_id(request.run_id), request.after, 0
        if not self._watchers.acquire(blocking=False):
            raise StateError(f"{MAX_WATCHERS} watch already; try again when one has left")
        try:
            while active():
                events = self._run_service.events(run_id, after, WATCH_POLL_S)
                for event in events:
                    after = event.sequence
                    yield pb.RunEvent(
                        sequence=event.sequence, time=event.time, kind=event.kind, data=canonical.encode(event.data)
                    )
                    if event.kind in END_KINDS:
                        return
                if not events and self._run_service.ended(run_id):
                    return
                heard, reports = self._run_service.progress_since(run_id, heard)
                for data in reports:
                    yield pb.RunEvent(sequence=after, time=time.time(), kind="progress", data=canonical.encode(data))
        finally:
            self._watchers.release()

    def stop_run(self, caller: Caller, request: pb.StopRunRequest) -> pb.StopRunReply:
        """Ask the run to stop, by the administrator's signed order."""
        self._run_service.stop(checked_run_id(request.run_id), caller.name, request.signature)
        return pb.StopRunReply()

    def export_run(
        self, caller: Caller, request: pb.ExportRunRequest, active: Callable[[], bool]
    ) -> Iterator[pb.ExportRunReply]:
        """A committed round's manifest and tensors."""
        model = self._run_service.stored_model(checked_run_id(request.run_id), request.round or None)
        document = canonical.encode(sign_manifest(model.manifest, self._member.name, self._member.identity))
        yield pb.ExportRunReply(header=pb.ExportRunHeader(manifest_bytes=len(document), model_bytes=model.bytes))
        starts = range(0, len(document), CHUNK_BYTES)
        for chunk in itertools.chain((document[at : at + CHUNK_BYTES] for at in starts), model.chunks(CHUNK_BYTES)):
            if not active():
                return
            yield pb.ExportRunReply(chunk=chunk)


def _chunks(parts: Iterator[pb.SubmitRunRequest]) -> Iterator[bytes]:
    for part in parts:
        yield part.chunk  # of anything else it is empty, which is refused


def _summary(run: RunSummary) -> pb.RunSummary:
    said = vars(run) | {"status": run.standing or run.status}
    return pb.RunSummary(**{name: value for name, value in said.items() if name != "standing"})


def checked_run_id(value: str) -> str:
    """The run id. Raises TransportError for anything else."""
    if not _RUN_ID.fullmatch(value):
        raise TransportError(f"{value[:40]!r} is no run id: 32 hex characters, as `confide run list` shows")
    return value
