"""Who is waited for before a round, and for how long, by a clock of the test's own."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from confide_server.rounds.attendance import Attendance
from confide_server.rounds.cohort import CohortTooSmall, Patience
from confide_server.rounds.turns import SAY_AFTER_S, Turn, Turns

from tests.coordinator_world import specification

ALL = ("hospital-a", "hospital-b", "hospital-c")


class Resting(Exception):
    pass


@dataclass
class World:
    """A run whose members come and go at given seconds."""

    comes_at: dict[str, float] = field(default_factory=dict)
    split: tuple[str, ...] = ()
    rests: tuple[str, ...] = ()
    rests_at: float = 1e9
    awake: tuple[float, float] = (1e9, 1e9)
    """Between these nobody rests."""
    step_s: float = 0.0
    """How long a pause takes at least."""
    now: float = 0.0
    said: list[tuple[tuple[str, ...], str]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += max(seconds, self.step_s, 0.01)
        if self.now >= self.rests_at:
            raise Resting

    # --- the cohort's and the journal's side, as far as it is asked

    def present(self) -> tuple[str, ...]:
        return tuple(name for name in ALL if self.now >= self.comes_at.get(name, 0.0))

    def accepted(self) -> tuple[str, ...]:
        return ALL

    def refused(self) -> dict[str, str]:
        return {}

    def resting(self) -> dict[str, str]:
        if self.awake[0] <= self.now < self.awake[1]:
            return {}
        return {name: "out of its hours" for name in self.rests if name not in self.present()}

    def patience(self, limit_s: float = 100.0) -> Patience:
        return Patience(limit_s, lambda present: f"{len(present)} of 3", self.clock)

    def waits(self, run_id: str, names: tuple[str, ...], reason: str) -> None:
        if not self.said or self.said[-1] != (tuple(names), reason):
            self.said.append((tuple(names), reason))

    def update(self, run_id: str, **fields: object) -> None: ...

    def record(self, run_id: str, event: object) -> None:
        self.events.append(event.kind)  # type: ignore[attr-defined]

    def attendance(self, turns: Turns | None = None, **federation: object) -> tuple[Attendance, Turn]:
        sealing = "sealed" if self.split else "none"
        more = {"clip_norm": 1.0, "min_cohort": 3} if self.split else {}
        run = SimpleNamespace(run_id="run", specification=specification(sealing=sealing, **(more | federation)))
        collector = SimpleNamespace(
            waits_for=lambda present, refused: tuple(name for name in self.split if name not in present)
        )
        turn = Turn(
            turns or Turns(most=1),
            "run",
            priority=lambda: 0,
            pause=self.pause,
            say=lambda before: self.said.append((tuple(before or ()), "turn" if before is not None else "")),
            clock=self.clock,
        )
        made = Attendance(run, self, self, collector, turn, self.pause, lambda: None, clock=self.clock)  # type: ignore[arg-type]
        return made, turn


def test_who_is_there_begins_at_once() -> None:
    world = World()
    attendance, turn = world.attendance(grace_s=60.0)
    assert attendance.wait(1) == ALL and turn.held and world.now == 0.0 and not world.said


def test_grace_is_given_by_name_and_once_for_each_absence() -> None:
    world = World({"hospital-c": 1000.0})
    attendance, turn = world.attendance(grace_s=60.0)
    assert attendance.wait(1) == ALL[:2] and 60.0 <= world.now < 62.0
    assert world.said[0] == (("hospital-c",), "waits up to 60 s for hospital-c") and world.said[-1] == ((), "")
    turn.give_back()
    before = world.now
    assert attendance.wait(2) == ALL[:2] and world.now == before, "its grace is over"
    turn.give_back()
    world.now = 1001.0
    assert attendance.wait(3) == ALL
    turn.give_back()
    world.comes_at["hospital-c"] = 1030.0
    assert attendance.wait(4) == ALL and world.now >= 1030.0, "it was there: it is waited for again"


def test_the_smallest_cohort_is_waited_for_and_then_the_run_ends_by_name() -> None:
    world = World({"hospital-b": 50.0, "hospital-c": 1000.0})
    assert world.attendance(min_cohort=2)[0].wait(1) == ALL[:2] and 50.0 <= world.now < 52.0
    world = World({"hospital-b": 500.0, "hospital-c": 1000.0})
    with pytest.raises(CohortTooSmall, match="1 of 3"):
        world.attendance(min_cohort=2)[0].wait(1)
    assert 100.0 < world.now < 102.0


def test_who_rests_by_its_policy_is_waited_for_until_its_hours_begin() -> None:
    world = World(comes_at={"hospital-b": 604_000.0, "hospital-c": 1e9}, rests=("hospital-b",), step_s=60.0)
    attendance, _ = world.attendance(min_cohort=2)
    assert attendance.wait(1) == ("hospital-a", "hospital-b")
    assert world.now >= 604_000.0
    ends = "the run ends 1970-01-09 00:00 UTC if they are missing then"
    assert world.said == [(("hospital-b",), f"waits for hospital-b (out of its hours); {ends}"), ((), "")]


def test_who_rests_for_good_ends_the_run_by_name_once_every_week_s_hours_have_come() -> None:
    world = World(comes_at={"hospital-b": 1e9, "hospital-c": 1e9}, rests=("hospital-b",), step_s=60.0)
    with pytest.raises(CohortTooSmall, match="1 of 3"):
        world.attendance(min_cohort=2)[0].wait(1)
    assert 8 * 86400.0 < world.now < 8 * 86400.0 + 200.0


def test_a_rest_that_ended_is_forgotten() -> None:
    """Who rests anew is waited for anew; who is merely away, as ever."""
    late, rests = {"hospital-b": 1_000_000.0, "hospital-c": 1e9}, ("hospital-b",)
    world = World(comes_at=late, rests=rests, step_s=20.0, awake=(600_000.0, 600_050.0))
    assert world.attendance(min_cohort=2)[0].wait(1) == ("hospital-a", "hospital-b")
    world = World(comes_at=late, rests=rests, step_s=20.0, awake=(600_000.0, 1e9))
    with pytest.raises(CohortTooSmall):
        world.attendance(min_cohort=2)[0].wait(1)
    assert 600_090.0 < world.now < 600_150.0


def test_a_whole_block_is_waited_for_without_end_and_others_have_the_turn_meanwhile() -> None:
    turns = Turns(most=1)
    world = World({"hospital-c": 100_000.0}, split=("hospital-c",), rests_at=5000.0)
    attendance, turn = world.attendance(turns)
    turn.take(ALL)
    turns.ask("other", ALL)
    assert not turns.granted("other")
    with pytest.raises(Resting):
        attendance.wait(1)
    assert world.events == ["paused"] and "hospital-c" in world.said[0][1] and world.now >= 5000.0
    assert not turn.held and turns.granted("other")


def test_a_turn_that_others_have_is_waited_for_and_said() -> None:
    turns, world = Turns(most=1), World(rests_at=30.0)
    turns.ask("other", ALL)
    assert turns.granted("other")
    attendance, turn = world.attendance(turns)
    with pytest.raises(Resting):
        attendance.wait(1)
    assert world.said[0] == (ALL, "turn") and world.now > SAY_AFTER_S
    turn.give_back()
    turns.give_back("other")
    world.rests_at = 1e9
    assert attendance.wait(1) == ALL and turn.held
