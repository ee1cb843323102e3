"""The connection to the coordinator, made anew by itself: after silence, and after the certificate was renewed."""

import contextlib
import threading
from collections.abc import Iterator

from confide.errors import ConfideError, TransportError
from confide.identity.member import LocalMember, load_member
from confide.proto import admin_pb2 as pb
from confide.transport.admin import ActingUser, AdminClient
from google.protobuf.message import Message

from confide_server.console.federation.reading import Acting
from confide_server.console.roles import Role


class Connection:
    """Implements reading.Coordinator over the admin API. Used from several threads."""

    def __init__(self, member: LocalMember, address: str = "") -> None:
        """address: host:port; empty: the admission's. Nothing is asked yet."""
        self._folder, self._address = member.folder, address
        self._lock = threading.Lock()
        self._client: AdminClient | None = None
        self._certified_ns = 0

    def _of(self, acting: Acting) -> AdminClient:
        stamp = (self._folder / "tls.crt").stat().st_mtime_ns
        with self._lock:
            if self._client is None or stamp != self._certified_ns:
                self._drop()
                self._client = AdminClient.of_member(load_member(self._folder), self._address)
                self._certified_ns = stamp
            return self._client.acting_for(_user(acting))

    def _drop(self) -> None:
        if self._client is not None:
            self._client.close()
        self._client = None

    @contextlib.contextmanager
    def _forgotten_when_lost(self) -> Iterator[None]:
        # gRPC would wait up to two minutes before it tries a lost connection again; a new one is tried at once.
        try:
            yield
        except TransportError:
            with self._lock:
                self._drop()
            raise
        except ValueError as error:  # another thread has just closed the channel
            raise TransportError(f"the connection to the coordinator was closed: {error}") from error

    def ask(self, method: str, request: Message, acting: Acting) -> Message:
        """One call. Raises ConfideError: TransportError when nobody answered."""
        with self._forgotten_when_lost():
            return self._of(acting).ask(method, request)

    def events(self, request: pb.StreamEventsRequest, acting: Acting) -> Iterator[pb.Event]:
        """What was and what happens. Raises ConfideError."""
        with self._forgotten_when_lost():
            yield from self._of(acting).stream_events(
                request.run_id, after=request.after, newest_only=request.newest_only, past_only=request.past_only
            )

    def export_audit(self, acting: Acting) -> Iterator[bytes]:
        """The signed audit log in pieces. Raises ConfideError."""
        with self._forgotten_when_lost():
            yield from self._of(acting).export_audit()

    def close(self) -> None:
        """Leave."""
        with self._lock, contextlib.suppress(ConfideError):
            self._drop()


def _user(acting: Acting) -> ActingUser:
    """As the coordinator names roles: a person of an organization is its node's."""
    if acting.role is Role.ORGANIZATION:
        return ActingUser(name=acting.user, role="node", organization=acting.organization)
    return ActingUser(name=acting.user, role=acting.role.value)
