"""A lying coordinator at CONFIRM and REVEAL: lists, quorums, kinds of shares."""

from collections.abc import Callable
from pathlib import Path

import pytest
from confide.errors import FailureName
from confide.proto import fleet_pb2, sealing_pb2
from confide.sealing.roles import Opened

from tests.attacks.liar import A, B, D, E, finish, refused, rewrite, stop_before
from tests.private_federation import private
from tests.sealing_harness import Federation

Confirm = sealing_pb2.ConfirmRequest
Reveal = sealing_pb2.RevealRequest


def without(name: str) -> Callable[[Confirm | Reveal], None]:
    def change(message: Confirm | Reveal) -> None:
        kept = [item for item in message.survivors if item.node != name]
        del message.survivors[:]
        message.survivors.extend(kept)

    return change


def test_a_second_list_is_not_signed(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 5)
    body = stop_before(federation, fleet_pb2.CONFIRM).bodies[A]
    first, _ = federation.ask(fleet_pb2.CONFIRM, A, body)
    with refused(FailureName.TWO_LISTS):
        federation.ask(fleet_pb2.CONFIRM, A, rewrite(Confirm, body, without(E)))
    assert federation.ask(fleet_pb2.CONFIRM, A, body)[0] == first
    finish(federation)
    assert isinstance(federation.collector.outcome, Opened)


def test_a_list_that_differs_in_a_digest_only_is_a_second_list(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 5)
    body = stop_before(federation, fleet_pb2.CONFIRM).bodies[A]
    federation.ask(fleet_pb2.CONFIRM, A, body)

    def other_digest(message: Confirm) -> None:
        message.survivors[1].upload_digest = bytes(32)

    with refused(FailureName.TWO_LISTS):
        federation.ask(fleet_pb2.CONFIRM, A, rewrite(Confirm, body, other_digest))


def test_a_reveal_over_another_list_than_the_signed_one(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 5)
    body = stop_before(federation, fleet_pb2.REVEAL).bodies[A]

    def smaller(message: Reveal) -> None:
        without(E)(message)
        kept = [item for item in message.confirmations if item.node != E]
        del message.confirmations[:], message.self_masks[-1:]
        message.confirmations.extend(kept)
        message.mask_secrets.append(E)

    with refused(FailureName.TWO_LISTS):
        federation.ask(fleet_pb2.REVEAL, A, rewrite(Reveal, body, smaller))


def test_a_reveal_before_any_list_was_signed(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 5)
    confirm = Confirm.FromString(stop_before(federation, fleet_pb2.CONFIRM).bodies[A])
    early = Reveal(version=1, slot=confirm.slot, context=confirm.context, survivors=confirm.survivors)
    with refused(FailureName.TWO_LISTS):
        federation.ask(fleet_pb2.REVEAL, A, early.SerializeToString(deterministic=True))


def test_a_list_below_the_smallest_size(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 5)
    body = stop_before(federation, fleet_pb2.CONFIRM).bodies[A]
    smaller = rewrite(Confirm, rewrite(Confirm, body, without(E)), without(D))
    with refused(FailureName.LIST_TOO_SMALL):
        federation.ask(fleet_pb2.CONFIRM, A, smaller)


def test_a_list_with_too_little_noise(tmp_path: Path) -> None:
    """Under organization level a smaller sum is not only smaller: its noise would not keep the promise."""
    federation = private(tmp_path)
    body = stop_before(federation, fleet_pb2.CONFIRM).bodies[A]
    smaller = rewrite(Confirm, rewrite(Confirm, body, without(E)), without(D))
    with refused(FailureName.NOISE_INSUFFICIENT):
        federation.ask(fleet_pb2.CONFIRM, A, smaller)


def test_a_node_that_is_left_out_signs_nothing(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 5)
    body = stop_before(federation, fleet_pb2.CONFIRM).bodies[A]
    with refused(FailureName.OMITTED_SELF):
        federation.ask(fleet_pb2.CONFIRM, A, rewrite(Confirm, body, without(A)))

    def swapped(message: Confirm) -> None:
        message.survivors[0].upload_digest = message.survivors[1].upload_digest

    with refused(FailureName.OMITTED_SELF):
        federation.ask(fleet_pb2.CONFIRM, A, rewrite(Confirm, body, swapped))


def test_a_survivor_from_outside_the_epoch(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 5)
    body = stop_before(federation, fleet_pb2.CONFIRM).bodies[A]

    def stranger(message: Confirm) -> None:
        message.survivors.add(node="hospital-99", upload_digest=bytes(32))

    with refused(FailureName.COHORT_NOT_EPOCH):
        federation.ask(fleet_pb2.CONFIRM, A, rewrite(Confirm, body, stranger))


def test_too_few_signatures_reveal_nothing(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 5)
    body = stop_before(federation, fleet_pb2.REVEAL).bodies[A]

    def fewer(message: Reveal) -> None:
        del message.confirmations[3:]

    with refused(FailureName.QUORUM_SHORT):
        federation.ask(fleet_pb2.REVEAL, A, rewrite(Reveal, body, fewer))


def test_one_signer_counts_once(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 5)
    body = stop_before(federation, fleet_pb2.REVEAL).bodies[A]

    def doubled(message: Reveal) -> None:
        del message.confirmations[2:]
        message.confirmations.extend(list(message.confirmations))

    with refused(FailureName.DUPLICATE_SIGNER):
        federation.ask(fleet_pb2.REVEAL, A, rewrite(Reveal, body, doubled))


def test_a_signer_from_outside_the_list(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 5)
    body = stop_before(federation, fleet_pb2.REVEAL).bodies[A]

    def stranger(message: Reveal) -> None:
        message.confirmations[-1].node = "hospital-99"

    with refused(FailureName.COHORT_NOT_EPOCH):
        federation.ask(fleet_pb2.REVEAL, A, rewrite(Reveal, body, stranger))


def test_both_secrets_of_one_member(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 5)
    body = stop_before(federation, fleet_pb2.REVEAL).bodies[A]

    def both(message: Reveal) -> None:
        message.mask_secrets.append(B)

    def the_other(message: Reveal) -> None:
        message.self_masks.remove(B)
        message.mask_secrets.append(B)

    for change in (both, the_other):
        with refused(FailureName.BOTH_KINDS):
            federation.ask(fleet_pb2.REVEAL, A, rewrite(Reveal, body, change))
    federation.ask(fleet_pb2.REVEAL, A, body)
    with refused(FailureName.BOTH_KINDS):
        federation.ask(fleet_pb2.REVEAL, A, rewrite(Reveal, body, both))


def test_its_own_mask_secret(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 5)
    body = stop_before(federation, fleet_pb2.REVEAL).bodies[A]

    def own(message: Reveal) -> None:
        message.mask_secrets.append(A)

    with refused(FailureName.OWN_SECRET_ASKED):
        federation.ask(fleet_pb2.REVEAL, A, rewrite(Reveal, body, own))


def test_a_context_or_signature_of_something_else(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 5)
    confirm = stop_before(federation, fleet_pb2.CONFIRM).bodies[A]

    def other_context(message: Confirm | Reveal) -> None:
        message.context = bytes(32)

    with refused(FailureName.CONTEXT_MISMATCH):
        federation.ask(fleet_pb2.CONFIRM, A, rewrite(Confirm, confirm, other_context))
    for node, body in federation.collector.exchange().bodies.items():  # type: ignore[union-attr]
        federation.collector.receive(node, *federation.ask(fleet_pb2.CONFIRM, node, body))
    federation.collector.close_exchange()
    body = federation.collector.exchange().bodies[A]  # type: ignore[union-attr]

    def forged(message: Reveal) -> None:
        message.confirmations[2].signature = message.confirmations[1].signature

    def promoted(message: Reveal) -> None:
        message.confirmations[2].anchored = not message.confirmations[2].anchored

    for change in (other_context, forged, promoted):
        with refused(FailureName.CONTEXT_MISMATCH):
            federation.ask(fleet_pb2.REVEAL, A, rewrite(Reveal, body, change))


@pytest.mark.parametrize("count", [3, 5])
def test_the_same_question_gets_the_same_bytes(tmp_path: Path, count: int) -> None:
    federation = Federation(tmp_path, count)
    federation.slot()
    federation.epoch()
    for step in (fleet_pb2.TRAIN, fleet_pb2.CONFIRM, fleet_pb2.REVEAL):
        exchange = stop_before(federation, step) if step == fleet_pb2.TRAIN else federation.collector.exchange()
        assert exchange is not None and exchange.step == step
        for node, body in exchange.bodies.items():
            one, two = federation.ask(step, node, body), federation.ask(step, node, body)
            assert one == two
            federation.collector.receive(node, *one)
        federation.collector.close_exchange()
    assert isinstance(federation.collector.outcome, Opened)
