"""The client side of the control service: what every member's machine asks of the coordinator by itself, over mTLS.

    with ControlClient.of_member(load_member(folder)) as client:
        client.put_receipt(run_id, receipt, member.identity)

What people ask and order is in confide.transport.admin.

Before the first call the coordinator proves that it holds the identity key of the roster, and both exchange the newer
roster. An outbound HTTP proxy is taken from `proxy`, else from the environment as gRPC does (grpc_proxy, https_proxy,
with no_grpc_proxy and no_proxy); TLS stays end to end between this machine and the coordinator.
"""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeVar, cast

import grpc

from confide import canonical
from confide.errors import ConfideError, IdentityError, TransportError
from confide.identity.certificates import CertificateClaim, check_certificate, load_certificate, read_claim
from confide.identity.enrolment import read_admission
from confide.identity.invitation import Invitation
from confide.identity.keys import SigningKey, verify
from confide.identity.member import LocalMember
from confide.identity.roster import Role, Roster, RosterStore, verify_roster
from confide.proto import control_pb2 as pb
from confide.proto.control_pb2_grpc import ControlStub
from confide.text import paragraph
from confide.transport.failures import CODE_KEY, own_metadata, revive

CHUNK_BYTES = 1 << 20
CALL_TIMEOUT_S = 30.0
GREETINGS = 3
"""How often a connection is set up before it is given up."""
BETWEEN_GREETINGS_S = 0.5
BULK_TIMEOUT_S = 3600.0
_LOOPBACK = ("127.", "localhost", "[::1]")

T = TypeVar("T")


class ControlClient:
    """One connection to a coordinator, as one member or as the holder of an invitation."""

    def __init__(
        self,
        *,
        address: str,
        ca_certificate: bytes,
        private_key: bytes,
        certificate: bytes,
        root_public: bytes,
        roster: RosterStore | None,
        proxy: str = "",
    ) -> None:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise TransportError(f"the coordinator's address {address!r} is not host:port; give --coordinator")
        self.address = address
        self._claim: CertificateClaim = read_claim(load_certificate(certificate.decode(), "the certificate"))
        self._root_public = root_public
        self._roster = roster
        self._greeted: Roster | None = None
        options: list[tuple[str, str | int]] = [
            ("grpc.max_receive_message_length", 4 * CHUNK_BYTES),
            ("grpc.keepalive_time_ms", 60000),
            ("grpc.initial_reconnect_backoff_ms", 200),  # less than between two greetings
            ("grpc.compression_enabled_algorithms_bitset", 1),  # none: a small answer cannot become a big one
        ]
        if proxy:
            options.append(("grpc.http_proxy", proxy))
        elif host.startswith(_LOOPBACK):
            options.append(("grpc.enable_http_proxy", 0))
        credentials = grpc.ssl_channel_credentials(ca_certificate, private_key, certificate)
        self._channel = grpc.secure_channel(address, credentials, options=options)
        self._stub = ControlStub(self._channel)  # type: ignore[no-untyped-call]  # generated

    @classmethod
    def of_member(cls, member: LocalMember, address: str = "", *, proxy: str = "") -> Self:
        """As an admitted member; `address` defaults to the one in its admission. Refuses an expired certificate."""
        certificate = member.tls_certificate_path.read_text()
        authority = member.roster.current.ca_certificate
        check_certificate(certificate, authority, time.time(), name=member.name)
        return cls(
            address=address or member.membership.control_address,
            ca_certificate=authority.encode(),
            private_key=member.tls_key_path.read_bytes(),
            certificate=certificate.encode(),
            root_public=member.root_public,
            roster=member.roster,
            proxy=proxy,
        )

    @classmethod
    def of_invitation(cls, invitation: Invitation, address: str = "", *, proxy: str = "") -> Self:
        """As an invited organization: enrol, fetch the admission, and nothing else. Refuses an expired invitation."""
        check_certificate(invitation.certificate, invitation.ca_certificate, time.time(), name=invitation.name)
        return cls(
            address=address or invitation.control_address,
            ca_certificate=invitation.ca_certificate.encode(),
            private_key=invitation.private_key.encode(),
            certificate=invitation.certificate.encode(),
            root_public=bytes.fromhex(invitation.root_public),
            roster=None,
            proxy=proxy,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connection."""
        self._channel.close()

    def hello(self) -> Roster:
        """Check that this is the coordinator of the roster, and give or take the newer roster; returns the newest.

        Guarantee: who answered holds the identity key of a coordinator that is not revoked in the newest roster known
        here, and signed for this very caller: a member that only relays cannot pass for it.
        """
        nonce, own = secrets.token_bytes(32), self._roster.current if self._roster is not None else None
        request = pb.HelloRequest(nonce=nonce, roster_version=own.version if own is not None else 0)
        reply = self._first_answer(request)
        roster = self._newest(reply)
        roster.check_fresh(time.time())
        coordinator = roster.member(reply.coordinator)
        if coordinator.role is not Role.COORDINATOR:
            raise IdentityError(
                f"{self.address} answers as {coordinator.name}, which is a {coordinator.role.value} in the roster; "
                "check the coordinator's address"
            )
        body = canonical.encode([nonce.hex(), self._claim.name, self._claim.tls_key])
        verify(bytes.fromhex(coordinator.identity_key), "hello", body, reply.signature)
        if self._roster is not None and reply.roster_version < roster.version:
            self._call(self._stub.PublishRoster, pb.PublishRosterRequest(roster=self._roster.signed))
        self._greeted = roster
        return roster

    def get_roster(self) -> Roster:
        """Fetch the coordinator's roster and accept it here. Raises ROSTER_STALE when it is no good."""
        self._greet()
        reply = self._call(self._stub.GetRoster, pb.GetRosterRequest())
        if self._roster is None:
            return verify_roster(reply.roster, self._root_public, time.time())
        return self._roster.accept(reply.roster)

    def publish_roster(self, signed: bytes) -> Roster:
        """Accept a newer roster here and hand it to the coordinator, which need not know this caller yet."""
        if self._roster is None:
            raise IdentityError("an invitation cannot publish a roster; use an administrator's folder")
        self._roster.accept(signed)
        return self.hello()

    def enrol(self, request: bytes) -> None:
        """Leave an enrolment or renewal request at the coordinator."""
        self._greet()
        self._call(self._stub.Enrol, pb.EnrolRequest(request=request))

    def fetch_admission(self) -> bytes | None:
        """The root's answer to this caller's request, verified; None while there is none."""
        self._greet()
        admission: bytes = self._call(self._stub.FetchAdmission, pb.FetchAdmissionRequest()).admission
        if not admission:
            return None
        read_admission(admission, time.time(), root=self._root_public.hex())
        return admission

    def put_receipt(self, run_id: str, receipt: bytes, identity: SigningKey) -> None:
        """Send a ledger receipt (canonical JSON), signed by this node."""
        self._greet()
        signature = identity.sign("receipt", receipt)
        self._call(self._stub.PutReceipt, pb.PutReceiptRequest(run_id=run_id, receipt=receipt, signature=signature))

    def prove(self, run_id: str, round: int = 0) -> Iterator[pb.RunProofPart]:
        """What the coordinator shows of a run's rounds to a node that accepted it; nothing of it is checked.

        round: whose models and mean update are wanted too; 0: none.
        """
        self._greet()
        request = pb.ProveRunRequest(run_id=run_id, round=round)
        with self._failures():
            yield from self._stub.ProveRun(request, metadata=own_metadata(), timeout=BULK_TIMEOUT_S)

    def _greet(self) -> None:
        if self._greeted is None:
            self.hello()

    def _first_answer(self, request: pb.HelloRequest) -> pb.HelloReply:
        """A connection that breaks while it is being set up is set up again: what is just starting, or was held up for
        longer than a handshake may take, looks at first like who does not accept our certificate."""
        for _ in range(GREETINGS - 1):
            try:
                return self._hello(request)
            except ConnectionBroken:
                time.sleep(BETWEEN_GREETINGS_S)
        return self._hello(request)

    def _hello(self, request: pb.HelloRequest) -> pb.HelloReply:
        reply: pb.HelloReply = self._call(self._stub.Hello, request)
        return reply

    def _newest(self, reply: pb.HelloReply) -> Roster:
        if self._roster is None:
            return verify_roster(reply.roster, self._root_public, time.time())
        return self._roster.accept(reply.roster) if reply.roster else self._roster.current

    def _call(self, method: Callable[..., T], request: object, *, timeout_s: float = CALL_TIMEOUT_S) -> T:
        with self._failures():
            return method(request, metadata=own_metadata(), timeout=timeout_s)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise self._named(error) from error

    def _named(self, error: grpc.RpcError) -> ConfideError:
        code, details = error.code(), paragraph(error.details() or "")
        said = dict(cast(Any, error.trailing_metadata() or ()))
        if CODE_KEY in said:
            return revive(said[CODE_KEY], details)
        return _unreached(self.address, self._claim.name, code, details)


class ConnectionLost(TransportError):
    """Nobody answers, or does no more. What was asked may have been done: ask again."""

    @property
    def code(self) -> str:
        return TransportError.__name__


class ConnectionBroken(ConnectionLost):
    """Somebody listens, and broke the connection off before it stood."""


def _unreached(address: str, name: str, code: grpc.StatusCode, details: str) -> ConfideError:
    """Put gRPC's own failures into words: who refused what, and what to do."""
    if "CERTIFICATE_VERIFY_FAILED" in details:
        return IdentityError(
            f"what answers at {address} has no certificate of this consortium's authority, or an expired one "
            f"({details[-160:]}); check the address, and with the coordinator's operator its certificate"
        )
    if "Hostname Verification" in details or "Peer name" in details:
        return IdentityError(
            f"the coordinator's certificate does not name {address.rpartition(':')[0]!r}; use an address that was "
            "given to `confide server init`, or renew the coordinator's certificate with this one"
        )
    if code is grpc.StatusCode.UNAVAILABLE and ("Socket closed" in details or "reset by peer" in details):
        return ConnectionBroken(
            f"{address} closed the connection while it was being set up: it does not accept the certificate of {name} "
            "(of another consortium, or expired), or it is just stopping. Check the folder and the address."
        )
    if code is grpc.StatusCode.UNAVAILABLE:
        return ConnectionLost(
            f"no coordinator answers at {address} ({details[-160:]}); is it started, and the address and proxy right?"
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return ConnectionLost(f"the coordinator at {address} did not answer in time; try again")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return TransportError(f"the coordinator at {address} is busy, or the message is too large: {details[:200]}")
    return TransportError(f"the call to {address} failed: {code.name} {details[:300]}")
