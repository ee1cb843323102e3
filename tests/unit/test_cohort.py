"""Who is waited for before a run begins, and for how long, by a clock of the test's own."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from confide.proto import fleet_pb2
from confide_server.fleet.port import Presence
from confide_server.rounds.cohort import Cohort, CohortTooSmall
from confide_server.rounds.exchange import Answer, Question

from tests.coordinator_world import specification

ALL = ("hospital-a", "hospital-b", "hospital-c")
ACCEPTED = fleet_pb2.OfferAnswer(accepted=True, round_s=1.0)
PREPARING = fleet_pb2.OfferAnswer(waiting=True, preparing=True)
PERSON = fleet_pb2.OfferAnswer(waiting=True)
DEFAULTS = {"exchange_deadline_s": None, "step_deadline_s": None}
"""Those of the specification: 30 s, and as long as the nodes say."""


@dataclass
class Desk:
    """Nodes that connect at given seconds, and what they answer; the journal's and the courier's side of it."""

    comes_at: dict[str, float] = field(default_factory=dict)
    prepares_s: float = 0.0
    """After so long who has come accepts."""
    person_at: float = 0.0
    """From when on people have approved."""
    now: float = 0.0
    said: list[tuple[tuple[str, ...], str]] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += max(seconds, 0.5)

    def presence(self) -> dict[str, Presence]:
        return {name: Presence(True, 1) for name in ALL if self.now >= self.comes_at.get(name, 0.0)}

    def ask(self, question: Question) -> Iterator[Answer]:
        for name in question.bodies:
            came = self.comes_at.get(name, 0.0)
            answer = PERSON if self.now < self.person_at else ACCEPTED
            answer = PREPARING if self.now < came + self.prepares_s else answer
            yield Answer(name, answer.SerializeToString(), None)

    def waits(self, run_id: str, names: tuple[str, ...], reason: str) -> None:
        if not self.said or self.said[-1] != (tuple(names), reason):
            self.said.append((tuple(names), reason))

    def update(self, run_id: str, **fields: object) -> None: ...

    def record(self, run_id: str, event: object) -> None: ...

    def answered(self, run_id: str, answer: str, event: object) -> None: ...

    progress = SimpleNamespace(follow=lambda run_id, names: None)

    def cohort(self, **federation: object) -> Cohort:
        signed = SimpleNamespace(
            specification=b"", initial_model_sha256=b"", signature=b"", administrator="", run_id="", nonce=b"",
            expires_at=0, parent_run_id="", parent_round=0, cosigned=(),
        )  # fmt: skip
        run = SimpleNamespace(
            run_id="0123456789ab",
            answers={},
            status="submitted",
            signed=signed,
            specification=specification(ALL, **(DEFAULTS | federation)),
        )
        roster = SimpleNamespace(signed=b"", current=SimpleNamespace(active=lambda role: ()))
        return Cohort(run, self, self, roster, self, self.pause, clock=self.clock)  # type: ignore[arg-type]


def test_nodes_that_are_away_when_the_run_is_submitted_are_waited_for_and_named() -> None:
    """They restart, for longer than an exchange may take: the run had ended after 30 s."""
    desk = Desk(dict.fromkeys(ALL, 400.0))
    desk.cohort().gather()
    assert 400.0 <= desk.now < 440.0
    waits = f"waits up to 600 s for {', '.join(ALL)} to connect; are their nodes started?"
    assert desk.said[0] == (ALL, waits) and desk.said[-1] == ((), "")


def test_who_comes_late_has_as_long_to_prepare_as_anybody() -> None:
    desk = Desk(dict.fromkeys(ALL, 550.0), prepares_s=500.0)
    desk.cohort().gather()
    assert desk.now >= 1050.0


def test_whoever_never_connects_ends_the_run_by_name_and_the_message_says_what_to_do() -> None:
    desk = Desk({"hospital-b": 1e9, "hospital-c": 1e9})
    with pytest.raises(CohortTooSmall) as refusal:
        desk.cohort().gather()
    assert 600.0 < desk.now < 610.0
    said = str(refusal.value)
    assert "1 of 3 organizations take part, and min_cohort is 2: hospital-b is not connected" in said
    assert "`confide run retry 01234567` asks all of them again; federation.grace_s" in said


def test_the_grace_says_longer() -> None:
    desk = Desk(dict.fromkeys(ALL, 5000.0))
    desk.cohort(grace_s=7200.0).gather()
    assert desk.now >= 5000.0


def test_who_is_not_needed_is_not_waited_for_any_longer() -> None:
    desk = Desk({"hospital-c": 1e9})
    desk.cohort().gather()
    assert 30.0 < desk.now < 45.0
    assert desk.said[0] == (("hospital-c",), "waits up to 30 s for hospital-c to connect; are their nodes started?")


def test_people_are_waited_for_as_before() -> None:
    desk = Desk(person_at=5000.0)
    desk.cohort().gather()
    assert desk.now >= 5000.0 and desk.said[0][1].startswith("waits for approval by")


def test_a_rest_is_told_with_its_end_where_the_node_named_one() -> None:
    desk = Desk()
    cohort = desk.cohort()
    cohort.gather()
    desk.now = 0.0
    cohort.rests("hospital-a", 7200.0, "the policy trains 02:00-04:00.")
    cohort.rests("hospital-b", 60.0, "policy.toml cannot be read")
    cohort.rests("hospital-c", 604800.0, "the policy trains none.")
    assert cohort.resting() == {
        "hospital-a": "the policy trains 02:00-04:00; rests until 1970-01-01 02:00 UTC",
        "hospital-b": "policy.toml cannot be read",
        "hospital-c": "the policy trains none.",
    }
    with pytest.raises(
        CohortTooSmall, match=r"hospital-a rests \(the policy .*1970-01-01 02:00 UTC\), hospital-b rests"
    ):
        cohort.patience(-1.0).check(())
