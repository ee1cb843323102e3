"""`confide run show, pause, resume, priority, retry, clone, delete` against a real control port; watching goes on."""

import contextlib
import json
import time

import pytest
import typer
from confide.errors import ConfideError, ProtocolFailure, SpecificationError, StateError, TransportError
from confide.identity.roster import Role
from confide.proto import admin_pb2 as pb
from confide.transport.control import ConnectionLost
from confide_server.admin_cli import audit_log as audit_commands
from confide_server.admin_cli import release as release_commands
from confide_server.admin_cli import run as run_commands
from confide_server.admin_cli.run_watch import EXIT_LOST, GIVE_UP_S, followed
from confide_server.state.database import Checkpoint, Run
from confide_server.state.runs.submission_journal import signed_of
from confide_server.state.views import Filters
from sqlalchemy import select
from typer.testing import CliRunner

from tests.admin_world import AdminWorld, running_world


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with running_world(tmp_path_factory.mktemp("life")) as running:
        yield running


def ask(world: AdminWorld, *arguments, who="administrator", fails: type[ConfideError] | None = None) -> str:
    options = ["--admin", world.folder / who, "--coordinator", world.address]
    result = CliRunner().invoke(run_commands.app, [str(one) for one in (*arguments, *options)])
    if fails is not None:
        assert isinstance(result.exception, fails), (result.output, result.exception)
        return str(result.exception)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def test_a_run_is_shown_with_its_rounds_and_who_was_missing(world: AdminWorld):
    run_id = world.finished("shown")
    world.receipt(run_id, "hospital-a", slot=1, spent=1)
    said = ask(world, "show", run_id[:8])
    assert "finished_with_fewer" in said and "hospital-b: TransportError" in said and "1/2" in said
    assert "hospital-a spent 1 of 3 slots on records" in " ".join(said.split())
    document = json.loads(ask(world, "show", run_id, "--json"))
    assert document["run"]["short_rounds"] == 1 and document["rounds"][1]["contributors"] == 1


def test_a_run_is_paused_resumed_and_put_first(world: AdminWorld):
    run_id = world.submit("handled")
    assert "rests" in ask(world, "pause", run_id[:10], "--reason", "[red]night[/red]")
    shown = ask(world, "show", run_id)
    assert "paused by administrator" in shown and "[red]night[/red]" in shown
    newest = json.loads(ask(world, "list", "--json").splitlines()[0])
    assert (newest["run_id"], newest["status"]) == (run_id, "paused")
    assert "goes on after round 0" in ask(world, "resume", run_id)
    assert "priority 7" in ask(world, "priority", run_id, 7)
    assert world.views.line(run_id).priority == 7
    assert "stop it first" in ask(world, "delete", run_id, "--yes", fails=StateError)
    assert "stop it first" in ask(world, "retry", run_id, fails=SpecificationError)


def test_a_run_is_retried_for_the_rounds_that_were_left_and_cloned_from_any(world: AdminWorld):
    run_id = world.finished("again")
    assert "--rounds" in ask(world, "retry", run_id, fails=SpecificationError)
    said = ask(world, "retry", run_id, "--rounds", 3)
    child = world.views.runs(Filters(parent_run_id=run_id), limit=5).rows[0]
    assert child.run_id in said and (child.parent_round, child.rounds) == (2, 3)
    assert "round 1 of run" in ask(world, "clone", run_id, "--round", 1)
    assert "begins with the model of round 0" in " ".join(ask(world, "clone", run_id, "--round", 0).split())
    assert "has no round 9" in ask(world, "clone", run_id, "--round", 9, fails=SpecificationError)
    assert f"goes on as {child.run_id}" in " ".join(ask(world, "show", run_id).split())


def test_a_deleted_run_is_gone_and_its_submission_stays_used(world: AdminWorld):
    run_id = world.finished("removed")
    with world.database.reading() as session:
        submission = signed_of(session.get_one(Run, run_id))
    ask(world, "delete", run_id, "--yes")
    assert run_id not in ask(world, "list", "--json")
    (line,) = (json.loads(line) for line in ask(world, "list", "--json", "--deleted").splitlines() if run_id in line)
    assert (line["status"], line["name"], line["deleted_by"]) == ("deleted", "removed", "administrator")
    assert time.time() - line["deleted_at"] < 3600
    assert "was deleted by administrator on" in ask(world, "show", run_id, fails=TransportError)
    with contextlib.closing(world.client(Role.AUDITOR).stream_events()) as events:
        left = next(one for one in events if one.run_id == run_id)
    assert (left.kind, left.run_deleted.by) == ("run_deleted", "administrator"), "the one event that is left of it"
    with pytest.raises(ProtocolFailure, match="SUBMISSION_REPLAYED"):
        world.journal.check_new(submission)
    with world.database.reading() as session:
        assert not session.scalars(select(Checkpoint).where(Checkpoint.run_id == run_id)).all()
    with pytest.raises(StateError, match="was deleted by administrator on"):
        world.client(Role.AUDITOR).get_run(run_id)


class Flaky:
    """A client whose connection is lost in between; each script is one connection."""

    def __init__(self, *scripts):
        self.scripts, self.asked = list(scripts), []

    def stream_events(self, run_id, *, after):
        self.asked.append(after)
        for one in self.scripts.pop(0):
            if isinstance(one, Exception):
                raise one
            yield one


def event(number, kind="round_started"):
    return pb.Event(number=number, kind=kind)


def test_watching_goes_on_after_a_lost_connection_with_each_event_once():
    lost = ConnectionLost("no coordinator answers")
    last = [event(2), event(2, "alive"), event(3, "run_finished"), event(4)]
    client = Flaky([event(1), event(1, "progress"), lost], [lost], last)
    seen = [one.number for one in followed(client, "run", sleep=lambda s: None) if one.kind != "progress"]
    assert (seen, client.asked) == ([1, 2, 3], [0, 1, 1])


def test_watching_gives_up_with_a_status_of_its_own():
    lost, now = ConnectionLost("no coordinator answers"), [0.0]

    def sleep(seconds):
        now[0] += seconds

    client = Flaky([event(1), lost], *[[lost]] * 1000)
    with pytest.raises(typer.Exit) as ended:
        list(followed(client, "run", clock=lambda: now[0] + 1, sleep=sleep))
    assert ended.value.exit_code == EXIT_LOST and now[0] >= GIVE_UP_S - 2
    with pytest.raises(ConnectionLost):
        list(followed(Flaky([lost]), "run"))


def typed(app, world: AdminWorld, *arguments, who="administrator", fails: type[ConfideError] | None = None) -> str:
    options = ["--admin", world.folder / who]
    if "verify" not in arguments:
        options += ["--coordinator", world.address]
    result = CliRunner().invoke(app, [str(one) for one in (*arguments, *options)])
    if fails is not None:
        assert isinstance(result.exception, fails), (result.output, result.exception)
        return str(result.exception)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def test_a_release_is_made_signed_published_and_rolled_back(world: AdminWorld):
    run_id, app = world.finished("for-release"), release_commands.app
    assert "release wards/1" in typed(app, world, "create", "wards", "--run", run_id, "--notes", "first")
    assert "signatures of nobody" in typed(app, world, "publish", "wards", 1, fails=StateError)
    said = typed(app, world, "sign", "wards", 1, "--yes")
    assert run_id in said and "1 of 1 signatures" in said
    assert "stands for release 1" in typed(app, world, "publish", "wards", 1)
    typed(app, world, "create", "wards", "--run", run_id, "--round", 1)
    typed(app, world, "sign", "wards", 2, "--yes")
    typed(app, world, "publish", "wards", 2)
    assert "again" in typed(app, world, "roll-back", "wards", 1, "--reason", "worse")
    states = [json.loads(one)["status"] for one in typed(app, world, "list", "wards", "--json").splitlines()]
    assert states == ["withdrawn", "published"]
    assert "there is no release" in typed(app, world, "sign", "wards", 9, "--yes", fails=StateError)


def test_the_audit_log_is_shown_exported_and_verified_offline(world: AdminWorld, tmp_path):
    world.submit("for-audit")
    app, path = audit_commands.app, tmp_path / "audit.jsonl"
    assert "run_submitted" in typed(app, world, "show", "--event", "run_submitted", who="auditor")
    assert "verified" in typed(app, world, "export", path, who="auditor")
    assert "entries hold" in typed(app, world, "verify", path, who="auditor")
    path.write_bytes(path.read_bytes().replace(b"run_submitted", b"run_forgotten", 1))
    typed(app, world, "verify", path, who="auditor", fails=ConfideError)
