"""What ends soon is said in time, by name and date, with the command that mends it; what has ended, as that."""

import logging
import time
from functools import partial
from pathlib import Path

import pytest
from confide.cli import app
from confide.errors import ConfideError, IdentityError
from confide.identity.certificates import MEMBER_DAYS
from confide.identity.consortium import ROSTER_DAYS, Consortium
from confide.identity.enrolment import accept_admission, make_request
from confide.identity.expiry import EXIT_OVER, EXIT_SOON, DailyWarning, Notice, exit_status, notices
from confide.identity.member import load_member
from confide.transport.control import ControlClient
from confide_client.agent.agent import Agent
from confide_client.state import StateFolder
from confide_server.api.grpc.server import ControlServer
from confide_server.coordinator.process import Settings, write_settings
from confide_server.membership.enrolment import EnrolmentQueue
from confide_server.membership.waiting import waiting_notices
from typer.testing import CliRunner

from tests.node_worlds import POLICY, World

DAY = 86400.0
ROLES = {"node-a": "node", "coordinator": "coordinator", "admin": "administrator"}


def consortium(folder: Path, age_days: float) -> Consortium:
    """One whose roster and certificates were made so long ago, each member in a folder of its name."""
    now = time.time() - age_days * DAY
    made = Consortium.create(folder / "root", "trial", demo=True, now=now)
    for name, role in ROLES.items():
        addresses = ["127.0.0.1"] if role == "coordinator" else []
        accept_admission(folder / name, made.admit(make_request(folder / name, name, role, addresses), now=now), now)
    return made


def texts(folder: Path, after_days: float) -> list[tuple[str, bool]]:
    return [(notice.text, notice.over) for notice in notices(folder, time.time() + after_days * DAY)]


def test_nothing_is_said_of_what_holds_for_long(tmp_path: Path) -> None:
    consortium(tmp_path, 0)
    assert texts(tmp_path / "node-a", ROSTER_DAYS - 14.01) == []
    assert texts(tmp_path / "nobody", 0) == []


def test_a_roster_is_spoken_of_two_weeks_ahead_and_when_it_has_expired(tmp_path: Path) -> None:
    made = consortium(tmp_path, 0)
    ((soon, over),) = texts(tmp_path / "node-a", ROSTER_DAYS - 13.5)
    day = time.strftime("%Y-%m-%d", time.gmtime(made.roster.current.expires_at))
    assert not over and "expires in 13 days" in soon and day in soon
    assert "confide consortium renew --folder ROOT --admin ADMIN" in soon
    ((late, over),) = texts(tmp_path / "node-a", ROSTER_DAYS + 1)
    assert over and "expired on" in late and day in late


def test_a_short_lived_roster_is_spoken_of_in_its_second_half(tmp_path: Path) -> None:
    made = consortium(tmp_path, 0)
    made.refresh(roster_days=4)
    member = load_member(tmp_path / "node-a")
    member.roster.accept(made.roster.signed)
    assert texts(tmp_path / "node-a", 1.9) == []
    assert "hours" in texts(tmp_path / "node-a", 3.5)[0][0]


@pytest.mark.parametrize(("name", "command"), [("node-a", "node"), ("coordinator", "server"), ("admin", "run")])
def test_each_role_is_told_its_own_command_for_a_new_certificate(tmp_path: Path, name: str, command: str) -> None:
    made = consortium(tmp_path, 0)
    later = time.time() + (MEMBER_DAYS - 3) * DAY
    made.refresh(now=later)
    load_member(tmp_path / name).roster.accept(made.roster.signed, now=later)
    ((text, over),) = texts(tmp_path / name, MEMBER_DAYS - 2.5)
    assert not over and f"`confide {command} renew {tmp_path / name}`" in text
    with pytest.raises(IdentityError, match=f"expired on .*`confide {command} renew {tmp_path / name}`"):
        load_member(tmp_path / name, now=time.time() + (MEMBER_DAYS + 1) * DAY)


def test_a_revoked_member_is_told_that_it_was_revoked_and_how_it_may_come_back(tmp_path: Path) -> None:
    made = consortium(tmp_path, 0)
    made.revoke("node-a")
    load_member(tmp_path / "node-a").roster.accept(made.roster.signed)
    ((text, over),) = texts(tmp_path / "node-a", ROSTER_DAYS + 1)
    assert over and text.startswith("node-a was revoked on ") and "confide node init NEW-FOLDER" in text
    assert "expired" not in text


def test_exit_statuses() -> None:
    soon, over = Notice("soon", over=False), Notice("over", over=True)
    assert [exit_status(found) for found in ([], [soon], [soon, over])] == [0, EXIT_SOON, EXIT_OVER]


def test_status_of_a_node_says_it_and_ends_with_it(tmp_path: Path) -> None:
    consortium(tmp_path, ROSTER_DAYS - 10)
    shown = CliRunner().invoke(app, ["node", "status", str(tmp_path / "node-a")])
    assert shown.exit_code == EXIT_SOON and "expires in 9 days" in shown.stdout.replace("\n", " ")
    waiting = CliRunner().invoke(app, ["node", "status", str(tmp_path / "node-a"), "--waiting"])
    assert (waiting.exit_code, waiting.stdout) == (0, "")


def test_an_expired_certificate_is_not_called_no_membership(tmp_path: Path) -> None:
    consortium(tmp_path, MEMBER_DAYS + 1)
    shown = CliRunner().invoke(app, ["node", "status", str(tmp_path / "node-a")])
    said = " ".join(shown.stdout.split())
    assert shown.exit_code == EXIT_OVER and "not a member" not in said
    assert "the certificate of node-a expired on" in said and "confide node renew" in said


def test_the_coordinator_says_it_in_status_and_at_the_start(tmp_path: Path) -> None:
    consortium(tmp_path, ROSTER_DAYS + 1)
    write_settings(tmp_path / "coordinator", Settings(bind="127.0.0.1", fleet_port=0, control_port=0))
    shown = CliRunner().invoke(app, ["server", "status", str(tmp_path / "coordinator")])
    assert "roster of trial expired on" in " ".join(shown.stderr.split())
    assert shown.exit_code == 1  # it does not run either


def test_an_administrators_commands_say_it_too(tmp_path: Path) -> None:
    consortium(tmp_path, ROSTER_DAYS - 3)
    shown = CliRunner().invoke(app, ["consortium", "roster", "show", "--folder", str(tmp_path / "admin")])
    assert shown.exit_code == 0 and shown.stderr.count("expires in 2 days") == 1
    shown = CliRunner().invoke(app, ["consortium", "roster", "show", "--folder", str(tmp_path / "root")])
    assert shown.exit_code == 0 and shown.stderr.count("expires in 2 days") == 1


def test_a_process_that_runs_for_months_says_it_once_a_day(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    consortium(tmp_path, 0)
    daily, start = DailyWarning(partial(notices, tmp_path / "node-a")), time.time() + (ROSTER_DAYS - 5) * DAY
    with caplog.at_level(logging.WARNING):
        for hour in range(48):
            daily.look(start + hour * 3600)
    assert len([record for record in caplog.records if "expires in 4 days" in record.getMessage()]) == 1
    assert 2 <= len(caplog.records) <= 4


def test_a_node_that_the_fleet_port_refuses_learns_why(tmp_path: Path) -> None:
    world = World.make(tmp_path, ("node-a",))
    state = StateFolder(tmp_path / "node-a")
    state.policy.write_text(POLICY.format(root="0" * 64, model="0" * 64, approval="ask", min_cohort=2))
    coordinator = load_member(tmp_path / "coordinator")
    server = ControlServer(
        member=coordinator,
        folder=tmp_path / "coordinator",
        address="127.0.0.1:0",  # type: ignore[arg-type]
    )
    port = server.start()
    try:
        path = tmp_path / "node-a" / "consortium.json"
        path.write_text(path.read_text().replace('"control_address":""', f'"control_address":"127.0.0.1:{port}"'))
        agent = Agent(state)
        refused = IdentityError("the coordinator does not accept this node's signature")
        assert agent._explained(refused) == str(refused)
        world.consortium.revoke("node-a")
        coordinator.roster.accept(world.consortium.roster.signed)
        said = agent._explained(refused)
        assert said.startswith("the coordinator says: REVOKED: node-a was revoked on ")
        with pytest.raises(ConfideError, match="REVOKED"), ControlClient.of_member(agent._member) as client:
            client.hello()
        state.member().roster.accept(world.consortium.roster.signed)
        assert agent._explained(refused).startswith("node-a was revoked on ")
        agent._audit.close()
    finally:
        server.stop()


def asked(folder: Path, hours: float) -> tuple[Consortium, bytes]:
    """A consortium, and the request that an invited organization made in `folder` / "node-b"."""
    made = Consortium.create(folder / "root", "trial", control_address="127.0.0.1:9443")
    return made, make_request(folder / "node-b", "node-b", "node", invitation=made.invite("node-b", hours=hours))


def test_an_invited_organization_is_told_until_when_it_can_be_admitted(tmp_path: Path) -> None:
    made, request = asked(tmp_path, 48)
    [(text, over)] = texts(tmp_path / "node-b", 0)
    assert "not admitted yet; the invitation expires in 47 hours" in text and not over
    shown = CliRunner().invoke(app, ["node", "status", str(tmp_path / "node-b")])
    assert shown.exit_code == EXIT_SOON and "not admitted yet" in " ".join(shown.stdout.split())
    [(text, over)] = texts(tmp_path / "node-b", 3)
    assert "never was; the invitation expired on" in text and "new invitation" in text and over
    accept_admission(tmp_path / "node-b", made.admit(request), time.time())
    assert texts(tmp_path / "node-b", 0) == []


def test_a_damaged_end_of_the_invitation_is_said(tmp_path: Path) -> None:
    asked(tmp_path, 48)
    (tmp_path / "node-b" / "invited-until").write_text("soon")
    with pytest.raises(IdentityError, match="no time"):
        notices(tmp_path / "node-b", time.time())


def test_the_coordinator_names_who_waits_and_whose_admission_is_not_fetched(tmp_path: Path) -> None:
    made, request = asked(tmp_path, 48)
    queue = EnrolmentQueue(tmp_path / "coordinator" / "enrolment")
    queue.put_first("node-b", request)
    (tmp_path / "coordinator" / "identity.key").touch()
    write_settings(tmp_path / "coordinator", Settings(bind="127.0.0.1", fleet_port=0, control_port=0))
    shown = CliRunner().invoke(app, ["server", "status", "--state", str(tmp_path / "coordinator")])
    assert "node-b waits to be admitted since" in " ".join(shown.stderr.split())
    queue.answer("node-b", made.admit(request))
    assert waiting_notices(queue, time.time()) == []
    [late] = waiting_notices(queue, time.time() + 2 * DAY)
    assert "admission of node-b lies here unfetched since" in late.text and not late.over
    assert queue.admission("node-b")
    assert waiting_notices(queue, time.time() + 2 * DAY) == []
