"""The coordinator's control port: gRPC over mTLS, with the services for control, inquiries and administration.

server = ControlServer(member=load_member(folder), folder=folder, address="0.0.0.0:9443")
port = server.start()
...
server.stop()
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from confide.errors import ConfideError
from confide.files import private_folder
from confide.identity.member import LocalMember, load_member
from confide.identity.roster import Roster
from confide.proto import admin_pb2, control_pb2

from confide_server.api.grpc.control import ControlService
from confide_server.api.grpc.endpoint import Function, Surroundings, handlers, snake
from confide_server.api.grpc.incoming_model import CHUNK_BYTES
from confide_server.api.grpc.inquiries import InquiryService
from confide_server.api.grpc.passage import Passage
from confide_server.inquiries.relay import InquiryRelay
from confide_server.membership.enrolment import EnrolmentQueue
from confide_server.membership.intake import RosterIntake
from confide_server.quota import HANDSHAKE_TIMEOUT_S, Quota, listening
from confide_server.state.receipts import ReceiptStore
from confide_server.state.runs.round_log import RoundLog

MAX_MESSAGE_BYTES = CHUNK_BYTES + (1 << 16)
MAX_CALLS = 112
"""Open event streams among them: each holds a thread, which sleeps."""
MAX_CONNECTIONS = 128
MAX_CONNECTIONS_OF_ADDRESS = 64
PASSAGE_DESCRIPTORS = 3 * MAX_CONNECTIONS
"""Each connection is there three times: from the caller, to gRPC, and in gRPC."""


class ControlServer:
    """The service on its port. A renewed certificate in the folder is used for the next connection."""

    def __init__(
        self,
        *,
        member: LocalMember,
        folder: Path,
        address: str,
        receipts: ReceiptStore | None = None,
        on_roster: Callable[[Roster], None] | None = None,
        admin: Mapping[str, Function] | None = None,
        surroundings: Surroundings | None = None,
        enrolment: EnrolmentQueue | None = None,
        intake: RosterIntake | None = None,
        round_log: RoundLog | None = None,
        relay: InquiryRelay | None = None,
    ) -> None:
        """folder: where enrolment requests and receipts are kept, unless the stores are given. address: host:port, port
        0 for a free one. admin: the functions of the administration service, on the same port."""
        self.receipts = receipts if receipts is not None else ReceiptStore(private_folder(folder) / "receipts.log")
        self._owns_receipts = receipts is None
        self._address = address
        service = ControlService(
            member=member,
            enrolment=enrolment or EnrolmentQueue(folder / "enrolment"),
            receipts=self.receipts,
            intake=intake or RosterIntake(member.roster, on_roster),
            round_log=round_log,
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
        descriptor = control_pb2.DESCRIPTOR.services_by_name["Control"]
        functions = {snake(method.name): getattr(service, snake(method.name)) for method in descriptor.methods}
        at = surroundings or Surroundings(member)
        carried = InquiryService(relay or InquiryRelay(member.roster, private_folder(folder / "cards")))
        services = [handlers(descriptor, functions, at), carried.handlers(at)]
        if admin is not None:
            services.append(handlers(admin_pb2.DESCRIPTOR.services_by_name["Admin"], admin, at))
        self._server.add_generic_rpc_handlers(tuple(services))
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
