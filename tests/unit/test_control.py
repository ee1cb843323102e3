"""The control service over real gRPC and mTLS on loopback: who is let in, who is not, and who answers."""

import contextlib
import re
import socket
import ssl
import time
from dataclasses import replace

import grpc
import pytest
from confide.errors import (
    IdentityError,
    ProtocolFailure,
    StateError,
    TransportError,
)
from confide.identity.consortium import Consortium
from confide.identity.enrolment import accept_admission, make_renewal, make_request
from confide.identity.invitation import read_invitation
from confide.identity.member import load_member
from confide.identity.roster import sign_roster
from confide.proto import control_pb2 as pb
from confide.runs.specification import EXAMPLE, parse_toml
from confide.transport import failures
from confide.transport.control import ControlClient
from confide_server.api.grpc.server import ControlServer
from confide_server.quota import Quota

from tests.control_federation import MODEL, RUN_ID, running_federation

SPECIFICATION = parse_toml(EXAMPLE)


@pytest.fixture
def federation(tmp_path, monkeypatch):
    with running_federation(tmp_path) as running:
        yield running


@pytest.fixture
def administrator(federation):
    return federation.admit("admin", "administrator")


@pytest.fixture
def node(federation):
    return federation.admit("hospital-a")


# --- who is let in ---------------------------------------------------------------------------------------------------


def test_an_admitted_member_is_let_in_and_learns_the_newest_roster(federation, node):
    federation.admit("hospital-b")
    assert node.roster.current.version == 3
    with federation.client(node) as client:
        assert client.get_roster().version == 4
    assert load_member(node.folder).roster.current.member("hospital-b")


def test_no_client_certificate_no_answer(federation):
    authority = federation.consortium.roster.current.ca_certificate.encode()
    with grpc.secure_channel(federation.address, grpc.ssl_channel_credentials(authority)) as channel:
        call = channel.unary_unary("/confide.v1.Control/Hello")
        with pytest.raises(grpc.RpcError) as failure:
            call(b"", metadata=failures.own_metadata(), timeout=10)
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
    with grpc.insecure_channel(federation.address) as channel, pytest.raises(grpc.RpcError) as failure:
        channel.unary_unary("/confide.v1.Control/Hello")(b"", timeout=10)
    # Whether gRPC sees the connection closed or tries again until its deadline is its own affair.
    assert failure.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


def test_a_certificate_of_another_authority_is_refused_in_the_handshake(federation, node, tmp_path):
    other = Consortium.create(tmp_path / "other", "example")
    folder = tmp_path / "foreign"
    foreign = accept_admission(folder, other.admit(make_request(folder, "hospital-a", "node")), time.time())
    with federation.client(foreign) as client, pytest.raises(IdentityError, match="no certificate of this consortium"):
        client.hello()
    pair = {"private_key": foreign.tls_key_path.read_bytes(), "certificate": foreign.tls_certificate_path.read_bytes()}
    with federation.raw(node, **pair) as client, pytest.raises(TransportError, match="another consortium, or expired"):
        client.hello()


def test_an_expired_certificate_is_refused_on_both_sides(federation, node):
    expired = federation.certify(node, now=time.time() - 1000, lifetime_s=500)
    with federation.raw(node, certificate=expired) as client, pytest.raises(TransportError, match="or expired"):
        client.hello()
    node.tls_certificate_path.write_bytes(expired)
    with pytest.raises(IdentityError, match=r"hospital-a expired on .* renew"):
        federation.client(node)


@pytest.mark.parametrize("method", ["get_roster", "fetch_admission", "hello"])
def test_a_revoked_member_is_refused_everywhere(federation, node, method):
    with federation.raw(node) as client:
        client.hello()
        federation.consortium.revoke("hospital-a")
        federation.coordinator.roster.accept(federation.consortium.roster.signed)
        with pytest.raises(ProtocolFailure, match="REVOKED: hospital-a was revoked"):
            getattr(client, method)()


def test_unknown_names_and_other_keys_are_refused(federation, node):
    for changes, match in [
        ({"name": "hospital-x"}, "'hospital-x' is not in version 3"),
        ({"name": "coordinator"}, "coordinator called with the TLS key"),
        ({"role": "administrator"}, "this is for the role"),
    ]:
        with (
            federation.raw(node, certificate=federation.certify(node, **changes)) as client,
            pytest.raises(IdentityError, match=match),
        ):
            client.get_roster()


def test_a_certificate_that_claims_another_role_gains_nothing(federation, node):
    forged = federation.certify(node, role="administrator")
    with federation.raw(node, certificate=forged) as client, pytest.raises(IdentityError, match="is a node"):
        client.list_runs()


def test_each_role_may_call_what_is_its_own(federation, node, administrator):
    with federation.client(node) as client:
        for refused in (
            client.server_status,
            client.list_enrolments,
            lambda: client.order_stop(RUN_ID, node.identity),
            lambda: client.take_roster(b""),
            lambda: client.export_run(RUN_ID),
            lambda: client.submit_run(SPECIFICATION, MODEL, node.identity),
            lambda: client.admit_member(b""),
        ):
            with pytest.raises(IdentityError, match="hospital-a is a node; this is for the role administrator"):
                refused()
    with federation.client(administrator) as client, pytest.raises(IdentityError, match="for the role node only"):
        client.put_receipt(RUN_ID, b"{}", administrator.identity)
    assert federation.book.submitted == [] and federation.book.stopped == []


def test_a_caller_is_refused_before_its_request_is_parsed(federation, node):
    with federation.client(node) as client:
        call = client._channel.unary_unary("/confide.v1.Admin/OrderStop")
        with pytest.raises(grpc.RpcError) as failure:
            call(b"\xff" * 1000, metadata=failures.own_metadata(), timeout=10)
        assert failure.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_another_protocol_version_is_told_which_side_to_upgrade(federation, node):
    with federation.client(node) as client:
        call = client._channel.unary_unary("/confide.v1.Control/GetRoster")
        for metadata, match in [
            ((("confide-protocol", "0"), ("confide-release", "0.0.1")), "upgrade the caller"),
            ((("confide-protocol", "2"), ("confide-release", "9.0.0")), r"9\.0\.0.*upgrade this coordinator"),
            ((), "names no protocol version"),
            ((("confide-protocol", "one"),), "names no protocol version"),
        ]:
            with pytest.raises(grpc.RpcError) as failure:
                call(b"", metadata=metadata, timeout=10)
            assert re.search(match, failure.value.details())


def test_an_expired_roster_at_the_coordinator_stops_all_but_a_newer_one(federation, administrator):
    now = time.time()
    old = federation.consortium.roster.current
    short = old.model_copy(
        update={
            "version": old.version + 1,
            "previous": old.digest,
            "issued_at": int(now) - 9,
            "expires_at": int(now) - 1,
        }
    )
    federation.coordinator.roster.accept(sign_roster(short, federation.consortium.root), now=now - 5)
    with federation.raw(administrator) as client:
        client._greeted = short  # the caller does not look, so that the coordinator must
        with pytest.raises(ProtocolFailure, match="ROSTER_STALE"):
            client.list_runs()
    newer = short.model_copy(
        update={"version": short.version + 1, "previous": short.digest, "expires_at": int(now) + 1000}
    )
    with federation.client(administrator) as client:
        assert client.publish_roster(sign_roster(newer, federation.consortium.root)) == newer
        assert client.list_runs()


# --- who answers -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(federation, member):
    """Another control service, by whatever member; yields its address."""
    folder = federation.folder / "other-state"
    server = ControlServer(member=member, folder=folder, address="127.0.0.1:0")
    yield f"127.0.0.1:{server.start()}"
    server.stop()


def test_a_node_cannot_stand_in_for_the_coordinator(federation, node):
    victim = federation.admit("hospital-b")
    refused = pytest.raises(IdentityError, match="no certificate of this")
    with serving(federation, node) as address, federation.raw(victim, address=address) as client, refused:
        client.hello()


def test_a_coordinator_under_another_name_or_revoked_is_refused(federation, node):
    folder = federation.folder / "second"
    request = make_request(folder, "coordinator-2", "coordinator", ["coordinator.example.org"])
    second = accept_admission(folder, federation.consortium.admit(request), time.time())
    refused = pytest.raises(IdentityError, match="does not name")
    with serving(federation, second) as address, federation.raw(node, address=address) as client, refused:
        client.hello()
    federation.consortium.revoke("coordinator")
    node.roster.accept(federation.consortium.roster.signed)
    with federation.client(node) as client, pytest.raises(ProtocolFailure, match="REVOKED: coordinator"):
        client.hello()


def test_a_stolen_tls_key_without_the_identity_key_does_not_make_a_coordinator(federation, node):
    thief = replace(federation.coordinator, identity=node.identity)
    refused = pytest.raises(IdentityError, match="'hello'")
    with serving(federation, thief) as address, federation.raw(node, address=address) as client, refused:
        client.get_roster()


def test_an_address_without_coordinator_is_an_error_with_a_remedy(federation, node):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with federation.raw(node, address=address) as client, pytest.raises(TransportError, match="is it started"):
        client.hello()
    for odd in ("", "host", "host:", "host:x"):
        with pytest.raises(TransportError, match="not host:port"):
            federation.raw(node, address=odd)


def test_a_connection_that_breaks_while_it_is_set_up_is_set_up_again(federation, node, monkeypatch):
    admit, broken = Quota.admit, []

    def admit_the_third(quota, address):
        if len(broken) == 2:
            return admit(quota, address)
        broken.append(address)
        return None

    monkeypatch.setattr(Quota, "admit", admit_the_third)
    with federation.client(node) as client:
        assert client.hello().version == node.roster.current.version
    assert len(broken) == 2


def test_a_port_in_use_is_an_error_with_a_remedy(federation, tmp_path):
    server = ControlServer(member=federation.coordinator, folder=tmp_path / "two", address=federation.address)
    with pytest.raises(StateError, match="the port is in use"):
        server.start()
    server.stop()


# --- roster, enrolment, renewal --------------------------------------------------------------------------------------


def test_a_new_member_brings_the_newer_roster_itself(federation):
    node = federation.admit("hospital-a", publish=False)
    assert federation.coordinator.roster.current.version == 2
    with federation.client(node) as client:
        assert client.get_roster().version == 3
    assert federation.coordinator.roster.current.version == 3 and federation.accepted == [3]


def test_old_forked_and_foreign_rosters_are_refused_by_the_coordinator(federation, node, administrator):
    old, root = federation.consortium.roster.current, federation.consortium.root
    past = old.model_copy(update={"version": old.version - 1})
    fork = old.model_copy(update={"expires_at": old.expires_at + 1})
    with federation.client(administrator) as client:
        client.hello()
        for signed, kind, match in [
            (sign_roster(past, root), ProtocolFailure, f"version {past.version} of the roster came"),
            (sign_roster(fork, root), ProtocolFailure, "two different rosters"),
            (sign_roster(fork, administrator.identity), IdentityError, "does not verify"),
            (b"nonsense", IdentityError, "not JSON"),
        ]:
            with pytest.raises(kind, match=match):
                client._call(client._stub.PublishRoster, pb.PublishRosterRequest(roster=signed))
    assert federation.coordinator.roster.current == old


def test_an_outsider_with_a_certificate_cannot_bring_a_roster_without_standing_in_it(federation, node):
    stranger = federation.certify(node, name="stranger")
    federation.consortium.refresh()
    with (
        federation.raw(node, certificate=stranger) as client,
        pytest.raises(IdentityError, match="'stranger' is not in"),
    ):
        client.publish_roster(federation.consortium.roster.signed)


def test_an_invited_organization_enrols_by_grpc(federation, administrator):
    invitation = read_invitation(federation.consortium.invite("hospital-b").to_bytes())
    folder = federation.folder / "hospital-b"
    request = make_request(folder, "hospital-b", "node")
    with ControlClient.of_invitation(invitation, federation.address) as invited:
        assert invited.fetch_admission() is None
        invited.enrol(request)
        invited.enrol(request)
        with federation.client(administrator) as client:
            assert [line.request for line in client.all_enrolments()] == [request]
            client.admit_member(federation.consortium.admit(request))
            assert client.all_enrolments() == []
        admission = invited.fetch_admission()
        for refused in (invited.get_roster, lambda: next(invited.prove(RUN_ID))):
            with pytest.raises(IdentityError, match="enrol and nothing else"):
                refused()
    member = accept_admission(folder, admission, time.time(), root=invitation.root_public)
    with federation.client(member) as client:
        client.get_roster()


def test_an_invitation_serves_one_request_for_its_own_name(federation):
    invitation = read_invitation(federation.consortium.invite("hospital-b").to_bytes())
    with ControlClient.of_invitation(invitation, federation.address) as client:
        with pytest.raises(IdentityError, match=r"for 'hospital-c'.*that of 'hospital-b'"):
            client.enrol(make_request(federation.folder / "c", "hospital-c", "node"))
        client.enrol(make_request(federation.folder / "b", "hospital-b", "node"))
        with pytest.raises(IdentityError, match="was used already"):
            client.enrol(make_request(federation.folder / "b2", "hospital-b", "node"))


def test_a_member_renews_over_grpc_and_its_old_certificate_ends(federation, node, administrator):
    federation.coordinator.roster.accept(federation.consortium.roster.signed)
    request = make_renewal(node.folder)
    old = (node.tls_key_path.read_bytes(), node.tls_certificate_path.read_bytes())
    with federation.client(node) as client:
        client.enrol(request)
        with federation.client(administrator) as other:
            other.admit_member(federation.consortium.renew(request))
        client.enrol(request)  # asking again changes nothing, also when the roster has the new key already
        admission = client.fetch_admission()
        with pytest.raises(IdentityError, match="roster says"):
            client.enrol(make_request(federation.folder / "thief", "hospital-a", "node"))
    renewed = accept_admission(node.folder, admission, time.time())
    assert renewed.claim.tls_key != node.claim.tls_key
    with federation.client(renewed) as client:
        client.get_roster()
    refused = pytest.raises(IdentityError, match="called with the TLS key")
    with federation.raw(node, private_key=old[0], certificate=old[1]) as client, refused:
        client.get_roster()


def test_a_renewal_of_another_identity_is_refused(federation, node):
    with federation.client(node) as client, pytest.raises(IdentityError, match="roster says"):
        client.enrol(make_request(federation.folder / "thief", "hospital-a", "node"))


def test_the_coordinator_uses_its_renewed_certificate_without_a_restart(federation, node):
    renewal = federation.consortium.renew(make_renewal(federation.coordinator.folder))
    renewed = accept_admission(federation.coordinator.folder, renewal, time.time())
    with federation.client(node) as client:
        client.hello()
    host, port = federation.address.split(":")
    context = ssl.create_default_context(cadata=federation.consortium.roster.current.ca_certificate)
    context.load_cert_chain(node.tls_certificate_path, node.tls_key_path)
    with socket.create_connection((host, int(port))) as plain, context.wrap_socket(plain, server_hostname=host) as tls:
        assert int(tls.getpeercert()["serialNumber"], 16) == renewed.claim.serial
