"""A private run on the node: its cost is set aside before it is accepted, drawn before work, spent before sending."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confide import journal
from confide.errors import TrainingError
from confide.privacy.filter import Budget
from confide.privacy.ledger import LEDGER_NAME, Ledger
from confide.privacy.organization import organization_noise
from confide.privacy.plan import unit_plan
from confide.privacy.receipts import parse_receipt
from confide.proto import fleet_pb2
from confide_client.data.datasets import LocalData
from confide_client.runs.records import Record
from confide_client.runs.spending import Spending, units_in

from tests.node_bench import MODEL, SIZE, Bench, allow, kinds, make_store, open_bench
from tests.node_worlds import Instructions, faq
from tests.training_specs import specification

PRIVACY = {"unit": "record", "epsilon": 3.0, "delta": 1e-5, "clip": 1.0}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return make_store(tmp_path_factory.mktemp("spending-models"))


@pytest.fixture
def bench(tmp_path: Path, store: tuple[Path, str]) -> Iterator[Bench]:
    with open_bench(tmp_path, store, records=40, privacy=PRIVACY) as bench:
        allow(bench)
        yield bench


def test_cost_is_set_aside_drawn_spent_and_released(bench: Bench) -> None:
    assert bench.offer().accepted
    assert kinds(bench) == ["approved"]
    assert bench.train()[1]
    assert kinds(bench) == ["approved", "reserved", "spent"]
    end = fleet_pb2.End(slot=1, committed=True)
    bench.ask(bench.run.make(fleet_pb2.END, end.SerializeToString()))
    receipt = bench.node.state.run(bench.run.run_id) / "receipts" / "1.json"
    assert parse_receipt(receipt.read_bytes()).spent_slots == 1
    bench.end()
    assert kinds(bench)[-1] == "released"


def test_a_training_that_fails_spends_nothing(bench: Bench) -> None:
    def fail() -> None:
        raise TrainingError("out of luck")

    bench.offer()
    bench.trainer.fail = fail
    bench.failure(*bench.run.slot(MODEL))
    assert kinds(bench) == ["approved", "reserved"]
    bench.trainer.fail = lambda: None
    assert bench.train(slot=2)[1]
    assert kinds(bench) == ["approved", "reserved", "moved", "spent"], "the draw serves the next slot"


def test_a_run_that_does_not_fit_is_refused_before_any_work(bench: Bench) -> None:
    assert bench.offer().accepted
    bench.run = Instructions()
    answer = bench.offer()
    assert not answer.accepted and answer.reason.startswith("BUDGET_EXHAUSTED")
    tells_nothing_of_the_account(bench, answer.reason)
    record = Record.load(bench.node.state.run(bench.run.run_id))
    assert record and "group faq, policy: epsilon 4.0 at delta 1e-05" in record.reason
    assert kinds(bench) == ["approved"]
    assert bench.failure(*bench.run.slot(MODEL)).code == "StateError"


def tells_nothing_of_the_account(bench: Bench, text: str) -> None:
    """No group, budget or other run of the node; the operator's own audit log says more."""
    assert not re.search(r"faq|\d", text.replace("BUDGET_EXHAUSTED", "")), text
    assert "group faq, policy: epsilon" in noted(bench)


def noted(bench: Bench) -> str:
    """The newest reason in the node's own audit log."""
    return str([event["reason"] for event in bench.events() if "reason" in event][-1])


def test_a_budget_lowered_between_check_and_charge_tells_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger judges by the policy of its own moment, after the policy's own check."""
    bench.offer()
    monkeypatch.setattr(Spending, "_budget_of", lambda self, group: Budget(epsilon=0.5, delta=1e-5))
    failure = bench.failure(*bench.run.slot(MODEL))
    assert failure.code == "BUDGET_EXHAUSTED" and not bench.trainer.trained
    tells_nothing_of_the_account(bench, failure.message)


def test_lowering_the_budget_in_mid_run_stops_it(bench: Bench) -> None:
    bench.offer()
    bench.policy("epsilon = 4.0", "epsilon = 0.5")
    assert bench.failure(*bench.run.slot(MODEL)).code in {"BUDGET_EXHAUSTED", "PolicyRefusal"}
    assert not bench.trainer.trained
    assert "spent" not in kinds(bench)


def test_other_data_than_was_approved_is_refused(bench: Bench, tmp_path: Path) -> None:
    bench.offer()
    bench.node.data_sets.add("faq", faq(tmp_path / "more.jsonl", 60), evaluation_fraction=0.25)
    assert bench.failure(*bench.run.slot(MODEL)).code == "LedgerError"
    assert not bench.trainer.trained


def test_a_replayed_instruction_is_charged_once(bench: Bench) -> None:
    bench.offer()
    instruction, payload = bench.run.slot(MODEL)
    bench.ask(instruction, payload)
    bench.ask(instruction, payload)
    assert kinds(bench).count("spent") == 1


def test_a_delta_that_promises_nothing_is_refused(tmp_path: Path, store: tuple[Path, str]) -> None:
    with open_bench(tmp_path, store, records=160, privacy={**PRIVACY, "delta": 0.009}) as bench:
        allow(bench)
        answer = bench.offer()
        assert not answer.accepted and "not below one over the number" in answer.reason and "120" not in answer.reason
        assert kinds(bench) == [] and not bench.trainer.trained


def test_a_data_set_without_the_user_key_is_refused_and_only_the_node_is_told(
    tmp_path: Path, store: tuple[Path, str]
) -> None:
    with open_bench(tmp_path, store, records=40, privacy={**PRIVACY, "unit": "user", "user_key": "speaker"}) as bench:
        allow(bench, unit="user")
        answer = bench.offer()
        assert not answer.accepted and "does not say why" in answer.reason
        record = Record.load(bench.node.state.run(bench.run.run_id))
        assert record is not None and "user_key is 'speaker'" in record.reason
        assert kinds(bench) == [] and not bench.trainer.trained


def test_a_ledger_that_does_not_verify_stops_every_private_run(bench: Bench) -> None:
    assert bench.offer().accepted
    bench.runtime.close()
    path = bench.node.state.root / LEDGER_NAME
    damaged = path.read_bytes().replace(b'"budget_epsilon":4.0', b'"budget_epsilon":9.0')
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)
    assert bench.failure(*bench.run.slot(MODEL)).code in {"StateError", "LedgerError"}
    bench.run = Instructions()
    answer = bench.offer()
    assert not answer.accepted and "edited, reordered or damaged" in answer.reason
    assert path.read_bytes() == damaged and not bench.trainer.trained


def test_nothing_is_spent_while_the_clock_is_behind_the_ledger(bench: Bench) -> None:
    budget = Budget(epsilon=4.0, delta=1e-5)
    later = Ledger(bench.node.state.root / LEDGER_NAME, now=lambda: time.time() + 3600)
    cost = unit_plan(bench.spec, 30).cost
    later.approve(
        run="f" * 32, group="other", data="other", unit="record", specification="0" * 64, cost=cost, budget=budget
    )  # fmt: skip
    later.close()
    answer = bench.offer()
    assert not answer.accepted and answer.reason.startswith("LedgerError: this node's privacy ledger")
    assert "the clock was moved back" in noted(bench)
    assert bench.failure(*bench.run.slot(MODEL)).code == "StateError" and not bench.trainer.trained
    assert len(journal.read(bench.node.state.root / LEDGER_NAME)[0]) == 1


def test_organization_level_is_charged_by_the_models_size_and_not_by_the_data(
    tmp_path: Path, store: tuple[Path, str]
) -> None:
    shared = {**PRIVACY, "unit": "organization"}
    sections = {"privacy": shared, "sealing": {"kind": "sealed"}}
    with open_bench(tmp_path, store, records=40, clip_norm=1.0, **sections) as bench:
        allow(bench, unit="organization")
        assert bench.offer().accepted
        approved = bench.node.spending.ledger.state.run(bench.run.run_id).approved
        assert approved.cost == organization_noise(bench.spec, SIZE).cost
        assert approved.cost.slot[0].kind == "skellam" and approved.cost.slots == 3
        bench.node.data_sets.add("faq", faq(tmp_path / "more.jsonl", 60), evaluation_fraction=0.25)
        bench.node.approve_spending(bench.run.run_id, bench.spec)
        assert kinds(bench) == ["approved"]
        bench.run = Instructions()
        assert "BUDGET_EXHAUSTED" in bench.offer().reason


@pytest.mark.parametrize(
    ("unit", "records", "units"),
    [
        ("record", [{"u": 1}, {"u": 1}, None], 3),
        ("user", [{"u": 1}, {"u": 1}, {"u": 2}, None, None], 4),
    ],
)
def test_what_is_counted(unit: str, records: list[Any], units: int) -> None:
    privacy = {**PRIVACY, "unit": unit, **({"user_key": "u"} if unit == "user" else {})}
    assert units_in(specification(privacy=privacy), LocalData(train=records, evaluation=[])) == units


@pytest.mark.parametrize("error", [TrainingError("loss of record 7 is NaN"), ValueError("Hamlet"), MemoryError()])
def test_how_training_failed_on_private_data_is_not_told(bench: Bench, error: Exception) -> None:
    def fail() -> None:
        raise error

    bench.offer()
    bench.trainer.fail = fail
    failure = bench.failure(*bench.run.slot(MODEL))
    assert failure.code == "TrainingError" and "does not say why" in failure.message
    assert not {"7", "NaN", "Hamlet", "memory"} & set(failure.message.split())
    noted = [event for event in bench.events() if event.get("event") == "step failed" or "step failed" in str(event)]
    assert noted, "the operator finds it in the audit log"
