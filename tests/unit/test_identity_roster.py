"""Keys, signed documents and rosters: what verifies, and everything that must not."""

import contextlib
import json
import resource

import pytest
from confide import canonical
from confide.errors import ConfideError, IdentityError, ProtocolFailure, StateError
from confide.identity.keys import SigningKey, generate_p256, load_p256, new_p256, spki, spki_sha256, verify
from confide.identity.roster import Member, Role, Roster, RosterStore, sign_roster, verify_roster
from confide.identity.signed import MAX_BYTES
from hypothesis import given
from hypothesis import strategies as st

NOW = 1_800_000_000
ROOT = SigningKey.generate()
NODE_KEYS = {name: (SigningKey.generate(), new_p256(), new_p256()) for name in ("bank-a", "bank-b")}


def member(name="bank-a", **changes):
    identity, fleet, tls = NODE_KEYS.get(name, NODE_KEYS["bank-a"])
    fields = {
        "name": name,
        "role": "node",
        "identity_key": identity.public.hex(),
        "fleet_key": spki(fleet).hex(),
        "tls_key": spki_sha256(tls),
        "admitted_at": NOW,
    }
    return Member.model_validate_json(json.dumps(fields | changes))


def roster(version=1, previous="", **changes):
    fields = {
        "version": version,
        "previous": previous,
        "consortium": "example",
        "demo": False,
        "issued_at": NOW,
        "expires_at": NOW + 1000,
        "ca_certificate": "pem",
        "members": [member().model_dump(mode="json")],
    }
    return Roster.model_validate_json(json.dumps(fields | changes))


def following(roster_before, **changes):
    return roster(roster_before.version + 1, roster_before.digest, **changes)


def store(tmp_path, *rosters):
    made = RosterStore(tmp_path / "roster.json", ROOT.public)
    for one in rosters:
        made.accept(sign_roster(one, ROOT), now=NOW)
    return made


# --- keys ------------------------------------------------------------------------------------------------------------


def test_a_signature_holds_for_its_key_domain_and_body_only():
    key, signature = ROOT, ROOT.sign("receipt", b"body")
    verify(key.public, "receipt", b"body", signature)
    for public, domain, body, changed in [
        (SigningKey.generate().public, "receipt", b"body", signature),
        (key.public, "roster", b"body", signature),
        (key.public, "receipt", b"bodY", signature),
        (key.public, "receipt", b"body", bytes(64)),
        (key.public, "receipt", b"body", b""),
        (b"short", "receipt", b"body", signature),
    ]:
        with pytest.raises(IdentityError, match="does not verify"):
            verify(public, domain, body, changed)


def test_keys_are_files_that_only_their_owner_reads(tmp_path):
    path = tmp_path / "identity.key"
    ROOT.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert SigningKey.load(path).public == ROOT.public
    assert "PRIVATE" not in repr(ROOT) and ROOT.public.hex() in repr(ROOT)
    path.chmod(0o640)
    with pytest.raises(IdentityError, match=r"mode 0640.*chmod 600"):
        SigningKey.load(path)


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_a_damaged_key_file_is_named(tmp_path, content):
    path = tmp_path / "identity.key"
    path.write_bytes(content)
    path.chmod(0o600)
    for load in (SigningKey.load, load_p256):
        with pytest.raises(IdentityError, match=r"identity\.key"):
            load(path)


def test_a_key_of_another_kind_is_refused(tmp_path):
    ROOT.save(tmp_path / "ed")
    generate_p256(tmp_path / "ec")
    with pytest.raises(IdentityError, match="P-256"):
        load_p256(tmp_path / "ed")
    with pytest.raises(IdentityError, match="Ed25519"):
        SigningKey.load(tmp_path / "ec")
    with pytest.raises(IdentityError, match="cannot read"):
        load_p256(tmp_path / "none")


# --- one roster ------------------------------------------------------------------------------------------------------


def test_a_signed_roster_verifies_until_it_expires():
    signed = sign_roster(roster(), ROOT)
    assert verify_roster(signed, ROOT.public, NOW + 999) == roster()
    with pytest.raises(ProtocolFailure, match=r"ROSTER_STALE.*expired") as failure:
        verify_roster(signed, ROOT.public, NOW + 1000)
    assert failure.value.code == "ROSTER_STALE"
    with pytest.raises(IdentityError, match="clock"):
        verify_roster(signed, ROOT.public, NOW - 301)


def test_a_roster_of_another_root_or_altered_is_refused():
    signed = sign_roster(roster(), ROOT)
    with pytest.raises(IdentityError, match="does not verify"):
        verify_roster(sign_roster(roster(), SigningKey.generate()), ROOT.public, NOW)
    altered = json.loads(signed)
    altered["document"]["members"] = []
    with pytest.raises(IdentityError, match="does not verify"):
        verify_roster(canonical.encode(altered), ROOT.public, NOW)
    with pytest.raises(IdentityError, match="canonical"):
        verify_roster(json.dumps(json.loads(signed)).encode(), ROOT.public, NOW)
    with pytest.raises(IdentityError, match="at most"):
        verify_roster(b" " * (MAX_BYTES + 1), ROOT.public, NOW)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"version": 2}, "predecessor"),
        ({"previous": "0" * 64}, "predecessor"),
        ({"expires_at": NOW}, "not after"),
        ({"members": [member("bank-b"), member("bank-a")]}, "order"),
        ({"members": [member(), member()]}, "twice"),
        (
            {"members": [member(), member(identity_key="ab" * 32, tls_key="cd" * 32, name="bank-c")]},
            "share the fleet_key",
        ),
        ({"members": [member(), member("bank-b", tls_key=member().tls_key)]}, "share the tls_key"),
        ({"surprise": 1}, "surprise"),
        ({"demo": "yes"}, "demo"),
        ({"version": True}, "version"),
    ],
)
def test_an_impossible_roster_is_refused_even_when_the_root_signed_it(changes, match):
    document = roster().model_dump(mode="json") | {
        key: [one.model_dump(mode="json") for one in value] if key == "members" else value
        for key, value in changes.items()
    }
    body = canonical.encode(document)
    signed = canonical.encode({"document": document, "signature": ROOT.sign("roster", body).hex()})
    with pytest.raises(IdentityError, match=match):
        verify_roster(signed, ROOT.public, NOW)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"role": "coordinator"}, "fleet_key"),
        ({"fleet_key": ""}, "fleet_key"),
        ({"fleet_key": "00" * 91}, "fleet_key"),
        ({"name": "Bank A"}, "name"),
        ({"identity_key": "AB" * 32}, "identity_key"),
        ({"role": "root"}, "role"),
    ],
)
def test_an_impossible_member_is_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        member(**changes)


def test_members_are_found_by_name_role_and_fleet_key_and_revoked_ones_are_not():
    both = roster(members=[member().model_dump(mode="json"), member("bank-b", revoked_at=NOW).model_dump(mode="json")])
    assert both.member("bank-a") == both.by_fleet_key(member().fleet_key)
    assert [one.name for one in both.active("node")] == ["bank-a"]
    assert both.active(Role.COORDINATOR) == ()
    for look in (lambda: both.member("bank-b"), lambda: both.by_fleet_key(member("bank-b").fleet_key)):
        with pytest.raises(ProtocolFailure, match="REVOKED") as failure:
            look()
        assert failure.value.culprit == "bank-b"
    with pytest.raises(IdentityError, match="'bank-c' is not in version 1"):
        both.member("bank-c")
    for unknown in ("", "00" * 91):
        with pytest.raises(IdentityError, match="fleet key"):
            both.by_fleet_key(unknown)


# --- the store -------------------------------------------------------------------------------------------------------


def test_versions_only_go_up_and_survive_a_restart(tmp_path):
    first = roster()
    second, third = following(first), following(following(first), expires_at=NOW + 2000)
    held = store(tmp_path, first, second)
    assert held.accept(sign_roster(second, ROOT), now=NOW) == second
    held.accept(sign_roster(third, ROOT), now=NOW)
    again = RosterStore(tmp_path / "roster.json", ROOT.public)
    assert again.current == third
    assert again.signed == sign_roster(third, ROOT)
    assert (tmp_path / "roster.json").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ProtocolFailure, match="ROSTER_STALE: version 2"):
        again.accept(sign_roster(second, ROOT), now=NOW)


def test_a_gap_is_allowed_when_newer(tmp_path):
    far = roster(9, "ab" * 32)
    assert store(tmp_path, roster(), far).current.version == 9


def test_forks_expired_and_foreign_rosters_change_nothing(tmp_path):
    first = roster()
    held = store(tmp_path, first, following(first))
    before = (tmp_path / "roster.json").read_bytes()
    for bad, match in [
        (following(first, expires_at=NOW + 5000), "two different rosters carry version 2"),
        (roster(3, "ab" * 32), "does not follow"),
        (roster(3, following(first).digest, expires_at=NOW + 1, issued_at=NOW - 5), "expired"),
        (roster(3, following(first).digest, demo=True), "never changes"),
        (roster(3, following(first).digest, consortium="other"), "never changes"),
    ]:
        with pytest.raises(ConfideError, match=match):
            held.accept(sign_roster(bad, ROOT), now=NOW + 2)
    with pytest.raises(IdentityError, match="does not verify"):
        held.accept(sign_roster(following(following(first)), SigningKey.generate()), now=NOW)
    assert (tmp_path / "roster.json").read_bytes() == before
    assert held.current.version == 2


def test_a_roster_that_another_process_accepted_is_seen(tmp_path):
    first = roster()
    one, other = store(tmp_path, first), RosterStore(tmp_path / "roster.json", ROOT.public)
    one.accept(sign_roster(following(first), ROOT), now=NOW)
    assert other.current.version == 2
    with pytest.raises(ProtocolFailure, match="version 1"):
        other.accept(sign_roster(first, ROOT), now=NOW)


def test_a_store_without_a_roster_or_with_a_forged_file_says_so(tmp_path):
    with pytest.raises(IdentityError, match="no roster yet"):
        _ = RosterStore(tmp_path / "roster.json", ROOT.public).current
    (tmp_path / "roster.json").write_bytes(sign_roster(roster(), SigningKey.generate()))
    with pytest.raises(IdentityError, match="does not verify"):
        RosterStore(tmp_path / "roster.json", ROOT.public)


def test_a_full_disk_is_an_error_and_nothing_is_accepted(tmp_path):
    held = store(tmp_path, roster())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(StateError, match="cannot write"):
            held.accept(sign_roster(following(roster()), ROOT), now=NOW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert held.current.version == RosterStore(tmp_path / "roster.json", ROOT.public).current.version == 1


# --- hostile bytes ---------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_arbitrary_bytes_are_no_roster(data):
    with pytest.raises(ConfideError):
        verify_roster(data, ROOT.public, NOW)


@given(st.integers(min_value=0), st.integers(0, 255))
def test_no_single_byte_of_a_signed_roster_can_change(position, value):
    signed = bytearray(sign_roster(roster(), ROOT))
    position %= len(signed)
    if signed[position] == value:
        value ^= 1
    signed[position] = value
    with pytest.raises(ConfideError):
        verify_roster(bytes(signed), ROOT.public, NOW)


@given(st.sampled_from(sorted(Roster.model_fields)), JSON)
def test_signed_nonsense_in_a_field_is_a_named_error_or_a_roster(field, value):
    document = roster().model_dump(mode="json") | {field: value}
    body = canonical.encode(document)
    signed = canonical.encode({"document": document, "signature": ROOT.sign("roster", body).hex()})
    with contextlib.suppress(ConfideError):
        assert verify_roster(signed, ROOT.public, NOW).model_dump(mode="json") == document


def test_deep_nesting_is_refused_not_a_crash():
    deep = b'{"document":' + b"[" * 100_000 + b"]" * 100_000 + b',"signature":""}'
    with pytest.raises(IdentityError):
        verify_roster(deep, ROOT.public, NOW)
