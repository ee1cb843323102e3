"""What a node is doing: told without a cost, shown to its operator, reported in few numbers, not taken blindly."""

import io
import json
import os
import threading
from pathlib import Path

import pytest
from confide import running
from confide.errors import TransportError
from confide.identity.keys import SigningKey
from confide.proto import fleet_pb2
from confide_client.agent import status
from confide_client.agent.fleet import FleetLink, FleetSettings
from confide_client.agent.telling import Teller
from confide_client.progress import Doing, Phase, Progress, heard_by, tell
from confide_client.state import StateFolder
from confide_server.admin_cli.progress_lines import ProgressLines
from confide_server.admin_cli.run_view import RunView
from confide_server.state.progress import ProgressBoard
from confide_simulations.demo.live import LiveRounds
from rich.console import Console

from tests.node_worlds import World

RUN, OTHER = "1f" * 16, "2e" * 16


class Clock:
    """Stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# --- at the node


def moment(progress: Progress) -> Doing:
    doing = progress.now()
    assert doing is not None
    return doing


def test_what_nobody_listens_to_is_no_work() -> None:
    tell(Phase.TRAINING, 1, 2)
    heard: list[tuple[Phase, int, int]] = []
    with heard_by(lambda *told: heard.append(told)):
        tell(Phase.TRAINING, 1, 2)
    tell(Phase.TRAINING, 2, 2)
    assert heard == [(Phase.TRAINING, 1, 2)]


def test_the_time_left_follows_from_the_pace_and_before_that_from_what_was_measured() -> None:
    clock = Clock()
    progress = Progress(clock)
    assert progress.now() is None
    with progress.of(RUN, private=False, expected_s=300.0):
        clock.now += 20
        tell(Phase.TRAINING, 0, 30)
        doing = moment(progress)
        assert (doing.step, doing.steps, doing.seconds_left) == (0, 30, 280)
        clock.now += 12
        tell(Phase.TRAINING, 3, 30)
        doing = moment(progress)
        assert doing.seconds_left == 27 * 4
        assert doing.words() == "training, step 3 of 30, about 108 s left"
    assert progress.now() is None


def test_a_failed_training_is_not_shown_as_going_on() -> None:
    progress = Progress()
    with pytest.raises(TransportError), progress.of(RUN, private=False):
        raise TransportError("away")
    assert progress.now() is None


def test_what_loads_beside_instructions_is_shown_while_nothing_else_is_done() -> None:
    progress = Progress()
    with progress.beside(RUN, Phase.LOADING):
        doing = moment(progress)
        assert doing.phase is Phase.LOADING
        with progress.of(OTHER, private=False):
            tell(Phase.TRAINING, 1, 2)
            doing = moment(progress)
            assert doing.run_id == OTHER
    assert progress.now() is None


def test_a_private_run_tells_its_operator_all_and_the_coordinator_only_that_it_works() -> None:
    clock = Clock()
    progress = Progress(clock)
    with progress.of(RUN, private=True, expected_s=100.0):
        said = set()
        for phase, step in ((Phase.ENCODING, 0), (Phase.TRAINING, 0), (Phase.TRAINING, 7), (Phase.SEALING, 0)):
            tell(phase, step, 10 if phase is Phase.TRAINING else 0)
            doing = moment(progress)
            assert doing.phase is phase
            said.add(doing.message("node-a", 1).SerializeToString(deterministic=True))
    assert len(said) == 1
    message = fleet_pb2.Progress.FromString(said.pop())
    assert (message.phase, message.step, message.steps) == (fleet_pb2.PHASE_WORKING, 0, 0)
    assert message.seconds_left == 100, "of what was measured on made-up records, not of the pace"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.make(tmp_path_factory.mktemp("world"), ("node-a", "node-b"))


def test_the_teller_notes_for_the_operator_and_reports_what_changed(world: World, tmp_path: Path) -> None:
    progress, path, sent = Progress(), tmp_path / "progress.json", []
    teller = Teller(progress, world.members["node-a"], path)
    teller.look()
    assert not path.exists()
    with progress.of(RUN, private=False):
        tell(Phase.TRAINING, 1, 30)
        teller.look()
        assert json.loads(path.read_bytes())["words"] == "training, step 1 of 30"
        assert path.stat().st_mode & 0o777 == 0o600
        teller.send = sent.append
        for step in (1, 1, 2):
            tell(Phase.TRAINING, step, 30)
            teller.look()
    teller.look()
    assert not path.exists()
    reports = [fleet_pb2.Progress.FromString(report.progress) for report in sent]
    assert [report.step for report in reports] == [1, 2]
    assert reports[0].number < reports[1].number


def test_a_private_runs_reports_do_not_come_in_the_rhythm_of_its_steps(world: World, tmp_path: Path) -> None:
    progress, sent = Progress(), []
    teller = Teller(progress, world.members["node-a"], tmp_path / "progress.json")
    teller.send = sent.append
    with progress.of(RUN, private=True):
        for step in range(5):
            tell(Phase.TRAINING, step, 5)
            teller.look()
    assert len(sent) == 1


def test_a_coordinator_that_takes_no_report_stops_nothing(world: World, tmp_path: Path) -> None:
    progress, tried = Progress(), threading.Event()

    def unreachable(report: fleet_pb2.ProgressReport) -> None:
        tried.set()
        raise TransportError("away")

    teller = Teller(progress, world.members["node-a"], tmp_path / "gone" / "progress.json", every_s=0.01)
    teller.send = unreachable
    with progress.of(RUN, private=False):
        teller.start()
        assert not tried.wait(0.1), "its file cannot be written, which is noted at debug level and tried again"
        (tmp_path / "gone").mkdir()
        assert tried.wait(60)
        assert teller._thread.is_alive()
    teller.stop()


def test_node_status_shows_what_the_agent_is_doing(tmp_path: Path) -> None:
    state = StateFolder.create(tmp_path / "node")
    state.note_agent(**running.mark(), running=True, connected=True, coordinator="here:1")
    state.progress.write_text(json.dumps({"at": 0.0, "run": RUN, "words": "training, step 3 of 30"}))
    out = io.StringIO()
    status.show(status.gather(state), Console(file=out, width=200))
    assert "now: run 1f1f1f1f, training, step 3 of 30" in out.getvalue()
    state.note_agent(pid=os.getpid(), started="5 before the machine was started again", running=True, connected=True)
    assert status.gather(state)["progress"] == {}, "a killed agent's last note is not shown as if it went on"


# --- at the coordinator


def report(world: World, node: str = "node-a", signer: str = "", **changes: int | str) -> fleet_pb2.ProgressReport:
    fields = {"version": 1, "run_id": RUN, "node": node, "phase": fleet_pb2.PHASE_TRAINING, "step": 3, "steps": 30}
    body = fleet_pb2.Progress(**{**fields, "number": 7, **changes}).SerializeToString()
    key: SigningKey = world.members[signer or node].identity
    return fleet_pb2.ProgressReport(node_id=1, progress=body, signature=key.sign("progress", body))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def board(world: World, clock: Clock) -> ProgressBoard:
    board = ProgressBoard(lambda: world.members["node-a"].roster.current, clock)
    board.follow(RUN, ("node-a", "node-b"))
    return board


def test_the_newest_report_of_each_node_is_there_for_those_who_watch(
    world: World, board: ProgressBoard, clock: Clock
) -> None:
    board.take("node-a", report(world))
    number, heard = board.since(RUN, 0)
    assert heard == [{"node": "node-a", "phase": "training", "step": 3, "steps": 30, "seconds_left": 0}]
    assert board.since(RUN, number) == (number, [])
    clock.now += 5
    board.take("node-b", report(world, "node-b", seconds_left=60))
    board.take("node-a", report(world, step=4, number=8))
    assert [(one["node"], one["step"]) for one in board.since(RUN, number)[1]] == [("node-b", 3), ("node-a", 4)]
    board.forget(RUN, "node-a")
    assert [one["node"] for one in board.since(RUN, 0)[1]] == ["node-b"]
    board.leave(RUN)
    assert board.since(RUN, 0)[1] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"run_id": OTHER},
        {"signer": "node-b"},
        {"node": "node-b", "signer": "node-b"},
        {"version": 2},
        {"phase": 0},
        {"phase": 99},
        {"step": 31},
        {"run_id": "x" * 600},
    ],
    ids=str,
)
def test_what_is_not_a_report_of_this_node_on_this_run_is_dropped(
    world: World, board: ProgressBoard, changes: dict[str, int | str]
) -> None:
    board.take("node-a", report(world, **changes))
    assert board.since(RUN, 0)[1] == []


def test_reports_that_are_old_too_frequent_or_of_strangers_are_dropped(
    world: World, board: ProgressBoard, clock: Clock
) -> None:
    board.take("node-a", report(world, step=3))
    board.take("node-a", report(world, step=4, number=8))
    clock.now += 5
    board.take("node-a", report(world, step=5, number=6))
    assert [one["step"] for one in board.since(RUN, 0)[1]] == [3]
    board.follow(RUN, ("node-b",))
    clock.now += 5
    board.take("node-a", report(world, step=6, number=9))
    assert [one["step"] for one in board.since(RUN, 0)[1]] == [3]


def test_a_garbled_report_is_dropped(world: World, board: ProgressBoard) -> None:
    board.take("node-a", fleet_pb2.ProgressReport(progress=b"\xff\xff", signature=b"x"))
    key = world.members["node-a"].identity
    board.take("node-a", fleet_pb2.ProgressReport(progress=b"\xff", signature=key.sign("progress", b"\xff")))
    assert board.since(RUN, 0)[1] == []


def test_absurd_numbers_are_bounded(world: World, board: ProgressBoard) -> None:
    board.take("node-a", report(world, step=2**31, steps=2**32 - 1, seconds_left=2**32 - 1))
    (heard,) = board.since(RUN, 0)[1]
    assert (heard["step"], heard["steps"], heard["seconds_left"]) == (1_000_000, 1_000_000, 30 * 24 * 3600)


def test_a_report_travels_from_a_node_to_its_coordinator(world: World, tmp_path: Path) -> None:
    taken: list[tuple[str, fleet_pb2.ProgressReport]] = []
    member = world.members["node-a"]
    with world.fleet() as fleet:
        fleet.on_report = lambda node, said: taken.append((node, said))
        settings = FleetSettings(
            coordinator=f"127.0.0.1:{world.port}",
            fleet_key=member.fleet_key(),
            ca_pem=member.ca_certificate_path.read_text(),
            node_id_path=tmp_path / "fleet-node.json",
        )
        with FleetLink(settings) as link:
            link.report(report(world))
            with pytest.raises(TransportError, match="413"):
                link.report(fleet_pb2.ProgressReport(progress=b"x" * 5000))
    assert [(node, said.progress) for node, said in taken] == [("node-a", report(world).progress)]


# --- for those who watch


PROGRESS = {"node": "node-a", "phase": "training", "step": 3, "steps": 30, "seconds_left": 200}
WORDS = "node-a: training, step 3 of 30, about 3 min left"


def test_lines_are_printed_for_a_phase_and_every_half_minute(clock: Clock) -> None:
    lines = ProgressLines(clock)
    assert lines.feed("progress", PROGRESS) == WORDS
    assert lines.feed("progress", PROGRESS | {"step": 4}) == ""
    assert lines.lines == [WORDS.replace("step 3", "step 4")]
    clock.now += 31
    assert lines.feed("progress", PROGRESS | {"step": 9}) != ""
    assert lines.feed("progress", PROGRESS | {"phase": "sealing", "steps": 0, "seconds_left": 0}) == "node-a: sealing"
    lines.feed("contributed", {"node": "node-a", "round": 1, "bytes": 1})
    assert lines.lines == []


def test_run_watch_shows_the_step_and_the_expected_time() -> None:
    view, out = RunView("run"), io.StringIO()
    assert view.feed("progress", PROGRESS) == WORDS
    Console(file=out, width=120).print(view.screen())
    assert WORDS in out.getvalue()


def test_the_demos_table_shows_the_step_and_the_expected_time() -> None:
    out = io.StringIO()
    with LiveRounds(Console(file=out, width=120), rounds=1, nodes=2, sealing="sealed") as live:
        live.event("progress", PROGRESS)
        Console(file=out, width=120).print(live)
    assert out.getvalue().count(WORDS) == 2, "as a line where there is no terminal, and below the table"
