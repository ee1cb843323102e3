"""Several runs at once over nodes in memory: nobody is held up by another one's people, faults or rest."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from confide.errors import NotNow
from confide.identity.keys import SigningKey
from confide.identity.member import load_member
from confide_server.rounds import cohort, driver, round_loop
from confide_server.rounds.driver import Parts
from confide_server.rounds.scheduler import Scheduler
from confide_server.rounds.turns import Turns
from confide_server.state.checkpoints import CheckpointStore
from confide_server.state.database import Database
from confide_server.state.runs.control import RunControl
from confide_server.state.runs.journal import RunJournal
from confide_server.state.runs.service import RunEvent
from confide_server.state.views import Views

from tests.coordinator_world import World, specification
from tests.fake_fleet import FakeLink, QuietNode

MODEL = np.zeros(8, dtype="<f4")
ENDS = ("run_finished", "run_failed", "run_stopped")


@dataclass
class Desk:
    """One coordinator's journal and scheduler over three nodes in memory."""

    world: World
    journal: RunJournal
    control: RunControl
    views: Views
    link: FakeLink
    scheduler: Scheduler
    folder: Path

    @property
    def nodes(self) -> list[QuietNode]:
        return list(self.link.nodes.values())

    def submit(self, sealing: str = "none", **federation: object) -> str:
        options = {"rounds": 2, "exchange_deadline_s": 20.0} | federation
        if sealing == "sealed":
            options |= {"clip_norm": 100.0, "min_cohort": 3}
        return self.journal.submit(self.world.submission(specification(sealing=sealing, **options), MODEL))

    def ended(self, run_id: str, limit_s: float = 60.0) -> list[RunEvent]:
        """All events of a run that ends within the time."""
        end, events = time.monotonic() + limit_s, list[RunEvent]()
        while not events or events[-1].kind not in ENDS:
            assert time.monotonic() < end, events
            events += self.journal.events(run_id, len(events), 1.0)
        return events

    def until(self, what: Callable[[], object], limit_s: float = 60.0) -> None:
        end = time.monotonic() + limit_s
        while not what():
            assert time.monotonic() < end, [(run.name, run.status, run.detail) for run in self.journal.runs()]
            time.sleep(0.02)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.create(tmp_path_factory.mktemp("world"))


@pytest.fixture
def make(world: World, tmp_path: Path) -> Iterator[Callable[..., Desk]]:
    made: list[Desk] = []

    def desk(max_concurrent_runs: int = 4) -> Desk:
        database = Database(f"sqlite:///{tmp_path / 'c.db'}")
        roster = load_member(world.server).roster
        journal = RunJournal(database, CheckpointStore(str(tmp_path / "checkpoints")), roster)
        nodes = {name: QuietNode(world.of(name), size=MODEL.size) for name in world.node_names}
        link = FakeLink(nodes, tmp_path / f"spool{len(made)}")
        parts = Parts(
            book=journal,
            link=link,  # type: ignore[arg-type]
            roster=roster,
            name="coordinator",
            identity=SigningKey.load(world.server / "identity.key"),
            folder=tmp_path / "runs",
            max_concurrent_runs=max_concurrent_runs,
        )
        (tmp_path / "runs").mkdir(exist_ok=True)
        scheduler = Scheduler(parts, retry_s=0.1)
        scheduler.start()
        made.append(Desk(world, journal, RunControl(database, journal), Views(database), link, scheduler, tmp_path))
        return made[-1]

    yield desk
    for one in made:
        one.scheduler.stop()
        for node in one.nodes:
            node.stop()
        one.journal._database.close()


@pytest.fixture
def desk(make: Callable[..., Desk]) -> Desk:
    return make()


def kinds(events: list[RunEvent]) -> list[str]:
    return [event.kind for event in events]


# --- turns -----------------------------------------------------------------------------------------------------------


def test_a_node_works_for_one_run_at_a_time_and_who_waited_longest_is_next() -> None:
    turns = Turns(most=9)
    for run, nodes in (("a", "xy"), ("b", "yz"), ("c", "z"), ("d", "w")):
        turns.ask(run, nodes)
    assert [run for run in "abcd" if turns.granted(run)] == ["a", "d"], "c would go before b at node z"
    assert turns.before("b") == {"y": "a"} and turns.holder("y") == "a" and turns.holder("y", besides="a") == ""
    turns.give_back("a")
    turns.ask("a", "xy")
    assert [run for run in "abcd" if turns.granted(run)] == ["b", "d"], "a has been behind since"
    turns.ask("c", "z", priority=5)
    turns.give_back("b")
    assert [run for run in "abcd" if turns.granted(run)] == ["a", "c", "d"]


def test_no_more_turns_than_allowed_and_higher_priorities_first() -> None:
    turns = Turns(most=1)
    for run, priority in (("a", 0), ("b", 0), ("c", 7)):
        turns.ask(run, run, priority)
    assert [run for run in "abc" if turns.granted(run)] == ["c"]
    turns.give_back("b")
    turns.give_back("c")
    assert [run for run in "abc" if turns.granted(run)] == ["a"] and turns.before("b") == {}


# --- runs ------------------------------------------------------------------------------------------------------------


def test_two_runs_of_the_same_nodes_take_turns_and_both_finish(desk: Desk) -> None:
    first, second = desk.submit(rounds=3), desk.submit(rounds=3)
    assert kinds(desk.ended(first))[-1] == kinds(desk.ended(second))[-1] == "run_finished"
    for node in desk.nodes:  # QuietNode refuses to train for two at once
        assert sorted(node.trained) == sorted((run, number) for run in (first, second) for number in (1, 2, 3))


def test_a_run_that_waits_for_a_person_holds_up_nobody(make: Callable[..., Desk]) -> None:
    desk = make(max_concurrent_runs=1)
    waiting = desk.submit(rounds=1)
    for node in desk.nodes:
        node.answers[waiting] = "wait"
    desk.until(lambda: desk.views.line(waiting).status == "waiting")
    line = desk.views.line(waiting)
    assert line.waits_for == list(desk.world.node_names) and "approval" in line.waits_reason
    other = desk.submit(rounds=1)
    assert kinds(desk.ended(other))[-1] == "run_finished"
    for node in desk.nodes:
        del node.answers[waiting]
    events = desk.ended(waiting)
    assert events[-1].kind == "run_finished" and desk.views.line(waiting).waits_reason == ""


@pytest.mark.parametrize("sealing", ["none", "sealed"])
def test_a_run_waits_for_a_node_that_is_out_of_its_training_hours(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, sealing: str
) -> None:
    """The night ends in round 2: it costs the attempt that was under way, and never the run."""
    cohorts: list[cohort.Cohort] = []
    begin = cohort.Cohort.__init__

    def noted(self: cohort.Cohort, *given: object, **named: object) -> None:
        begin(self, *given, **named)  # type: ignore[arg-type]
        cohorts.append(self)

    monkeypatch.setattr(cohort.Cohort, "__init__", noted)
    run_id, night = desk.submit(sealing, rounds=3, min_cohort=3), threading.Event()
    refused: list[int] = []

    def by_day(run: str, round: int) -> None:
        if round == 2 and not night.is_set():
            refused.append(round)
            raise NotNow("it is Fri 06:00 at the node; the policy trains 20:00-06:00.", seconds=14 * 3600)

    desk.nodes[0].on_train = by_day
    desk.until(lambda: "20:00-06:00" in desk.views.line(run_id).waits_reason)
    assert desk.views.line(run_id).status != "failed" and desk.views.line(run_id).waits_for == [desk.nodes[0].name]
    other = desk.submit(rounds=1)
    assert kinds(desk.ended(other))[-1] == "run_finished", "whoever waits holds no turn"
    night.set()
    for one in cohorts:  # as if what the node said were long ago
        one._resting.update({name: (0.0, reason) for name, (_, reason) in one._resting.items()})
    assert kinds(desk.ended(run_id))[-1] == "run_finished"
    assert len(refused) == 1


def test_an_exception_in_one_run_leaves_the_others(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    make, broken = driver.make_collector, set[str]()

    def made(specification: object, roster: object, folder: Path, run: str, schema: object) -> object:
        if run in broken:
            raise ZeroDivisionError("a bug")
        return make(specification, roster, folder, run, schema)  # type: ignore[arg-type]

    monkeypatch.setattr(driver, "make_collector", made)
    submission = desk.world.submission(specification(rounds=1), MODEL)
    broken.add(submission.signed.run_id)
    fine = desk.submit()
    desk.journal.submit(submission)
    failed = desk.ended(submission.signed.run_id)[-1]
    assert (failed.kind, failed.data["code"]) == ("run_failed", "Internal")
    assert desk.ended(fine)[-1].kind == "run_finished"
    desk.until(lambda: list(desk.scheduler.threads) == ["run-scheduler"])
    assert desk.scheduler.threads["run-scheduler"]


def test_a_sealed_run_rests_in_the_middle_of_an_epoch_and_goes_on_in_it(desk: Desk) -> None:
    run_id, in_second = desk.submit("sealed", rounds=4), threading.Event()
    go_on = threading.Event()

    def hold(run: str, round: int) -> None:
        if (run, round) == (run_id, 2):
            in_second.set()
            assert go_on.wait(60)

    desk.nodes[0].on_train = hold
    assert in_second.wait(60)
    desk.control.pause(run_id, "maintenance", "operator")
    assert desk.views.line(run_id).status == "paused"
    go_on.set()
    desk.until(lambda: desk.views.line(run_id).detail == "rests")
    assert desk.views.line(run_id).round == 2, "the open round was brought to its end"
    other = desk.submit(rounds=1)
    assert desk.ended(other)[-1].kind == "run_finished", "a run that rests holds up nobody"
    desk.control.resume(run_id, "operator")
    events = desk.ended(run_id)
    assert events[-1].kind == "run_finished" and "slot_abandoned" not in kinds(events)
    assert kinds(events).count("epoch_started") == 1 and kinds(events).count("run_started") == 1


def test_a_run_that_rests_can_be_stopped_and_one_that_ended_leaves_the_nodes_free(desk: Desk) -> None:
    run_id, training, go_on = desk.submit(rounds=5), threading.Event(), threading.Event()

    def hold(run: str, round: int) -> None:
        if run == run_id:
            training.set()
            go_on.wait(60)

    desk.nodes[0].on_train = hold
    assert training.wait(60)
    desk.journal.stop(run_id, *desk.world.stop_order(run_id))
    next_run = desk.submit(rounds=1)
    assert desk.ended(run_id)[-1].kind == "run_stopped"
    go_on.set()
    assert desk.ended(next_run)[-1].kind == "run_finished"
    resting = desk.submit(rounds=1)
    desk.control.pause(resting, "", "operator")
    desk.journal.stop(resting, *desk.world.stop_order(resting))
    assert desk.ended(resting)[-1].kind == "run_stopped"


def test_a_node_that_is_too_late_for_an_end_hears_of_it_at_its_next_poll(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(round_loop, "END_DEADLINE_S", 0.3)
    late, go_on = desk.nodes[0], threading.Event()

    def hold(run: str, round: int) -> None:
        if round == 1:  # it answers, and comes to nothing else until the others are in the next round
            late.give(lambda: (go_on.wait(60), None)[1])

    late.on_train = hold
    desk.nodes[1].on_train = lambda run, round: go_on.set() if round == 2 else None
    assert desk.ended(desk.submit(rounds=2))[-1].kind == "run_finished"
    for node in desk.nodes:
        assert [end.committed for end in node.ends if not end.run_ended][:1] == [True]
        assert len({end.slot for end in node.ends if not end.run_ended}) == 2


def test_a_node_that_is_revoked_while_it_trains_is_named_and_the_run_goes_on(desk: Desk) -> None:
    run_id, training, go_on = desk.submit(rounds=2), threading.Event(), threading.Event()

    def hold(run: str, round: int) -> None:
        training.set()
        go_on.wait(60)

    desk.nodes[2].on_train = hold
    assert training.wait(60)
    gone = desk.link.nodes.pop("hospital-c")
    events = desk.ended(run_id)
    go_on.set()
    gone.stop()
    dropped = [(event.data["node"], event.data["code"]) for event in events if event.kind == "dropped"]
    assert dropped[0] == ("hospital-c", "REVOKED") and events[-1].kind == "run_finished"
    assert desk.views.line(run_id).status == "finished_with_fewer"


def test_a_higher_priority_has_the_next_turn(make: Callable[..., Desk]) -> None:
    desk = make(max_concurrent_runs=1)
    first, training, go_on = desk.submit(rounds=3), threading.Event(), threading.Event()

    def hold(run: str, round: int) -> None:
        training.set()
        go_on.wait(60)

    desk.nodes[0].on_train = hold
    assert training.wait(60)
    urgent = desk.submit(rounds=2)
    desk.control.set_priority(urgent, 10, "operator")
    go_on.set()
    desk.ended(urgent)
    desk.ended(first)
    order = [run for run, _ in desk.nodes[1].trained]
    assert order.index(urgent) <= 2 and order[order.index(urgent) :][:2] == [urgent, urgent]


def test_a_disk_that_is_full_for_one_run_is_tried_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from confide.errors import StateError

    put, full = desk.journal.checkpoints.put, [True, True]

    def failing(data: bytes, kind: str) -> str:
        if kind == "bin" and full and data != MODEL.tobytes():
            full.pop()
            raise StateError("no space left")
        return put(data, kind)

    monkeypatch.setattr(desk.journal.checkpoints, "put", failing)
    events = desk.ended(desk.submit(rounds=1))
    assert events[-1].kind == "run_finished" and not full
    assert all(len(node.trained) == 1 for node in desk.nodes), "what was uploaded before was used"


@pytest.mark.parametrize(("at", "says"), [(1000.0, "in the future"), (4e9, "ROSTER_STALE")])
def test_a_clock_that_is_wrong_for_a_while_ends_no_run(desk: Desk, at: float, says: str) -> None:
    right, wrong = desk.journal.clock, threading.Event()

    def jump(run: str, round: int) -> None:
        if round == 1:
            desk.journal.clock = lambda: at
            wrong.set()

    desk.nodes[0].on_train = jump
    run_id = desk.submit()
    assert wrong.wait(60)
    desk.until(lambda: says in desk.views.line(run_id).waits_reason)
    desk.journal.clock = right
    assert desk.ended(run_id)[-1].kind == "run_finished"


def test_who_is_away_is_waited_for_as_long_as_the_specification_says(desk: Desk) -> None:
    shown: list[tuple[str, str]] = []
    waits = desk.journal.waits

    def noted(run_id: str, names: tuple[str, ...], reason: str) -> None:
        waits(run_id, names, reason)
        line = desk.views.line(run_id)
        shown.append((line.status, line.waits_reason))

    def leave(run: str, round: int) -> None:
        if round == 1:
            desk.nodes[2].online = False

    desk.journal.waits = noted  # type: ignore[method-assign]
    desk.nodes[2].on_train = leave
    run_id = desk.submit(rounds=3, grace_s=3.0, min_cohort=2)
    events = desk.ended(run_id)
    assert any(status == "waiting" and "hospital-c" in reason for status, reason in shown)
    committed = [event.data["contributors"] for event in events if event.kind == "round_committed"]
    assert [len(names) for names in committed] == [3, 2, 2], "the grace was over once, not before every round"
    assert events[-1].kind == "run_finished"
