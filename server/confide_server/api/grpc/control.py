"""The coordinator's gRPC control service (protos/confide/v1/control.proto): what members' machines do by themselves.

Every method has a rule in access.RULES, which is applied before its request is parsed.
"""

import re
import threading
from collections.abc import Callable, Iterator

from confide import canonical
from confide.errors import IdentityError, StateError, TransportError
from confide.identity.member import LocalMember
from confide.identity.roster import open_roster
from confide.proto import control_pb2 as pb

from confide_server.api.grpc.access import Caller, check_listed
from confide_server.api.grpc.incoming_model import CHUNK_BYTES
from confide_server.membership.enrolment import EnrolmentQueue
from confide_server.membership.intake import RosterIntake
from confide_server.state.receipts import ReceiptStore
from confide_server.state.runs.round_log import RoundLog

MAX_PROVERS = 4
"""Each may hold a model's files in memory, one at a time."""
_RUN_ID = re.compile(r"[0-9a-f]{32}")


class ControlService:
    """What each method does. Every function takes the caller, who was let in by its rule, and the request."""

    def __init__(
        self,
        *,
        member: LocalMember,
        enrolment: EnrolmentQueue,
        receipts: ReceiptStore,
        intake: RosterIntake,
        round_log: RoundLog | None = None,
    ) -> None:
        self._member = member
        self._roster = member.roster
        self._enrolment = enrolment
        self._receipts = receipts
        self._accept = intake.accept
        self._round_log = round_log
        self._provers = threading.BoundedSemaphore(MAX_PROVERS)

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


def checked_run_id(value: str) -> str:
    """The run id. Raises TransportError for anything else."""
    if not _RUN_ID.fullmatch(value):
        raise TransportError(f"{value[:40]!r} is no run id: 32 hex characters, as `confide run list` shows")
    return value
