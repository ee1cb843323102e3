"""Simulated crashes: a few seeds, the same bytes for the same seed, and planted bugs that are found.

`confide chaos --seeds 10000` is the long form (docs/simulations.md).
"""

import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from confide.errors import SpecificationError
from confide.sealing import crash_points
from confide_simulations.chaos import campaign, scenario
from confide_simulations.chaos.boundary import Boundaries, Doom, Killed
from confide_simulations.chaos.consortium import Ground
from confide_simulations.chaos.disk import Disk
from confide_simulations.chaos.scenario import COORDINATOR_BOUNDARIES, NODE_BOUNDARIES, Fault, draw
from confide_simulations.chaos.worker import ground, run_seed
from confide_simulations.chaos.world import World
from confide_simulations.commands.chaos import chaos

SEEDS = 40


@pytest.fixture(scope="module")
def shared() -> Iterator[Ground]:
    with ground() as made:
        yield made


@pytest.fixture(scope="module")
def report() -> campaign.Report:
    made = campaign.Report()
    with campaign.Worker(0, SEEDS, 1) as worker:
        for line in worker.results():
            made.take(line)
    return made


def test_what_must_hold_holds_in_every_seed(report: campaign.Report) -> None:
    document = report.document()
    assert document["violations"] == []
    assert document["seeds"] == SEEDS
    assert document["faults_per_seed"] >= 3
    # A process may die with its machine or without it, and most runs end well all the same.
    assert {Fault.KILL, Fault.POWER_LOSS, Fault.PARTITION, Fault.FULL_DISK} <= set(document["faults"])
    assert report.ends["run_finished"] > SEEDS / 2


@pytest.mark.parametrize("bug", ["masks-repeated", "replies-forgotten", "weights-twice"])
def test_a_planted_bug_is_found(shared: Ground, bug: str) -> None:
    assert any(run_seed(seed, shared, bug).violations for seed in range(40))


@pytest.mark.full
@pytest.mark.timeout(7200)
def test_ten_thousand_seeds_and_every_planted_bug() -> None:
    report = campaign.run(10_000, processes=os.cpu_count() or 1, bugs=campaign.names_of_bugs())
    assert report.violations == []
    assert all(report.planted.values()), report.planted
    assert report.document()["faults_per_seed"] >= 3
    boundaries = {*COORDINATOR_BOUNDARIES, *NODE_BOUNDARIES}
    assert boundaries <= set(report.kills), boundaries - set(report.kills)


def test_the_same_seed_gives_the_same_bytes_in_another_process(report: campaign.Report) -> None:
    seed = next(seed for seed, killed in report.killed.items() if killed)
    lines = campaign.trace(seed)
    assert lines[-1] == f"trace: {report.traces[seed]}"
    assert any("dies at" in line for line in lines)


def test_a_seed_without_faults_finishes_and_passes_known_boundaries_only(shared: Ground, tmp_path: Path) -> None:
    drawn = draw(3, shared.base_sha256)
    calm = scenario.Scenario(
        nodes=3,
        groups=1,
        runs=1,
        specification=drawn.specification,
        dooms=(),
        troubles=(),
        slow_s=0.01,
        repeats=0.0,
        loses=0.0,
    )
    world = World(3, shared, tmp_path, calm)
    outcome = world.run()
    assert (outcome.ends, outcome.violations, dict(outcome.faults)) == (("run_finished",), (), {})
    known = {*COORDINATOR_BOUNDARIES, *NODE_BOUNDARIES, "roster.json written", "roster.json synced"}
    assert set(world.boundaries.passed) <= known
    world.say(f"cannot write {tmp_path}/hospital-a/run.json")  # each process has its seeds elsewhere
    assert world.lines[-1].endswith("cannot write ./hospital-a/run.json")


def test_every_named_moment_of_the_protocol_can_be_died_at() -> None:
    documented = re.findall(r"^    ((?:member|collector)\.\w+)", crash_points.__doc__ or "", re.MULTILINE)
    assert sorted((*scenario.MEMBER_MOMENTS, *scenario.COLLECTOR_MOMENTS)) == sorted(documented)


def test_power_takes_what_was_not_synced_and_nothing_else(tmp_path: Path) -> None:
    outcomes = set()
    for number in range(60):
        folder = tmp_path / str(number)
        folder.mkdir()
        disk = Disk(folder, lambda boundary: None, lambda: False, ["node"])
        home = folder / "node"
        home.mkdir()
        path = home / "journal"
        path.write_bytes(b"durable")
        for each in (path, home):
            descriptor = os.open(each, os.O_RDONLY)
            disk.fsync(descriptor)
            os.close(descriptor)
        with path.open("ab") as file:
            file.write(b"-and-more")
        (home / "new").write_bytes(b"x")
        disk.lose_power(home, random.Random(number))
        assert path.read_bytes().startswith(b"durable")
        outcomes.add((len(path.read_bytes()), (home / "new").exists()))
    sizes = {size for size, _ in outcomes}
    assert {7, 16} < sizes and {there for _, there in outcomes} == {True, False}


def test_a_disk_that_was_not_to_lose_power_does_not(tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    disk = Disk(tmp_path, lambda boundary: None, lambda: False, ["coordinator"])
    with pytest.raises(ValueError, match="was not to lose power"):
        disk.lose_power(tmp_path / "node", random.Random(0))


def test_power_may_bring_a_replaced_file_back(tmp_path: Path) -> None:
    contents = set()
    for number in range(40):
        folder = tmp_path / str(number)
        folder.mkdir()
        disk = Disk(folder, lambda boundary: None, lambda: False, ["node"])
        home = folder / "node"
        home.mkdir()
        (home / "state").write_bytes(b"old")
        disk.settle(home)
        (home / "temporary").write_bytes(b"new")
        descriptor = os.open(home / "temporary", os.O_RDONLY)
        disk.fsync(descriptor)
        os.close(descriptor)
        (home / "temporary").replace(home / "state")
        disk.lose_power(home, random.Random(number))
        contents.add((home / "state").read_bytes())
    assert contents == {b"old", b"new"}


def test_who_is_dead_reaches_nothing_any_more() -> None:
    told: list[tuple[str, str]] = []
    boundaries = Boundaries(lambda: "node", lambda process, boundary: told.append((process, boundary)))
    boundaries.dooms.append(Doom("node", "reply TRAIN", 2))
    boundaries.reached("reply TRAIN")
    for boundary in ("reply TRAIN", "anything"):
        with pytest.raises(Killed):
            boundaries.reached(boundary)
    assert told == [("node", "reply TRAIN")]
    boundaries.born("node")
    boundaries.reached("anything")


def test_an_unknown_bug_is_refused_by_name() -> None:
    with pytest.raises(SpecificationError, match="known are uploads-not-synced, "):
        chaos(planted=["typo"])
