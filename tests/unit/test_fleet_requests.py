"""How many requests a round takes, counted where the node sends them: small messages travel inside polls."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from confide_client.agent.envelope import pack, unpack
from confide_client.agent.fleet import FleetLink, FleetSettings
from confide_server.coordinator.process import Coordinator
from flwr.app import Message

from tests.coordinator_world import World, specification
from tests.fleet_node import FleetNode
from tests.integration.test_fleet_run import wait_end

ROUNDS = 4
SIZE = 10
GOAL = 20
"""Requests of one node in an empty sealed round."""


class Counting(FleetNode):
    """A node whose messages travel over the agent's own connection, which notes each request."""

    earlier = False
    """Whether the coordinator is one of an earlier release, which does not know the calls of today."""

    def __init__(self, folder: Path, port: int, size: int = SIZE) -> None:
        super().__init__(folder, port, size=size)
        self.requests: Counter[str] = Counter()
        settings = FleetSettings(
            coordinator=f"127.0.0.1:{port}",
            fleet_key=self.key,
            ca_pem=self.local.ca_certificate_path.read_text(),
            node_id_path=folder / "fleet-node.json",
        )
        self.link = FleetLink(settings)
        self.link._client._client.event_hooks["request"] = [self._note]
        self.node_id = self.link.node_id

    def _note(self, request: httpx.Request) -> None:
        self.requests[request.url.path.removeprefix("/v1/fleet/")] += 1
        if self.earlier:
            request.url = request.url.copy_with(path=request.url.path.replace("pull-instruction", "unknown"))

    def poll(self) -> bool:
        message = self.link.receive()
        if message is None:
            return False
        reply, upload = self.answer(*unpack(message.content))
        self.link.send(Message(pack(reply, upload), reply_to=message))
        return True

    def stop(self) -> None:
        super().stop()
        self.link.close()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.create(tmp_path, nodes=3)


@pytest.fixture
def coordinator(world: World) -> Iterator[Coordinator]:
    started = Coordinator(world.server)
    started.start()
    yield started
    started.stop()


def run(world: World, coordinator: Coordinator, nodes: list[Counting]) -> list[Counter[str]]:
    """Requests of each node while a sealed run goes from its first to its last round."""
    for node in nodes:
        node.start()
    sealed = specification(sealing="sealed", rounds=ROUNDS, min_cohort=2, clip_norm=100.0, exchange_deadline_s=60.0)
    run_id = coordinator.book.submit(world.submission(sealed, np.zeros(nodes[0].size, dtype="<f4")))
    events = wait_end(coordinator, run_id, 120.0)
    assert events[-1].kind == "run_finished", events
    for node in nodes:
        node.stop()
    assert all(len(event.data["contributors"]) == 3 for event in events if event.kind == "round_committed")
    return [node.requests for node in nodes]


def test_an_empty_sealed_round_takes_a_node_few_requests(world: World, coordinator: Coordinator) -> None:
    nodes = [Counting(world.of(name), coordinator.fleet_port) for name in world.node_names]
    for requests in run(world, coordinator, nodes):
        assert requests["pull-object"] == requests["push-object"] == requests["confirm-message-received"] == 0
        # Offers, the epoch and polls that found nothing are counted too.
        assert sum(requests.values()) / ROUNDS <= GOAL, requests


def test_an_upload_goes_beside_and_the_rest_inside(world: World, coordinator: Coordinator) -> None:
    size = 40_000
    nodes = [Counting(world.of(name), coordinator.fleet_port, size) for name in world.node_names]
    for requests in run(world, coordinator, nodes):
        assert requests["pull-object"] == ROUNDS, "one chunk of the model a round"
        assert requests["confirm-message-received"] == ROUNDS
        assert 0 <= requests["push-object"] <= ROUNDS, "at most one chunk of the upload a round"


def test_a_coordinator_of_an_earlier_release_is_understood(world: World, coordinator: Coordinator) -> None:
    Counting.earlier = True
    try:
        nodes = [Counting(world.of(name), coordinator.fleet_port) for name in world.node_names]
        for requests in run(world, coordinator, nodes):
            assert requests["push-messages"] and not requests["push-reply"]
            assert requests["pull-instruction"] == 1, "asked once, and then as before"
    finally:
        Counting.earlier = False
