"""A consortium in one command, the file with which an organization joins, and the root's keys under a passphrase."""

import json
import threading
import time

import pytest
from confide.cli import app
from confide.errors import IdentityError, ProtocolFailure
from confide.files import write_atomic
from confide.identity.consortium import Consortium
from confide.identity.enrolment import make_request
from confide.identity.keys import SigningKey
from confide.identity.kit import PolicyProposal, StartKit, read_kit
from confide.identity.member import load_member
from confide.identity.passphrase import LockedKey, is_locked, lock, unlock
from confide.models.store import ModelStore
from confide_client.agent.joining import Wish, join, policy_text
from confide_client.policy.policy import load_policy, parse_policy
from confide_client.state import StateFolder
from confide_server.admin_cli import consortium as commands
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.control_federation import running_federation
from tests.tiny_models import tiny_llama

PASSPHRASE = "correct horse battery"


def run(*arguments, fails=None):
    """The command's output, or the message of the error that it must raise."""
    commands.console.width = 200
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    if fails is not None:
        assert isinstance(result.exception, fails), (result.exception, result.output)
        return str(result.exception)
    if result.exception is not None:
        raise result.exception
    return result.output


@pytest.fixture
def secret(tmp_path):
    write_atomic(tmp_path / "passphrase", PASSPHRASE.encode() + b"\n")
    return tmp_path / "passphrase"


# --- the passphrase --------------------------------------------------------------------------------------------------


@given(st.binary(max_size=400), st.binary(max_size=40))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_a_locked_secret_opens_with_its_passphrase_and_no_other(data, passphrase):
    locked = lock(data, passphrase, cost=2)
    assert is_locked(locked) and unlock(locked, passphrase, "key") == data
    with pytest.raises(IdentityError, match="does not open"):
        unlock(locked, passphrase + b"x", "key")


def test_an_altered_or_foreign_locked_key_is_refused_and_cannot_take_all_memory():
    document = json.loads(lock(b"secret", b"x", cost=2))
    altered = {**document, "ciphertext": "00" + document["ciphertext"][2:]}
    with pytest.raises(IdentityError, match="does not open"):
        unlock(json.dumps(altered).encode(), b"x", "key")
    for wrong in ({**document, "cost": 2**40}, {**document, "other": 1}, {}):
        with pytest.raises(IdentityError, match="damaged"):
            unlock(json.dumps(wrong).encode(), b"x", "key")


@given(st.binary(max_size=200))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_any_bytes_are_a_clear_error(data):
    with pytest.raises(IdentityError):
        unlock(b"{" + data, b"x", "key")
    with pytest.raises(IdentityError):
        read_kit(data)


def test_the_roots_keys_are_locked_unless_somebody_says_otherwise(tmp_path, secret):
    init = ("consortium", "init", tmp_path / "root", "--name", "hospitals", "--admin", tmp_path / "admin")
    assert "no terminal" in run(*init, fails=IdentityError) and not (tmp_path / "root").exists()
    run(*init, "--passphrase-file", secret)
    for name in ("root.key", "ca.key"):
        data = (tmp_path / "root" / name).read_bytes()
        assert LockedKey.model_validate_json(data).cost >= 2**17 and b"PRIVATE KEY" not in data
    with pytest.raises(IdentityError, match="passphrase"):
        SigningKey.load(tmp_path / "root" / "root.key")
    invite = ("consortium", "invite", "hospital-a", "--folder", tmp_path / "root", "--out", tmp_path / "invitation")
    assert "no terminal" in run(*invite, fails=IdentityError)
    write_atomic(tmp_path / "wrong", b"another passphrase")
    assert "does not open" in run(*invite, "--passphrase-file", tmp_path / "wrong", fails=IdentityError)
    run(*invite, "--passphrase-file", secret)
    write_atomic(tmp_path / "short", b"short")
    another = ("consortium", "init", tmp_path / "other", "--name", "x", "--passphrase-file", tmp_path / "short")
    assert "12 or more" in run(*another, fails=IdentityError)


def test_a_roster_is_shown_exported_and_published_without_the_roots_keys(tmp_path, secret):
    root = tmp_path / "root"
    run("consortium", "init", root, "--name", "hospitals", "--admin", tmp_path / "admin", "--passphrase-file", secret)
    for name in ("root.key", "ca.key"):
        (root / name).unlink()
    run("consortium", "roster", "export", tmp_path / "roster.json", "--folder", root)
    (root / "root.key").write_text("not here")
    assert "hospitals" in run("consortium", "roster", "show", "--folder", root)


def test_an_exported_roster_is_published_where_the_root_is_not(tmp_path):
    with running_federation(tmp_path) as federation:
        admin = federation.admit("admin-1", "administrator").folder
        federation.consortium.refresh()
        exported = tmp_path / "roster.json"
        exported.write_bytes(federation.consortium.roster.signed)
        where = ("--admin", admin, "--coordinator", federation.address)
        run("consortium", "roster", "publish", exported, *where)
        assert federation.coordinator.roster.current == federation.consortium.roster.current


# --- the kit ---------------------------------------------------------------------------------------------------------


def kit_command(folder, *names):
    organizations = [part for name in names for part in ("--organization", name)]
    return ("consortium", "start-kit", folder, "--name", "builders", "--demo", *organizations)


def test_one_command_makes_root_administrator_coordinator_and_kits(tmp_path):
    folder = tmp_path / "builders"
    said = run(*kit_command(folder, "hospital-a", "bank-b"), "--method", "sft", "--data", "faq", "--privacy", "none")
    root = Consortium.open(folder / "root")
    assert root.root.public.hex() in said and "confide node join" in said
    assert [member.name for member in root.roster.current.members] == ["administrator", "coordinator"]
    assert load_member(folder / "coordinator").membership.role == "coordinator"
    for name in ("hospital-a", "bank-b"):
        path = folder / "kits" / f"{name}.kit.json"
        assert path.stat().st_mode & 0o777 == 0o600
        kit = read_kit(path.read_bytes())
        assert (kit.invitation.name, kit.policy.data_sets) == (name, ("faq",))
    assert "not empty" in run(*kit_command(folder, "other"), fails=IdentityError)


@pytest.mark.parametrize("names", [("hospital-a", "hospital-a"), ("coordinator",), ("Not A Name",)])
def test_impossible_names_make_nothing(tmp_path, names):
    run(*kit_command(tmp_path / "builders", *names), fails=IdentityError)
    assert not (tmp_path / "builders").exists()


def test_the_proposed_policy_always_asks_a_person():
    consortium_kit = StartKit.model_construct(
        demo=True, policy=PolicyProposal(), invitation=type("I", (), {"root_public": "ab" * 32})()
    )
    policy = parse_policy(policy_text(consortium_kit, ["cd" * 32]))
    assert policy.approval == "ask" and policy.allow_demo_root and policy.models == ("cd" * 32,)
    assert policy.privacy_units == ("record", "user", "organization") and policy.sealing == "required"


# --- who may take an invited organization's place --------------------------------------------------------------------


@pytest.fixture
def consortium(tmp_path):
    return Consortium.create(tmp_path / "root", "trial", control_address="127.0.0.1:1", fleet_address="127.0.0.1:2")


def test_only_the_holder_of_the_invitation_can_make_its_request(consortium, tmp_path):
    invitation = consortium.invite("hospital-a")
    request = make_request(tmp_path / "node", "hospital-a", "node", invitation=invitation)
    assert consortium.check_invited(request).name == "hospital-a"


def test_keys_put_into_an_invited_organizations_place_are_refused(consortium, tmp_path):
    invitation = consortium.invite("hospital-a")
    genuine = json.loads(make_request(tmp_path / "node", "hospital-a", "node", invitation=invitation))["document"]
    without = make_request(tmp_path / "liar", "hospital-a", "node")
    with pytest.raises(IdentityError, match="not made from an invitation"):
        consortium.check_invited(without)
    # The liar copies the genuine proof to a request over its own keys, and signs that with its own identity key.
    stolen = json.loads(without)["document"] | {"invitation_proof": genuine["invitation_proof"]}
    from confide.identity.signed import sign_document

    forged = sign_document(stolen, "request", SigningKey.load(tmp_path / "liar" / "identity.key"))
    with pytest.raises(IdentityError, match="invitation-proof does not verify"):
        consortium.check_invited(forged)
    other = consortium.invite("bank-b")
    with pytest.raises(IdentityError, match="invitation-proof does not verify"):
        wrong = make_request(tmp_path / "other", "hospital-a", "node", invitation=other)
        consortium.check_invited(wrong)


# --- joining ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def federation(tmp_path):
    with running_federation(tmp_path) as federation:
        yield federation


def test_an_organization_joins_with_its_kit_and_the_root_admits_whoever_proves_it(federation, tmp_path):
    base = tiny_llama(tmp_path / "base")
    data = tmp_path / "faq.jsonl"
    data.write_text("".join(json.dumps({"question": f"q {i}", "answer": f"a {i}"}) + "\n" for i in range(20)))
    invitation = federation.consortium.invite("hospital-z").model_copy(update={"control_address": federation.address})
    kit = StartKit(demo=True, invitation=invitation, policy=PolicyProposal(data_sets=("faq",)))
    state, said = StateFolder.create(tmp_path / "node"), []
    wish = Wish(data=(("faq", data),), models=(str(base),), wait_s=60)
    joining = threading.Thread(target=join, args=(state, kit, wish, said.append))
    joining.start()
    admit = ("consortium", "admit", "--waiting", "--folder", federation.consortium.folder)
    where = ("--admin", federation.admit("admin-1", "administrator").folder, "--coordinator", federation.address)
    deadline = time.monotonic() + 60
    while not any("waiting for the consortium's root" in line for line in said) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "hospital-z is admitted" in run(*admit, *where)
    joining.join(timeout=60)
    assert not joining.is_alive(), said
    assert state.member().name == "hospital-z"
    policy = load_policy(state.policy)
    assert policy.models == (ModelStore(state.models).list()[0].sha256,) and policy.data_sets == ("faq",)
    # The same again changes nothing, the operator's own policy least of all.
    state.policy.write_text("version = 1\n")
    join(state, kit, Wish(), said.append)
    assert state.policy.read_text() == "version = 1\n"
    assert "nobody was admitted" in run(*admit, *where, fails=IdentityError)


def test_a_kit_of_another_root_and_a_missing_file_are_said_before_anything_is_made(consortium, tmp_path):
    kit = StartKit(demo=False, invitation=consortium.invite("hospital-a"), policy=PolicyProposal())
    path = tmp_path / "hospital-a.kit.json"
    path.write_bytes(kit.to_bytes())
    join_it = ("node", "join", path, tmp_path / "node")
    assert "was expected" in run(*join_it, "--root", "00" * 32, fails=IdentityError)
    assert "is not there" in run(*join_it, "--data", tmp_path / "none.jsonl", fails=IdentityError)
    assert "no start kit" in run("node", "join", consortium.folder / "roster.json", fails=IdentityError)
    assert not (tmp_path / "node").exists()


def test_a_revoked_name_is_not_invited_again(consortium, tmp_path):
    consortium.admit(make_request(tmp_path / "node", "hospital-a", "node"))
    consortium.revoke("hospital-a")
    with pytest.raises(IdentityError, match="is or was a member"):
        consortium.invite("hospital-a")
    with pytest.raises(ProtocolFailure, match="REVOKED"):
        consortium.roster.current.member("hospital-a")
