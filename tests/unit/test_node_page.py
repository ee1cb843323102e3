"""The node's page: for one browser on this machine, over a real node's folder of release 0.1."""

import re

import pytest
from confide.web.pages import SHARED
from confide_client.agent import agent as agent_module
from confide_client.page import findings, words
from confide_client.page.app import FOLDER, PUBLIC, NodePage
from confide_client.policy.policy import parse_policy
from confide_client.runs import approvals
from confide_client.state import StateFolder
from fastapi.routing import APIRoute
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from tests.first_release import node_of_then

PORT = 9445


@pytest.fixture
def page(tmp_path):
    return NodePage(StateFolder.at(node_of_then(tmp_path)), PORT)


def client_of(page):
    return TestClient(page.app(), base_url=f"http://127.0.0.1:{PORT}")


@pytest.fixture
def opened(page, monkeypatch):
    monkeypatch.setattr(findings.Plans, "of", lambda self, run_id: f"plan of {run_id[:8]}")
    client = client_of(page)
    assert client.get(page.address).status_code == 200
    return client


def waiting_run(page):
    return next(run for run in findings.status_of(page.state)["runs"] if run["status"] == "waiting")


def fields(client):
    text = client.get("/").text
    return {"csrf": re.search(r'name="csrf" value="([^"]+)"', text).group(1)}


def test_the_link_opens_once_and_for_one_browser(page, opened):
    assert client_of(page).get(page.address).status_code == 403
    assert client_of(page).get("/").status_code == 403
    assert opened.get("/").status_code == 200
    assert opened.get("/", headers={"host": "evil.example"}).status_code == 421


def test_every_route_asks_who_it_is_and_every_change_for_its_own_form(page, opened):
    stranger = client_of(page)
    routes = [route for route in page._routes().routes if isinstance(route, APIRoute)]
    assert {route.name for route in routes} >= {"node", "approve", "refuse", "pause", "resume", "policy_try"}
    for route in routes:
        if route.name in PUBLIC:
            continue
        address = route.path.replace("{run_id}", waiting_run(page)["run"])
        for method in route.methods - {"HEAD"}:
            assert stranger.request(method, address).status_code == 403, route.name
            if method == "POST":
                assert opened.post(address, data={"csrf": "x"}).status_code == 403
    assert not page.state.pause() and approvals.load(page.state.run(waiting_run(page)["run"])) is None


def test_it_says_first_what_waits_for_an_answer(page, opened):
    run, text = waiting_run(page), opened.get("/").text
    headline = re.search(r'class="headline[^>]*><span[^>]*></span>([^<]+)', text).group(1)
    assert headline == f"The run {run['name']} waits for your answer."
    assert f"plan of {run['run'][:8]}" in text and "SHA-256" in text and "ε spent" in text
    assert not re.search(r"<style|\sstyle=|\son\w+=", text)


def test_refusing_is_what_the_command_does(page, opened):
    run = waiting_run(page)
    given_fields = fields(opened) | {"offer": run["offer_sha256"], "reason": "not our field"}
    assert opened.post(f"/runs/{run['run']}/refuse", data=given_fields).status_code == 200
    answer = approvals.load(page.state.run(run["run"]))
    assert (answer.decision, answer.reason, answer.offer_sha256) == ("refused", "not our field", run["offer_sha256"])


def test_what_was_not_shown_is_not_answered(page, opened):
    run = waiting_run(page)
    for offer in ("", "0" * 64):
        assert opened.post(f"/runs/{run['run']}/approve", data=fields(opened) | {"offer": offer}).status_code == 403
    assert opened.post(f"/runs/{'0' * 32}/approve", data=fields(opened) | {"offer": "x"}).status_code == 403
    assert approvals.load(page.state.run(run["run"])) is None


def test_a_policy_is_tried_and_nothing_is_written(page, opened):
    before = page.state.policy.read_text()
    stricter = re.sub(r"max_rounds = \d+", "max_rounds = 0", before)
    text = opened.post("/policy/try", data=fields(opened) | {"policy": stricter}).text
    assert "the policy allows at most 0" in text
    assert "is not valid" in opened.post("/policy/try", data=fields(opened) | {"policy": "nonsense"}).text
    assert page.state.policy.read_text() == before


def test_a_pause_is_seen_by_the_agent_and_ends(page, opened, monkeypatch):
    opened.post("/pause", data=fields(opened) | {"reason": "maintenance"})
    assert page.state.pause()["reason"] == "maintenance"
    assert "Paused by" in opened.get("/").text
    noted = []

    class Waiting(agent_module.Agent):
        def __init__(self, state):
            self._state = state
            note = {"note_when_there_is_room": lambda _, event, **facts: noted.append(event)}
            self._audit = type("Audit", (), note)()
            self._teller = type("Teller", (), {"send": None})()

        def _note(self, **facts):
            noted.append(facts["complaint"])

    monkeypatch.setattr(agent_module.time, "sleep", lambda _: opened.post("/resume", data=fields(opened)))
    Waiting(page.state)._wait_while_paused()
    assert noted == ["paused", "paused by its operator", "resumed"] and not page.state.pause()


def test_the_policys_words_begin_with_what_is_dangerous():
    policy = parse_policy('version = 1\nsealing = "optional"\nallow_demo_root = true\nmethods = ["sft"]\n')
    said = words.policy_words(policy)
    assert [key for key, _ in said[:2]] == ["rule.unsealed", "rule.demo_root"]
    assert words.policy_words(parse_policy("version = 1"))[0] == ("rule.allowed", {"methods": "–", "data_sets": "–"})


@given(st.dictionaries(st.text(max_size=8), st.one_of(st.text(max_size=40), st.integers(), st.floats(), st.none())))
def test_every_audit_entry_has_words(entry):
    assert isinstance(words.audit_words(entry), str)


def test_the_catalogue_has_every_text_that_is_used_and_no_other(page):
    folder, keys, used = FOLDER, page.texts.keys, set()
    for path in [*folder.rglob("*.html"), *folder.glob("*.py"), *SHARED.rglob("*.html")]:
        text = path.read_text()
        used |= set(re.findall(r"""["']([a-z_]+\.[a-z_]+)["']""", text))
        for prefix in re.findall(r"""["']([a-z_]+\.)["'] ~|f"([a-z_]+\.){""", text):
            used |= {key for key in keys if key.startswith("".join(prefix))}
    sections = {key.split(".")[0] for key in keys}
    files = (".html", ".js", ".css", ".toml", ".json", ".bin", ".log")
    missing = {key for key in used - keys if key.split(".")[0] in sections and not key.endswith(files)}
    assert not missing and not keys - used
