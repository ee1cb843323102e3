"""`confide ledger show|verify|export`, as an operator and an auditor use them."""

import json
from pathlib import Path

import pytest
from confide import canonical
from confide.errors import ConfideError, IdentityError, LedgerError, StateError
from confide.identity.keys import SigningKey
from confide.identity.roster import sign_roster
from confide.privacy.accounting import epsilon
from confide.privacy.events import GaussianRelease, SampledGaussian
from confide.privacy.filter import Budget, filter_epsilon
from confide.privacy.ledger import LEDGER_NAME, Ledger
from confide.privacy.ledger_entries import RunCost
from confide.privacy.receipts import make_receipt
from confide_client.commands.ledger import app
from typer.testing import CliRunner

from tests.sealing_rosters import make_roster

RUN = "a" * 32
COST = RunCost(slot=(SampledGaussian(noise_multiplier=1.0, sampling_rate=0.01, steps=20),), slots=3)


def confide(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A node that spent two of three slots and gave receipts for them."""
    folder = tmp_path / "hospital-a"
    folder.mkdir()
    budget, key = Budget(epsilon=5.0, delta=1e-5), SigningKey.generate()
    key.save(folder / "identity.key")
    ledger = Ledger(folder / LEDGER_NAME)
    ledger.approve(
        run=RUN, group="notes", data="notes-2025", unit="record", specification="b" * 64, cost=COST, budget=budget
    )
    receipts = []
    for slot in (1, 2):
        ledger.reserve(RUN, slot, budget)
        ledger.spend(RUN, slot)
        body, signature = make_receipt(ledger, RUN, slot, key)
        receipts.append({"receipt": json.loads(body), "signature": signature.hex()})
    ledger.close()
    (tmp_path / "receipts.json").write_text(json.dumps(receipts))
    return folder


def test_show_names_what_was_spent_and_set_aside(state: Path) -> None:
    output = confide("show", "--state", state)
    for word in ("notes", "notes-2025", "record", RUN[:12], "none"):
        assert word in output
    (state / "policy.toml").write_text("version = 1\n[budgets.notes]\nepsilon = 5.0\ndelta = 1e-5\n")
    assert "5 at 1e-05" in confide("show", "--state", state)


def test_show_of_a_run_alone_is_within_the_limit_that_it_keeps(tmp_path: Path) -> None:
    """By the accountant that approved it; the filter's epsilon lies beyond."""
    ledger, event = Ledger(tmp_path / LEDGER_NAME), GaussianRelease(noise_multiplier=8.0)
    tight, wide = epsilon([event.times(3)], delta=1e-5), filter_epsilon([event.times(3)], delta=1e-5)
    budget = Budget(epsilon=round((tight + wide) / 2, 3), delta=1e-5)
    cost = RunCost(slot=(event,), slots=3)
    ledger.approve(run=RUN, group="notes", data="n", unit="record", specification="b" * 64, cost=cost, budget=budget)
    ledger.reserve(RUN, 1, budget)
    ledger.spend(RUN, 1)
    ledger.close()
    (tmp_path / "policy.toml").write_text(f"version = 1\n[budgets.notes]\nepsilon = {budget.epsilon}\ndelta = 1e-5\n")
    output = confide("show", "--state", tmp_path)
    spent = epsilon([event], delta=1e-5)
    assert output.count(f"{tight:.3f}") == output.count(f"{spent:.3f}") == 2, "of the group, and of the run"
    assert "alone" in output and "yes" in output and f"{wide:.3f}" not in output


def test_show_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "node.json").touch()
    assert "empty" in confide("show", "--state", tmp_path)


def test_verify_works_while_the_agent_holds_the_ledger(state: Path) -> None:
    held = Ledger(state / LEDGER_NAME)
    assert "the ledger verifies: 5 lines" in confide("verify", "--state", state)
    held.close()


def test_verify_agrees_with_receipts_and_positions(state: Path, tmp_path: Path) -> None:
    receipts = tmp_path / "receipts.json"
    assert "2 receipts agree" in confide("verify", "--state", state, "--receipts", receipts)
    newest = json.loads(receipts.read_text())[1]["receipt"]
    confide("verify", "--state", state, "--length", newest["ledger_length"], "--head", newest["ledger_head"])


def test_verify_finds_a_ledger_restored_from_an_older_disk(state: Path, tmp_path: Path) -> None:
    path, receipts = state / LEDGER_NAME, tmp_path / "receipts.json"
    newest = json.loads(receipts.read_text())[1]["receipt"]
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    confide("verify", "--state", state)
    with pytest.raises(LedgerError, match="cut, restored or replaced"):
        confide("verify", "--state", state, "--receipts", receipts)
    with pytest.raises(LedgerError, match="does not have the head"):
        confide("verify", "--state", state, "--length", newest["ledger_length"], "--head", newest["ledger_head"])


def test_verify_finds_an_edit_and_a_forged_receipt(state: Path, tmp_path: Path) -> None:
    receipts = tmp_path / "receipts.json"
    documents = json.loads(receipts.read_text())
    documents[0]["receipt"]["spent_slots"] = 0
    receipts.write_text(json.dumps(documents))
    with pytest.raises(IdentityError):
        confide("verify", "--state", state, "--receipts", receipts)
    path = state / LEDGER_NAME
    path.write_bytes(path.read_bytes().replace(b'"slots":3', b'"slots":9'))
    for command in ("verify", "show", "export"):
        with pytest.raises(StateError, match="line 1"):
            confide(command, "--state", state)


def test_an_auditor_takes_the_key_out_of_the_roster(state: Path, tmp_path: Path) -> None:
    root, identity = SigningKey.generate(), SigningKey.load(state / "identity.key")
    roster, receipts, foreign = tmp_path / "roster.json", tmp_path / "receipts.json", SigningKey.generate().public.hex()
    keys = {"hospital-a": identity, "hospital-b": SigningKey.generate()}
    roster.write_bytes(sign_roster(make_roster(keys), root))
    named = [{**item, "node": "hospital-a"} for item in json.loads(receipts.read_text())]
    receipts.write_text(json.dumps([*named, {**named[0], "node": "hospital-b"}]))
    given = ("verify", "--state", tmp_path / "none", "--export", tmp_path / "export.json", "--receipts", receipts)
    confide("export", "--state", state, "--to", tmp_path / "export.json")
    right = ("--roster", roster, "--root", root.public.hex(), "--node", "hospital-a")
    assert "2 receipts agree" in confide(*given, *right)
    for wrong, kind in (
        (("--roster", roster), LedgerError),
        ((*right[:3], foreign, *right[4:]), IdentityError),
        ((*right[:5], "hospital-z"), LedgerError),
        ((*right[:5], "hospital-b"), IdentityError),
    ):
        with pytest.raises(kind):
            confide(*given, *wrong)


def test_an_export_can_be_verified_elsewhere(state: Path, tmp_path: Path) -> None:
    target, receipts = tmp_path / "export.json", tmp_path / "receipts.json"
    confide("export", "--state", state, "--to", target)
    elsewhere = tmp_path / "auditor"
    own = SigningKey.load(state / "identity.key").public.hex()
    given = ("verify", "--state", elsewhere, "--export", target, "--receipts", receipts)
    with pytest.raises(LedgerError, match="signatures cannot be verified"):
        confide(*given)  # it said that they agree, and had verified no signature
    with pytest.raises(IdentityError):
        confide(*given, "--key", SigningKey.generate().public.hex())
    with pytest.raises(LedgerError, match="64 characters of hex"):
        confide(*given, "--key", "no key")
    output = confide(*given, "--key", own)
    assert "5 lines" in output and "2 receipts agree" in output
    assert json.loads(confide("export", "--state", state)) == json.loads(target.read_bytes())
    document = json.loads(target.read_bytes())
    for broken in (
        {**document, "length": 4},
        {**document, "head": "0" * 64},
        {**document, "lines": document["lines"][:-1]},
        {**document, "version": 2},
        {"version": 1},
    ):
        target.write_bytes(canonical.encode(broken))
        with pytest.raises(ConfideError):
            confide("verify", "--state", elsewhere, "--export", target)
