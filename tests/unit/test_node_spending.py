"""What the node's page says was spent: from the ledger alone, by the rule that approved it, against the limits."""

import json
import re
import shutil
import threading
from pathlib import Path

import pytest
from confide.errors import ConfideError
from confide.privacy.accounting import epsilon
from confide.privacy.events import GaussianRelease
from confide.privacy.filter import Budget, filter_epsilon
from confide.privacy.ledger import LEDGER_NAME, Ledger, RunCost
from confide_client.page import spending
from confide_client.page.app import NodePage
from confide_client.page.spending import Spending, groups_of
from confide_client.state import StateFolder
from starlette.testclient import TestClient

FIXTURE = Path(__file__).parent.parent / "fixtures" / "v0.1" / "node"
EVENT = GaussianRelease(noise_multiplier=8.0)
START_S = 1_800_000_000


class Written:
    """A ledger whose clock a test sets."""

    def __init__(self, folder):
        self.path, self.now = folder / LEDGER_NAME, START_S
        self.ledger = Ledger(self.path, now=lambda: self.now)

    def approve(self, run, budget, slots=3, group="notes"):
        self.now += 60
        return self.ledger.approve(run=run, group=group, data=group, unit="record", specification="0" * 64,
                                   cost=RunCost(slot=(EVENT,), slots=slots), budget=budget)  # fmt: skip

    def spend(self, run, slot, budget):
        self.now += 60
        self.ledger.reserve(run, slot, budget)
        self.ledger.spend(run, slot)

    def groups(self):
        self.ledger.close()
        from confide import journal

        return groups_of(journal.read(self.path)[0])


def of(slots, delta=1e-5):
    return filter_epsilon([EVENT.times(slots)] if slots else [], delta=delta)


def test_each_line_that_changes_the_balance_is_a_step_against_the_limit_of_its_time(tmp_path):
    written, first, second = Written(tmp_path), Budget(epsilon=8.0, delta=1e-5), Budget(epsilon=12.0, delta=1e-5)
    written.approve("1" * 32, first)
    written.spend("1" * 32, 1, first)
    written.ledger.release("1" * 32)
    written.approve("2" * 32, second)
    (group,) = written.groups()
    assert [(step.what, step.slots, step.limit) for step in group.steps] == [
        ("approved", 0, 8.0), ("spent", 1, 8.0), ("released", 1, 8.0), ("approved", 0, 12.0),
    ]  # fmt: skip
    assert [step.spent for step in group.steps] == pytest.approx([of(0), of(1), of(1), of(1)])
    assert [step.held for step in group.steps] == pytest.approx([of(3), of(3), of(1), of(4)])
    assert (group.spent, group.held) == (group.steps[-1].spent, group.steps[-1].held)
    assert [step.at - START_S for step in group.steps] == [60, 120, 120, 180] and group.left_out == 0
    columns = group.columns(("spent", "held", "limit"), now=START_S + 500.0)
    assert columns["time"][-1] == START_S + 500.0 and columns["limit"][-2:] == [12.0, None], "the policy has none now"
    assert {len(values) for values in columns.values()} == {5}


def test_groups_are_apart(tmp_path):
    written, budget = Written(tmp_path), Budget(epsilon=8.0, delta=1e-5)
    written.approve("1" * 32, budget, group="notes")
    written.approve("2" * 32, budget, group="letters", slots=1)
    letters, notes = written.groups()
    assert (letters.group, len(letters.steps), notes.group, len(notes.steps)) == ("letters", 1, "notes", 1)
    assert letters.held == pytest.approx(of(1)) and notes.held == pytest.approx(of(3))


def test_a_run_that_has_its_data_to_itself_stays_within_the_limit_it_was_approved_for(tmp_path):
    tight = epsilon([EVENT.times(3)], delta=1e-5)
    budget = Budget(epsilon=tight * 1.001, delta=1e-5)
    assert of(3) > budget.epsilon, "the filter alone would not have let it through"
    written = Written(tmp_path)
    assert written.approve("1" * 32, budget).approved.basis == "alone"
    written.spend("1" * 32, 1, budget)
    (group,) = written.groups()
    assert group.alone and group.held == pytest.approx(tight) and group.held <= budget.epsilon
    assert group.spent == pytest.approx(epsilon([EVENT], delta=1e-5))


def test_of_very_many_slots_some_are_shown_and_the_newest_always(tmp_path, monkeypatch):
    monkeypatch.setattr(spending, "MOST_STEPS", 7)
    written, budget = Written(tmp_path), Budget(epsilon=20.0, delta=1e-5)
    written.approve("1" * 32, budget, slots=40)
    for slot in range(1, 31):
        written.spend("1" * 32, slot, budget)
    (group,) = written.groups()
    assert len(group.steps) <= 8 and group.steps[0].what == "approved" and group.steps[-1].slots == 30
    assert len(group.steps) + group.left_out == 31
    assert list(group.steps) == sorted(group.steps, key=lambda step: step.at)


@pytest.fixture
def node(tmp_path):
    shutil.copytree(FIXTURE, tmp_path / "node")
    for key in (tmp_path / "node").glob("*.key"):
        key.chmod(0o600)
    return StateFolder.at(tmp_path / "node")


def test_it_is_read_anew_when_the_ledger_changes_and_only_then(node, monkeypatch):
    monkeypatch.setattr(spending, "PATIENCE_S", 60.0)
    made, read = Spending(node), []
    real = spending.groups_of
    monkeypatch.setattr(spending, "groups_of", lambda bodies: read.append(1) or real(bodies))
    first = made.groups()
    assert made.groups() == first and len(read) == 1
    assert first[0].group == "shard" and first[0].limit == 8.0 and first[0].held < 8.0
    (node.root / LEDGER_NAME).write_bytes(b"damaged\n")
    with pytest.raises(ConfideError):
        made.groups()
    (node.root / LEDGER_NAME).unlink()
    assert made.groups() == []


def test_a_page_does_not_wait_for_it(node, monkeypatch):
    gate = threading.Event()
    real = spending.groups_of
    monkeypatch.setattr(spending, "groups_of", lambda bodies: gate.wait(60) and real(bodies))
    monkeypatch.setattr(spending, "PATIENCE_S", 0.01)
    made = Spending(node)
    assert made.groups() is None
    gate.set()
    monkeypatch.setattr(spending, "PATIENCE_S", 60.0)
    assert made.groups()[0].group == "shard"


def test_the_page_shows_the_limit_a_table_and_what_is_drawn(node, monkeypatch):
    monkeypatch.setattr(spending, "PATIENCE_S", 60.0)
    monkeypatch.setattr("confide_client.page.findings.Plans.of", lambda self, run_id: "")
    page = NodePage(node, 9445)
    client = TestClient(page.app(), base_url="http://127.0.0.1:9445")
    text = client.get(page.address).text
    assert "over the limit" not in text, "what was approved within its limit is not shown beyond it"
    address = re.search(r'data-lines="([^"]+)"', text).group(1)
    drawn = json.loads(client.get(address).text)
    assert list(drawn) == ["time", "ε spent", "with reserved", "Limit"]
    assert drawn["Limit"] == [8.0] * len(drawn["time"]) and max(drawn["with reserved"]) <= 8.0
    assert drawn["ε spent"][0] == 0.0 and drawn["time"] == sorted(drawn["time"])
    for words in ("Spent over time", "approved", "a slot spent", "ended"):
        assert words in text
    assert client.get("/spent/series?group=nothing").json() == {"time": []}
