"""The ledger: what it lets through, what it refuses by name, and what it finds wrong with its own file."""

import json
from pathlib import Path

import pytest
from confide import canonical, journal
from confide.errors import (
    ConfideError,
    FailureName,
    IdentityError,
    LedgerError,
    PolicyRefusal,
    ProtocolFailure,
    StateError,
)
from confide.identity.keys import SigningKey
from confide.privacy.charging import LedgerCosts
from confide.privacy.events import SampledGaussian
from confide.privacy.filter import Budget, filter_epsilon
from confide.privacy.ledger import LEDGER_NAME, Ledger, balances, replay
from confide.privacy.ledger_entries import RunCost, events_digest, to_body
from confide.privacy.receipts import check_receipt, make_receipt, open_receipt, parse_receipt
from confide.sealing.member.seal_log import Costs
from hypothesis import given, settings
from hypothesis import strategies as st

RUN_A, RUN_B, RUN_C = "a" * 32, "b" * 32, "c" * 32
SPECIFICATION = "d" * 64
COST = RunCost(slot=(SampledGaussian(noise_multiplier=1.0, sampling_rate=0.01, steps=20),), slots=3)
ONE = filter_epsilon(COST.whole, delta=1e-5)
"""Epsilon of one run of COST, as the filter counts it."""
AMPLE = Budget(epsilon=20.0, delta=1e-5)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        self.now_s += 1.0
        return self.now_s


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / LEDGER_NAME


@pytest.fixture
def ledger(path: Path) -> Ledger:
    return Ledger(path, now=Clock())


def approve(ledger: Ledger, run: str = RUN_A, budget: Budget = AMPLE, **changes: object) -> None:
    fields: dict[str, object] = {
        "group": "notes", "data": "notes", "unit": "record", "specification": SPECIFICATION, "cost": COST,
    }  # fmt: skip
    ledger.approve(run=run, budget=budget, **{**fields, **changes})  # type: ignore[arg-type]


def use(ledger: Ledger, run: str, slot: int, budget: Budget = AMPLE) -> None:
    ledger.reserve(run, slot, budget)
    ledger.spend(run, slot)


def refused(name: FailureName) -> "pytest.RaisesContext[ProtocolFailure]":  # type: ignore[type-arg]
    return pytest.raises(ProtocolFailure, match=f"^{name.value}")


def test_a_run_from_approval_to_release(ledger: Ledger, path: Path) -> None:
    approve(ledger)
    use(ledger, RUN_A, 1)
    use(ledger, RUN_A, 5)
    ledger.release(RUN_A)
    kinds = [body["kind"] for body in journal.read(path)[0]]
    assert kinds == ["approved", "reserved", "spent", "reserved", "spent", "released"]
    (balance,) = balances(ledger.state)
    assert balance.spent_epsilon == balance.held_epsilon == filter_epsilon(COST.of_slots(2), delta=1e-5) < ONE
    assert path.stat().st_mode & 0o777 == 0o600


def test_approval_sets_the_whole_cost_aside(ledger: Ledger) -> None:
    tight = Budget(epsilon=1.01 * filter_epsilon([*COST.whole, *COST.whole], delta=1e-5), delta=1e-5)
    approve(ledger, RUN_A, tight)
    approve(ledger, RUN_B, tight)
    before = len(ledger)
    with refused(FailureName.BUDGET_EXHAUSTED):
        approve(ledger, RUN_C, tight)
    assert len(ledger) == before and RUN_C not in ledger.state.runs
    use(ledger, RUN_A, 1, tight)
    with refused(FailureName.BUDGET_EXHAUSTED):
        approve(ledger, RUN_C, tight)
    ledger.release(RUN_A)
    ledger.release(RUN_B)
    approve(ledger, RUN_C, tight)


def test_slots_beyond_the_approved_are_refused_before_any_work(ledger: Ledger) -> None:
    approve(ledger)
    for slot in (1, 2, 3):
        use(ledger, RUN_A, slot)
    before = len(ledger)
    with refused(FailureName.BUDGET_EXHAUSTED):
        ledger.reserve(RUN_A, 4, AMPLE)
    assert len(ledger) == before


def test_a_slot_is_drawn_once_and_spent_once(ledger: Ledger) -> None:
    approve(ledger)
    for _ in range(3):
        ledger.reserve(RUN_A, 1, AMPLE)
    for _ in range(3):
        ledger.spend(RUN_A, 1)
    assert len(ledger) == 3
    with refused(FailureName.SLOT_REUSED):
        ledger.reserve(RUN_A, 1, AMPLE)
    assert ledger.state.run(RUN_A).spent_slots == 1


def test_work_that_never_left_runs_again_under_the_same_draw(ledger: Ledger) -> None:
    approve(ledger)
    ledger.reserve(RUN_A, 1, AMPLE)
    ledger.reserve(RUN_A, 2, AMPLE)
    ledger.reserve(RUN_A, 7, AMPLE)
    with pytest.raises(LedgerError, match="not reserved"):
        ledger.spend(RUN_A, 1)
    ledger.spend(RUN_A, 7)
    state = ledger.state.run(RUN_A)
    assert state.spent_slots == 1 and len(state.draws) == 1
    with refused(FailureName.SLOT_REUSED):
        ledger.reserve(RUN_A, 2, AMPLE)
    for slot in (8, 9):
        use(ledger, RUN_A, slot)
    with refused(FailureName.BUDGET_EXHAUSTED):
        ledger.reserve(RUN_A, 10, AMPLE)


def test_nothing_is_spent_without_a_draw(ledger: Ledger) -> None:
    approve(ledger)
    with pytest.raises(LedgerError, match="not reserved"):
        ledger.spend(RUN_A, 1)
    with pytest.raises(LedgerError, match="not approved"):
        ledger.reserve(RUN_B, 1, AMPLE)
    ledger.release(RUN_A)
    ledger.release(RUN_A)
    with pytest.raises(LedgerError, match="has ended"):
        ledger.reserve(RUN_A, 1, AMPLE)


def test_parameters_are_frozen(ledger: Ledger) -> None:
    approve(ledger)
    approve(ledger)
    assert len(ledger) == 1
    other = RunCost(slot=(SampledGaussian(noise_multiplier=1.0, sampling_rate=0.02, steps=20),), slots=3)
    with pytest.raises(LedgerError, match="frozen"):
        approve(ledger, cost=other)
    with pytest.raises(LedgerError, match="other data or another specification"):
        approve(ledger, specification="e" * 64)


def test_a_policy_lowered_in_mid_run_refuses_from_then_on(ledger: Ledger) -> None:
    approve(ledger, budget=AMPLE)
    use(ledger, RUN_A, 1)
    before = len(ledger)
    with refused(FailureName.BUDGET_EXHAUSTED):
        ledger.reserve(RUN_A, 2, Budget(epsilon=ONE / 4, delta=1e-5))
    with refused(FailureName.BUDGET_EXHAUSTED):
        ledger.reserve(RUN_A, 2, Budget(epsilon=ONE, delta=1e-9))
    assert len(ledger) == before
    ledger.reserve(RUN_A, 2, AMPLE)


def test_a_data_set_cannot_change_groups_and_a_group_not_its_unit(ledger: Ledger) -> None:
    approve(ledger)
    with pytest.raises(LedgerError, match="history would be forgotten"):
        approve(ledger, RUN_B, group="fresh")
    with pytest.raises(LedgerError, match="protects each record"):
        approve(ledger, RUN_B, unit="user")
    approve(ledger, RUN_B, data="letters")
    approve(ledger, RUN_C, group="other", data="other", unit="user")
    assert [balance.group for balance in balances(ledger.state)] == ["notes", "other"]


def test_a_group_has_one_kind_of_user(ledger: Ledger) -> None:
    approve(ledger, unit="user", user_key="patient")
    for other in ("ward", None):
        with pytest.raises(LedgerError, match=r"protects each user \(by patient\)"):
            approve(ledger, RUN_B, unit="user", user_key=other)
    approve(ledger, RUN_B, unit="user", user_key="patient")
    approve(ledger, RUN_C, unit="user", user_key="ward", group="letters", data="letters")
    assert [balance.protects for balance in balances(ledger.state)] == ["user (by ward)", "user (by patient)"]


def test_users_whose_key_was_not_kept_are_read_and_not_added_to(ledger: Ledger) -> None:
    approve(ledger, unit="user")
    assert "user_key" not in to_body(ledger.state.run(RUN_A).approved)
    with pytest.raises(LedgerError, match="by a field that was not kept"):
        approve(ledger, RUN_B, unit="user", user_key="patient")


def test_overlapping_data_sets_share_one_budget(ledger: Ledger) -> None:
    tight = Budget(epsilon=1.01 * ONE, delta=1e-5)
    approve(ledger, RUN_A, tight, data="notes")
    with refused(FailureName.BUDGET_EXHAUSTED):
        approve(ledger, RUN_B, tight, data="letters")
    approve(ledger, RUN_B, tight, data="letters", group="letters")


# ---- alone in its group: the tighter accountant ---------------------------------------------------------------------

ALONE = Budget(epsilon=8.0, delta=1e-5)
BIG = RunCost(slot=(SampledGaussian(noise_multiplier=0.7, sampling_rate=0.0512, steps=7),), slots=14)


def test_a_run_that_is_alone_may_use_the_whole_budget(ledger: Ledger) -> None:
    """PLD says 7.98, the filter above 10: a single run, chosen before its data was used, gets the tight account."""
    assert filter_epsilon(BIG.whole, delta=1e-5) > 10
    approve(ledger, budget=ALONE, cost=BIG)
    assert ledger.state.run(RUN_A).approved.basis == "alone"
    use(ledger, RUN_A, 1, ALONE)
    tiny = RunCost(slot=(SampledGaussian(noise_multiplier=50.0, sampling_rate=0.001, steps=1),), slots=1)
    with refused(FailureName.BUDGET_EXHAUSTED):
        approve(ledger, RUN_B, ALONE, cost=tiny)
    # Its early end may depend on the data, so it stays charged whole, though what it spent would leave room.
    ledger.release(RUN_A)
    assert filter_epsilon([*BIG.of_slots(1), *tiny.whole], delta=1e-5) < ALONE.epsilon
    with refused(FailureName.BUDGET_EXHAUSTED):
        approve(ledger, RUN_B, ALONE, cost=tiny)
    approve(ledger, RUN_B, AMPLE, cost=tiny)


def test_a_run_approved_beside_others_cannot_become_alone_by_a_lowered_budget(ledger: Ledger) -> None:
    approve(ledger, budget=AMPLE, cost=BIG)
    assert ledger.state.run(RUN_A).approved.basis == "filter"
    with refused(FailureName.BUDGET_EXHAUSTED):
        ledger.reserve(RUN_A, 1, ALONE)


def test_an_approval_that_never_drew_leaves_the_group_free(ledger: Ledger) -> None:
    approve(ledger, budget=ALONE, cost=BIG)
    ledger.reserve(RUN_A, 1, ALONE)
    ledger.release(RUN_A)
    approve(ledger, RUN_B, ALONE, cost=BIG)
    assert ledger.state.run(RUN_B).approved.basis == "alone"


# ---- damage ---------------------------------------------------------------------------------------------------------


def filled(path: Path) -> bytes:
    ledger = Ledger(path, now=Clock())
    approve(ledger)
    use(ledger, RUN_A, 1)
    use(ledger, RUN_A, 2)
    ledger.close()
    return path.read_bytes()


def test_every_edited_byte_is_noticed(path: Path) -> None:
    data = filled(path)
    for at in range(0, len(data), 37):
        if data[at : at + 1] == b"\n":
            continue
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(StateError, match="does not follow"):
            Ledger(path)


def test_reordered_repeated_and_missing_lines_are_noticed(path: Path) -> None:
    lines = filled(path).splitlines(keepends=True)
    for order in ([1, 0, 2, 3, 4], [0, 1, 3, 2, 4], [0, 1, 1, 2, 3, 4], [0, 2, 3, 4], [1, 2, 3, 4]):
        path.write_bytes(b"".join(lines[i] for i in order))
        with pytest.raises(StateError, match="does not follow"):
            Ledger(path)


def test_a_well_chained_lie_is_noticed(path: Path) -> None:
    """Whoever can write the file can also chain it; the rules still hold."""
    bodies = [json.loads(line)["body"] for line in filled(path).splitlines()]
    lies = {
        "drop the draw": [*bodies[:1], *bodies[2:]],
        "spend twice": [*bodies, bodies[2] | {"time_ms": bodies[-1]["time_ms"]}],
        "go back in time": [*bodies[:-1], bodies[-1] | {"time_ms": 5}],
        "unknown kind": [*bodies, {"kind": "refunded", "run": RUN_A, "slot": 1, "time_ms": bodies[-1]["time_ms"]}],
        "release too much": [
            *bodies, {"kind": "released", "run": RUN_A, "slots": 3, "time_ms": bodies[-1]["time_ms"]},
        ],
    }  # fmt: skip
    for lie in lies.values():
        path.unlink()
        forged = journal.Journal(path)
        for body in lie:
            forged.append(body)
        forged.close()
        with pytest.raises(LedgerError, match="line"):
            Ledger(path, now=Clock())
        with pytest.raises(LedgerError):
            replay(journal.read(path)[0])


def test_a_restored_older_ledger_is_noticed_by_whoever_remembers(path: Path) -> None:
    lines = filled(path).splitlines(keepends=True)
    newest = Ledger(path, now=Clock())
    length, head = len(newest), newest.head
    newest.check_position(length, head)
    newest.check_position(2, newest.head_at(2))
    newest.close()
    path.write_bytes(b"".join(lines[:3]))
    restored = Ledger(path, now=Clock())
    with refused(FailureName.ROLLBACK_DETECTED):
        restored.check_position(length, head)
    restored.reserve(RUN_A, 9, AMPLE)
    restored.spend(RUN_A, 9)
    with refused(FailureName.ROLLBACK_DETECTED):
        restored.check_position(length, head)


def test_a_line_cut_short_was_never_acknowledged(path: Path) -> None:
    data = filled(path)
    for cut in (1, 20, 100):
        path.write_bytes(data[:-cut])
        ledger = Ledger(path, now=Clock())
        assert len(ledger) == 4 and ledger.state.run(RUN_A).open_draw == 2
        ledger.close()


def test_a_clock_moved_back_stops_the_ledger(path: Path) -> None:
    clock = Clock()
    ledger = Ledger(path, now=clock)
    approve(ledger)
    clock.now_s -= 3600
    before = len(ledger)
    for act in (
        lambda: ledger.reserve(RUN_A, 1, AMPLE),
        lambda: approve(ledger, RUN_B),
        lambda: ledger.release(RUN_A),
    ):
        with pytest.raises(LedgerError, match="clock was moved back"):
            act()
    assert len(ledger) == before
    ledger.close()
    with pytest.raises(LedgerError, match="clock was moved back"):
        Ledger(path, now=clock)
    clock.now_s += 3599
    reopened = Ledger(path, now=clock)
    use(reopened, RUN_A, 1)


def test_a_full_disk_spends_nothing(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    approve(ledger)
    ledger.reserve(RUN_A, 1, AMPLE)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.write", full)
        with pytest.raises(StateError, match="No space"):
            ledger.spend(RUN_A, 1)
    assert ledger.state.run(RUN_A).spent_slots == 0
    ledger.spend(RUN_A, 1)
    assert ledger.state.run(RUN_A).spent_slots == 1


def test_one_process_at_a_time(ledger: Ledger, path: Path) -> None:
    with pytest.raises(StateError, match="in use"):
        Ledger(path)


# ---- random histories -----------------------------------------------------------------------------------------------

ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["approve", "reserve", "spend", "release", "reopen"]),
        st.sampled_from([RUN_A, RUN_B, RUN_C]),
        st.integers(1, 6),
    ),
    max_size=40,
)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(actions=ACTIONS, factor=st.sampled_from([0.5, 1.05, 1.6, 5.0]))
def test_no_history_spends_beyond_the_budget(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, str, int]], factor: float
) -> None:
    path = tmp_path_factory.mktemp("history") / LEDGER_NAME
    budget, clock, sent = Budget(epsilon=factor * ONE, delta=1e-5), Clock(), set()
    ledger = Ledger(path, now=clock)
    for action, run, slot in actions:
        try:
            if action == "approve":
                approve(ledger, run, budget)
            elif action == "reserve":
                ledger.reserve(run, slot, budget)
            elif action == "spend":
                ledger.spend(run, slot)
                sent.add((run, slot))
            elif action == "release":
                ledger.release(run)
            else:
                ledger.close()
                ledger = Ledger(path, now=clock)
        except ConfideError:
            continue
    spent = {(run.approved.run, slot) for run in ledger.state for slot, done in run.draws.items() if done}
    assert sent == spent
    events = COST.of_slots(len(sent))
    basis = ledger.state.basis("notes", None, budget)
    assert basis is not None
    if basis == "filter":
        assert filter_epsilon(events, delta=1e-5) <= budget.epsilon
    ledger.close()


# ---- receipts and sealing's hook ------------------------------------------------------------------------------------


def test_a_receipt_pins_the_ledger(ledger: Ledger, path: Path) -> None:
    key = SigningKey.generate()
    approve(ledger)
    ledger.reserve(RUN_A, 1, AMPLE)
    with pytest.raises(LedgerError, match="was not spent"):
        make_receipt(ledger, RUN_A, 1, key)
    ledger.spend(RUN_A, 1)
    body, signature = make_receipt(ledger, RUN_A, 1, key)
    receipt = open_receipt(body, signature, key.public)
    assert (receipt.run_id, receipt.slot, receipt.group, receipt.ledger_length) == (RUN_A, 1, "notes", 3)
    digest = events_digest(ledger.state.run(RUN_A).approved)
    use(ledger, RUN_A, 2)
    check_receipt(receipt, digest, ledger.head_at, len(ledger))
    with pytest.raises(LedgerError, match="cut, restored or replaced"):
        check_receipt(receipt, digest, ledger.head_at, 2)
    with pytest.raises(LedgerError, match="another cost"):
        check_receipt(receipt, "0" * 64, ledger.head_at, len(ledger))
    with pytest.raises(IdentityError):
        open_receipt(body.replace(b'"slot":1', b'"slot":2'), signature, key.public)
    with pytest.raises(IdentityError):
        open_receipt(body, signature, SigningKey.generate().public)
    with pytest.raises(LedgerError, match="canonical"):
        parse_receipt(body + b" ")


def test_neither_receipts_nor_heads_tell_the_number_of_records(tmp_path: Path) -> None:
    """The same history twice: heads and digests differ, so that no N can be tried out against them."""
    seen = []
    for name in ("one", "two"):
        ledger = Ledger(tmp_path / name, now=Clock())
        approve(ledger)
        use(ledger, RUN_A, 1)
        body, _ = make_receipt(ledger, RUN_A, 1, SigningKey.generate())
        assert b"0.01" not in body and b"sampl" not in body
        receipt = parse_receipt(body)
        seen.append((receipt.ledger_head, receipt.events_sha256))
    assert seen[0][0] != seen[1][0] and seen[0][1] != seen[1][1]


def test_sealing_charges_through_its_hook(ledger: Ledger) -> None:
    budgets = {"notes": AMPLE}
    costs: Costs = LedgerCosts(ledger, budgets.get)
    approve(ledger)

    def reserve(slot: int, evaluate_only: bool = False) -> None:
        costs.reserve(run_id=RUN_A, slot=slot, round=1, model_sha256="0" * 64, evaluate_only=evaluate_only)

    reserve(1)
    costs.spend(run_id=RUN_A, slot=1, upload_digest="0" * 64)
    costs.ended(run_id=RUN_A, slot=1, committed=False, contributed=False)
    assert ledger.state.run(RUN_A).spent_slots == 1
    reserve(2, evaluate_only=True)
    costs.spend(run_id=RUN_A, slot=2, upload_digest="0" * 64)
    assert len(ledger) == 3
    with pytest.raises(LedgerError, match="not reserved"):
        costs.spend(run_id=RUN_A, slot=3, upload_digest="0" * 64)
    del budgets["notes"]
    with pytest.raises(PolicyRefusal, match="no budget"):
        reserve(4)


def test_the_ledger_is_canonical_json(path: Path) -> None:
    for line in filled(path).splitlines():
        assert canonical.encode(json.loads(line)) == line
