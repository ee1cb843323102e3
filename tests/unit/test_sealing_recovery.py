"""A process ends at every named boundary: the run goes on, no mask serves twice, no list is signed twice.

The end of a process is played by an exception that nothing catches, and a new object on the same folder. Killing
real processes at the same boundaries is the integration suite's part.
"""

import importlib
import os
import pkgutil
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from confide.errors import StateError
from confide.proto import fleet_pb2
from confide.sealing import collector, crash_points, member
from confide.sealing.roles import Abandoned, Opened

from tests.sealing_harness import Federation, names

NAMES = re.findall(r"^    ((?:member|collector)\.\w+)  ", crash_points.__doc__ or "", flags=re.MULTILINE)
VICTIM = "hospital-01"
MODULES = [
    importlib.import_module(f"{package.__name__}.{found.name}")
    for package in (member, collector)
    for found in pkgutil.iter_modules(package.__path__)
]


class Killed(BaseException):
    """Nobody catches it, as nobody catches SIGKILL."""


def kill_at(monkeypatch: pytest.MonkeyPatch, name: str, count: int) -> None:
    left = Counter({name: count})

    def reached(moment: str) -> None:
        if moment == name:
            left[name] -= 1
            if left[name] == 0:
                raise Killed

    for module in MODULES:
        if hasattr(module, "reached"):
            monkeypatch.setattr(module, "reached", reached)


class Watched(Federation):
    """Counts trainings and remembers every upload that left."""

    def __post_init__(self) -> None:
        self.trained: Counter[tuple[str, int]] = Counter()
        self.left: dict[tuple[str, int], set[bytes]] = {}
        super().__post_init__()

    def contribution(self, name, plan):  # type: ignore[no-untyped-def]
        self.trained[name, plan.slot] += 1
        return super().contribution(name, plan)

    def ask(self, step, node, body):  # type: ignore[no-untyped-def]
        reply, payload = super().ask(step, node, body)
        if payload is not None:
            self.left.setdefault((node, self.slot_number), set()).add(payload.path.read_bytes())
        return reply, payload

    def check_nothing_served_twice(self) -> None:
        assert all(count == 1 for count in self.trained.values())
        assert all(len(different) == 1 for different in self.left.values())
        for node in self.members.values():
            signed = Counter(event["slot"] for event in node.context.log.journal if event["event"] == "signed")
            assert all(count == 1 for count in signed.values())


def test_the_crash_points_are_those_of_the_code() -> None:
    sources = "".join(Path(str(module.__file__)).read_text() for module in MODULES)
    assert sorted(set(re.findall(r'reached\("([\w.]+)"\)', sources))) == sorted(NAMES)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("collector.")])
@pytest.mark.parametrize("count", [1, 2])
def test_a_coordinator_that_is_killed_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, count: int
) -> None:
    federation = Watched(tmp_path, 4)
    kill_at(monkeypatch, name, count)
    outcomes = []
    while len(outcomes) < 3:
        resumed = federation.collector.resumable
        try:
            if resumed is None:
                federation.epoch()
            federation.collector.open_slot(federation.plan() if resumed is None else resumed)
            federation.drive()
            outcome = federation.collector.outcome
            assert isinstance(outcome, Opened) and outcome.contributors == names(4)
            outcomes.append(outcome)
            committed = federation.model, federation.parent
            federation.end(outcome)
        except Killed:
            if name == "collector.ended" and len(outcomes) == count:
                # The driver committed the round before it asked for the end message: it asks again.
                federation.restart_collector()
                assert federation.collector.resumable is None
                message = federation.collector.end_message(b"")
                assert list(message.contributors) == list(names(4))
                for node in federation.members.values():
                    node.slot_ended(message)
                continue
            if len(outcomes) and federation.collector.outcome is outcomes[-1]:
                federation.model, federation.parent = committed
            federation.restart_collector()
            if federation.collector.resumable is None and federation.collector._state.last_slot < (
                federation.slot_number
            ):
                federation.slot_number -= 1
            continue
    monkeypatch.undo()
    federation.check_nothing_served_twice()
    assert federation.trained.total() == 4 * 3


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("member.")])
def test_a_node_that_is_killed_is_missed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    federation = Watched(tmp_path, 4)
    federation.slot()
    federation.collector._attendance.renew = True
    honest = federation.ask

    def ask(step, node, body):  # type: ignore[no-untyped-def]
        with monkeypatch.context() as inner:
            if node == VICTIM:
                kill_at(inner, name, 1)
            try:
                return honest(step, node, body)
            except Killed:
                federation.restart_member(VICTIM)
                raise StateError("the node was killed") from None

    monkeypatch.setattr(federation, "ask", ask)
    outcome = federation.slot() if name != "member.ended" else None
    if name == "member.ended":
        outcome = federation.slot()
        federation.restart_member(VICTIM)
    assert isinstance(outcome, Opened)
    assert set(outcome.contributors) >= set(names(4)) - {VICTIM}
    monkeypatch.undo()
    federation.slot()
    federation.collector._attendance.renew = True
    last = federation.slot()
    assert isinstance(last, Opened) and last.contributors == names(4)
    federation.check_nothing_served_twice()


def test_everybody_is_killed_in_the_middle_of_a_slot(tmp_path: Path) -> None:
    federation = Watched(tmp_path, 4)
    federation.epoch()
    federation.collector.open_slot(federation.plan())
    exchange = federation.collector.exchange()
    assert exchange is not None
    for node, body in list(exchange.bodies.items())[:3]:
        federation.collector.receive(node, *federation.ask(fleet_pb2.TRAIN, node, body))
    for node in names(4):
        federation.restart_member(node)
    federation.restart_collector()
    resumed = federation.collector.resumable
    assert resumed is not None
    federation.collector.open_slot(resumed)
    outcome = federation.drive()
    assert isinstance(outcome, Abandoned) and outcome.code == "QUORUM_SHORT"
    federation.end(outcome)
    retry = federation.slot(round=1, attempt=2)
    assert isinstance(retry, Opened) and retry.contributors == names(4)
    federation.check_nothing_served_twice()


def test_a_crash_after_the_decision_opens_the_same_sum_again(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 4)
    federation.epoch()
    plan = federation.plan()
    federation.collector.open_slot(plan)
    first = federation.drive()
    federation.restart_collector()
    federation.collector.open_slot(plan)
    second = federation.collector.outcome
    assert isinstance(first, Opened) and isinstance(second, Opened)
    assert first.update_sum.tobytes() == second.update_sum.tobytes() and first.metrics == second.metrics
    assert federation.collector.exchange() is None
    federation.end(second)


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_upload_is_asked_for_again_after_a_restart(tmp_path: Path, damage: str) -> None:
    federation = Watched(tmp_path, 4)
    federation.epoch()
    federation.collector.open_slot(federation.plan())
    exchange = federation.collector.exchange()
    assert exchange is not None
    for node, body in list(exchange.bodies.items())[:3]:
        federation.collector.receive(node, *federation.ask(fleet_pb2.TRAIN, node, body))
    kept = federation.collector._slots.uploads.path(1, VICTIM)
    data = kept.read_bytes()
    kept.unlink()  # the member's own file is the same one here
    if damage == "changed":
        kept.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    federation.restart_collector()
    again = federation.collector.exchange()
    assert again is not None and sorted(again.bodies) == [VICTIM, names(4)[3]]
    outcome = federation.drive()
    assert isinstance(outcome, Opened) and outcome.contributors == names(4)
    federation.check_nothing_served_twice()


def test_an_upload_damaged_after_its_list_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(tmp_path, 4)
    federation.epoch()
    federation.collector.open_slot(federation.plan())
    kill_at(monkeypatch, "collector.quorum_written", 1)
    with pytest.raises(Killed):
        federation.drive()
    monkeypatch.undo()
    kept = federation.collector._slots.uploads.path(1, VICTIM)
    data = kept.read_bytes()
    kept.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    federation.restart_collector()
    outcome = federation.drive()
    assert isinstance(outcome, Abandoned) and outcome.code == "SUM_OUT_OF_RANGE" and "digest" in outcome.reason


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("collector.")])
def test_a_power_cut_takes_only_what_nobody_was_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    federation = Watched(tmp_path, 4)
    journal, durable = federation.collector._recorder.journal, [0]
    honest = os.fsync

    def fsync(descriptor: int) -> None:
        honest(descriptor)
        if descriptor == journal._descriptor:
            durable[0] = journal.path.stat().st_size

    monkeypatch.setattr(os, "fsync", fsync)
    kill_at(monkeypatch, name, 2)
    try:
        for _ in range(2):
            federation.slot()
            federation.collector._attendance.renew = True
    except Killed:
        pass
    monkeypatch.undo()
    os.truncate(journal.path, durable[0])
    federation.restart_collector()
    resumed = federation.collector.resumable
    if resumed is not None:
        federation.collector.open_slot(resumed)
        outcome = federation.collector.outcome or federation.drive()
        assert isinstance(outcome, Opened) and outcome.contributors == names(4)
        federation.end(outcome)
    federation.slot_number = federation.collector._state.last_slot
    last = federation.slot()
    assert isinstance(last, Opened) and len(last.contributors) >= 3
    federation.check_nothing_served_twice()


def test_the_hook_kills_and_does_nothing_else() -> None:
    code = (
        "from confide.sealing.crash_points import reached\n"
        "for i in range(3): print(i, flush=True); reached('member.spent')"
    )
    for value, status, printed in ((None, 0, 3), ("member.spent:2", -9, 2), ("member.other", 0, 3)):
        environment = {} if value is None else {crash_points.VARIABLE: value}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode, len(done.stdout.split())) == (status, printed), done.stderr


def test_a_node_that_refuses_every_epoch_keeps_nobody_from_it(tmp_path: Path) -> None:
    federation = Watched(tmp_path, 4)
    federation.epoch()
    lying = federation.members[VICTIM]
    lying.context.log.last_epoch = 1000  # refuses whatever number comes
    federation.slot()
    federation.collector._attendance.renew = True
    federation.epoch()
    assert not federation.collector.epoch_needed(names(4)), "the others have an epoch; it is not begun again for ever"
    outcome = federation.slot()
    assert isinstance(outcome, Opened) and set(outcome.contributors) == set(names(4)) - {VICTIM}
    lying.context.log.last_epoch = 1
    outcome = federation.slot()
    assert isinstance(outcome, Opened) and outcome.contributors == names(4), "who was left out is asked again"
