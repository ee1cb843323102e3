"""`confide consortium` and `confide run` as people type them: offline on files, and against a running service."""

import json
import time

import pytest
from confide.cli import app
from confide.codec.tensors import TensorSchema, model_digest
from confide.errors import ConfideError, IdentityError, ModelError, ProtocolFailure, SpecificationError, TransportError
from confide.files import write_atomic
from confide.identity.consortium import Consortium
from confide.identity.enrolment import accept_admission, make_renewal, make_request
from confide.identity.invitation import read_invitation
from confide.identity.member import load_member
from confide.identity.roster import verify_roster
from confide.models.store import folder_digest
from confide.models.trainable import initial_state
from confide.runs.specification import parse_toml
from confide.transport.control import ControlClient
from confide_server.admin_cli import consortium as consortium_commands
from confide_server.admin_cli import run as run_commands
from confide_server.admin_cli.run_view import RunView
from peft import PeftModel
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from tests.control_federation import RUN_ID, running_federation, stored
from tests.tiny_models import tiny_llama

UNLOCKED = "--no-passphrase"
TOML = """
version = 1
name = "test"
[model]
sha256 = "{sha256}"
[adapter]
rank = 4
[training]
local_steps = 1
batch_size = 2
learning_rate = 1e-2
[federation]
rounds = 2
data = "shard"
min_cohort = 2
[sealing]
kind = "none"
"""


def run(*arguments, fails=None, code=None):
    """The command's output; with `fails`, the error that it must raise; with `code`, its exit status."""
    for module in (consortium_commands, run_commands):
        module.console.width = 200  # whatever the terminal was when they were imported
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    if fails is not None:
        assert isinstance(result.exception, fails), (result.exception, result.output)
        return str(result.exception)
    if code is not None:
        assert result.exit_code == code, (result.exception, result.output)
        return result.output
    if result.exception is not None:
        raise result.exception
    return result.output


# --- the root's machine ----------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path):
    run("consortium", "init", tmp_path / "root", "--name", "hospitals", "--admin", tmp_path / "admin", UNLOCKED)
    return tmp_path / "root"


def test_init_makes_a_root_and_an_administrator(root, tmp_path):
    assert "hospitals" in run("consortium", "roster", "show", "--folder", root)
    assert load_member(tmp_path / "admin").membership.role == "administrator"
    assert not Consortium.open(root).settings.demo
    assert "holds a consortium's root" in run("consortium", "init", root, "--name", "x", UNLOCKED, fails=IdentityError)
    odd = ("consortium", "init", tmp_path / "odd", "--name", "Not A Name", UNLOCKED)
    assert "not valid" in run(*odd, fails=IdentityError)
    assert not (tmp_path / "odd").exists()


def test_a_demo_root_is_marked_wherever_it_appears(tmp_path):
    said = run("consortium", "init", tmp_path / "root", "--name", "demo", "--demo", "--admin", tmp_path / "admin")
    assert "one trust domain" in said
    assert load_member(tmp_path / "admin").membership.demo
    assert load_member(tmp_path / "admin").roster.current.demo
    assert "DEMO" in run("consortium", "roster", "show", "--folder", tmp_path / "admin")


def test_a_member_is_admitted_renewed_and_revoked_by_files(root, tmp_path):
    folder, admission = tmp_path / "node", tmp_path / "admission.json"
    make_request(folder, "hospital-a", "node")
    key = json.loads((folder / "request.json").read_bytes())["document"]["identity_key"]
    admit = ("consortium", "admit", folder / "request.json", "--out", admission, "--folder", root)
    assert "Not admitted" in run(*admit, "--key", "00" * 32, fails=IdentityError)
    assert not admission.exists() and Consortium.open(root).roster.current.version == 2
    said = run(*admit, "--key", key)
    assert key in said and "version 3" in said
    before = accept_admission(folder, admission.read_bytes(), time.time())
    make_renewal(folder)
    run("consortium", "renew", folder / "request.json", "--out", admission, "--folder", root)
    assert accept_admission(folder, admission.read_bytes(), time.time()).claim != before.claim
    assert "version 5" in run("consortium", "renew", "--folder", root, "--roster-days", 1)
    run("consortium", "revoke", "hospital-a", "--folder", root)
    assert "revoked" in run("consortium", "roster", "show", "--folder", root)
    assert "REVOKED" in run("consortium", "revoke", "hospital-a", "--folder", root, fails=ProtocolFailure)
    assert "not in version" in run("consortium", "revoke", "nobody", "--folder", root, fails=IdentityError)


def test_a_coordinator_is_admitted_and_renewed_by_files(root, tmp_path):
    folder, admission = tmp_path / "coordinator", tmp_path / "admission.json"
    run("server", "init", folder, "--address", "127.0.0.1")
    run("consortium", "admit", folder / "request.json", "--folder", root, "--out", admission)
    run("server", "init", folder, "--admission", admission)
    old = (folder / "tls.crt").read_bytes()
    run("server", "renew", folder)
    assert (folder / "tls.crt").read_bytes() == old
    run("consortium", "renew", folder / "request.json", "--folder", root, "--out", admission)
    run("server", "init", folder, "--admission", admission)
    assert (folder / "tls.crt").read_bytes() != old


def test_a_roster_is_exported_signed(root, tmp_path):
    run("consortium", "roster", "export", tmp_path / "roster.json", "--folder", root)
    consortium = Consortium.open(root)
    exported = verify_roster((tmp_path / "roster.json").read_bytes(), consortium.root.public, time.time())
    assert exported == consortium.roster.current


def test_an_invitation_is_a_private_file(root, tmp_path):
    run("consortium", "invite", "hospital-b", "--out", tmp_path / "invitation.json", "--folder", root)
    assert (tmp_path / "invitation.json").stat().st_mode & 0o777 == 0o600
    assert read_invitation((tmp_path / "invitation.json").read_bytes()).name == "hospital-b"


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"document":{},"signature":""}'])
def test_an_odd_request_file_is_an_error_that_names_it(root, tmp_path, content):
    (tmp_path / "request.json").write_bytes(content)
    run("consortium", "admit", tmp_path / "request.json", "--folder", root, fails=IdentityError)
    assert "cannot read" in run("consortium", "admit", tmp_path / "none", "--folder", root, fails=IdentityError)
    assert "root.pub" in run("consortium", "roster", "export", "x", "--folder", tmp_path, fails=IdentityError)


# --- against the coordinator -----------------------------------------------------------------------------------------


@pytest.fixture
def federation(tmp_path, monkeypatch):
    with running_federation(tmp_path) as running:
        yield running


@pytest.fixture
def online(federation):
    """Options of a command that reaches the coordinator."""
    federation.admit("admin", "administrator")
    return ("--admin", federation.folder / "admin", "--coordinator", federation.address)


def test_an_administrator_comes_in_by_the_run_commands(federation):
    folder, admission = federation.folder / "new-admin", federation.folder / "admission.json"
    run("run", "init", folder, "--name", "admin-2")
    write_atomic(admission, federation.consortium.admit((folder / "request.json").read_bytes()))
    assert "compare the root" in run("run", "accept", folder, admission, "--root", "00" * 32, fails=IdentityError)
    root = federation.consortium.root.public.hex()
    assert root in run("run", "accept", folder, admission, "--root", root)
    run("run", "list", "--admin", folder, "--coordinator", federation.address)


def test_admission_and_revocation_are_published_at_once(federation, online):
    root, folder = ("--folder", federation.consortium.folder), federation.folder / "hospital-b"
    invitation = federation.folder / "invitation.json"
    run("consortium", "invite", "hospital-b", "--out", invitation, *root)
    request = make_request(folder, "hospital-b", "node")
    with ControlClient.of_invitation(read_invitation(invitation.read_bytes()), federation.address) as client:
        client.enrol(request)
        waiting = federation.folder / "waiting"
        assert "hospital-b" in run("consortium", "requests", *online, "--out", waiting)
        saved, answer = waiting / "hospital-b.request.json", federation.folder / "answer.json"
        assert saved.read_bytes() == request
        assert "published" in run("consortium", "admit", saved, "--out", answer, *root, *online)
        member = accept_admission(folder, client.fetch_admission(), time.time())
    with federation.client(member) as client:
        client.get_roster()
        run("consortium", "revoke", "hospital-b", *root, *online)
        with pytest.raises(ProtocolFailure, match="REVOKED"):
            client.get_roster()
    version = federation.consortium.refresh().version
    assert f"version {version}" in run("consortium", "roster", "publish", *root, *online)
    assert federation.coordinator.roster.current.version == version


def test_an_administrator_renews_by_the_same_command_twice(federation, online):
    folder, before = federation.folder / "admin", load_member(federation.folder / "admin").claim
    renew = ("run", "renew", folder, "--coordinator", federation.address)
    for _ in range(2):
        assert "run the same command again" in run(*renew)
    second = federation.admit("admin-2", "administrator")
    root, waiting = federation.consortium.folder, federation.folder / "waiting"
    publish = ("--folder", root, "--admin", second.folder, "--coordinator", federation.address)
    run("consortium", "requests", *publish[2:], "--out", waiting)
    run("consortium", "renew", waiting / "admin.request.json", "--out", federation.folder / "answer.json", *publish)
    assert "is renewed until" in run(*renew)
    assert load_member(folder).claim.tls_key != before.tls_key
    run("run", "list", *online)


def test_an_unreachable_coordinator_is_an_error_with_a_remedy(federation, online):
    federation.server.stop()
    assert "is it started" in run("run", "list", *online, fails=TransportError)


def test_runs_are_listed_with_sealing_none_in_red(federation, online):
    assert "none: the coordinator sees each update" in run("run", "list", *online)
    listed = json.loads(run("run", "list", "--json", *online))
    assert (listed["run_id"], listed["sealing"]) == (RUN_ID, "none")


def test_an_id_in_the_list_of_runs_is_whole_in_any_terminal(federation, online, monkeypatch):
    """It is what people copy; in a narrow one what is said of the run is there too."""
    for columns in (10, 30, 36, 40, 55, 60, 79, 80, 90, 120):
        monkeypatch.setattr(run_commands.console, "width", columns)
        listed = CliRunner().invoke(app, ["run", "list", *map(str, online)]).output
        assert RUN_ID in listed, columns
        assert columns >= 80 or "none:thecoordinatorseeseachupdate" in "".join(listed.split()), columns


def started(federation, *more):
    book = federation.book
    book.add("run_started", {"nodes": ["a", "b"], "rounds": 1, "sealing": "none", "name": "example"})
    book.add("dropped", {"round": 1, "node": "b", "code": "TrainingError", "reason": "loss is [bold]NaN\x1b[2J"})
    metrics = {"train_loss": {"mean": 2.5, "count": 1}}
    book.add(
        "round_committed",
        {"round": 1, "metrics": metrics, "contributors": ["a"], "dropped": {"b": "lost"}, "seconds": 1.0},
    )
    for kind, data in more:
        book.add(kind, data)


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (("run_finished", {"rounds": 1, "model_sha256": "ab" * 32}), 0),
        (("run_failed", {"code": "QUORUM_SHORT", "reason": "too few"}), 1),
        (("run_stopped", {"round": 1}), 3),
    ],
)
def test_watch_shows_what_happened_and_its_exit_status_says_how_it_ended(federation, online, end, code):
    started(federation, end)
    said = run("run", "watch", *online, code=code)
    assert "b did not contribute, because TrainingError: loss is [bold]NaN" in said
    assert "none: the coordinator sees each update" in said
    assert "2.5000" in said and "\x1b" not in said
    lines = [json.loads(line) for line in run("run", "watch", RUN_ID[:6], "--json", *online, code=code).splitlines()]
    assert [line["kind"] for line in lines][-1] == end[0] and [line["sequence"] for line in lines] == [1, 2, 3, 4]


def test_runs_are_named_by_their_beginning(federation, online):
    assert RUN_ID in run("run", "stop", RUN_ID[:4], *online)
    assert [stopped[:2] for stopped in federation.book.stopped] == [(RUN_ID, "admin")]
    assert "has no run 'ffff'" in run("run", "stop", "ffff", *online, fails=TransportError)
    federation.book.runs = list
    assert "no run yet" in run("run", "watch", *online, fails=TransportError)


def test_every_kind_of_event_has_words():
    view = RunView("id")
    assert view.feed("offer_answered", {"node": "a", "accepted": False, "waiting": False, "reason": "no"}) == (
        "a refuses: no"
    )
    assert "waits" in view.feed("offer_answered", {"node": "a", "accepted": False, "waiting": True, "reason": ""})
    loading = {"node": "a", "accepted": False, "waiting": True, "preparing": True, "reason": "loading"}
    assert view.feed("offer_answered", loading) == "a gets ready: loading"
    assert "3 members" in view.feed("epoch_started", {"members": ["a", "b", "c"], "slots": 16})
    assert "attempt 2" in view.feed("round_started", {"round": 1, "attempt": 2, "slot": 2})
    assert "9 bytes" in view.feed("contributed", {"round": 1, "node": "a", "bytes": 9})
    abandoned = {"round": 1, "attempt": 1, "code": "QUORUM_SHORT", "reason": "two lost"}
    assert "QUORUM_SHORT" in view.feed("slot_abandoned", abandoned)
    assert view.feed("something_new", {"x": 1}) == "something_new {'x': 1}"


# --- submit and export, with a model ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_llama(folder)
    return folder


@pytest.fixture
def specification(base, tmp_path):
    path = tmp_path / "spec.toml"
    path.write_text(TOML.format(sha256=folder_digest(base)))
    return path


def test_submit_signs_the_specification_with_its_first_model(federation, online, base, specification):
    said = run("run", "submit", specification, "--model-folder", base, *online)
    (submission,) = federation.book.submitted
    assert submission.signed.run_id in said and "none: the coordinator sees each update" in said
    parsed = parse_toml(specification.read_text())
    tensors = initial_state(parsed, base)
    assert submission.signed.specification == parsed.canonical_bytes()
    assert submission.initial_model == TensorSchema.of(tensors).encode(tensors)


def test_submit_refuses_another_model_or_a_bad_specification(federation, online, base, specification, tmp_path):
    submit = ("run", "submit", specification, "--model-folder", base, *online)
    specification.write_text(TOML.format(sha256="0" * 64))
    assert "the specification asks for 0000" in run(*submit, fails=ModelError)
    specification.write_text("version = 1\nsurprise = 2\n")
    assert "surprise" in run(*submit, fails=SpecificationError)
    specification.unlink()
    assert "cannot read the specification" in run(*submit, fails=SpecificationError)
    assert federation.book.submitted == []


def test_plan_says_what_a_run_does(base, specification):
    assert "test" in run("run", "plan", specification, "--nodes", 3)
    assert run("run", "plan", specification, "--nodes", 3, "--model-folder", base)
    specification.write_text(TOML.format(sha256="0" * 64))
    said = run("run", "plan", specification, "--nodes", 3, "--model-folder", base, fails=ModelError)
    assert "the specification asks for 0000" in said


def exported(federation, specification, base, changes):
    parsed = parse_toml(specification.read_text())
    tensors = {name: tensor + 0.01 for name, tensor in initial_state(parsed, base).items()}
    model = TensorSchema.of(tensors).encode(tensors)
    manifest = {
        "run_id": RUN_ID,
        "round": 2,
        "specification": json.loads(parsed.canonical_bytes()),
        "specification_sha256": parsed.digest,
        "model_sha256": model_digest(model).hex(),
    }
    federation.book.stored_model = lambda run_id, round: stored(manifest | changes, model)


def test_export_writes_an_adapter_or_a_merged_model(federation, online, base, specification, tmp_path):
    exported(federation, specification, base, {})
    run("run", "export", tmp_path / "adapter", "--model-folder", base, *online)
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter")
    manifest = json.loads((tmp_path / "adapter" / "manifest.json").read_text())
    assert manifest["run_id"] == RUN_ID
    run("run", "export", tmp_path / "merged", "--merged", "--model-folder", base, *online)
    AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    again = ("run", "export", tmp_path / "adapter", "--model-folder", base, *online)
    assert "is no empty folder" in run(*again, fails=ModelError)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model_sha256": "0" * 64}, "does not have the hash"),
        ({"specification_sha256": "0" * 64}, "does not have the hash"),
        ({"specification": {"version": 1}}, "specification"),
        ({"specification": None}, "specification"),
    ],
)
def test_export_refuses_what_its_manifest_does_not_name(
    federation, online, base, specification, tmp_path, changes, match
):
    exported(federation, specification, base, changes)
    assert match in run("run", "export", tmp_path / "out", "--model-folder", base, *online, fails=ConfideError)
    assert not (tmp_path / "out").exists()


def test_export_refuses_another_base_model(federation, online, base, specification, tmp_path):
    exported(federation, specification, base, {})
    other = tmp_path / "other"
    tiny_llama(other, seed=1)
    assert "the run's base model is" in run(
        "run", "export", tmp_path / "out", "--model-folder", other, *online, fails=ModelError
    )
