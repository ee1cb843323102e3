"""Real agents in processes of their own, over TLS, against the coordinator's real fleet port; training is real."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from confide import journal
from confide.codec.tensors import TensorSchema
from confide.models.store import ModelStore
from confide.models.trainable import initial_state
from confide.proto import fleet_pb2, sealing_pb2
from confide.runs.specification import Specification
from confide_server.fleet.flower import FleetLink, FleetReply, FleetSession
from confide_simulations.forks import Fork, shared

from tests.node_worlds import Instructions, World, faq, opened
from tests.tiny_models import tiny_llama
from tests.training_specs import specification
from tests.waiting import until

ROOT = Path(__file__).resolve().parent.parent.parent
NODES = ("node-a", "node-b")
LIMIT_BYTES = 2**26


@contextmanager
def agent(world: World, node: str, *, loss_s: float = 0.0) -> Iterator[Fork]:
    """A running agent; killed when the block ends if it still runs.

    loss_s: how much longer each loss takes; and as long as there is a file `hold` in the world's folder.
    """
    log, folder = (world.root / f"{node}.log").open("ab"), str(world.root / node)
    if loss_s:
        process = shared().start(
            "tests.slow_node", [folder], log.fileno(), directory=ROOT,
            environment={"CONFIDE_TEST_LOSS_S": str(loss_s), "CONFIDE_TEST_HOLD": str(world.root / "hold")},
        )  # fmt: skip
    else:
        process = shared().start("confide", ["node", "start", folder], log.fileno())
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        log.close()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("models")
    source = tiny_llama(folder / "tiny")
    return folder / "store", ModelStore(folder / "store").add(str(source), "tiny")


@pytest.fixture
def world(tmp_path: Path, base: tuple[Path, str]) -> World:
    made = World.make(tmp_path, NODES)
    for i, node in enumerate(NODES):
        made.equip(node, base[1], base[0], faq(tmp_path / f"{node}.jsonl", 12 + i, node))
    return made


@pytest.fixture
def spec(base: tuple[Path, str]) -> Specification:
    return specification(
        model={"sha256": base[1]},
        federation={"rounds": 2, "data": "faq", "min_cohort": 2},
        training={"local_steps": 2, "batch_size": 4, "learning_rate": 1e-2},
    )


def first_model(spec: Specification, base: tuple[Path, str]) -> bytes:
    tensors = initial_state(spec, ModelStore(base[0]).path(base[1]))
    return TensorSchema.of(tensors).encode(tensors)


def ask(
    session: FleetSession, node: str, instruction: bytes, payload: dict[str, bytes], deadline_s: float = 60
) -> FleetReply:
    """Send, once the node is connected, and wait for the one reply."""
    replies = list(session.replies([session.send(node, instruction, payload)], deadline_s))
    assert len(replies) == 1, f"{node} did not answer within {deadline_s} s"
    assert not replies[0].fault, replies[0].fault
    return replies[0]


def connected(link: FleetLink, *nodes: str) -> None:
    until(lambda: all(link.presence()[node].online for node in nodes), 60, f"{nodes} online")


def accepts(session: FleetSession, world: World, node: str, offer: bytes) -> fleet_pb2.OfferAnswer:
    """The node's answer to an offer, once its libraries are loaded."""
    while True:
        reply = ask(session, node, offer, {})
        answer = fleet_pb2.OfferAnswer.FromString(opened(reply.body, world.members[node]).body)
        if not answer.preparing:
            return answer


def test_two_agents_are_offered_a_run_and_train(world: World, spec: Specification, base: tuple[Path, str]) -> None:
    model = first_model(spec, base)
    with world.fleet() as link, agent(world, "node-a") as first, agent(world, "node-b"):
        connected(link, *NODES)
        session, run = link.open_session(None, LIMIT_BYTES), Instructions()
        offer = run.make(fleet_pb2.OFFER, world.offer(spec, model, run.run_id).SerializeToString())
        for node in NODES:
            answer = accepts(session, world, node, offer)
            assert answer.accepted, answer.reason
        train, payload = run.slot(model)
        updates = {}
        for node in NODES:
            reply = ask(session, node, train, payload)
            message = opened(reply.body, world.members[node])
            assert message.WhichOneof("outcome") == "body", message.failure
            upload = sealing_pb2.PlainUpload.FromString(message.body)
            updates[node] = reply.payload["upload"].path.read_bytes()
            assert len(updates[node]) == len(model)
            assert {metric.name for metric in upload.metrics} >= {"train_loss", "eval_loss", "update_norm"}
            assert np.abs(np.frombuffer(updates[node], "<f4")).max() > 0
            again = ask(session, node, train, payload)
            assert again.body == reply.body
            assert again.payload["upload"].path.read_bytes() == updates[node]
        assert updates["node-a"] != updates["node-b"]
        _crash_and_come_back(world, link, session, first, train, payload, updates["node-a"])
        ended = run.make(fleet_pb2.END, world.end(run.run_id).SerializeToString())
        reply = ask(session, "node-b", ended, {})
        assert opened(reply.body, world.members["node-b"]).WhichOneof("outcome") == "body"
        session.end()
    record = json.loads((world.state("node-b").run(run.run_id) / "run.json").read_bytes())
    assert (record["status"], record["links"]["round"], record["uploads"]) == ("ended", 1, 1)
    assert not list((world.state("node-b").run(run.run_id) / "replies").iterdir())


def test_two_runs_over_one_node_train_one_after_the_other_and_the_second_hears_for_how_long(
    world: World, spec: Specification, base: tuple[Path, str]
) -> None:
    model = first_model(spec, base)
    with world.fleet() as link, agent(world, "node-a", loss_s=2.0):
        connected(link, "node-a")
        session, first, second = link.open_session(None, LIMIT_BYTES), Instructions(), Instructions()
        for run in (first, second):
            offer = run.make(fleet_pb2.OFFER, world.offer(spec, model, run.run_id).SerializeToString())
            assert accepts(session, world, "node-a", offer).accepted
        (train, payload), (other, _) = first.slot(model), second.slot(model)
        (world.root / "hold").touch()
        working = session.send("node-a", train, payload)
        log = world.state("node-a").audit
        until(lambda: [e for e in journal.read(log)[0] if e["event"] == "training"], 60, "the first training")
        failure = opened(ask(session, "node-a", other, payload).body, world.members["node-a"]).failure
        assert failure.code == "BUSY" and failure.busy_s >= 1
        offer = second.make(fleet_pb2.OFFER, world.offer(spec, model, second.run_id).SerializeToString())
        answer = fleet_pb2.OfferAnswer.FromString(
            opened(ask(session, "node-a", offer, {}).body, world.members["node-a"]).body
        )
        assert answer.preparing and answer.busy_s >= 1
        (world.root / "hold").unlink()
        (done,) = session.replies([working], 60)
        assert opened(done.body, world.members["node-a"]).WhichOneof("outcome") == "body"
        again = opened(ask(session, "node-a", other, payload).body, world.members["node-a"])
        assert again.WhichOneof("outcome") == "body", again.failure
        session.end()


def _crash_and_come_back(
    world: World,
    link: FleetLink,
    session: FleetSession,
    process: Fork,
    train: bytes,
    payload: dict[str, bytes],
    update: bytes,
) -> None:
    """SIGKILL; a new agent takes the place at once and gives the very same upload."""
    before = link.presence()["node-a"].activations
    process.send_signal(signal.SIGKILL)
    process.wait()
    with agent(world, "node-a") as second:
        until(lambda: link.presence()["node-a"].activations > before, 60, "the second agent's connection")
        assert ask(session, "node-a", train, payload).payload["upload"].path.read_bytes() == update
        second.send_signal(signal.SIGTERM)
        assert second.wait(timeout=60) == 0
    events = [entry["event"] for entry in journal.read(world.state("node-a").audit)[0]]
    assert events.count("training") == 1, "the second agent must not have trained again"
    assert events[-1] == "agent stopped"


def test_an_agent_waits_for_its_coordinator_and_returns_after_a_restart(world: World) -> None:
    with agent(world, "node-a") as process:
        noted = world.state("node-a")
        until(lambda: "cannot be reached" in noted.agent().get("complaint", ""), 60, "the complaint")
        for _ in range(2):
            with world.fleet() as link:
                connected(link, "node-a")
                session, run = link.open_session(None, LIMIT_BYTES), Instructions()
                reply = ask(session, "node-a", run.make(fleet_pb2.CONFIRM, b""), {})
                failure = opened(reply.body, world.members["node-a"]).failure
                assert failure.code == "StateError" and "unknown" in failure.message
                session.end()
        assert process.poll() is None
        status = subprocess.run(
            [sys.executable, "-c", "from confide.cli import main; main()", "node", "status", str(noted.root)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "node-a of trial" in status.stdout
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
