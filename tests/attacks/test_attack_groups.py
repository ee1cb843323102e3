"""A coordinator that would choose who is summed with whom: it moves members between the groups that the root fixed."""

from pathlib import Path

import numpy as np
import pytest
from confide.codec.tensors import model_digest
from confide.errors import FailureName
from confide.proto import fleet_pb2, sealing_pb2
from confide.sealing.collector.collector import SealedCollector
from confide.sealing.member.chain import TensorLink

from tests.attacks.liar import A, B, C, D, finish, refused, rewrite, stop_before
from tests.sealing_harness import RUN, Federation, names

GROUPS = {name: "east" if number < 4 else "west" for number, name in enumerate(names(8))}
E, F, G, H = names(8)[4:]


def grouped(folder: Path) -> Federation:
    return Federation(folder, 8, groups=GROUPS)


def test_a_member_of_another_group_is_put_into_an_epoch(tmp_path: Path) -> None:
    """With its own bundle and signature; everyone of the group refuses, and so does the one that was moved."""
    federation = grouped(tmp_path)
    bodies = stop_before(federation, fleet_pb2.SHARE).bodies
    west = sealing_pb2.ShareRequest.FromString(bodies[E]).bundles

    def moved(message: sealing_pb2.ShareRequest) -> None:
        message.bundles.append(west[0])

    for node in (A, D, E):
        with refused(FailureName.COHORT_NOT_EPOCH):
            federation.ask(fleet_pb2.SHARE, node, rewrite(sealing_pb2.ShareRequest, bodies[A], moved))


def test_a_member_of_another_group_takes_the_place_of_one(tmp_path: Path) -> None:
    federation = grouped(tmp_path)
    bodies = stop_before(federation, fleet_pb2.SHARE).bodies
    west = sealing_pb2.ShareRequest.FromString(bodies[E]).bundles

    def exchanged(message: sealing_pb2.ShareRequest) -> None:
        message.bundles[3].CopyFrom(west[0])

    for node in (A, B, C):
        with refused(FailureName.COHORT_NOT_EPOCH):
            federation.ask(fleet_pb2.SHARE, node, rewrite(sealing_pb2.ShareRequest, bodies[A], exchanged))


def test_a_coordinator_that_ignores_the_groups_gets_no_epoch(tmp_path: Path) -> None:
    """One sum over all is no more the coordinator's to choose than a smaller one."""
    federation = grouped(tmp_path)
    federation.collector.close()
    federation.collector = SealedCollector(
        specification=federation.specification,
        roster=federation.roster,
        folder=tmp_path / "liar",
        run_id=RUN,
        schema=federation.schema,
    )
    federation.epoch()
    assert {error.code for error in federation.failures.values()} == {FailureName.COHORT_NOT_EPOCH}
    assert len(federation.failures) == 8
    assert not any(step == fleet_pb2.TRAIN for step, *_ in federation.seen)


def late_west(folder: Path) -> Federation:
    """One round without anybody of the group "west"."""
    federation = grouped(folder)
    for _ in range(2):
        federation.epoch(silent={fleet_pb2.ADVERTISE: {E, F, G, H}})
    federation.collector.open_slot(federation.plan())
    finish(federation)
    return federation


def test_a_late_group_is_shown_another_first_model(tmp_path: Path) -> None:
    """Only what the administrator signed begins a chain; on trust the group opens nothing, as before."""
    federation = late_west(tmp_path)
    signed, federation.first = federation.first, (federation.model + 1).tobytes()
    stop_before(federation, fleet_pb2.ANCHOR)
    for data in (federation.first, federation.model.tobytes(), signed[:-1], b""):
        federation.first = data
        with refused(FailureName.MODEL_CHAIN_BROKEN):
            federation.ask(fleet_pb2.ANCHOR, E, b"")
    federation.first = signed
    with refused(FailureName.MALFORMED):
        federation.ask(fleet_pb2.ANCHOR, E, b"x")
    assert not federation.members[E].context.chain.anchored


@pytest.mark.parametrize("steps", [1.0, 1.5])
def test_a_late_group_is_shown_a_model_beyond_what_the_rounds_can_reach(tmp_path: Path, steps: float) -> None:
    federation = late_west(tmp_path)
    bound = TensorLink(federation.specification, federation.coordinates).bound
    far = np.zeros_like(federation.model)
    far[0] = steps * bound
    federation.model, federation.parent = far, federation.initial_sha256
    federation.epoch()
    federation.collector.open_slot(federation.plan())
    federation.drive()
    assert {node for step, node, *_ in federation.seen if step == fleet_pb2.ANCHOR} == {E, F, G, H}
    refusals = {node: error.code for (node, step), error in federation.failures.items() if step == "TRAIN"}
    assert refusals == (dict.fromkeys(GROUPS, FailureName.MODEL_CHAIN_BROKEN) if steps > 1 else {})


def test_the_first_model_takes_nobody_back(tmp_path: Path) -> None:
    federation = late_west(tmp_path)
    assert federation.slot() is not None
    for name in (A, E):
        chain = federation.members[name].context.chain
        before = chain._last_model()
        federation.ask(fleet_pb2.ANCHOR, name, b"")
        assert chain._last_model() == before
        assert before is not None and before[0] != model_digest(federation.first).hex()


def test_the_first_model_is_not_taken_within_a_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who trained on another model on trust would else sign that it was followed from the first, and reveal."""
    federation = late_west(tmp_path)
    monkeypatch.setattr(federation.collector, "_first_model", lambda: None)
    stop_before(federation, fleet_pb2.CONFIRM)
    with refused(FailureName.MODEL_CHAIN_BROKEN):
        federation.ask(fleet_pb2.ANCHOR, E, b"")
    assert not federation.members[E].context.chain.anchored
    finish(federation)
    assert federation.failures[E, "REVEAL"].code == FailureName.MODEL_CHAIN_BROKEN
