"""A consortium in groups: one sum each, added to one; who is missing, crashes, and what roster and plan say."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from confide.codec.tensors import TensorSchema
from confide.errors import FailureName, IdentityError, ProtocolFailure
from confide.identity.keys import SigningKey
from confide.identity.roster import RosterStore, sign_roster
from confide.planning.run_plan import render
from confide.proto import fleet_pb2, sealing_pb2
from confide.runs.metrics import Metric
from confide.sealing.collector.grouped import GroupedCollector
from confide.sealing.factory import make_collector
from confide.sealing.roles import Abandoned, Opened

from tests.sealing_harness import RUN, STEPS, Federation, names, specify
from tests.sealing_rosters import ISSUED_AT, make_roster

COUNT = 11
GROUPS = {name: ("east", "north", "west")[number // 4] for number, name in enumerate(names(COUNT))}
"""Four, four and three: in the smallest nobody may be missing."""


def grouped(folder: Path, **settings: object) -> Federation:
    return Federation(folder, COUNT, groups=GROUPS, **settings)  # type: ignore[arg-type]


def of(group: str) -> list[str]:
    return [name for name in names(COUNT) if GROUPS[name] == group]


def check_sum(federation: Federation, opened: Opened | Abandoned, contributors: list[str], slot: int) -> None:
    assert isinstance(opened, Opened), opened
    expected = federation.expected_sum(contributors, slot)
    assert np.linalg.norm(opened.update_sum - expected) < 1e-2
    assert opened.contributors == tuple(contributors)
    assert opened.weight_sum == pytest.approx(len(contributors), abs=1e-3)
    total, count = opened.metrics[Metric.TRAIN_LOSS]
    assert count == len(contributors)
    assert total == pytest.approx(sum(1.0 + int(name[-2:]) for name in contributors), abs=1e-2)


def test_the_groups_sums_are_added(tmp_path: Path) -> None:
    federation = grouped(tmp_path)
    for slot in (1, 2):
        opened = federation.slot()
        check_sum(federation, opened, list(names(COUNT)), slot)
        assert isinstance(opened, Opened)
        assert opened.promise["sums"] == 3
        assert opened.promise["words"] == "3 sums are seen, one of each group"
        assert {group: entry["n"] for group, entry in opened.promise["groups"].items()} == {
            "east": 4,
            "north": 4,
            "west": 3,
        }
    # Each node dealt and confirmed within its group only, and one epoch served both slots.
    for step, node, body, _ in federation.seen:
        if step == fleet_pb2.CONFIRM:
            listed = [item.node for item in sealing_pb2.ConfirmRequest.FromString(body).survivors]
            assert {GROUPS[name] for name in listed} == {GROUPS[node]}
    assert sum(step == fleet_pb2.SHARE for step, *_ in federation.seen) == COUNT


def test_a_group_that_is_too_small_opens_nothing_and_comes_back(tmp_path: Path) -> None:
    federation = grouped(tmp_path)
    gone = of("west")[0]
    opened = federation.slot(silent={fleet_pb2.TRAIN: {gone}})
    check_sum(federation, opened, of("east") + of("north"), 1)
    assert isinstance(opened, Opened)
    assert opened.promise["words"] == "2 sums are seen, one of each group; opened nothing: 'west' (LIST_TOO_SMALL)"
    assert gone in opened.dropped
    check_sum(federation, federation.slot(), list(names(COUNT)), 2)


def test_a_group_without_an_epoch_is_tried_twice_and_again_after_a_slot(tmp_path: Path) -> None:
    federation = grouped(tmp_path)
    check_sum(federation, federation.slot(), list(names(COUNT)), 1)
    for name in of("west"):
        federation.restart_member(name)  # it has lost its secrets
    away = {fleet_pb2.ADVERTISE: set(of("west")[:2])}
    check_sum(federation, federation.slot(), of("east") + of("north"), 2)
    for tried in (1, 2):
        assert federation.collector.epoch_needed(names(COUNT)), tried
        federation.epoch(silent=away)
    assert not federation.collector.epoch_needed(names(COUNT))
    federation.collector.open_slot(federation.plan())
    outcome = federation.drive()
    assert outcome is not None
    check_sum(federation, outcome, of("east") + of("north"), 3)
    federation.end(outcome)
    check_sum(federation, federation.slot(), list(names(COUNT)), 4)


def without_west(folder: Path) -> Federation:
    """Two rounds in which nobody of the group "west" took part."""
    federation = grouped(folder)
    for slot in (1, 2):
        for _ in range(2):
            federation.epoch(silent={fleet_pb2.ADVERTISE: set(of("west"))})
        federation.collector.open_slot(federation.plan())
        outcome = federation.drive()
        assert outcome is not None
        check_sum(federation, outcome, of("east") + of("north"), slot)
        federation.end(outcome)
    assert not federation.failures
    return federation


def shown(federation: Federation) -> list[str]:
    return [node for step, node, *_ in federation.seen if step == fleet_pb2.ANCHOR]


def test_a_late_group_is_shown_the_first_model_and_opens(tmp_path: Path) -> None:
    federation = without_west(tmp_path)
    assert not shown(federation)
    check_sum(federation, federation.slot(), list(names(COUNT)), 3)
    assert shown(federation) == of("west")
    assert all(member.context.chain.anchored for member in federation.members.values())
    federation.restart_collector()
    check_sum(federation, federation.slot(), list(names(COUNT)), 4)
    assert shown(federation) == of("west"), "once is enough, also after a restart of the coordinator"
    assert not federation.failures


def test_who_does_not_take_the_first_model_is_not_asked_to_train(tmp_path: Path) -> None:
    federation = without_west(tmp_path)
    lost = of("west")[0]
    opened = federation.slot(silent={fleet_pb2.ANCHOR: {lost}})
    check_sum(federation, opened, of("east") + of("north"), 3)
    assert isinstance(opened, Opened)
    assert "opened nothing: 'west' (LIST_TOO_SMALL)" in str(opened.promise["words"])
    assert (fleet_pb2.TRAIN, lost) not in [(step, node) for step, node, *_ in federation.seen]
    check_sum(federation, federation.slot(), list(names(COUNT)), 4)
    assert sorted(shown(federation)) == sorted([*of("west"), *of("west")[1:]])


def test_a_group_whose_members_lost_the_chain_is_shown_the_first_model_after_a_slot(tmp_path: Path) -> None:
    """They were in a sum, as the coordinator knows; a disk that was emptied knows nothing of it."""
    federation = grouped(tmp_path)
    check_sum(federation, federation.slot(), list(names(COUNT)), 1)
    for name in of("west"):
        federation.kill(name)
        shutil.rmtree(tmp_path / name)
        federation.start_member(name)
    for slot, why in ((2, "LIST_TOO_SMALL"), (3, "QUORUM_SHORT")):  # no epoch, then nobody to vouch for the model
        opened = federation.slot()
        check_sum(federation, opened, of("east") + of("north"), slot)
        assert isinstance(opened, Opened)
        assert f"opened nothing: 'west' ({why})" in str(opened.promise["words"])
        assert not shown(federation)
    check_sum(federation, federation.slot(), list(names(COUNT)), 4)
    assert shown(federation) == of("west")


def test_no_group_at_all(tmp_path: Path) -> None:
    federation = grouped(tmp_path)
    outcome = federation.slot(silent={fleet_pb2.CONFIRM: set(names(COUNT))})
    assert isinstance(outcome, Abandoned)
    assert outcome.code == FailureName.QUORUM_SHORT
    assert outcome.reason.startswith("no group opened a sum; group 'east': ")
    check_sum(federation, federation.slot(), list(names(COUNT)), 2)


@pytest.mark.parametrize("step", STEPS)
def test_a_coordinator_that_is_killed_in_mid_exchange_goes_on(tmp_path: Path, step: fleet_pb2.Step) -> None:
    federation = grouped(tmp_path)
    federation.collector.begin_epoch(names(COUNT))
    plan = None
    while True:
        exchange = federation.collector.exchange()
        if exchange is None:
            plan = federation.plan()
            federation.collector.open_slot(plan)
            continue
        if exchange.step == step:
            break
        for node, body in exchange.bodies.items():
            federation.collector.receive(node, *federation.ask(exchange.step, node, body))
        federation.collector.close_exchange()
    # A group has answered in full, one in part, one not at all.
    for node in [*of("east"), of("north")[0]]:
        federation.collector.receive(node, *federation.ask(step, node, exchange.bodies[node]))
    federation.restart_collector()
    assert federation.collector.resumable == plan
    if plan is None:
        federation.drive()
        plan = federation.plan()
    federation.collector.open_slot(plan)
    outcome = federation.drive()
    assert outcome is not None
    check_sum(federation, outcome, list(names(COUNT)), 1)
    federation.restart_collector()
    federation.collector.open_slot(plan)  # decided, but its round was not committed before the crash
    assert isinstance(federation.collector.outcome, Opened)
    assert np.array_equal(federation.collector.outcome.update_sum, outcome.update_sum)
    federation.end(outcome)
    assert federation.collector.resumable is None


def test_a_revoked_member_ends_its_own_groups_epoch_only(tmp_path: Path) -> None:
    federation = grouped(tmp_path)
    federation.slot()
    gone = of("north")[1]
    federation.roster = make_roster(federation.keys, version=2, revoked=[gone], groups=GROUPS)
    federation.collector.update_roster(federation.roster)
    federation.kill(gone)
    for member in federation.members.values():
        member.update_roster(federation.roster)
    left = [name for name in names(COUNT) if name != gone]
    check_sum(federation, federation.slot(present=left), left, 2)


def test_groups_are_fixed_and_leave_no_trace_where_there_are_none(tmp_path: Path) -> None:
    keys = {name: SigningKey.generate() for name in names(3)}
    root = SigningKey.generate()
    plain = make_roster(keys)
    assert "group" not in plain.members[0].model_dump(mode="json")
    assert plain.groups == {"": names(3)}
    store = RosterStore(tmp_path / "roster.json", root.public)
    store.accept(sign_roster(make_roster(keys, groups=dict.fromkeys(keys, "east")), root), now=ISSUED_AT + 1.0)
    moved = make_roster(keys, version=2, groups=dict.fromkeys(keys, "east") | {names(3)[2]: "west"})
    moved = moved.model_copy(update={"previous": store.current.digest})
    with pytest.raises(IdentityError, match=r"moves hospital-02 from group 'east' to 'west'; groups are fixed"):
        store.accept(sign_roster(moved, root), now=ISSUED_AT + 1.0)
    assert store.current.groups == {"east": names(3)}
    store.accept(store.signed, now=ISSUED_AT + 1.0)
    with pytest.raises(ProtocolFailure, match="expired"):
        store.accept(store.signed, now=3e6)


def test_the_plan_says_how_many_sums_are_seen(tmp_path: Path) -> None:
    said = render(specify(), nodes=1000, groups=10)
    assert "10 sums are seen in every round, one of each group of the roster, which the root fixes: 100 to 100" in said
    assert "with 100 organizations, the coordinator and any 33 of them together learn nothing" in said
    with pytest.raises(ProtocolFailure, match="1000 members; sealing needs 2 to 100"):
        render(specify(), nodes=1000)
    with pytest.raises(ProtocolFailure, match=r"2 nodes, but federation\.min_cohort is 3"):
        render(specify(), nodes=8, groups=4)
    roster = make_roster({name: SigningKey.generate() for name in names(3)}, groups=dict.fromkeys(names(3), "east"))
    made = make_collector(specify(), roster, tmp_path, RUN, TensorSchema.unnamed(5))
    assert isinstance(made, GroupedCollector)
    made.close()
