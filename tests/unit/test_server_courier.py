"""What asking many nodes costs the coordinator beside the messages."""

import logging
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from confide.identity.member import load_member
from confide.proto import fleet_pb2
from confide_server.fleet.flower import FleetLink, FleetReply, Presence
from confide_server.rounds.exchange import Courier, Question, Silence
from confide_server.state.checkpoints import CheckpointStore
from confide_server.state.database import Database
from confide_server.state.runs.journal import RunJournal

from tests.coordinator_world import World, specification


class CountingLink(FleetLink):
    """Counts how often somebody looks at how all nodes stand, which takes a step for each of them."""

    looks = 0

    def presence(self) -> dict[str, Presence]:
        self.looks += 1
        return super().presence()


def test_a_question_to_many_looks_once_at_how_they_stand(tmp_path: Path) -> None:
    world = World.create(tmp_path, nodes=1)
    roster = load_member(world.server).roster
    link = CountingLink(tmp_path / "fleet")
    link.admit(roster.current)
    database = Database(f"sqlite:///{tmp_path / 'c.db'}")
    book = RunJournal(database, CheckpointStore(str(tmp_path / "checkpoints")), roster)
    run_id = book.submit(world.submission(specification(), np.zeros(8, dtype="<f4")))
    try:
        with link.open_session(None, 1 << 20) as session:
            courier = Courier(link, session, book, run_id, lambda: roster.current, lambda: None, silence_s=1.0)
            names = [f"hospital-{number}" for number in range(50)]
            answers = list(courier.ask(Question(fleet_pb2.END, dict.fromkeys(names, b"end"), 1.0, {})))
    finally:
        link.close()
        link.release()
        database.close()
    assert [(answer.node, isinstance(answer, Silence)) for answer in answers] == [(name, True) for name in names]
    assert link.looks == 1


def test_flower_says_nothing_past_the_coordinators_own_log(tmp_path: Path) -> None:
    import flwr.common.logger  # noqa: F401  (adds the handler)

    logging.getLogger("flwr").addHandler(logging.StreamHandler())
    link = FleetLink(tmp_path / "fleet")
    link.close()
    link.release()
    assert not logging.getLogger("flwr").handlers and logging.getLogger("flwr").propagate


class Slow:
    """A link and session whose answers take this side two seconds each; the clock is theirs."""

    alive = True

    def __init__(self, silent: str = "") -> None:
        self.now = 0.0
        self._silent = silent
        self._answers: list[str] = []
        self.instructions: list[bytes] = []

    def clock(self) -> float:
        return self.now

    def presence(self) -> dict[str, Presence]:
        return {f"node-{number}": Presence(online=True, activations=1) for number in range(10)}

    def send(self, node: str, instruction: bytes, payload: Mapping[str, bytes]) -> str:
        self.instructions.append(instruction)
        if node != self._silent:
            self._answers.append(node)
        return node

    def replies(self, message_ids: Collection[str], deadline_s: float) -> Iterator[FleetReply]:
        self.now += 2.0
        if self._answers:
            yield FleetReply(self._answers.pop(), b"", {}, fault="none of this test's business")

    def withdraw(self, message_ids: Collection[str]) -> None: ...


def _unanswered(slow: Slow, each_s: float) -> list[str]:
    journal = SimpleNamespace(sequences=lambda run_id, keys: [7] * len(keys))
    parts = (slow, slow, journal, "run", lambda: None, lambda: None)
    courier = Courier(*parts, silence_s=1.0, clock=slow.clock)  # type: ignore[arg-type]
    asked = Question(fleet_pb2.END, dict.fromkeys(slow.presence(), b"end"), 5.0, {}, each_s=each_s)
    return [one.node for one in courier.ask(asked) if isinstance(one, Silence) and not one.answered]


def test_an_end_is_waited_for_as_long_as_answers_come() -> None:
    assert len(_unanswered(Slow(), each_s=0.0)) == 7, "a fixed deadline leaves out whom this side is too slow for"
    assert _unanswered(slow := Slow(), each_s=2.0) == []
    assert len({id(one) for one in slow.instructions}) == 1, "the same words stand in memory once for all nodes"


def test_a_node_that_is_gone_holds_up_an_end_for_one_deadline() -> None:
    slow = Slow(silent="node-3")
    assert _unanswered(slow, each_s=2.0) == ["node-3"]
    assert slow.now <= 9 * 2.0 + 5.0 + 2.0
    assert len(_unanswered(slow := Slow(), each_s=0.1)) == 5 and slow.now <= 10.0, (
        "answers that drip in do not stretch it"
    )
