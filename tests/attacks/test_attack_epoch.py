"""Lies while an epoch is made: keys in the middle, replays, changed specification, rosters, dealings, old disks."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from confide.errors import FailureName, IdentityError
from confide.identity.keys import SigningKey
from confide.proto import fleet_pb2, sealing_pb2
from confide.runs.parameters import planned
from confide.sealing.member.context import NodeRules
from confide.sealing.primitives import keys
from confide.sealing.roles import Opened

from tests.attacks.liar import A, B, E, refused, resign, rewrite, stop_before
from tests.sealing_harness import Federation, set_context, specify
from tests.sealing_rosters import EXPIRES_AT, make_roster

Advertise = sealing_pb2.AdvertiseRequest
Share = sealing_pb2.ShareRequest
Open = sealing_pb2.SealedOpen
# Points of order 1, 2, 4 and 8 (RFC 7748, section 6.1 and 7).
LOW_ORDER = (
    bytes(32),
    b"\x01" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
)


def share_body(federation: Federation, node: str = A) -> bytes:
    return stop_before(federation, fleet_pb2.SHARE).bodies[node]


def test_an_epoch_is_advertised_once(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 3)
    body = stop_before(federation, fleet_pb2.ADVERTISE).bodies[A]
    first, _ = federation.ask(fleet_pb2.ADVERTISE, A, body)
    assert federation.ask(fleet_pb2.ADVERTISE, A, body)[0] == first
    federation.restart_member(A)
    with refused(FailureName.EPOCH_REPLAYED):
        federation.ask(fleet_pb2.ADVERTISE, A, body)


def test_an_epoch_that_is_not_in_memory(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 3)
    body = share_body(federation)
    with refused(FailureName.EPOCH_REPLAYED):
        federation.ask(fleet_pb2.SHARE, A, rewrite(Share, body, lambda m: setattr(m, "epoch", 7)))
    federation.restart_member(A)
    with refused(FailureName.EPOCH_REPLAYED):
        federation.ask(fleet_pb2.SHARE, A, body)


def test_a_bundle_of_an_earlier_epoch(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 3)
    old = Share.FromString(share_body(federation)).bundles[1]
    body = share_body(federation)

    def replay(message: sealing_pb2.ShareRequest) -> None:
        message.bundles[1].CopyFrom(old)

    with refused(FailureName.EPOCH_REPLAYED):
        federation.ask(fleet_pb2.SHARE, A, rewrite(Share, body, replay))


def test_a_changed_specification(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 3)
    body = stop_before(federation, fleet_pb2.ADVERTISE).bodies[A]
    with refused(FailureName.SPEC_CHANGED):
        federation.ask(
            fleet_pb2.ADVERTISE, A, rewrite(Advertise, body, lambda m: setattr(m, "specification_sha256", bytes(32)))
        )
    with refused(FailureName.SPEC_CHANGED):
        federation.ask(fleet_pb2.ADVERTISE, A, rewrite(Advertise, body, lambda m: setattr(m, "slots", 5)))


def test_a_member_with_another_specification(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 3)

    def other(message: sealing_pb2.ShareRequest) -> None:
        resign(message.bundles[1], federation.keys[B], lambda b: setattr(b, "specification_sha256", bytes(32)))

    with refused(FailureName.SPEC_CHANGED):
        federation.ask(fleet_pb2.SHARE, A, rewrite(Share, share_body(federation), other))


def test_another_run(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 3)
    body = stop_before(federation, fleet_pb2.ADVERTISE).bodies[A]
    with refused(FailureName.CONTEXT_MISMATCH):
        federation.ask(fleet_pb2.ADVERTISE, A, rewrite(Advertise, body, lambda m: setattr(m, "run_id", "cd" * 16)))


def test_a_man_in_the_middle_cannot_change_a_key(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 3)
    body = share_body(federation)

    def swap_keys(message: sealing_pb2.ShareRequest) -> None:
        bundle = sealing_pb2.Bundle.FromString(message.bundles[1].bundle)
        bundle.mask_keys[0] = keys.public_of(keys.new_secret())
        message.bundles[1].bundle = bundle.SerializeToString(deterministic=True)

    def own_identity(message: sealing_pb2.ShareRequest) -> None:
        resign(message.bundles[1], SigningKey.generate(), lambda b: setattr(b, "share_key", bytes(31) + b"\x07"))

    for change in (swap_keys, own_identity):
        with pytest.raises(IdentityError, match="does not verify"):
            federation.ask(fleet_pb2.SHARE, A, rewrite(Share, body, change))


def test_two_bundles_of_one_member_convict_it(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 3)
    body = share_body(federation)
    fresh = keys.public_of(keys.new_secret())

    def second(message: sealing_pb2.ShareRequest) -> None:
        resign(message.bundles[1], federation.keys[B], lambda b: setattr(b, "share_key", fresh))

    def beside(message: sealing_pb2.ShareRequest) -> None:
        both = [message.bundles[0], message.bundles[1], sealing_pb2.SignedBundle(), message.bundles[2]]
        both[2].CopyFrom(message.bundles[1])
        resign(both[2], federation.keys[B], lambda b: setattr(b, "share_key", fresh))
        copies = [item.SerializeToString() for item in both]
        del message.bundles[:]
        message.bundles.extend(map(sealing_pb2.SignedBundle.FromString, copies))

    with refused(FailureName.BUNDLE_EQUIVOCATION) as caught:
        federation.ask(fleet_pb2.SHARE, A, rewrite(Share, body, beside))
    assert caught.value.culprit == B
    federation.ask(fleet_pb2.SHARE, A, body)
    with refused(FailureName.BUNDLE_EQUIVOCATION) as caught:
        federation.ask(fleet_pb2.SHARE, A, rewrite(Share, body, second))
    assert caught.value.culprit == B


def test_the_same_bundle_twice_convicts_nobody(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 3)

    def twice(message: sealing_pb2.ShareRequest) -> None:
        message.bundles.add().CopyFrom(message.bundles[2])

    with refused(FailureName.MALFORMED) as caught:
        federation.ask(fleet_pb2.SHARE, A, rewrite(Share, share_body(federation), twice))
    assert caught.value.culprit is None


def test_the_coordinator_convicts_a_node_with_two_bundles(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 3)
    body = stop_before(federation, fleet_pb2.ADVERTISE).bodies[B]
    made, _ = federation.ask(fleet_pb2.ADVERTISE, B, body)
    federation.collector.receive(B, made, None)
    signed = sealing_pb2.SignedBundle.FromString(made)
    resign(signed, federation.keys[B], lambda b: setattr(b, "incarnation", bytes(16)))
    with refused(FailureName.BUNDLE_EQUIVOCATION):
        federation.collector.receive(B, signed.SerializeToString(deterministic=True), None)


def test_a_cloned_node_convicts_itself(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 3)

    def clone(message: sealing_pb2.ShareRequest) -> None:
        resign(message.bundles[0], federation.keys[A], lambda b: setattr(b, "incarnation", bytes(16)))

    with refused(FailureName.BUNDLE_EQUIVOCATION) as caught:
        federation.ask(fleet_pb2.SHARE, A, rewrite(Share, share_body(federation), clone))
    assert caught.value.culprit == A


def test_an_epoch_without_this_node(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 5)

    def omit(message: sealing_pb2.ShareRequest) -> None:
        del message.bundles[0]

    with refused(FailureName.OMITTED_SELF):
        federation.ask(fleet_pb2.SHARE, A, rewrite(Share, share_body(federation), omit))


def test_an_epoch_is_shared_among_one_set_of_members(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 5)
    body = share_body(federation)
    federation.ask(fleet_pb2.SHARE, A, body)

    def fewer(message: sealing_pb2.ShareRequest) -> None:
        del message.bundles[4]

    with refused(FailureName.COHORT_NOT_EPOCH):
        federation.ask(fleet_pb2.SHARE, A, rewrite(Share, body, fewer))


def test_a_member_that_the_specification_does_not_name(tmp_path: Path) -> None:
    named = [f"hospital-{number:02d}" for number in range(4)]
    federation = Federation(tmp_path, 5, specify(federation=f"nodes = {named}"))
    for member in federation.members.values():
        set_context(member, specification=federation.specification)
    anybody = federation.specification.federation.model_copy(update={"nodes": ()})
    federation.collector._cohort.specification = federation.specification.model_copy(update={"federation": anybody})
    with refused(FailureName.COHORT_NOT_EPOCH):
        federation.ask(fleet_pb2.SHARE, A, share_body(federation))


@pytest.mark.parametrize("point", LOW_ORDER, ids=["order-2-zero", "order-1", "order-8"])
@pytest.mark.parametrize("which", ["share_key", "mask_key"])
def test_keys_of_low_order(tmp_path: Path, point: bytes, which: str) -> None:
    federation = Federation(tmp_path, 3)

    def low(bundle: sealing_pb2.Bundle) -> None:
        if which == "share_key":
            bundle.share_key = point
        else:
            bundle.mask_keys[2] = point

    def change(message: sealing_pb2.ShareRequest) -> None:
        resign(message.bundles[1], federation.keys[B], low)

    with refused(FailureName.LOW_ORDER_KEY) as caught:
        federation.ask(fleet_pb2.SHARE, A, rewrite(Share, share_body(federation), change))
    assert caught.value.culprit == B


def test_rosters_stale_newer_forked_and_expired(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 3)
    body = stop_before(federation, fleet_pb2.ADVERTISE).bodies[A]
    with refused(FailureName.ROSTER_STALE):
        federation.ask(fleet_pb2.ADVERTISE, A, rewrite(Advertise, body, lambda m: setattr(m, "roster_version", 2)))
    with refused(FailureName.CONTEXT_MISMATCH):
        changed = rewrite(Advertise, body, lambda m: setattr(m, "roster_sha256", bytes(32)))
        federation.ask(fleet_pb2.ADVERTISE, A, changed)
    federation.now = EXPIRES_AT + 1.0
    with refused(FailureName.ROSTER_STALE):
        federation.ask(fleet_pb2.ADVERTISE, A, body)


def test_a_peer_that_knows_a_newer_roster(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 3)

    def newer(message: sealing_pb2.ShareRequest) -> None:
        resign(message.bundles[1], federation.keys[B], lambda b: setattr(b, "roster_version", 2))

    with refused(FailureName.ROSTER_STALE):
        federation.ask(fleet_pb2.SHARE, A, rewrite(Share, share_body(federation), newer))


def test_roster_versions_only_go_up_across_restarts(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 3)
    second = make_roster(federation.keys, version=2)
    federation.members[A].update_roster(second)
    with refused(FailureName.ROSTER_STALE):
        federation.members[A].update_roster(federation.roster)
    federation.kill(A)
    with refused(FailureName.ROSTER_STALE):
        federation.start_member(A)


def test_a_revoked_member(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 5)
    federation.slot()
    without = make_roster(federation.keys, version=2, revoked=[E])
    body = share_body(federation)
    federation.members[A].roster.current = without
    with refused(FailureName.REVOKED):
        federation.ask(fleet_pb2.SHARE, A, body)


def test_revocation_ends_the_open_slot_and_the_next_epoch_goes_without(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 5)
    exchange = stop_before(federation, fleet_pb2.CONFIRM)
    federation.roster = make_roster(federation.keys, version=2, revoked=[E])
    for member in federation.members.values():
        member.update_roster(federation.roster)
    with refused(FailureName.SLOT_REUSED):
        federation.ask(fleet_pb2.CONFIRM, A, exchange.bodies[A])
    federation.collector.update_roster(federation.roster)
    outcome = federation.collector.outcome
    assert outcome is not None and not isinstance(outcome, Opened) and outcome.code == "REVOKED"
    federation.end(outcome)
    again = federation.slot(round=1, attempt=2)
    assert isinstance(again, Opened) and E not in again.contributors and len(again.contributors) == 4


def test_a_node_on_an_older_disk_stops_for_good(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 5)
    federation.slot()
    federation.kill(A)
    shutil.copytree(tmp_path / A, tmp_path / "backup")
    federation.start_member(A)
    federation.slot()
    federation.slot()
    federation.kill(A)
    shutil.rmtree(tmp_path / A)
    shutil.copytree(tmp_path / "backup", tmp_path / A)
    federation.start_member(A)
    # Its log has no memory of the later epoch, so it takes part in making one, and hears of it from its peers.
    federation.collector._attendance.renew = True
    outcome = federation.slot()
    assert federation.failures[A, "TRAIN"].code == "ROLLBACK_DETECTED"
    assert isinstance(outcome, Opened) and A not in outcome.contributors
    federation.restart_member(A)
    with refused(FailureName.ROLLBACK_DETECTED):
        federation.ask(fleet_pb2.ADVERTISE, A, b"")
    assert A not in federation.collector._cohort.eligible(tuple(federation.members))


def test_nobody_can_invent_a_longer_ledger_of_another(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 3)
    body = share_body(federation, B)
    federation.members[B].context.heights.hear({A: (10**6, "ab" * 32, "cd" * 64)})
    dealt, _ = federation.ask(fleet_pb2.SHARE, B, body)
    federation.collector.receive(B, dealt, None)
    federation.drive()
    federation.collector.open_slot(federation.plan())
    federation.drive()
    assert federation.failures[A, "TRAIN"].code == "BAD_DEALING"
    assert federation.members[A].context.heights.stopped is None


def test_dealings_that_do_not_open_blame_neither(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 5)
    exchange = stop_before(federation, fleet_pb2.TRAIN)

    def garbled(message: sealing_pb2.SealedOpen) -> None:
        ciphertext = bytearray(message.dealings[0].ciphertext)
        ciphertext[5] ^= 1
        message.dealings[0].ciphertext = bytes(ciphertext)

    def swapped(message: sealing_pb2.SealedOpen) -> None:
        message.dealings[0].ciphertext = message.dealings[1].ciphertext

    for change in (garbled, swapped):
        with refused(FailureName.BAD_DEALING) as caught:
            federation.ask(fleet_pb2.TRAIN, A, rewrite(Open, exchange.bodies[A], change))
        assert caught.value.culprit is None


def test_dealings_of_fewer_than_all(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 5)
    exchange = stop_before(federation, fleet_pb2.TRAIN)

    def fewer(message: sealing_pb2.SealedOpen) -> None:
        del message.dealings[0]

    with refused(FailureName.COHORT_NOT_EPOCH):
        federation.ask(fleet_pb2.TRAIN, A, rewrite(Open, exchange.bodies[A], fewer))


def test_impossible_parameters(tmp_path: Path) -> None:
    for members, sealing in ((2, "colluding = 1"), (4, "colluding = 3"), (5, "max_missing = 2"), (101, "")):
        with refused(FailureName.PARAMETERS_IMPOSSIBLE):
            planned(specify(sealing, "min_cohort = 2"), members)
    with refused(FailureName.PARAMETERS_IMPOSSIBLE):
        planned(specify(), 2)


def test_a_node_whose_policy_asks_for_more(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 5, specify("colluding = 0"))
    body = share_body(federation)
    member = federation.members[A]
    for rules in (NodeRules(), replace(member.context.rules, min_cohort=6)):
        set_context(member, rules=rules)
        with refused(FailureName.PARAMETERS_IMPOSSIBLE):
            federation.ask(fleet_pb2.SHARE, A, body)
