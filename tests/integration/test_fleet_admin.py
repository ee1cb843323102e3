"""The administration service of a real coordinator with nodes on its real fleet port."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from confide.identity.member import load_member
from confide.transport.admin import AdminClient
from confide_server.coordinator.process import Coordinator, changed, read_settings, write_settings
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest

from tests.coordinator_world import World, specification
from tests.fleet_node import FleetNode, invented_update
from tests.waiting import until


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.create(tmp_path)


@pytest.fixture
def coordinator(world: World) -> Iterator[Coordinator]:
    write_settings(world.server, changed(read_settings(world.server), {"metrics_port": 0, "max_concurrent_runs": 2}))
    coordinator = Coordinator(world.server)
    coordinator.start()
    yield coordinator
    coordinator.stop()


@pytest.fixture
def client(world: World, coordinator: Coordinator) -> Iterator[AdminClient]:
    member = load_member(world.of("administrator"))
    with AdminClient.of_member(member, f"127.0.0.1:{coordinator.control_port}") as client:
        yield client


def test_an_administrator_follows_and_steers_a_run_of_real_nodes(
    world: World, coordinator: Coordinator, client: AdminClient
) -> None:
    def slowly(name: str, round: int, size: int, model: bytes) -> np.ndarray:
        time.sleep(0.3)
        return invented_update(name, round, size, model)

    nodes = [FleetNode(world.of(name), coordinator.fleet_port, slowly).start() for name in world.node_names]
    try:
        until(lambda: [one.state for one in client.list_members("node").members] == ["connected"] * 3)
        submission = world.submission(specification(rounds=6), np.zeros(100, dtype="<f4"))
        run_id = coordinator.book.submit(submission)
        stream = client.stream_events(run_id)
        next(event for event in stream if event.kind == "round_committed")
        assert client.pause_run(run_id, "a short rest").status == "paused"
        until(lambda: client.get_run(run_id).run.detail == "rests")
        done = client.get_run(run_id).run.round
        time.sleep(1.0)
        assert client.get_run(run_id).run.round == done
        client.resume_run(run_id)
        ended = next(event for event in stream if event.kind == "run_finished")
        assert ended.run_finished.rounds == 6
        stream.close()
        phases = client.all_rounds(run_id)[0].phases
        assert 0.3 <= phases["train"] < 30
        status = client.server_status()
        assert status.nodes_connected == 3 and all(thread.alive for thread in status.threads)
        assert status.runs["finished"] == 1 and coordinator.metrics_port
        _a_node_that_is_stopped_or_revoked_stays_out(world, client, nodes)
    finally:
        for node in nodes:
            node.stop()


def _a_node_that_is_stopped_or_revoked_stays_out(world: World, client: AdminClient, nodes: list[FleetNode]) -> None:
    world.consortium.revoke("hospital-c")
    assert client.take_roster(world.consortium.roster.signed).revoked == ["hospital-c"]
    beat = SendNodeHeartbeatRequest(node=nodes[2].node, heartbeat_interval=30)
    for again in (lambda: nodes[2].client.SendNodeHeartbeat(beat), nodes[2].activate):
        with pytest.raises(Exception, match="401"):
            again()
    states = {one.name: one.state for one in client.list_members("node").members}
    assert states == {"hospital-a": "connected", "hospital-b": "connected", "hospital-c": "revoked"}
