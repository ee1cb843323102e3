"""Strangers against both ports, and a coordinator against a node's memory: none keeps others out or fills anything."""

import contextlib
import gzip
import resource
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from confide.errors import TransportError
from confide.identity.member import LocalMember
from confide_client.agent.fleet import MAX_RESPONSE_BYTES, FleetSettings, _bound_response, _client
from confide_server import bounded_http as serving
from confide_server.api.grpc import passage, server
from confide_server.api.grpc.passage import offers_tls13
from confide_server.coordinator.process import _tls_context
from confide_server.quota import Quota, listening

from tests.control_federation import Federation, running_federation
from tests.waiting import until

SOON_S = 0.5
"""What the time limit is set to that a test is about; how long anything takes is not measured."""
PATIENCE_S = 60.0
NEVER_S = PATIENCE_S * 10
"""What the other limits are set to, so that a slow machine is not taken for an attacker."""


@dataclass
class Port:
    """A fleet port over TLS whose application answers at once with as many bytes as it is told."""

    number: int
    quota: Quota
    ca: Path
    answered: list[int]

    def trusting(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca))

    def tcp(self, source: str = "127.0.0.1") -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.number), PATIENCE_S, (source, 0))

    def get(self, source: str = "127.0.0.1", path: str = "/") -> httpx.Response:
        transport = httpx.HTTPTransport(verify=self.trusting(), local_address=source)
        with httpx.Client(transport=transport, timeout=PATIENCE_S) as client:
            return client.get(f"https://127.0.0.1:{self.number}{path}")


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passage, "HANDSHAKE_TIMEOUT_S", SOON_S)
        patch.setattr(server, "MAX_CONNECTIONS_OF_ADDRESS", 8)
        with running_federation(tmp_path_factory.mktemp("federation")) as federation:
            yield federation


@pytest.fixture
def port(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> Iterator[Port]:
    for name in ("HANDSHAKE_TIMEOUT_S", "HEADER_TIMEOUT_S", "WRITE_TIMEOUT_S"):
        monkeypatch.setattr(serving, name, NEVER_S)
    with fleet_port(federation.coordinator) as port:
        yield port


@contextlib.contextmanager
def fleet_port(member: LocalMember) -> Iterator[Port]:
    answered: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        size = int(scope["path"].strip("/") or 2)
        answered.append(size)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(size)})

    quota = Quota(most=64, of_one_address=8)
    server = serving.BoundedServer(uvicorn.Config(app, log_config=None, lifespan="off", ws="none"), quota)
    server.config.load()
    server.config.ssl = _tls_context(member)  # the coordinator's own: its oldest version is tested
    listener = listening("127.0.0.1", 0, "a test", "wait")
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        until(lambda: server.started)
        yield Port(listener.getsockname()[1], quota, member.ca_certificate_path, answered)
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)


def closed(connection: socket.socket) -> bool:
    """Whether the other side closes, having sent nothing that would be an answer."""
    connection.settimeout(PATIENCE_S)
    try:
        return connection.recv(1 << 16) == b""
    except (ConnectionError, ssl.SSLError):
        return True


# --- the fleet port


def test_a_member_is_answered(port: Port) -> None:
    assert port.get().content == b"\0\0"


def test_who_says_nothing_is_closed(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "HANDSHAKE_TIMEOUT_S", SOON_S)
    with port.tcp() as silent:
        assert closed(silent)
    until(lambda: len(port.quota) == 0)


def test_who_sends_headers_for_ever_is_closed(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "HEADER_TIMEOUT_S", SOON_S)
    with port.trusting().wrap_socket(port.tcp(), server_hostname="127.0.0.1") as slow:
        slow.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nx-more: ")
        assert closed(slow)
    until(lambda: len(port.quota) == 0)
    assert port.answered == []


def test_who_begins_a_second_request_and_never_ends_it_is_closed(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    with port.trusting().wrap_socket(port.tcp(), server_hostname="127.0.0.1") as slow:
        slow.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert slow.recv(1 << 16).startswith(b"HTTP/1.1 200")
        monkeypatch.setattr(serving, "HEADER_TIMEOUT_S", SOON_S)
        slow.sendall(b"GET /")
        slow.settimeout(PATIENCE_S)
        while slow.recv(1 << 16):
            pass


def test_headers_have_a_size(port: Port) -> None:
    with port.trusting().wrap_socket(port.tcp(), server_hostname="127.0.0.1") as large:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            large.sendall(b"GET / HTTP/1.1\r\n")
            for number in range(4096):
                large.sendall(b"x-%d: %s\r\n" % (number, b"a" * 1000))
        assert closed(large)
    assert port.answered == []


def test_one_address_does_not_keep_another_out(port: Port) -> None:
    with contextlib.ExitStack() as stack:
        flood = [stack.enter_context(port.tcp("127.0.0.1")) for _ in range(40)]
        assert all(closed(one) for one in flood[8:])
        assert len(port.quota) == 8
        assert port.get("127.0.0.2").content == b"\0\0"
    until(lambda: len(port.quota) == 0)


def test_who_does_not_read_its_answer_is_dropped(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "WRITE_TIMEOUT_S", SOON_S)
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect(("127.0.0.1", port.number))
    with port.trusting().wrap_socket(raw, server_hostname="127.0.0.1") as lazy:
        lazy.sendall(b"GET /67108864 HTTP/1.1\r\nhost: x\r\n\r\n")
        until(lambda: port.answered == [67108864])
        until(lambda: len(port.quota) == 0)


def old_tls(ca: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def test_the_fleet_port_speaks_no_older_tls(port: Port) -> None:
    with port.tcp() as raw, pytest.raises((ssl.SSLError, ConnectionError)):
        old_tls(port.ca).wrap_socket(raw, server_hostname="127.0.0.1")


# --- the control port


def control_tcp(federation: Federation, source: str = "127.0.0.1") -> socket.socket:
    host, _, number = federation.address.rpartition(":")
    return socket.create_connection((host, int(number)), PATIENCE_S, (source, 0))


def test_the_control_port_speaks_no_older_tls(federation: Federation) -> None:
    member = federation.coordinator
    context = old_tls(member.ca_certificate_path)
    context.load_cert_chain(member.tls_certificate_path, member.tls_key_path)  # else 1.2 ends for want of it
    with control_tcp(federation) as raw, pytest.raises((ssl.SSLError, ConnectionError)):
        context.wrap_socket(raw, server_hostname="127.0.0.1")


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01", b"\x16\x03\x01\xff\xff", b"GET / HTTP/1.1\r\n\r\n", b"\0" * 99])
def test_who_does_not_begin_tls_at_the_control_port_is_closed(federation: Federation, sent: bytes) -> None:
    with control_tcp(federation) as odd:
        odd.sendall(sent)
        assert closed(odd)


def test_one_address_does_not_keep_another_out_of_the_control_port(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passage, "HANDSHAKE_TIMEOUT_S", NEVER_S)
    ca = str(federation.coordinator.ca_certificate_path)
    with contextlib.ExitStack() as stack:
        flood = [stack.enter_context(control_tcp(federation)) for _ in range(20)]
        assert all(closed(one) for one in flood[8:])
        raw = stack.enter_context(control_tcp(federation, "127.0.0.2"))
        # The handshake reaches gRPC; that the caller has no certificate is said afterwards.
        with ssl.create_default_context(cafile=ca).wrap_socket(raw, server_hostname="127.0.0.1") as tls:
            assert tls.version() == "TLSv1.3"


def test_hellos() -> None:
    def hello(maximum: ssl.TLSVersion) -> bytes:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.maximum_version = maximum
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        with contextlib.suppress(ssl.SSLWantReadError):
            context.wrap_bio(incoming, outgoing, server_hostname="example").do_handshake()
        return outgoing.read()

    new = hello(ssl.TLSVersion.TLSv1_3)
    assert offers_tls13(new) and not offers_tls13(hello(ssl.TLSVersion.TLSv1_2))
    for cut in range(len(new)):
        offers_tls13(new[:cut])  # never an exception
    assert not offers_tls13(b"")


# --- a coordinator against a node


def answered_with(*arguments: Any, **options: Any) -> httpx.Response:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, *arguments, **options))
    with httpx.Client(transport=transport, event_hooks={"response": [_bound_response]}) as client:
        return client.get("https://coordinator.example")


def test_a_compressed_answer_is_refused_before_it_is_unpacked() -> None:
    bomb = gzip.compress(bytes(64 << 20))
    for encoding in ("gzip", "deflate", "br", "identity, gzip", "\x9b"):
        with pytest.raises(TransportError, match="encoding"):
            answered_with(stream=httpx.ByteStream(bomb), headers=[(b"content-encoding", encoding.encode("latin-1"))])


def test_an_answer_that_goes_on_is_cut() -> None:
    class Long(httpx.SyncByteStream):
        sent = 0

        def __iter__(self) -> Iterator[bytes]:
            while self.sent < 4 * MAX_RESPONSE_BYTES:  # without the bound the test ends, and fails
                self.sent += 1 << 20
                yield bytes(1 << 20)

    long = Long()
    with pytest.raises(TransportError, match=str(MAX_RESPONSE_BYTES)):
        answered_with(stream=long)
    assert long.sent <= MAX_RESPONSE_BYTES + (1 << 20)


def test_the_nodes_client_is_bounded(federation: Federation, tmp_path: Path) -> None:
    node = federation.admit("bounded")
    settings = FleetSettings(
        coordinator="127.0.0.1:1",
        fleet_key=node.fleet_key(),
        ca_pem=node.roster.current.ca_certificate,
        node_id_path=tmp_path / "node",
    )
    client = _client(settings)._client
    assert client.event_hooks["response"] == [_bound_response]
    assert client.headers["accept-encoding"] == "identity"
    client.close()


# --- descriptors


ROOM = """
import resource, sys
from confide.errors import StateError
from confide_server.quota import room_for
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
try:
    print(room_for(1024))
except StateError as error:
    print("refused", error)
"""


@pytest.mark.parametrize(("limit", "expected"), [(2048, "1024"), (1024, "768"), (256, "refused")])
def test_descriptors_are_kept_for_the_coordinators_own_files(limit: int, expected: str) -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < limit:
        pytest.skip(f"this machine allows no {limit} open files")
    done = subprocess.run([sys.executable, "-c", ROOM, str(limit)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(expected)
