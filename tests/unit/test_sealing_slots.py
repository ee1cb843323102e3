"""Whole epochs and slots through the real members and the real collector."""

import errno
from pathlib import Path

import numpy as np
import pytest
from confide.proto import fleet_pb2
from confide.runs.metrics import Metric
from confide.sealing.member import slot as member_slot
from confide.sealing.roles import Abandoned, Opened

from tests.sealing_harness import Federation, names, specify


def assert_sum(federation: Federation, outcome: object, contributors: tuple[str, ...], slot: int) -> None:
    assert isinstance(outcome, Opened), outcome
    assert outcome.contributors == contributors
    expected = federation.expected_sum(contributors, slot)
    rms = float(np.sqrt(np.mean((outcome.update_sum - expected) ** 2)))
    assert rms < 1e-3 * 1.0 * len(contributors)
    assert outcome.weight_sum == len(contributors)
    losses = [1.0 + int(name[-2:]) for name in contributors]
    total, count = outcome.metrics[Metric.TRAIN_LOSS]
    assert total == pytest.approx(sum(losses), abs=1e-6) and count == len(contributors)


def test_several_slots_in_one_epoch_and_the_next_epoch(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 5)
    for slot in range(1, 7):
        assert_sum(federation, federation.slot(), names(5), slot)
    advertised = {body for step, _, body, _ in federation.seen if step == fleet_pb2.ADVERTISE}
    assert len(advertised) == 2
    assert not federation.failures
    assert isinstance(federation.collector.outcome, Opened)
    assert federation.collector.outcome.promise["words"] == (
        "with 5 organizations, the coordinator and any 1 of them together learn nothing about another beyond the sum "
        "of the others; 1 may be missing"
    )


@pytest.mark.parametrize("step", [fleet_pb2.TRAIN, fleet_pb2.CONFIRM, fleet_pb2.REVEAL])
def test_one_missing_member_of_five_does_not_matter(tmp_path: Path, step: fleet_pb2.Step) -> None:
    federation = Federation(tmp_path, 5)
    outcome = federation.slot({step: names(5)[2:3]})
    expected = tuple(name for name in names(5) if step != fleet_pb2.TRAIN or name != names(5)[2])
    assert_sum(federation, outcome, expected, 1)
    assert_sum(federation, federation.slot(), names(5), 2)


@pytest.mark.parametrize(
    ("step", "code"),
    [
        (fleet_pb2.TRAIN, "LIST_TOO_SMALL"),
        (fleet_pb2.CONFIRM, "QUORUM_SHORT"),
        (fleet_pb2.REVEAL, "QUORUM_SHORT"),
    ],
)
def test_more_missing_than_d_abandons_and_training_goes_on(tmp_path: Path, step: fleet_pb2.Step, code: str) -> None:
    federation = Federation(tmp_path, 5)
    outcome = federation.slot({step: names(5)[:2]})
    assert isinstance(outcome, Abandoned) and outcome.code == code
    retry = federation.slot(round=1, attempt=2)
    assert_sum(federation, retry, names(5), 2)


@pytest.mark.parametrize("step", [fleet_pb2.ADVERTISE, fleet_pb2.SHARE])
def test_members_lost_while_the_epoch_is_made_are_not_in_it(tmp_path: Path, step: fleet_pb2.Step) -> None:
    federation = Federation(tmp_path, 5)
    assert_sum(federation, federation.slot({step: names(5)[4:]}), names(4), 1)
    assert_sum(federation, federation.slot(), names(5), 2)


def test_a_restarted_member_is_missed_once_and_then_in_a_new_epoch(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 5)
    federation.slot()
    federation.restart_member("hospital-01")
    others = tuple(name for name in names(5) if name != "hospital-01")
    assert_sum(federation, federation.slot(), others, 2)
    assert federation.failures["hospital-01", "TRAIN"].code == "EPOCH_REPLAYED"
    assert_sum(federation, federation.slot(), names(5), 3)


def test_evaluation_slots_carry_metrics_only(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 3, specify("colluding = 0"))
    outcome = federation.slot(evaluate_only=True)
    assert isinstance(outcome, Opened)
    assert outcome.update_sum.shape == (0,)
    total, count = outcome.metrics[Metric.EVAL_ACCURACY]
    assert (round(total, 6), count) == (1.5, 3)


def test_who_cannot_enter_an_epoch_is_asked_again_after_a_slot_of_it(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 5)
    collector, here = federation.collector, names(5)
    silent = {fleet_pb2.SHARE: names(5)[4:]}
    federation.slot({fleet_pb2.TRAIN: names(5)[:2]})
    assert isinstance(collector.outcome, Abandoned)
    collector._attendance.renew = True
    assert collector.epoch_needed(here)
    collector.begin_epoch(here)
    assert collector.outcome is None
    federation.drive(silent)
    assert not collector.epoch_needed(here)
    assert collector.epoch_needed(names(3))
    federation.restart_collector()
    collector = federation.collector
    assert not collector.epoch_needed(here)
    collector.open_slot(federation.plan(round=1, attempt=2))
    outcome = federation.drive()
    assert isinstance(outcome, Opened) and outcome.contributors == names(4)
    federation.end(outcome)
    assert collector.epoch_needed(here)


def test_a_slot_without_an_epoch_is_abandoned_and_charges_nobody(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 3)
    federation.collector.begin_epoch(names(1))
    federation.drive()
    federation.collector.open_slot(federation.plan())
    outcome = federation.collector.outcome
    assert isinstance(outcome, Abandoned) and outcome.code == "PARAMETERS_IMPOSSIBLE"
    assert federation.collector.exchange() is None
    federation.end(outcome)
    assert not any(event["event"] == "reserved" for event in federation.members["hospital-00"].context.log.journal)


@pytest.mark.parametrize(("bits", "allowed"), [(16, 1e-3), (8, 2e-2)])
def test_the_opened_sum_agrees_with_the_plain_sum(tmp_path: Path, bits: int, allowed: float) -> None:
    federation = Federation(tmp_path, 4, specify(f"bits = {bits}"), size=20_000)
    outcome = federation.slot()
    assert isinstance(outcome, Opened)
    expected = federation.expected_sum(names(4), 1)
    # Stricter than the RMS over coordinates: the whole error vector, of the mean, against a clipping norm of 1.
    assert float(np.linalg.norm(outcome.update_sum - expected)) / 4 < allowed


def test_a_clip_that_follows_the_learning_rate_is_that_of_both_sides(tmp_path: Path) -> None:
    """One of three steps in the first round: updates of norm 0.9 are clipped to sqrt(1/3), then fit under 1."""
    federation = Federation(
        tmp_path, 4, specify(federation='clip_schedule = "learning_rate"\nwarm_start_rounds = 1\nwarm_start_steps = 1')
    )
    for slot, clip in ((1, round(3**-0.5 * 1024) / 1024), (2, 1.0)):
        outcome = federation.slot()
        assert isinstance(outcome, Opened)
        expected = federation.expected_sum(names(4), slot) * min(1.0, clip / 0.9)
        assert np.linalg.norm(outcome.update_sum - expected) < 4e-4


def test_a_disk_that_is_full_when_the_upload_is_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation, full = Federation(tmp_path, 4), tmp_path / names(4)[1]

    def fsync(path: Path) -> None:
        if path.is_relative_to(full):
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as inner:
        inner.setattr(member_slot, "fsync_file", fsync)
        outcome = federation.slot()
    assert isinstance(outcome, Opened) and names(4)[1] not in outcome.contributors
    failure = federation.failures[names(4)[1], "TRAIN"]
    assert failure.code == "RetryableError" and "Free space" in str(failure) and str(tmp_path) not in str(failure)
    again = federation.slot()
    assert isinstance(again, Opened) and again.contributors == names(4)
