"""SIGKILL to real processes at every persist/send boundary of sealing: the run goes on, and nothing is said twice.

The nodes are stand-ins without torch; agent, transport, sealing and driver are the product's own. What each of them
contributes is known, so the model after every round can be computed from who contributed.
"""

import itertools
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from confide.sealing import crash_points
from confide_simulations.processes import ProcessGroup

from tests.kill_worlds import COORDINATOR, MEMBERS, VICTIM, Killed, KillWorld, check_logs, check_rounds

# Alone, in the second round where the boundary is passed in each, so that there is a round that could be lost.
MEMBER_EPOCH = ("member.epoch_written", "member.bundle_ready", "member.dealt")
MEMBER_SLOT = (
    "member.reserved:2",
    "member.trained:2",
    "member.upload_written:2",
    "member.spent:2",
    "member.list_written:2",
    "member.memory_written:2",
    "member.reveal_written:2",
    "member.ended:2",
)
COLLECTOR_EPOCH = (
    "collector.epoch_written",
    "collector.bundle_kept:2",
    "collector.dealing_kept:2",
    "collector.epoch_stands",
)
COLLECTOR_SLOT = (
    "collector.slot_written:2",
    "collector.upload_kept:6",
    "collector.list_written:2",
    "collector.confirmation_kept:6",
    "collector.quorum_written:2",
    "collector.reveal_kept:6",
    "collector.decided:2",
    "collector.ended:2",
)
EVERY_MOMENT = (*MEMBER_EPOCH, *MEMBER_SLOT, *COLLECTOR_EPOCH, *COLLECTOR_SLOT)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KillWorld]:
    with ProcessGroup() as processes:
        made = KillWorld(tmp_path_factory.mktemp("kills"), processes)
        made.start()
        yield made


def names(moments: tuple[str, ...]) -> list[str]:
    """Without their counts."""
    return [moment.partition(":")[0] for moment in moments]


def check(killed: Killed) -> None:
    """What holds wherever the process died. A slot that was cut short went on: no round needed a second attempt."""
    check_rounds(killed)
    check_logs(killed)
    assert killed.slots == list(range(1, killed.rounds + 1))
    assert [entry["attempts"] for entry in killed.manifest["rounds"]] == [1] * killed.rounds


def test_a_stand_in_never_imports_torch() -> None:
    modules = "sys, confide_simulations.benchmarks.fleet.stand_in, confide.sealing.factory"
    command = [sys.executable, "-c", f"import {modules}; sys.exit('torch' in sys.modules)"]
    assert subprocess.run(command, check=False).returncode == 0


def test_every_named_boundary_is_killed_at() -> None:
    documented = re.findall(r"^    ((?:member|collector)\.\w+)", crash_points.__doc__ or "", re.MULTILINE)
    assert sorted(names(EVERY_MOMENT)) == sorted(documented)


def test_a_member_killed_at_each_of_its_boundaries_round_after_round(world: KillWorld) -> None:
    # The last three in one breath: a node that never gets into an epoch must not keep the others from theirs.
    moments = [*names(MEMBER_SLOT), "member.dealt", "member.epoch_written", "member.bundle_ready"]
    killed = world.kill_in_a_run("member-kills", moments, rounds=len(moments) + 3)
    check(killed)
    contributors = [entry["contributors"] for entry in killed.manifest["rounds"]]
    # Killed before its upload left, it is left out; after, it is in the sum of that round.
    assert VICTIM not in contributors[0]
    assert any(VICTIM in each for each in contributors[1:-1])
    assert len(contributors[-1]) == MEMBERS


def test_a_coordinator_killed_again_and_again_ends_the_slot_that_it_began(world: KillWorld) -> None:
    moments = ["collector.epoch_stands", "collector.upload_kept:2", "collector.quorum_written", "collector.decided"]
    check_one_slot(world, "collector-kills", moments)


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_coordinator_killed_at_each_boundary_of_one_epoch_and_slot(world: KillWorld) -> None:
    check_one_slot(world, "all-collector-kills", names((*COLLECTOR_EPOCH, *COLLECTOR_SLOT)))


def check_one_slot(world: KillWorld, name: str, moments: list[str]) -> None:
    killed = world.kill_in_a_run(name, moments, rounds=2)
    check(killed)
    assert [len(entry["contributors"]) for entry in killed.manifest["rounds"]] == [MEMBERS] * 2


@pytest.mark.full
@pytest.mark.timeout(5400)
@pytest.mark.parametrize(("of_member", "of_coordinator"), [(6, 2), (75, 25)])
def test_a_hundred_kills_in_one_run(world: KillWorld, of_member: int, of_coordinator: int) -> None:
    doomed = {
        VICTIM: list(itertools.islice(itertools.cycle(names(MEMBER_SLOT)), of_member)),
        COORDINATOR: list(itertools.islice(itertools.cycle(names(COLLECTOR_SLOT)), of_coordinator)),
    }
    kills = of_member + of_coordinator
    killed = world.kill_several_in_a_run(f"kills-{kills}", doomed, rounds=kills + kills // 2)
    check_rounds(killed)
    check_logs(killed)
    # A killed node costs at most its round, a killed coordinator at most one slot.
    missing = [entry for entry in killed.manifest["rounds"] if VICTIM not in entry["contributors"]]
    assert len(missing) <= kills
    assert all(len(entry["contributors"]) >= MEMBERS - 1 for entry in killed.manifest["rounds"])
    assert len(killed.slots) <= killed.rounds + of_coordinator


@pytest.mark.full
@pytest.mark.parametrize("moment", EVERY_MOMENT)
def test_a_kill_at_one_boundary_loses_and_repeats_nothing(world: KillWorld, moment: str) -> None:
    killed = world.kill_in_a_run("kill-" + re.sub(r"[^a-z0-9]", "-", moment), [moment], rounds=3)
    check(killed)
    if moment in COLLECTOR_SLOT:
        assert [len(entry["contributors"]) for entry in killed.manifest["rounds"]] == [MEMBERS] * 3
