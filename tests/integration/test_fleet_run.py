"""Whole runs over the real fleet port: what comes out, who is reported, what a restart leaves."""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from confide.errors import FailureName, ProtocolFailure, TrainingError
from confide.proto import fleet_pb2
from confide.rounds.outer_step import OuterStep
from confide.runs.sections import Outer
from confide_server.coordinator.process import Coordinator, standing
from confide_server.rounds import driver
from confide_server.rounds import round_loop as rounds
from confide_server.state import checkpoints
from confide_server.state.runs.service import RunEvent
from flwr.proto.fleet_pb2 import DeactivateNodeRequest

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


def wait_end(coordinator: Coordinator, run_id: str, limit_s: float = 120.0) -> list[RunEvent]:
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
    nodes[0].precision, nodes[1].precision = "bfloat16", "\x1b[31mfast"
    nodes[1].hardware = fleet_pb2.Hardware(
        cores=2, vector_units=["avx2", "\x1b" * 99] + ["x"] * 99, accelerator="\x07" * 999
    )
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
    # In the nodes' own words, and in no others than two.
    assert [manifest["precision"][name] for name in world.node_names] == [
        "bfloat16",
        "",
        *["float32"] * (len(nodes) - 2),
    ]
    told = {event.data["node"]: event.data["hardware"] for event in events if event.kind == "offer_answered"}
    assert told[world.node_names[0]] == {} and told[world.node_names[1]]["cores"] == 2
    units, accelerator = told[world.node_names[1]]["vector_units"], told[world.node_names[1]]["accelerator"]
    assert (units[0], len(units), len(accelerator)) == ("avx2", 16, 80) and "\x1b" not in units[1] + accelerator
    assert len(manifest["chain"]) == 4 and manifest["chain"][-1] == manifest["model_sha256"]


def test_a_sealed_run_gives_the_same_model_within_rounding(world: World, coordinator: Coordinator) -> None:
    nodes = [FleetNode(world.of(name), coordinator.fleet_port, size=SIZE).start() for name in world.node_names]
    model, clip = np.random.default_rng(0).normal(size=SIZE).astype("<f4"), 100.0
    sealed = specification(sealing="sealed", rounds=2, min_cohort=3, clip_norm=clip)
    run_id = coordinator.book.submit(world.submission(sealed, model))
    events = wait_end(coordinator, run_id)
    for node in nodes:
        node.stop()
    assert events[-1].kind == "run_finished", events
    expected = model.astype(np.float64)
    for number in (1, 2):
        expected += np.mean(
            [invented_update(name, number, SIZE, b"").astype(np.float64) for name in world.node_names], 0
        )
    manifest, data = coordinator.book.checkpoint(run_id, None)
    got = np.frombuffer(data, dtype="<f4").astype(np.float64)
    assert np.linalg.norm(got - expected) / clip < 1e-3
    assert manifest["rounds"][0]["promise"]["kind"] == "sealed"
    steps = [step for step, _ in nodes[0].steps]
    assert steps == ["OFFER", "ADVERTISE", "SHARE", *["TRAIN", "CONFIRM", "REVEAL", "END"] * 2, "END"]
    epoch = next(event for event in events if event.kind == "epoch_started")
    assert epoch.data["members"] == list(world.node_names)


def test_a_sealed_run_pauses_by_name_while_a_member_of_its_block_is_away(tmp_path: Path) -> None:
    world = World.create(tmp_path, nodes=4)
    coordinator = Coordinator(world.server)
    coordinator.start()
    nodes = [FleetNode(world.of(name), coordinator.fleet_port, size=SIZE) for name in world.node_names]
    for node in nodes[:3]:
        node.start()
    model = np.zeros(SIZE, dtype="<f4")
    spec = specification(sealing="sealed", rounds=1, min_cohort=3, clip_norm=100.0, exchange_deadline_s=8.0)
    run_id = coordinator.book.submit(world.submission(spec, model))
    seen: list[RunEvent] = []
    end = time.monotonic() + 60.0
    while "paused" not in kinds(seen) and time.monotonic() < end:
        seen += coordinator.book.events(run_id, len(seen), 1.0)
    detail = coordinator.book.runs()[0].detail
    nodes[3].activate()
    nodes[3].start()
    events = wait_end(coordinator, run_id)
    for node in nodes:
        node.stop()
    manifest, _ = coordinator.book.checkpoint(run_id, None)
    coordinator.stop()
    away = world.node_names[3]
    assert next(event.data for event in events if event.kind == "paused") == {"round": 1, "missing": [away]}
    assert "resumed" in kinds(events) and away in detail
    assert manifest["rounds"][0]["contributors"] == list(world.node_names)
    assert not [event for event in events if event.kind == "slot_abandoned"]


def test_a_model_that_the_nodes_would_refuse_is_not_committed(
    world: World, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [FleetNode(world.of(name), coordinator.fleet_port, size=SIZE).start() for name in world.node_names]
    honest, bent = rounds.next_model, [True]

    def bending(*given: object) -> tuple[bytes, bytes]:
        data, state = honest(*given)  # type: ignore[arg-type]
        return ((np.frombuffer(data, "<f4") + np.float32(50)).tobytes(), state) if bent.pop() else (data, state)

    monkeypatch.setattr(rounds, "next_model", lambda *given: bending(*given) if bent else honest(*given))
    sealed = specification(sealing="sealed", rounds=2, min_cohort=3, clip_norm=100.0)
    run_id = coordinator.book.submit(world.submission(sealed, np.zeros(SIZE, dtype="<f4")))
    events = wait_end(coordinator, run_id)
    for node in nodes:
        node.stop()
    assert events[-1].kind == "run_finished", events
    abandoned = [(event.data["round"], event.data["code"]) for event in events if event.kind == "slot_abandoned"]
    assert abandoned == [(1, "MODEL_CHAIN_BROKEN")]
    assert [end.committed for end in nodes[0].ends if end.slot] == [False, True, True]


def test_what_goes_wrong_with_one_run_or_with_the_driver_leaves_the_others_to_be_driven(
    world: World, coordinator: Coordinator, nodes: list[FleetNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception outside the named ones ended the driver's thread, and the process went on serving."""
    faults = [RuntimeError("a driver is broken"), OverflowError("again")]
    next_run, seen = coordinator.book.next_run, []

    def failing(timeout_s: float, besides: Collection[str] = ()) -> object:
        if faults:
            raise faults.pop()
        return next_run(timeout_s, besides)

    coordinator._scheduler.retry_s = 0.1
    monkeypatch.setattr(coordinator.book, "next_run", failing)
    note = coordinator._scheduler._parts.on_trouble
    monkeypatch.setattr(
        coordinator._scheduler,
        "_parts",
        replace(coordinator._scheduler._parts, on_trouble=lambda t: (seen.append(t), note(t))),
    )
    submission = world.submission(specification(rounds=1), np.zeros(SIZE, dtype="<f4"))
    impossible = submission.signed.run_id
    monkeypatch.setattr(driver, "make_collector", _impossible_for(impossible, driver.make_collector))
    coordinator.book.submit(submission)
    fine = submit(world, coordinator, rounds=1)
    assert wait_end(coordinator, fine)[-1].kind == "run_finished"
    failed = wait_end(coordinator, impossible)[-1]
    assert (failed.kind, failed.data["code"]) == ("run_failed", "PARAMETERS_IMPOSSIBLE")
    assert "no noise keeps it" in failed.data["reason"]
    assert seen[:3] == ["OverflowError: again", "RuntimeError: a driver is broken", ""]
    assert standing(world.server)["trouble"] == ""


def _impossible_for(run_id: str, make: Callable[..., object]) -> Callable[..., object]:
    def made(specification: object, roster: object, folder: object, run: str, schema: object) -> object:
        if run == run_id:
            raise ProtocolFailure(FailureName.PARAMETERS_IMPOSSIBLE, "no noise keeps it")
        return make(specification, roster, folder, run, schema)

    return made


def test_a_group_that_comes_late_is_summed_too(tmp_path: Path) -> None:
    world = World.create(tmp_path, nodes=6, groups=("east", "east", "east", "west", "west", "west"))
    coordinator = Coordinator(world.server)
    coordinator.start()
    nodes = [FleetNode(world.of(name), coordinator.fleet_port, size=SIZE) for name in world.node_names]

    def calls_west(name: str, round: int, size: int, model: bytes) -> np.ndarray:
        for node in nodes[3:] if name == "hospital-a" and round == 1 else ():
            node.activate()
            node.start()
        if name == "hospital-a" and round > 1:
            # They are offered the run between two rounds, and summed from the next on for which all of them are ready.
            end = time.monotonic() + 5.0
            while not answered(coordinator.book.events(run_id, 0, 0.0)) >= set(world.node_names):
                if time.monotonic() > end:
                    break
                time.sleep(0.05)
        return invented_update(name, round, size, model)

    nodes[0].trainer = calls_west
    for node in nodes[:3]:
        node.start()
    first, clip = np.random.default_rng(0).normal(size=SIZE).astype("<f4"), 100.0
    spec = specification(sealing="sealed", rounds=4, min_cohort=3, clip_norm=clip, exchange_deadline_s=8.0)
    run_id = coordinator.book.submit(world.submission(spec, first))
    events = wait_end(coordinator, run_id)
    for node in nodes:
        node.stop()
    manifest, data = coordinator.book.checkpoint(run_id, None)
    coordinator.stop()
    assert events[-1].kind == "run_finished", events
    sums = [entry["promise"]["sums"] for entry in manifest["rounds"]]
    assert sums == sorted(sums) and sums[0] == 1 and sums[-1] == 2, events
    assert [step for step, _ in nodes[3].steps].count("ANCHOR") == 1
    assert "ANCHOR" not in [step for step, _ in nodes[0].steps]
    expected = first.astype(np.float64)
    for number, groups in enumerate(sums, start=1):
        present = world.node_names[: 3 * groups]
        expected += np.mean([invented_update(name, number, SIZE, b"").astype(np.float64) for name in present], 0)
    assert np.linalg.norm(np.frombuffer(data, dtype="<f4") - expected) / clip < 1e-3


def answered(events: list[RunEvent]) -> set[str]:
    """Who took the offer."""
    return {event.data["node"] for event in events if event.kind == "offer_answered" and event.data["accepted"]}


def kinds(events: list[RunEvent]) -> list[str]:
    return [event.kind for event in events]


def dropped(events: list[RunEvent]) -> list[tuple[str, str]]:
    return [(event.data["node"], event.data["code"]) for event in events if event.kind == "dropped"]


def submit(world: World, coordinator: Coordinator, **federation: object) -> str:
    model = np.zeros(SIZE, dtype="<f4")
    return coordinator.book.submit(world.submission(specification(**federation), model))  # type: ignore[arg-type]


def failing(name: str, round: int, size: int, model: bytes) -> np.ndarray:
    raise TrainingError("the loss is NaN after step 1; lower the learning rate")


def test_a_failed_training_is_reported_by_name(world: World, coordinator: Coordinator, nodes: list[FleetNode]) -> None:
    nodes[1].trainer = failing
    events = wait_end(coordinator, submit(world, coordinator))
    assert events[-1].kind == "run_finished"
    assert dropped(events) == [("hospital-b", "TrainingError")] * 2
    reasons = [event.data["reason"] for event in events if event.kind == "dropped"]
    assert reasons[0] == "the loss is NaN after step 1; lower the learning rate"
    committed = next(event for event in events if event.kind == "round_committed")
    assert committed.data["contributors"] == ["hospital-a", "hospital-c"]
    assert nodes[1].ends[0].committed and list(nodes[1].ends[0].contributors) == ["hospital-a", "hospital-c"]
    assert nodes[1].ends[-1].run_ended


def test_too_few_contributions_end_the_run_by_name(
    world: World, coordinator: Coordinator, nodes: list[FleetNode]
) -> None:
    for node in nodes[:2]:
        node.trainer = failing
    run_id = submit(world, coordinator)
    events = wait_end(coordinator, run_id)
    abandoned = [event.data for event in events if event.kind == "slot_abandoned"]
    assert [(one["round"], one["attempt"], one["code"]) for one in abandoned] == [
        (1, 1, "LIST_TOO_SMALL"),
        (1, 2, "LIST_TOO_SMALL"),
    ]
    assert events[-1].data["code"] == "ATTEMPTS_USED_UP" and "max_attempts is 2" in events[-1].data["reason"]
    assert coordinator.book.runs()[0].status == "failed"
    assert coordinator.book.checkpoint(run_id, None)[0]["round"] == 0
    assert nodes[2].ends[-1].run_ended and not nodes[2].ends[-1].committed


def test_a_refusal_is_reported_and_a_person_is_waited_for(
    world: World, coordinator: Coordinator, nodes: list[FleetNode]
) -> None:
    nodes[0].answer_offers, nodes[1].answer_offers = "refuse", "wait"
    run_id = submit(world, coordinator)
    seen: list[RunEvent] = []
    while len(answers := {event.data["node"]: event.data for event in seen if event.kind == "offer_answered"}) < 3:
        seen += coordinator.book.events(run_id, len(seen), 5.0)
    assert answers["hospital-a"]["reason"] == "policy says refuse" and not answers["hospital-a"]["waiting"]
    assert answers["hospital-b"]["waiting"] and answers["hospital-c"]["accepted"]
    time.sleep(1.5)
    assert "run_started" not in kinds(list(coordinator.book.events(run_id, 0, 0)))
    nodes[1].answer_offers = "accept"
    events = wait_end(coordinator, run_id)
    assert events[-1].kind == "run_finished"
    started = next(event for event in events if event.kind == "run_started")
    assert started.data["nodes"] == ["hospital-b", "hospital-c"]
    assert len(nodes[0].offers) == 1, "who refused is not asked again"


def test_who_is_still_loading_is_waited_for_but_not_for_ever(
    world: World, coordinator: Coordinator, nodes: list[FleetNode]
) -> None:
    nodes[0].answer_offers = "prepare"
    run_id = submit(world, coordinator, exchange_deadline_s=7.0)
    while len(nodes[0].offers) < 10:  # one a second: beyond the deadline
        assert "run_started" not in kinds(list(coordinator.book.events(run_id, 0, 0.1)))
    nodes[0].answer_offers = "accept"
    events = wait_end(coordinator, run_id)
    assert events[-1].kind == "run_finished" and not dropped(events)
    started = next(event for event in events if event.kind == "run_started")
    assert started.data["nodes"] == list(world.node_names)
    preparing = next(event.data for event in events if event.data.get("node") == "hospital-a")
    assert preparing["waiting"] and preparing["preparing"] and not preparing["accepted"]
    nodes[0].answer_offers = "prepare"
    run_id = submit(world, coordinator, exchange_deadline_s=7.0, step_deadline_s=8.0)
    events = wait_end(coordinator, run_id)
    assert events[-1].kind == "run_finished"
    started = next(event for event in events if event.kind == "run_started")
    assert started.data["nodes"] == ["hospital-b", "hospital-c"]
    assert nodes[0].ends[-1].run_ended


def test_a_node_that_claims_to_need_for_ever_gets_no_longer_than_the_specification_allows(
    world: World, coordinator: Coordinator, nodes: list[FleetNode]
) -> None:
    for node, claimed_s in zip(nodes, (1e300, float("nan"), 2.5), strict=True):
        node.claims_s = claimed_s
    run_id = submit(world, coordinator, rounds=1, step_deadline_s=None, longest_deadline_s=700.0)
    events = wait_end(coordinator, run_id)
    assert events[-1].kind == "run_finished"
    assert next(event for event in events if event.kind == "round_started").data["deadline_s"] == 700
    said = {event.data["node"]: event.data["round_s"] for event in events if event.kind == "offer_answered"}
    assert said == {"hospital-a": 30 * 24 * 3600, "hospital-b": 0, "hospital-c": 2.5}


def test_who_is_between_two_connections_as_a_run_starts_is_in_its_first_round(
    world: World, coordinator: Coordinator, nodes: list[FleetNode]
) -> None:
    nodes[0].answer_offers = "wait"
    nodes.pop().stop()
    left = FleetNode(world.of("hospital-c"), coordinator.fleet_port)
    left.activate()
    run_id = submit(world, coordinator, rounds=1)
    while not left.poll():  # the offer, accepted
        pass
    left.client.DeactivateNode(DeactivateNodeRequest(node_id=left.node_id))
    left.stop()
    while coordinator.link.presence()["hospital-c"].online:
        time.sleep(0.05)
    nodes[0].answer_offers = "accept"
    while not any(event.data.get("accepted") for event in answers_of(coordinator, run_id, "hospital-a")):
        time.sleep(0.05)
    nodes.append(FleetNode(world.of("hospital-c"), coordinator.fleet_port).start())
    committed = next(event for event in wait_end(coordinator, run_id) if event.kind == "round_committed")
    assert committed.data["contributors"] == list(world.node_names)


def answers_of(coordinator: Coordinator, run_id: str, node: str) -> list[RunEvent]:
    events = coordinator.book.events(run_id, 0, 0)
    return [event for event in events if event.kind == "offer_answered" and event.data["node"] == node]


def test_a_run_that_too_few_accept_fails_by_name(
    world: World, coordinator: Coordinator, nodes: list[FleetNode]
) -> None:
    nodes[0].answer_offers = nodes[1].answer_offers = "refuse"
    events = wait_end(coordinator, submit(world, coordinator))
    assert events[-1].kind == "run_failed" and events[-1].data["code"] == "COHORT_TOO_SMALL"
    assert "hospital-a refused, hospital-b refused" in events[-1].data["reason"]


def test_a_node_that_never_connects_is_named(world: World, coordinator: Coordinator) -> None:
    node = FleetNode(world.of("hospital-a"), coordinator.fleet_port).start()
    events = wait_end(coordinator, submit(world, coordinator, exchange_deadline_s=1.0, step_deadline_s=2.0))
    node.stop()
    assert events[-1].data["code"] == "COHORT_TOO_SMALL"
    assert "hospital-b is not connected, hospital-c is not connected" in events[-1].data["reason"]


class Liar(FleetNode):
    """Changes its reply after, or before, it was signed."""

    def __init__(self, folder: Path, port: int, lie: str) -> None:
        super().__init__(folder, port)
        self.lie = lie

    def sign(self, reply: fleet_pb2.Reply) -> bytes:
        if reply.step == fleet_pb2.TRAIN:
            match self.lie:
                case "sequence":
                    reply.sequence += 1
                case "run":
                    reply.run_id = "0" * 32
                case "name":
                    reply.node = "hospital-b"
                case "version":
                    reply.version = 2
        signed = super().sign(reply)
        if reply.step == fleet_pb2.TRAIN and self.lie == "signature":
            parsed = fleet_pb2.SignedReply.FromString(signed)
            parsed.signature = bytes(64)
            return parsed.SerializeToString()
        return b"\xff\xff\xff" if reply.step == fleet_pb2.TRAIN and self.lie == "garbage" else signed

    def answer(self, data: bytes, payload: Mapping[str, bytes]) -> tuple[bytes, dict[str, bytes]]:
        body, upload = super().answer(data, payload)
        if upload:
            good = upload["upload"]
            match self.lie:
                case "payload":
                    upload["upload"] = good[:-4] + b"\0\0\0\0"
                case "entry":
                    upload["other"] = b"x"
                case "truncated":
                    upload["upload"] = good[:-1]
                case "missing":
                    upload = {}
        return body, upload


LIES = [
    ("signature", "IdentityError", "does not verify"),
    ("sequence", "IdentityError", "another question"),
    ("run", "IdentityError", "another question"),
    ("name", "IdentityError", "another question"),
    ("version", "TransportError", "upgrade the coordinator"),
    ("garbage", "TransportError", "not a SignedReply"),
    ("payload", "UpdateError", "not the one it signed"),
    ("truncated", "UpdateError", "not the one it signed"),
    ("missing", "UpdateError", "not the one it signed"),
    ("entry", "UpdateError", "only 'upload'"),
]


def test_replies_that_do_not_hold_are_not_used(world: World, coordinator: Coordinator) -> None:
    nodes = [FleetNode(world.of(name), coordinator.fleet_port).start() for name in world.node_names[1:]]
    liar = Liar(world.of("hospital-a"), coordinator.fleet_port, "")
    liar.start()
    for lie, code, words in LIES:
        liar.lie = lie
        events = wait_end(coordinator, submit(world, coordinator, rounds=1))
        assert events[-1].kind == "run_finished", lie
        assert dropped(events) == [("hospital-a", code)], lie
        reason = next(event.data["reason"] for event in events if event.kind == "dropped")
        assert words in reason, (lie, reason)
        committed = next(event for event in events if event.kind == "round_committed")
        assert committed.data["contributors"] == ["hospital-b", "hospital-c"], lie
    for node in (*nodes, liar):
        node.stop()


def test_stop_abandons_the_open_slot_and_tells_the_nodes(
    world: World, coordinator: Coordinator, nodes: list[FleetNode]
) -> None:
    waiting, go = threading.Event(), threading.Event()

    def slow(name: str, round: int, size: int, model: bytes) -> np.ndarray:
        if round == 2 and name == "hospital-a":
            waiting.set()
            go.wait(60)
        return invented_update(name, round, size, model)

    for node in nodes:
        node.trainer = slow
    run_id = submit(world, coordinator, rounds=5)
    assert waiting.wait(60)
    coordinator.book.stop(run_id, *world.stop_order(run_id))
    coordinator.book.stop(run_id, *world.stop_order(run_id))
    events = wait_end(coordinator, run_id)
    go.set()
    assert events[-1].kind == "run_stopped" and events[-1].data == {"round": 1}
    assert [event.data["code"] for event in events if event.kind == "slot_abandoned"] == ["STOPPED"]
    assert nodes[1].ends[-1].run_ended and nodes[1].ends[-1].failure == "STOPPED"
    second = submit(world, coordinator, rounds=1)
    assert wait_end(coordinator, second)[-1].kind == "run_finished"


def test_a_node_that_connects_anew_is_asked_again_in_the_same_words(
    world: World, coordinator: Coordinator, nodes: list[FleetNode]
) -> None:
    left = FleetNode(world.of("hospital-c"), coordinator.fleet_port)
    nodes[2].stop()
    nodes.pop()
    left.activate()
    run_id = submit(world, coordinator, rounds=1)
    while not left.poll():  # the offer, answered
        pass
    lost = None
    while lost is None:  # TRAIN: pulled and confirmed, then the node is gone
        lost = left.pull()
    first = fleet_pb2.Instruction.FromString(lost[1])
    left.stop()
    back = FleetNode(world.of("hospital-c"), coordinator.fleet_port)
    back.activate()
    seen = []
    while not seen or seen[-1].step != fleet_pb2.TRAIN:
        pulled = back.pull()
        if pulled is not None:
            seen.append(fleet_pb2.Instruction.FromString(pulled[1]))
    assert seen[-1] == first, "the same instruction again has the same sequence and bytes"
    offer = coordinator.book.next_run(0)
    assert offer is not None
    body, upload = back.answer(pulled[1], pulled[2])
    back.push(pulled[0], body, upload)
    nodes.append(back.start())
    events = wait_end(coordinator, run_id)
    assert events[-1].kind == "run_finished"
    assert dropped(events) == [("hospital-c", "TrainingError")], "it restarted without knowing of the run"


def test_damage_on_the_way_to_a_checkpoint_reports_no_round(
    world: World, coordinator: Coordinator, nodes: list[FleetNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full for real: the file that would become the checkpoint is /dev/full."""
    expected = OuterStep(Outer(), b"").apply(
        np.zeros(SIZE, dtype="<f4"),
        np.sum([invented_update(name, 1, SIZE, b"").astype(np.float64) for name in world.node_names], axis=0),
        3.0,
    )
    name = f"{hashlib.sha256(expected.tobytes()).hexdigest()}.bin"
    part = world.server / "checkpoints" / f".{name}.{os.getpid()}.drawn.part"
    monkeypatch.setattr(checkpoints, "secrets", SimpleNamespace(token_hex=lambda count: "drawn"))
    monkeypatch.setattr(coordinator._scheduler, "retry_s", 1.0)
    part.symlink_to("/dev/full")
    run_id = submit(world, coordinator, rounds=2)
    end = time.monotonic() + 60
    while "cannot write the checkpoint" not in (detail := coordinator.book.runs()[0].detail):
        assert time.monotonic() < end, detail
        time.sleep(0.05)
    assert "No space left" in detail
    assert "round_committed" not in kinds(list(coordinator.book.events(run_id, 0, 0)))
    events = wait_end(coordinator, run_id)  # the failed write removed the link: there is space again
    assert events[-1].kind == "run_finished"
    assert kinds(events).count("round_committed") == 2 and "slot_abandoned" not in kinds(events)
    trained = [step for step, _ in nodes[0].steps if step == "TRAIN"]
    assert len(trained) == 2, "what was uploaded before the disk was full was used"
