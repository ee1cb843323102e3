"""What asking many nodes costs the coordinator beside the messages."""

from pathlib import Path

import numpy as np
from confide.identity.member import load_member
from confide.proto import fleet_pb2
from confide_server.fleet.flower import FleetLink, Presence
from confide_server.rounds.exchange import Courier, Question, Silence
from confide_server.state.checkpoints import CheckpointStore
from confide_server.state.database import Database
from confide_server.state.run_journal import RunJournal

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
