"""The console over a coordinator's real control port, with the console's own certificate."""

import re
import time

import pytest
from confide_server.console.federation.connection import Connection
from confide_server.console.roles import RULES, Role
from confide_server.console.settings import Settings
from confide_server.console.web.app import Console

from tests.admin_world import running_world
from tests.console_world import person


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with running_world(tmp_path_factory.mktemp("world")) as made:
        made.run_id = made.finished("finished")
        made.waiting = made.submit("waits")
        made.receipt(made.run_id, "hospital-a", slot=1, spent=1)
        yield made


@pytest.fixture(scope="module")
def console(world, tmp_path_factory):
    connection = Connection(world.members["console"], world.address)
    made = Console(tmp_path_factory.mktemp("console"), Settings(), connection, issuer="Confide", port=9444)
    yield made
    made.close()
    connection.close()


@pytest.fixture(scope="module")
def people(console):
    return {role: person(console, role, "hospital-a" if role is Role.ORGANIZATION else "") for role in Role}


PAGES = {
    "overview": "/", "runs": "/runs", "run": "/runs/{}", "run_series": "/runs/{}/series", "compare": "/compare?run={}",
    "run_csv": "/runs/{}/rounds.csv", "run_toml": "/runs/{}/specification.toml", "members": "/members",
    "privacy": "/privacy", "models": "/models", "audit": "/audit", "audit_export": "/audit/export",
    "api_runs": "/api/v1/runs", "api_run": "/api/v1/runs/{}", "api_members": "/api/v1/members",
    "api_privacy": "/api/v1/privacy", "api_models": "/api/v1/models", "specification": "/specification",
}  # fmt: skip


@pytest.mark.parametrize("role", Role)
def test_what_the_console_lets_through_the_coordinator_lets_through_too(world, people, role):
    for name, address in PAGES.items():
        answer = people[role].get(address.format(world.run_id))
        assert answer.status_code == (200 if RULES[name].allows(role) else 403), (name, answer.text[-300:])


def test_a_run_is_shown_with_who_dropped_and_why(world, people):
    text = people[Role.AUDITOR].get(f"/runs/{world.run_id}").text
    assert "Finished 2 rounds; 1 of them lack an organization." in text
    assert "TransportError: no answer" in text and "hospital-b" in text
    assert "round 2 committed, 1 contributed" in text


def test_an_organization_sees_no_other_one(world, people):
    for address in PAGES.values():
        answer = people[Role.ORGANIZATION].get(address.format(world.run_id))
        assert answer.status_code == 403 or not re.search("hospital-[bc]", answer.text), address
    stranger = people[Role.ORGANIZATION].get(f"/runs/{world.waiting}")
    assert stranger.status_code in {403, 404}, "a run of others"


def test_an_act_is_in_the_audit_log_under_the_persons_name(world, people):
    page = f"/runs/{world.waiting}"
    answer = people[Role.OPERATOR].submit(f"{page}/pause", page=page, reason="a holiday")
    assert "Paused by operator-x@console" in answer.text
    assert "operator-x@console" in people[Role.AUDITOR].get("/audit").text
    people[Role.OPERATOR].submit(f"{page}/resume", page=page)
    assert "Paused by" not in people[Role.OPERATOR].get(page).text


def test_a_release_is_prepared_here_and_signed_elsewhere(world, people):
    fields = {"name": "support", "run_id": world.run_id, "notes": "first"}
    text = people[Role.ADMINISTRATOR].submit("/models/releases", page="/models", **fields).text
    assert "support 1 is not released: 0 of 1 signatures." in text
    release = world.clients["administrator"].list_releases().releases[0]
    world.clients["administrator"].sign_release(release, world.members["administrator"].identity)
    time.sleep(1.1)
    answer = people[Role.ADMINISTRATOR].submit("/models/releases/support/1/publish", page="/models")
    assert "1 model is released." in answer.text


def test_a_wrong_act_says_why(world, people):
    page = f"/runs/{world.run_id}"
    answer = people[Role.OPERATOR].submit(f"{page}/pause", page=page)
    assert answer.status_code == 403 and 'class="wrong"' in answer.text
