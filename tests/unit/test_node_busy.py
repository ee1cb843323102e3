"""A node serves one training at a time, says for how long, and the coordinator goes by that."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confide.proto import fleet_pb2
from confide.transport.envelope import BUSY
from confide_client.agent.envelope import pack, unpack
from confide_client.progress import Phase, Progress, tell
from confide_client.runs.replies import busy_answer, signed_reply
from confide_server.rounds.turns import MOST_BUSY_S, Turns

from tests.node_bench import MODEL, Bench, make_store, open_bench
from tests.node_worlds import Instructions, opened
from tests.unit.test_scheduler import Desk, desk, make, world  # noqa: F401 - fixtures


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    (tmp_path / "models").mkdir()
    with open_bench(tmp_path, make_store(tmp_path / "models")) as bench:
        yield bench


def answered(bench: Bench, instruction: bytes, payload: dict[str, bytes] | None = None) -> fleet_pb2.Reply | None:
    """What the polling thread answers at once; None for what waits in line."""
    reply = bench.runtime.busy(pack(instruction, payload))
    return None if reply is None else opened(unpack(reply)[0], bench.node.member)


def while_training(bench: Bench, look: Callable[[], None]) -> None:
    """Call `look` in the middle of a training of the bench's run."""
    bench.offer()
    bench.trainer.fail = look
    bench.train(slot=1)
    assert bench.trainer.trained == [1]


def test_another_run_hears_at_once_that_the_node_is_busy_and_its_own_waits_in_line(bench: Bench) -> None:
    other, seen = Instructions(), []
    offer = bench.world.offer(bench.spec, MODEL, other.run_id).SerializeToString()

    def look() -> None:
        train = other.slot(MODEL)
        seen.append(answered(bench, other.make(fleet_pb2.OFFER, offer)))
        seen.append(answered(bench, *train))
        for step in (fleet_pb2.SHARE, fleet_pb2.CONFIRM, fleet_pb2.REVEAL, fleet_pb2.END):
            assert answered(bench, other.make(step, b"")) is None
        assert answered(bench, bench.run.make(fleet_pb2.ADVERTISE, b"")) is None, "its own"
        assert bench.runtime.busy(pack(b"\xff" * 40)) is None, "garbage is refused in its turn"

    while_training(bench, look)
    offered, train = seen
    assert offered is not None and train is not None
    answer = fleet_pb2.OfferAnswer.FromString(offered.body)
    assert (answer.accepted, answer.waiting, answer.preparing) == (False, True, True), "earlier coordinators ask again"
    assert answer.busy_s >= 1 and train.failure.busy_s >= 1
    assert (train.failure.code, train.WhichOneof("outcome")) == (BUSY, "failure")
    assert [entry["step"] for entry in bench.events() if entry["event"] == "busy"] == ["OFFER", "TRAIN"]
    assert answered(bench, other.make(fleet_pb2.OFFER, offer)) is None, "it is free again"
    assert not bench.node.state.run(other.run_id).exists(), "nothing of the other run was touched"


def test_what_was_put_off_is_answered_in_full_when_it_comes_again(bench: Bench) -> None:
    other = Instructions()
    instruction = other.make(fleet_pb2.OFFER, bench.world.offer(bench.spec, MODEL, other.run_id).SerializeToString())
    while_training(bench, lambda: None if answered(bench, instruction) else pytest.fail("it was not busy"))
    answer = fleet_pb2.OfferAnswer.FromString(bench.ask(instruction)[0].body)
    assert answer.accepted and not answer.busy_s


def test_of_a_private_run_only_what_was_measured_on_made_up_records_is_told() -> None:
    now = [100.0]
    progress = Progress(clock=lambda: now[0])
    for private, expected_s in ((True, 70), (False, 120)):
        with progress.of("1f" * 16, private=private, expected_s=100.0):
            tell(Phase.TRAINING, 0, 10)
            now[0] += 30.0
            tell(Phase.TRAINING, 2, 10)  # 15 s a step, eight of them left
            doing = progress.working()
            assert doing is not None and doing.busy_s == expected_s
    assert progress.working() is None


# --- the coordinator


def test_a_busy_node_counts_as_taken_for_as_long_as_it_said() -> None:
    now = [0.0]
    turns = Turns(most=2, clock=lambda: now[0])
    turns.busy("b", 40.0)
    turns.ask("first", "ab")
    turns.ask("second", "c")
    assert [turns.granted(run) for run in ("first", "second")] == [False, True]
    assert (turns.before("first"), turns.busy_s("b")) == ({"b": ""}, 40.0)
    now[0] = 39.0
    assert not turns.granted("first")
    now[0] = 41.0
    assert turns.granted("first") and turns.busy_s("b") == 0.0
    turns.busy("d", 1e9)
    assert turns.busy_s("d") == MOST_BUSY_S, "nobody is believed for ever"
    turns.busy("d", 0.0)
    turns.ask("third", "d")
    turns.give_back("first")
    assert turns.granted("third"), "it answered"


def put_off(at: Desk, name: str, steps: set[int], times: int, seconds: int) -> list[int]:
    """Let a node of the desk say so often that it is busy, with the node's real words; returns where it said so."""
    node, said = at.link.nodes[name], []
    usual = node.answer

    def answer(data: bytes, payload: dict[str, bytes]) -> tuple[bytes, dict[str, bytes]]:
        instruction = fleet_pb2.Instruction.FromString(data)
        if instruction.step in steps and len(said) < times:
            said.append(instruction.step)
            outcome = busy_answer(instruction.step, seconds)
            return signed_reply(instruction, node.name, node.local.identity, outcome, {}), {}
        return usual(data, payload)

    node.answer = answer  # type: ignore[method-assign]
    return said


def test_a_run_waits_for_a_busy_node_and_drops_nobody(desk: Desk) -> None:  # noqa: F811 - a fixture
    steps = {fleet_pb2.OFFER, fleet_pb2.TRAIN}
    said = put_off(desk, "hospital-b", steps, times=3, seconds=1)
    run_id = desk.submit(rounds=2)
    events = desk.ended(run_id)
    assert events[-1].kind == "run_finished", events
    assert [event for event in events if event.kind == "dropped"] == []
    assert len(said) == 3
    assert desk.views.line(run_id).short_rounds == 0


def test_a_node_that_is_always_busy_costs_its_round_at_most_twice_the_deadline(desk: Desk) -> None:  # noqa: F811
    put_off(desk, "hospital-b", {fleet_pb2.TRAIN}, times=10**6, seconds=1)
    run_id = desk.submit(rounds=1, step_deadline_s=7.0)  # the others keep it, should the machine stand still for five
    events = desk.ended(run_id)
    dropped = [(event.data["node"], event.data["code"]) for event in events if event.kind == "dropped"]
    assert dropped == [("hospital-b", BUSY)] and events[-1].kind == "run_finished"
