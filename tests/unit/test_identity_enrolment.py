"""Certificates and enrolment: who gets in, with which keys, and what is refused by name."""

import contextlib
import json
import time

import pytest
from confide import canonical
from confide.errors import ConfideError, IdentityError, ProtocolFailure
from confide.identity.certificates import (
    check_certificate,
    general_names,
    issue_certificate,
    load_certificate,
    make_authority,
    make_csr,
)
from confide.identity.consortium import DAY_S, Consortium
from confide.identity.enrolment import accept_admission, make_renewal, make_request, read_admission, read_request
from confide.identity.invitation import read_invitation
from confide.identity.keys import SigningKey, generate_p256, load_p256, new_p256, spki, spki_sha256
from confide.identity.member import load_member
from confide.identity.signed import sign_document
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

NOW = int(time.time())
AUTHORITY_KEY = new_p256()
AUTHORITY = make_authority("example", AUTHORITY_KEY, NOW)


def issued(name="bank-a", role="node", key=None, authority=AUTHORITY, authority_key=AUTHORITY_KEY, **options):
    public = (key or new_p256()).public_key()
    return issue_certificate(authority, authority_key, public, name=name, role=role, now=NOW, **options)


@pytest.fixture
def consortium(tmp_path):
    return Consortium.create(tmp_path / "root", "example", control_address="127.0.0.1:9443", now=NOW)


def joined(consortium, folder, name, role="node", addresses=()):
    admission = consortium.admit(make_request(folder, name, role, addresses), now=NOW)
    return accept_admission(folder, admission, NOW, root=consortium.root.public.hex())


# --- certificates ----------------------------------------------------------------------------------------------------


def test_a_certificate_says_name_role_and_key():
    key = new_p256()
    claim = check_certificate(issued(key=key), AUTHORITY, NOW, name="bank-a", key=key)
    assert (claim.name, claim.role, claim.tls_key) == ("bank-a", "node", spki_sha256(key))


def test_only_a_coordinator_is_a_server_and_only_under_its_addresses():
    def usages(pem):
        extension = load_certificate(pem, "it").extensions.get_extension_for_class(x509.ExtendedKeyUsage)
        return set(extension.value)

    assert usages(issued()) == usages(issued(role="administrator")) == {ExtendedKeyUsageOID.CLIENT_AUTH}
    server = issued(role="coordinator", addresses=["127.0.0.1", "::1", "coordinator.example.org"])
    assert ExtendedKeyUsageOID.SERVER_AUTH in usages(server)
    names = load_certificate(server, "it").extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["coordinator.example.org"]
    with pytest.raises(IdentityError, match="addresses"):
        issued(addresses=["127.0.0.1"])
    with pytest.raises(IdentityError, match="addresses"):
        issued(role="coordinator")


def test_expired_foreign_misnamed_and_mismatched_certificates_are_named():
    key, pem = new_p256(), issued(lifetime_s=100)
    with pytest.raises(IdentityError, match=r"bank-a expired on 20.*renew"):
        check_certificate(pem, AUTHORITY, NOW + 100)
    with pytest.raises(IdentityError, match="clock"):
        check_certificate(pem, AUTHORITY, NOW - 3600)
    other_key = new_p256()
    other = make_authority("example", other_key, NOW)
    with pytest.raises(IdentityError, match="not issued by this consortium"):
        check_certificate(issued(authority=other, authority_key=other_key), AUTHORITY, NOW)
    with pytest.raises(IdentityError, match="not issued by this consortium"):
        check_certificate(issued(authority_key=other_key), AUTHORITY, NOW)
    with pytest.raises(IdentityError, match="'bank-a'; 'bank-b' was expected"):
        check_certificate(pem, AUTHORITY, NOW, name="bank-b")
    with pytest.raises(IdentityError, match="TLS key"):
        check_certificate(pem, AUTHORITY, NOW, key=key)
    with pytest.raises(IdentityError, match="cannot be read"):
        check_certificate("nonsense", AUTHORITY, NOW)


@pytest.mark.parametrize("address", ["", "https://x.org", "host:1", "Host", "1.2.3", "a b", "x.org\n", "*.x.org", "-a"])
def test_odd_addresses_are_refused(address):
    with pytest.raises(IdentityError, match="neither a host name"):
        general_names([address])


# --- coming in -------------------------------------------------------------------------------------------------------


def test_a_member_comes_in_by_request_and_admission(consortium, tmp_path):
    folder = tmp_path / "node"
    member = joined(consortium, folder, "hospital-a")
    assert member.name == "hospital-a"
    assert member.membership.control_address == "127.0.0.1:9443"
    assert spki(member.fleet_key()).hex() == member.roster.current.member("hospital-a").fleet_key
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {
        path.name: path.stat().st_mode & 0o777 for path in folder.iterdir() if path.suffix in {".key", ".json"}
    } == dict.fromkeys(("identity.key", "fleet.key", "tls.key", "request.json", "roster.json", "consortium.json"), 384)
    assert load_member(folder).identity.public == member.identity.public
    assert b"PRIVATE" not in (folder / "request.json").read_bytes()


def test_the_private_keys_of_the_root_stay_in_its_folder(consortium, tmp_path):
    admission = consortium.admit(make_request(tmp_path / "node", "hospital-a", "node"), now=NOW)
    assert b"PRIVATE" not in admission + consortium.roster.signed
    for name in ("root.key", "ca.key"):
        assert (consortium.folder / name).stat().st_mode & 0o777 == 0o600
    with pytest.raises(IdentityError, match="holds a consortium's root already"):
        Consortium.create(consortium.folder, "example")


def test_coordinators_have_addresses_and_no_fleet_key(consortium, tmp_path):
    member = joined(consortium, tmp_path / "server", "coordinator", "coordinator", ["127.0.0.1"])
    assert not (tmp_path / "server" / "fleet.key").exists()
    assert member.roster.current.member("coordinator").fleet_key == ""
    for name, role, addresses, match in [
        ("x", "coordinator", (), "addresses"),
        ("x", "node", ("127.0.0.1",), "addresses"),
        ("x", "root", (), "no role"),
        ("X!", "node", (), "no member's name"),
        ("x", "coordinator", ("a:1",), "neither a host name"),
    ]:
        with pytest.raises(IdentityError, match=match):
            make_request(tmp_path / "odd", name, role, addresses)
    assert not (tmp_path / "odd").exists()


def test_keys_are_never_overwritten(tmp_path):
    make_request(tmp_path / "node", "hospital-a", "node")
    before = (tmp_path / "node" / "identity.key").read_bytes()
    with pytest.raises(IdentityError, match="has keys already"):
        make_request(tmp_path / "node", "hospital-b", "node")
    assert (tmp_path / "node" / "identity.key").read_bytes() == before


def test_the_same_request_is_answered_again_and_a_taken_name_is_not(consortium, tmp_path):
    request = make_request(tmp_path / "node", "hospital-a", "node")
    consortium.admit(request, now=NOW)
    version = consortium.roster.current.version
    accept_admission(tmp_path / "node", consortium.admit(request, now=NOW), NOW)
    assert consortium.roster.current.version == version
    with pytest.raises(IdentityError, match="a member with other keys"):
        consortium.admit(make_request(tmp_path / "thief", "hospital-a", "node"), now=NOW)
    consortium.revoke("hospital-a", now=NOW)
    with pytest.raises(IdentityError, match="revoked name never returns"):
        consortium.admit(request, now=NOW)


def test_an_admission_after_the_roster_expired_carries_a_fresh_one(consortium, tmp_path):
    request = make_request(tmp_path / "node", "hospital-a", "node")
    consortium.admit(request, now=NOW)
    later = NOW + 60 * DAY_S
    accept_admission(tmp_path / "node", consortium.admit(request, now=later), later)
    assert load_member(tmp_path / "node", now=later).roster.current.expires_at > later


def test_a_request_must_prove_every_key_it_names(tmp_path):
    mine = make_request(tmp_path / "mine", "hospital-a", "node")
    theirs = json.loads(make_request(tmp_path / "theirs", "hospital-b", "node"))["document"]
    document, key = json.loads(mine)["document"], SigningKey.load(tmp_path / "mine" / "identity.key")
    for changes, match in [
        ({"fleet_key": theirs["fleet_key"]}, "fleet-proof does not verify"),
        ({"fleet_key": theirs["fleet_key"], "fleet_proof": theirs["fleet_proof"]}, "fleet-proof does not verify"),
        ({"fleet_proof": ""}, "fleet-proof does not verify"),
        ({"identity_key": theirs["identity_key"]}, "does not verify"),
        ({"csr": document["csr"].replace(document["csr"][60:64], "AAAA")}, "certificate request"),
        ({"role": "administrator"}, "only a node has a fleet key"),
        ({"version": 2}, "version"),
        ({"extra": 1}, "extra"),
    ]:
        with pytest.raises(IdentityError, match=match):
            read_request(sign_document(document | changes, "request", key))
    with pytest.raises(IdentityError, match="does not verify"):
        read_request(mine.replace(b"hospital-a", b"hospital-c"))


def test_what_a_request_asks_for_cannot_be_changed_on_the_way(tmp_path):
    request = make_request(tmp_path / "server", "coordinator", "coordinator", ["10.0.0.1"], now=NOW)
    assert read_request(request).addresses == ("10.0.0.1",)
    for changed in (
        request.replace(b"10.0.0.1", b"10.0.0.2"),
        request.replace(str(NOW).encode(), str(NOW + 1).encode()),
        request.replace(b'"name":"coordinator"', b'"name":"coordinator-2"'),
    ):
        assert changed != request
        with pytest.raises(IdentityError, match="'request' does not verify"):
            read_request(changed)


def test_a_csr_of_another_curve_is_refused(tmp_path):
    document = json.loads(make_request(tmp_path / "mine", "hospital-a", "node"))["document"]
    key = SigningKey.load(tmp_path / "mine" / "identity.key")
    csr = make_csr("hospital-a", "node", ec.generate_private_key(ec.SECP384R1()))
    with pytest.raises(IdentityError, match="not P-256"):
        read_request(sign_document(document | {"csr": csr}, "request", key))


def test_an_admission_of_another_root_folder_or_request_is_refused(consortium, tmp_path):
    other = Consortium.create(tmp_path / "other-root", "example", now=NOW)
    request = make_request(tmp_path / "node", "hospital-a", "node")
    genuine, foreign = consortium.admit(request, now=NOW), other.admit(request, now=NOW)
    pinned = consortium.root.public.hex()
    with pytest.raises(IdentityError, match="compare the root's key"):
        accept_admission(tmp_path / "node", foreign, NOW, root=pinned)
    with pytest.raises(ProtocolFailure, match="ROSTER_STALE"):
        accept_admission(tmp_path / "node", genuine, NOW + 31 * DAY_S)
    make_request(tmp_path / "stranger", "hospital-b", "node")
    with pytest.raises(IdentityError, match="right folder"):
        accept_admission(tmp_path / "stranger", genuine, NOW)
    assert not (tmp_path / "stranger" / "roster.json").exists()
    with pytest.raises(IdentityError, match="does not verify"):
        accept_admission(tmp_path / "node", genuine.replace(b"127.0.0.1:9443", b"127.0.0.1:9444"), NOW)
    accept_admission(tmp_path / "node", genuine, NOW)
    with pytest.raises(IdentityError, match="compare the root's key"):
        accept_admission(tmp_path / "node", foreign, NOW)


# --- renewal, revocation, invitations --------------------------------------------------------------------------------


def test_a_renewal_changes_the_tls_key_only_and_the_old_one_works_until_then(consortium, tmp_path):
    before = joined(consortium, tmp_path / "node", "hospital-a")
    request = make_renewal(tmp_path / "node")
    assert load_member(tmp_path / "node").claim == before.claim
    admission = consortium.renew(request, now=NOW)
    after = accept_admission(tmp_path / "node", admission, NOW)
    assert after.claim.tls_key != before.claim.tls_key
    assert after.identity.public == before.identity.public
    listed = after.roster.current.member("hospital-a")
    assert listed.tls_key == after.claim.tls_key
    assert listed.identity_key == before.identity.public.hex()
    assert not (tmp_path / "node" / "tls.key.next").exists()
    assert accept_admission(tmp_path / "node", admission, NOW).claim == after.claim


def test_an_acceptance_cut_short_is_completed_by_accepting_again(consortium, tmp_path):
    folder = tmp_path / "node"
    joined(consortium, folder, "hospital-a")
    admission = consortium.renew(make_renewal(folder), now=NOW)
    (folder / "tls.key.next").rename(folder / "tls.key")  # killed between the key and the certificate
    with pytest.raises(IdentityError, match="accept the newest admission"):
        load_member(folder)
    assert accept_admission(folder, admission, NOW).claim == load_member(folder).claim


def test_a_roster_that_overtook_the_admission_decides(consortium, tmp_path):
    member = joined(consortium, tmp_path / "node", "hospital-a")
    admission = consortium.renew(make_renewal(tmp_path / "node"), now=NOW)
    newer = consortium.refresh(now=NOW)
    member.roster.accept(consortium.roster.signed, now=NOW)
    assert accept_admission(tmp_path / "node", admission, NOW).roster.current == newer
    consortium.revoke("hospital-a", now=NOW)
    member.roster.accept(consortium.roster.signed, now=NOW)
    with pytest.raises(ProtocolFailure, match="REVOKED"):
        accept_admission(tmp_path / "node", admission, NOW)


def test_an_admission_whose_certificate_says_another_role_is_refused(consortium, tmp_path):
    request = make_request(tmp_path / "node", "hospital-a", "node")
    document = json.loads(consortium.admit(request, now=NOW))["document"]
    forged = issued(
        name="hospital-a",
        role="administrator",
        key=load_p256(tmp_path / "node" / "tls.key"),
        authority=consortium.roster.current.ca_certificate,
        authority_key=load_p256(consortium.folder / "ca.key"),
    )
    admission = sign_document(document | {"certificate": forged}, "admission", consortium.root)
    with pytest.raises(IdentityError, match="certificate of a administrator"):
        accept_admission(tmp_path / "node", admission, NOW)
    assert not (tmp_path / "node" / "roster.json").exists()


def test_nobody_renews_for_another(consortium, tmp_path):
    joined(consortium, tmp_path / "node", "hospital-a")
    with pytest.raises(IdentityError, match="roster says"):
        consortium.renew(make_request(tmp_path / "thief", "hospital-a", "node"), now=NOW)
    with pytest.raises(IdentityError, match="not in version"):
        consortium.renew(make_request(tmp_path / "new", "hospital-b", "node"), now=NOW)
    request = make_renewal(tmp_path / "node")
    consortium.revoke("hospital-a", now=NOW)
    with pytest.raises(ProtocolFailure, match="REVOKED"):
        consortium.renew(request, now=NOW)


def test_a_coordinator_keeps_or_changes_its_addresses_when_renewed(consortium, tmp_path):
    folder = tmp_path / "server"
    joined(consortium, folder, "coordinator", "coordinator", ["127.0.0.1"])
    assert read_request(make_renewal(folder)).addresses == ("127.0.0.1",)
    assert read_request(make_renewal(folder, ["coordinator.example.org"])).addresses == ("coordinator.example.org",)


def test_versions_of_the_consortium_form_a_chain(consortium, tmp_path):
    rosters = [consortium.roster.current]
    joined(consortium, tmp_path / "node", "hospital-a")
    rosters.append(consortium.roster.current)
    rosters.append(consortium.refresh(now=NOW + 5))
    rosters.append(consortium.revoke("hospital-a", now=NOW + 6))
    assert [one.version for one in rosters] == [1, 2, 3, 4]
    assert [one.previous for one in rosters[1:]] == [one.digest for one in rosters[:-1]]
    assert Consortium.open(consortium.folder).roster.current == rosters[-1]
    with pytest.raises(ProtocolFailure, match="REVOKED"):
        consortium.revoke("hospital-a")


def test_an_invitation_is_for_a_new_name_and_a_short_time(consortium, tmp_path):
    invitation = read_invitation(consortium.invite("hospital-b", now=NOW, hours=2).to_bytes())
    claim = check_certificate(invitation.certificate, consortium.roster.current.ca_certificate, NOW)
    assert (claim.name, claim.role) == ("hospital-b", "bootstrap")
    assert invitation.root_public == consortium.root.public.hex()
    assert "PRIVATE" not in repr(invitation)
    with pytest.raises(IdentityError, match="expired"):
        check_certificate(invitation.certificate, invitation.ca_certificate, NOW + 7200)
    joined(consortium, tmp_path / "node", "hospital-a")
    with pytest.raises(IdentityError, match="is or was a member"):
        consortium.invite("hospital-a")


def test_a_damaged_member_folder_is_named(consortium, tmp_path):
    folder = tmp_path / "node"
    with pytest.raises(IdentityError, match=r"consortium\.json"):
        load_member(folder)
    joined(consortium, folder, "hospital-a")
    good = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    for name in ("consortium.json", "identity.key", "tls.key", "tls.crt", "roster.json"):
        (folder / name).write_bytes(b"\x80nonsense")
        with pytest.raises(IdentityError):
            load_member(folder)
        (folder / name).write_bytes(good[name])
    generate_p256(folder / "tls.key")
    with pytest.raises(IdentityError, match=r"tls\.key is"):
        load_member(folder)
    (folder / "tls.key").write_bytes(good["tls.key"])
    with pytest.raises(IdentityError, match="expired"):
        load_member(folder, now=NOW + 181 * DAY_S)
    load_member(folder)


# --- hostile bytes ---------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def genuine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("genuine")
    consortium = Consortium.create(folder / "root", "example", now=NOW)
    request = make_request(folder / "node", "hospital-a", "node")
    identity = SigningKey.load(folder / "node" / "identity.key")
    return consortium, identity, request, consortium.admit(request, now=NOW)


def readers(root):
    return (read_request, lambda data: read_admission(data, NOW, root=root), read_invitation)


@given(st.binary(max_size=100) | JSON.map(lambda value: json.dumps(value).encode()))
def test_arbitrary_bytes_are_neither_request_nor_admission_nor_invitation(data):
    for read in readers(None):
        with pytest.raises(IdentityError):
            read(data)


@given(position=st.integers(min_value=0), value=st.integers(0, 255), which=st.integers(0, 1))
def test_no_byte_of_a_request_or_admission_can_change(genuine, position, value, which):
    consortium, _, request, admission = genuine
    data = bytearray((request, admission)[which])
    position %= len(data)
    data[position] = value if data[position] != value else value ^ 1
    with pytest.raises(ConfideError):
        readers(consortium.root.public.hex())[which](bytes(data))


@given(value=JSON, pick=st.integers(min_value=0))
def test_signed_nonsense_in_any_field_is_an_error_by_name(genuine, value, pick):
    consortium, identity, request, admission = genuine
    for data, domain, key, read in (
        (request, "request", identity, read_request),
        (admission, "admission", consortium.root, lambda data: read_admission(data, NOW)),
    ):
        document = json.loads(data)["document"]
        field = sorted(document)[pick % len(document)]
        with contextlib.suppress(ConfideError):
            read(sign_document(document | {field: value}, domain, key))


@given(value=JSON, field=st.sampled_from(["name", "certificate", "private_key", "expires_at", "root_public", "kind"]))
def test_an_odd_invitation_is_an_error_by_name(genuine, value, field):
    document = json.loads(genuine[0].invite("hospital-z", now=NOW).to_bytes())
    with contextlib.suppress(IdentityError):
        read_invitation(canonical.encode(document | {field: value}))


def test_key_files_are_p256(tmp_path):
    key = generate_p256(tmp_path / "tls.key")
    assert spki(load_p256(tmp_path / "tls.key")) == spki(key)
