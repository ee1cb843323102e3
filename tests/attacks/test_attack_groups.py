"""A coordinator that would choose who is summed with whom: it moves members between the groups that the root fixed."""

from pathlib import Path

from confide.errors import FailureName
from confide.proto import fleet_pb2, sealing_pb2
from confide.sealing.collector import SealedCollector

from tests.attacks.liar import A, B, C, D, refused, rewrite, stop_before
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
