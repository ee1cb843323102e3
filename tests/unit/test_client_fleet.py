"""The node's adapter to Flower: what it uses of flwr is there, and every way not to connect has a name and a remedy."""

import importlib.metadata
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from confide.errors import ConfideError, IdentityError, TransportError
from confide.identity.keys import generate_p256
from confide_client.agent.fleet import FleetLink, FleetSettings, _client
from confide_server.fleet.flower import routes
from flwr.supernode.fleet_http_client import FleetHttpClient

from tests.node_worlds import World, free_port


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World.make(tmp_path_factory.mktemp("world"), ("node-a",))
    with made.fleet():
        yield made


@pytest.fixture
def settings(world: World, tmp_path: Path) -> FleetSettings:
    member = world.members["node-a"]
    return FleetSettings(
        coordinator=f"127.0.0.1:{world.port}",
        fleet_key=member.fleet_key(),
        ca_pem=member.ca_certificate_path.read_text(),
        node_id_path=tmp_path / "fleet-node.json",
    )


def test_flower_is_the_minor_version_that_this_adapter_was_written_for() -> None:
    assert importlib.metadata.version("flwr").startswith("1.41.")
    client = FleetHttpClient("https://127.0.0.1:1")
    assert isinstance(client._client, httpx.Client), "the adapter replaces this attribute"
    client.close()


def test_a_node_takes_its_place_again_at_once_after_a_crash(settings: FleetSettings) -> None:
    crashed = FleetLink(settings)
    crashed._stop.set()  # no heartbeat and no farewell, as after SIGKILL
    with FleetLink(settings) as link:
        assert link.node_id == crashed.node_id
        assert link.receive() is None
    crashed._client.close()


def test_a_node_killed_before_it_noted_its_number_takes_its_place_once_it_is_silent(
    settings: FleetSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashed = FleetLink(settings)
    crashed._stop.set()
    settings.node_id_path.unlink()
    monkeypatch.setattr(routes, "SILENT_S", 1e9)
    with pytest.raises(IdentityError, match="active from elsewhere"):
        FleetLink(settings)
    monkeypatch.setattr(routes, "SILENT_S", -1e9)
    with FleetLink(settings) as link:
        assert link.node_id == crashed.node_id
        assert link.receive() is None
    crashed._client.close()


def test_an_unregistered_key_is_refused(settings: FleetSettings, tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="Was it admitted"):
        FleetLink(replace(settings, fleet_key=generate_p256(tmp_path / "other.key")))


def test_a_certificate_of_another_authority_is_refused(settings: FleetSettings, tmp_path: Path) -> None:
    other = World.make(tmp_path, ()).members["coordinator"].ca_certificate_path.read_text()
    with pytest.raises(IdentityError, match="authority did not issue"):
        FleetLink(replace(settings, ca_pem=other))
    with pytest.raises(IdentityError, match=r"ca\.crt"):
        FleetLink(replace(settings, ca_pem="not a certificate"))


def test_another_host_name_than_certified_is_refused(settings: FleetSettings, world: World) -> None:
    with pytest.raises(IdentityError, match="authority did not issue"):
        FleetLink(replace(settings, coordinator=f"localhost:{world.port}"))


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "nowhere.invalid:1", "not an address", "127.0.0.1:99999", ""])
def test_a_coordinator_that_is_not_there(settings: FleetSettings, address: str) -> None:
    with pytest.raises(ConfideError) as error:
        FleetLink(replace(settings, coordinator=address.format(port=free_port())))
    assert isinstance(error.value, TransportError | IdentityError)


def test_a_peer_that_speaks_no_tls(settings: FleetSettings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(TransportError, match="cannot be reached"):
            FleetLink(replace(settings, coordinator=f"127.0.0.1:{server.getsockname()[1]}"))


def test_an_outbound_proxy_carries_the_connection(settings: FleetSettings) -> None:
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_proxy, args=(server, asked), daemon=True).start()
        with FleetLink(replace(settings, proxy=f"http://127.0.0.1:{server.getsockname()[1]}")) as link:
            assert link.receive() is None
    assert asked[0].startswith(f"CONNECT {settings.coordinator}".encode())


def _proxy(server: socket.socket, asked: list[bytes]) -> None:
    while True:
        try:
            near, _ = server.accept()
        except OSError:
            return
        request = near.recv(4096)
        asked.append(request)
        host, port = request.split()[1].decode().rsplit(":", 1)
        far = socket.create_connection((host, int(port)))
        near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        threading.Thread(target=_carry, args=(near, far), daemon=True).start()


def _carry(near: socket.socket, far: socket.socket) -> None:
    with near, far:
        back = threading.Thread(target=_copy, args=(far, near), daemon=True)
        back.start()
        _copy(near, far)
        back.join()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        return


def test_the_environment_chooses_no_proxy(settings: FleetSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    with FleetLink(settings) as link:
        assert link.receive() is None


def test_redirects_are_not_followed(settings: FleetSettings) -> None:
    client = _client(settings)
    assert client._client.follow_redirects is False
    client.close()
