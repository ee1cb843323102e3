"""Whole runs over the real fleet port: what comes out, who is reported, what a restart leaves."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from confide_server.process import Coordinator
from confide_server.runbook import RunEvent

from tests.coordinator_world import World, specification
from tests.fleet_node import FleetNode, invented_update

SIZE = 1000


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World.create(tmp_path)
    yield world
    world.end_processes()


@pytest.fixture
def coordinator(world: World) -> Iterator[Coordinator]:
    coordinator = Coordinator(world.server)
    coordinator.start()
    yield coordinator
    coordinator.stop()


@pytest.fixture
def nodes(world: World, coordinator: Coordinator) -> Iterator[list[FleetNode]]:
    nodes = [FleetNode(world.of(name), coordinator.fleet_port).start() for name in world.node_names]
    yield nodes
    for node in nodes:
        node.stop()


def wait_end(coordinator: Coordinator, run_id: str, limit_s: float = 60.0) -> list[RunEvent]:
    """All events up to the run's end."""
    events: list[RunEvent] = []
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        events += coordinator.book.events(run_id, len(events), 1.0)
        if events and events[-1].kind in ("run_finished", "run_failed", "run_stopped"):
            return events
    raise AssertionError(events)


def test_federated_average_agrees_with_float64(world: World, coordinator: Coordinator, nodes: list[FleetNode]) -> None:
    model = np.random.default_rng(0).normal(size=SIZE).astype("<f4")
    run_id = coordinator.book.submit(world.submission(specification(rounds=3), model))
    events = wait_end(coordinator, run_id)
    assert events[-1].kind == "run_finished", events
    expected = model.astype(np.float64)
    for number in (1, 2, 3):
        updates = [invented_update(name, number, SIZE, b"").astype(np.float64) for name in world.node_names]
        expected += np.mean(updates, axis=0)
    manifest, data = coordinator.book.checkpoint(run_id, None)
    got = np.frombuffer(data, dtype="<f4").astype(np.float64)
    assert np.linalg.norm(got - expected) / np.linalg.norm(expected) < 1e-5
    assert [entry["contributors"] for entry in manifest["rounds"]] == [list(world.node_names)] * 3
    assert len(manifest["chain"]) == 4 and manifest["chain"][-1] == manifest["model_sha256"]
    print([e for e in events if e.kind == "round_committed"])
