"""The coordinator's gRPC control service (protos/confide/v1/control.proto), always over mTLS.

    server = ControlServer(member=load_member(folder), run_service=book, folder=folder, address="0.0.0.0:9443")
    port = server.start()
    ...
    server.stop()

Every method has a rule in control_access.RULES, which is applied before its request is parsed.
"""

import logging
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn, cast

import grpc
from confide import canonical
from confide.codec.tensors import model_digest
from confide.errors import ConfideError, IdentityError, SpecificationError, StateError, TransportError
from confide.files import private_folder
from confide.identity.enrolment import read_admission
from confide.identity.member import LocalMember, load_member
from confide.identity.roster import Roster, open_roster
from confide.identity.submission import SignedSubmission, verify_submission
from confide.proto import control_pb2 as pb
from confide.sealing.manifest import sign_manifest
from confide.transport.failures import CODE_KEY, message_of, own_metadata, status_of
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from confide_server.api.grpc.access import RULES, Caller, Rule, check_listed, check_version, claim_of, identify
from confide_server.api.grpc.passage import Passage
from confide_server.membership.enrolment import EnrolmentQueue
from confide_server.quota import HANDSHAKE_TIMEOUT_S, Quota, listening
from confide_server.state.receipts import ReceiptStore
from confide_server.state.run_service import RunService, Submission

log = logging.getLogger(__name__)

SERVICE = "confide.v1.Control"
CHUNK_BYTES = 1 << 20
MAX_MESSAGE_BYTES = CHUNK_BYTES + (1 << 16)
MAX_MODEL_BYTES = 8 << 30
MAX_CALLS = 48
MAX_WATCHERS = 24
MAX_CONNECTIONS = 128
MAX_CONNECTIONS_OF_ADDRESS = 64
PASSAGE_DESCRIPTORS = 3 * MAX_CONNECTIONS
"""Each connection is there three times: from the caller, to gRPC, and in gRPC."""
WATCH_POLL_S = 2.0
ENDED = frozenset({"run_finished", "run_failed", "run_stopped"})
ENDED_STATUS = frozenset({"finished", "failed", "stopped"})
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
        on_roster: Callable[[Roster], None] | None = None,
        max_model_bytes: int = MAX_MODEL_BYTES,
    ) -> None:
        self._member = member
        self._roster = member.roster
        self._run_service = run_service
        self._enrolment = enrolment
        self._receipts = receipts
        self._on_roster = on_roster
        self._max_model_bytes = max_model_bytes
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
        self._receipts.put(caller.member, _run_id(request.run_id), request.receipt, request.signature)
        return pb.PutReceiptReply()

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
        )
        verify_submission(self._roster.current, signed)
        self._run_service.check_new(signed)
        model = self._read_model(header.initial_model_bytes, parts)
        if model_digest(model) != header.initial_model_sha256:
            raise SpecificationError(
                f"the first model that came has the digest {model_digest(model).hex()[:16]}, and "
                f"{header.initial_model_sha256.hex()[:16]} was signed; submit again"
            )
        submission = Submission(signed=signed, initial_model=model, schema=header.schema)
        return pb.SubmitRunReply(run_id=self._run_service.submit(submission))

    def list_runs(self, caller: Caller, request: pb.ListRunsRequest) -> pb.ListRunsReply:
        """Newest first; the newest 2000."""
        runs = list(self._run_service.runs())[:2000]
        return pb.ListRunsReply(runs=[pb.RunSummary(**vars(run)) for run in runs])

    def watch_run(
        self, caller: Caller, request: pb.WatchRunRequest, active: Callable[[], bool]
    ) -> Iterator[pb.RunEvent]:
        """Events as they happen, until the run has ended or the caller went away."""
        run_id, after, heard = _run_id(request.run_id), request.after, 0
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
                    if event.kind in ENDED:
                        return
                if not events and self._has_ended(run_id):
                    return
                heard, reports = self._run_service.progress_since(run_id, heard)
                for data in reports:
                    yield pb.RunEvent(sequence=after, time=time.time(), kind="progress", data=canonical.encode(data))
        finally:
            self._watchers.release()

    def stop_run(self, caller: Caller, request: pb.StopRunRequest) -> pb.StopRunReply:
        """Ask the run to stop, by the administrator's signed order."""
        self._run_service.stop(_run_id(request.run_id), caller.name, request.signature)
        return pb.StopRunReply()

    def export_run(
        self, caller: Caller, request: pb.ExportRunRequest, active: Callable[[], bool]
    ) -> Iterator[pb.ExportRunReply]:
        """A committed round's manifest and tensors."""
        manifest, model = self._run_service.checkpoint(_run_id(request.run_id), request.round or None)
        document = canonical.encode(sign_manifest(manifest, self._member.name, self._member.identity))
        yield pb.ExportRunReply(header=pb.ExportRunHeader(manifest_bytes=len(document), model_bytes=len(model)))
        for view in (memoryview(document), memoryview(model)):
            for start in range(0, len(view), CHUNK_BYTES):
                if not active():
                    return
                yield pb.ExportRunReply(chunk=bytes(view[start : start + CHUNK_BYTES]))

    def _accept(self, signed: bytes) -> Roster:
        before = self._roster.current.version
        roster = self._roster.accept(signed)
        if roster.version != before and self._on_roster is not None:
            self._on_roster(roster)
        return roster

    def _read_model(self, declared: int, parts: Iterator[pb.SubmitRunRequest]) -> bytes:
        if declared > self._max_model_bytes:
            raise TransportError(f"a first model of {declared} bytes is announced; at most {self._max_model_bytes} fit")
        with tempfile.SpooledTemporaryFile(max_size=64 * CHUNK_BYTES) as spool:
            size = 0
            for part in parts:
                size += len(part.chunk)
                if part.WhichOneof("part") != "chunk" or not 0 < len(part.chunk) <= CHUNK_BYTES or size > declared:
                    raise TransportError(
                        f"the first model does not come in chunks of 1..{CHUNK_BYTES} bytes as announced"
                    )
                spool.write(part.chunk)
            if size != declared:
                raise TransportError(f"{size} of {declared} announced bytes of the first model came; submit again")
            spool.seek(0)
            return spool.read()

    def _has_ended(self, run_id: str) -> bool:
        return any(run.run_id == run_id and run.status in ENDED_STATUS for run in self._run_service.runs())


def _run_id(value: str) -> str:
    if not _RUN_ID.fullmatch(value):
        raise TransportError(f"{value[:40]!r} is no run id: 32 hex characters, as `confide run list` shows")
    return value


class _Endpoint:
    """One method as gRPC calls it: version, caller and rule first, then the request is parsed, then the function."""

    def __init__(self, function: Callable[..., Any], rule: Rule, kind: type[Message], member: LocalMember) -> None:
        self._function = function
        self._rule = rule
        self._kind = kind
        self._member = member

    def unary(self, data: bytes, context: grpc.ServicerContext) -> Message:
        try:
            caller = self._let_in(context)
            reply: Message = self._function(caller, self._parse(data))
            return reply
        except Exception as error:
            failure = error
        _abort(context, failure)

    def stream_out(self, data: bytes, context: grpc.ServicerContext) -> Iterator[Message]:
        try:
            caller = self._let_in(context)
            yield from self._function(caller, self._parse(data), lambda: context.is_active() and self._still(caller))
            return
        except Exception as error:
            failure = error
        _abort(context, failure)

    def stream_in(self, parts: Iterator[bytes], context: grpc.ServicerContext) -> Message:
        try:
            caller = self._let_in(context)
            reply: Message = self._function(caller, (self._parse(data) for data in parts))
            return reply
        except Exception as error:
            failure = error
        _abort(context, failure)

    def _let_in(self, context: grpc.ServicerContext) -> Caller:
        check_version(context.invocation_metadata())
        return identify(claim_of(cast(Any, context.auth_context())), self._rule, self._member.roster.current)

    def _still(self, caller: Caller) -> bool:
        # A stream may outlast its caller's membership; raises when that has ended.
        return identify(caller.claim, self._rule, self._member.roster.current) is not None

    def _parse(self, data: bytes) -> Message:
        message = self._kind()
        try:
            message.ParseFromString(data)
        except DecodeError as error:
            raise TransportError(
                f"the request is not a {self._kind.DESCRIPTOR.name}; is the caller's release ours?"
            ) from error
        return message


def _abort(context: grpc.ServicerContext, failure: Exception) -> NoReturn:
    if not isinstance(failure, ConfideError):
        if context.is_active():  # else the caller went away, which is no fault
            log.error("a control call failed", exc_info=failure)
        failure = StateError("the coordinator failed while answering; its log says why")
    context.set_trailing_metadata((*own_metadata(), (CODE_KEY, failure.code)))
    context.abort(status_of(failure), message_of(failure))
    raise AssertionError("abort returns never")


def _handlers(service: ControlService, member: LocalMember) -> dict[str, "grpc.RpcMethodHandler[Any, Any]"]:
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for method in pb.DESCRIPTOR.services_by_name["Control"].methods:
        function = getattr(service, re.sub(r"(?<!^)(?=[A-Z])", "_", method.name).lower())
        endpoint = _Endpoint(function, RULES[method.name], GetMessageClass(method.input_type), member)
        serializer = GetMessageClass(method.output_type).SerializeToString
        if method.client_streaming:
            handlers[method.name] = grpc.stream_unary_rpc_method_handler(endpoint.stream_in, None, serializer)
        elif method.server_streaming:
            handlers[method.name] = grpc.unary_stream_rpc_method_handler(endpoint.stream_out, None, serializer)
        else:
            handlers[method.name] = grpc.unary_unary_rpc_method_handler(endpoint.unary, None, serializer)
    return handlers


class ControlServer:
    """The service on its port. A renewed certificate in the folder is used for the next connection."""

    def __init__(
        self,
        *,
        member: LocalMember,
        run_service: RunService,
        folder: Path,
        address: str,
        receipts: ReceiptStore | None = None,
        on_roster: Callable[[Roster], None] | None = None,
        max_model_bytes: int = MAX_MODEL_BYTES,
    ) -> None:
        """folder: where enrolment requests and (unless a book is given) receipts are kept. address: host:port, port 0
        for a free one."""
        self.receipts = receipts if receipts is not None else ReceiptStore(private_folder(folder) / "receipts.log")
        self._owns_receipts = receipts is None
        self._address = address
        service = ControlService(
            member=member,
            run_service=run_service,
            enrolment=EnrolmentQueue(folder / "enrolment"),
            receipts=self.receipts,
            on_roster=on_roster,
            max_model_bytes=max_model_bytes,
        )
        self._pool = ThreadPoolExecutor(max_workers=MAX_CALLS, thread_name_prefix="control")
        self._server = grpc.server(
            self._pool,
            maximum_concurrent_rpcs=MAX_CALLS,
            options=(
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", 2 * MAX_MESSAGE_BYTES),
                ("grpc.max_metadata_size", 16384),
                ("grpc.so_reuseport", 0),
                ("grpc.http2.min_ping_interval_without_data_ms", 20000),
                ("grpc.server_handshake_timeout_ms", int(HANDSHAKE_TIMEOUT_S * 1000)),
                ("grpc.keepalive_time_ms", 60000),  # a caller that vanished is noticed, and its call ended
                ("grpc.compression_enabled_algorithms_bitset", 1),  # none: a small message cannot become a big one
            ),
        )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, _handlers(service, member)),)
        )
        self._credentials = _TlsFiles(member)
        self._passage: Passage | None = None

    def start(self) -> int:
        """Listen; returns the port. Raises StateError when the port is in use."""
        host, _, port = self._address.rpartition(":")
        listener = listening(host.strip("[]"), int(port), "control", "choose another port")
        inner = self._server.add_secure_port("127.0.0.1:0", self._credentials.for_server())
        self._server.start()
        quota = Quota(most=MAX_CONNECTIONS, of_one_address=MAX_CONNECTIONS_OF_ADDRESS)
        self._passage = Passage(listener, ("127.0.0.1", inner), quota)
        return self._passage.start()

    def stop(self, grace_s: float = 2.0) -> None:
        """End open calls and release the port. Idempotent."""
        self._server.stop(grace_s).wait()
        if self._passage is not None:
            self._passage.stop()
        self._pool.shutdown(wait=True)
        if self._owns_receipts:
            self.receipts.close()
            self._owns_receipts = False


class _TlsFiles:
    """The coordinator's key and certificate, read again when they change (renewal without a restart)."""

    def __init__(self, member: LocalMember) -> None:
        self._member = member
        self._stamp = self._stamped()
        self._initial = self._read()

    def for_server(self) -> grpc.ServerCredentials:
        """mTLS: a client without a certificate of the consortium's authority does not get past the handshake."""
        return grpc.dynamic_ssl_server_credentials(self._initial, self._changed, require_client_authentication=True)

    def _changed(self) -> Any:
        stamp = self._stamped()
        if stamp == self._stamp:
            return None
        try:
            load_member(self._member.folder)  # a pair that does not fit (written just now) keeps the old one in use
        except ConfideError:
            return None
        self._stamp = stamp
        return self._read()

    def _stamped(self) -> tuple[int, int]:
        paths = (self._member.tls_key_path, self._member.tls_certificate_path)
        first, second = (path.stat().st_mtime_ns for path in paths)
        return first, second

    def _read(self) -> Any:
        pair = (self._member.tls_key_path.read_bytes(), self._member.tls_certificate_path.read_bytes())
        authority = self._member.roster.current.ca_certificate.encode()
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=authority)
