"""Who takes part in a run: every member of the cohort is offered it, and answers for itself.

A node accepts, refuses (for good), waits for a person, or prepares: it still loads what it needs to answer in time,
measures how long a round takes it, or works for another run and says for how long. Who accepts says how long a round
takes, and a slot's deadline follows from it. A node is offered the run again when it waits or prepares, and when it
connects anew, since what it accepted before its restart is its own business to know.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from confide.errors import ConfideError, TransportError
from confide.identity.roster import Role, RosterStore, utc
from confide.proto import fleet_pb2
from confide.runs.deadline import UNMEASURED_S, claimed_s, step_deadline_s
from confide.sealing.differences import differences_kind
from confide.text import line
from google.protobuf.message import DecodeError

from confide_server.fleet.port import Link
from confide_server.rounds.exchange import Answer, Courier, Question, printable
from confide_server.rounds.turns import MOST_BUSY_S
from confide_server.state.events import OfferAnswered, RunStarted
from confide_server.state.runs.journal import OpenRun, RunJournal
from confide_server.state.runs.status import RunStatus

OFFER_AGAIN_S = 1.0
PAUSE_S = 0.2
SAY_WAITING_S = 2.0
"""Answers that come sooner are not waited for in a way that is worth telling."""
_PRECISIONS = ("float32", "bfloat16")
_UNTOLD: Mapping[str, Any] = MappingProxyType({})
_MOST_UNITS = 16
RETURN_S = 10.0
"""Nodes look for a coordinator that went away every 5 s at least."""
_WEEK_S = 604800.0
"""Who names so long a rest has no hours at all, and who names no more than MOST_BUSY_S may be ready at any time."""


class CohortTooSmall(ConfideError):
    """Fewer organizations take part than the specification allows."""

    @property
    def code(self) -> str:
        return "COHORT_TOO_SMALL"


class Patience:
    """Ends the waiting for a cohort that is too small."""

    def __init__(
        self, limit_s: float, words: Callable[[Sequence[str]], str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._end = clock() + limit_s
        self._words = words
        self._clock = clock

    def check(self, present: Sequence[str]) -> None:
        """Raises CohortTooSmall once the time is over."""
        if self._clock() > self._end:
            raise CohortTooSmall(self._words(present))


class Cohort:
    """The members of one run and how they stand to it."""

    def __init__(
        self,
        run: OpenRun,
        book: RunJournal,
        link: Link,
        roster: RosterStore,
        courier: Courier,
        pause: Callable[[float], None],
        working_for: Callable[[str], str] = lambda node: "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """pause: sleeps, and raises when the run or the process is to stop. working_for: the other run that a node
        trains for just now; "" for none."""
        self._run = run
        self._federation = run.specification.federation
        self._book = book
        self._link = link
        self._roster = roster
        self._courier = courier
        self._pause = pause
        self._working_for = working_for
        self._clock = clock
        self._answers = dict(run.answers)
        self._offered: dict[str, tuple[int, float]] = {}
        """Connection at which a node was last offered the run, and when."""
        self._busy_until: dict[str, float] = {}
        """Of nodes that work for another run, as they say."""
        self._came: dict[str, float] = {}
        """When a node first answered here."""
        self._resting: dict[str, tuple[float, str]] = {}
        """Whose policy does not let them train now: when to ask again, and their reason, with the end where they named
        one."""
        self._round_s: dict[str, float] = {}
        """What a round takes each node that accepted, as it measured; it says so again when it connects anew."""

    @property
    def names(self) -> tuple[str, ...]:
        """The cohort: named by the specification, else every node of the roster when the run began."""
        return tuple(sorted(self._answers))

    def accepted(self) -> tuple[str, ...]:
        """Who accepted, present or not."""
        return tuple(name for name in self.names if self._answers[name] == "accepted")

    def connected(self) -> tuple[str, ...]:
        """Who accepted, waits or prepares, and is connected now: without asking anyone."""
        presence = self._link.presence()
        return tuple(
            name
            for name in self.names
            if self._answers[name] in ("accepted", "waiting", "preparing")
            and name in presence
            and presence[name].online
        )

    def gather(self) -> None:
        """Offer the run until enough accepted; the others may join later. Raises CohortTooSmall.

        Nodes that are not connected, and people who have not answered, are waited for until `exchange_deadline_s`
        passed. Where the run cannot begin without them longer: people for as long as the submission holds, nodes as
        long as who prepares, or `grace_s` where that is more. Who prepares has as long as a step of theirs may take,
        while nobody knows how long that is.
        """
        if not self._answers:
            active = [member.name for member in self._roster.current.active(Role.NODE)]
            self._answers = dict.fromkeys(self._federation.nodes or active, "")
            self._book.update(self._run.run_id, cohort=list(self.names))
        self._book.progress.follow(self._run.run_id, self.names)
        if self._run.status == "submitted":
            self._book.update(self._run.run_id, status=RunStatus.OFFERING)
        began = self._clock()
        while self._worth_waiting(began):
            if self._clock() - began >= SAY_WAITING_S:
                self._say_waiting()
            self._pause(PAUSE_S)
        self._book.waits(self._run.run_id, (), "")
        if len(self.accepted()) < self._federation.min_cohort:
            raise CohortTooSmall(self._too_small())
        self._await_connections()
        if self._run.status != "running":
            self._book.update(self._run.run_id, status=RunStatus.RUNNING, started_at=self._book.clock())
            begun = RunStarted(
                nodes=list(self.accepted()),
                rounds=self._federation.rounds,
                sealing=self._run.specification.sealing.kind.value,
                name=self._run.specification.name,
                differences=differences_kind(self._run.specification),
            )
            self._book.record(self._run.run_id, begun)

    def _say_waiting(self) -> None:
        """For whom the run waits before it begins."""
        open_ = [name for name in self.names if self._answers[name] in ("", "waiting", "preparing")]
        people, online = [name for name in open_ if self._answers[name] == "waiting"], self._online(open_)
        if people:
            self._book.waits(self._run.run_id, people, f"waits for approval by {', '.join(people)}")
        elif busy := [name for name in open_ if self._working_for(name)]:
            reason = ", ".join(f"{name} works for run {self._working_for(name)[:8]}" for name in busy)
            self._book.waits(self._run.run_id, busy, f"waits for answers: {reason}")
        elif away := [name for name in open_ if name not in online]:
            short = len(self.accepted()) < self._federation.min_cohort
            limit_s = self._away_s if short else self._federation.exchange_deadline_s
            reason = f"waits up to {limit_s:.0f} s for {', '.join(away)} to connect"
            self._book.waits(self._run.run_id, away, f"{reason}; are their nodes started?")
        elif open_:
            self._book.waits(self._run.run_id, open_, f"waits for the answers of {', '.join(open_)}")

    def _await_connections(self) -> None:
        """Let those who take part connect again, above all after a restart; else an epoch leaves out the slowest."""
        began = self._clock()
        while self.present() != self.accepted() and self._clock() - began < RETURN_S:
            self._pause(PAUSE_S)

    def _worth_waiting(self, began: float) -> bool:
        """Offer the run; whether more organizations may still come that are worth waiting for."""
        self.offer()
        open_ = {name: answer for name, answer in self._answers.items() if answer in ("", "waiting", "preparing")}
        taking_part, waited_s = len(self.accepted()), self._clock() - began
        if not open_ or taking_part + len(open_) < self._federation.min_cohort:
            return False
        if any(self._working_for(name) for name in self._online(open_)):
            return True  # it answers when it has finished its step for the other run
        if waited_s <= MOST_BUSY_S and any(self._busy_until.get(name, 0.0) > self._clock() for name in open_):
            return True
        preparing = [name for name, answer in open_.items() if answer == "preparing"]
        if any(self._clock() - self._came.get(name, began) <= self._unmeasured_s for name in preparing):
            return True
        if waited_s <= self._federation.exchange_deadline_s:
            return True
        if taking_part >= self._federation.min_cohort:
            return False
        away = len(self._online(open_)) < len(open_)
        return "waiting" in open_.values() or (away and waited_s <= self._away_s)

    def _online(self, names: Iterable[str]) -> list[str]:
        presence = self._link.presence()
        return [name for name in names if name in presence and presence[name].online]

    @property
    def _unmeasured_s(self) -> float:
        return min(UNMEASURED_S, self._federation.deadline_limit_s)

    @property
    def _away_s(self) -> float:
        """How long who is not connected is waited for, where the run cannot begin without them."""
        return max(self._federation.exchange_deadline_s, self._unmeasured_s, self._federation.grace_s)

    def step_deadline_s(self, model_bytes: int) -> float:
        """How long those who accepted may train and upload in the next slot."""
        measured = [self._round_s.get(name, 0.0) for name in self.accepted()]
        return step_deadline_s(self._run.specification, measured, model_bytes)

    def present(self) -> tuple[str, ...]:
        """Who accepted, is connected now and does not rest, sorted; newcomers and those who connected anew are offered
        the run, and who has rested for as long as it said."""
        self.offer()
        presence = self._link.presence()
        return tuple(
            name for name in self.accepted() if name in presence and presence[name].online and name not in self._resting
        )

    def rests(self, node: str, seconds: float, reason: str) -> None:
        """A node said that its policy does not let it train before so many seconds have passed."""
        if MOST_BUSY_S < seconds < _WEEK_S:
            until = (
                round((self._book.clock() + seconds) / 60.0) * 60.0
            )  # hours begin on the minute; words stay the same
            reason = f"{reason.rstrip('.')}; rests until {utc(until)}"
        self._resting[node] = (self._clock() + min(seconds, MOST_BUSY_S), reason)

    def resting(self) -> dict[str, str]:
        """Who rests, and why."""
        return {name: reason for name, (_, reason) in self._resting.items()}

    def refused(self) -> dict[str, str]:
        """Who never takes part, and why."""
        return {name: "it refused the run" for name in self.names if self._answers[name] == "refused"}

    def connections(self) -> dict[str, int]:
        """Of each member that is known to be there, how often it has connected."""
        return {name: there.activations for name, there in self._link.presence().items() if name in self._answers}

    def patience(self, limit_s: float | None = None) -> "Patience":
        """How long the smallest cohort is waited for from now on; by default as long as for who prepares."""
        return Patience(self._unmeasured_s if limit_s is None else limit_s, self._too_small, self._clock)

    def _too_small(self, present: Sequence[str] | None = None) -> str:
        there, online = self.accepted() if present is None else present, self._online(self.names)
        words = {
            "": "did not answer",
            "waiting": "waits for a person",
            "preparing": "is still loading or measuring",
            "refused": "refused",
            "accepted": "is away",
        }

        def said(name: str) -> str:
            if name in self._resting and self._answers[name] == "accepted":
                return f"{name} rests ({self._resting[name][1]})"
            away = not self._answers[name] and name not in online
            return f"{name} {'is not connected' if away else words[self._answers[name]]}"

        others = ", ".join(said(name) for name in self.names if name not in there)
        return (
            f"{len(there)} of {len(self.names)} organizations take part, and min_cohort is "
            f"{self._federation.min_cohort}: {others}. Once that is mended, `confide run retry {self._run.run_id[:8]}` "
            "asks all of them again; federation.grace_s has nodes that are away waited for longer."
        )

    def offer(self) -> None:
        """Offer the run to every connected member that has yet to answer, waits, prepares, or connected anew."""
        presence = self._link.presence()
        due = {}
        for name in self.names:
            there = presence.get(name)
            if there is None or not there.online or self._answers[name] == "refused":
                continue
            connection, when = self._offered.get(name, (-1, 0.0))
            again = self._answers[name] != "accepted" and self._clock() - when >= OFFER_AGAIN_S
            again |= name in self._resting and self._clock() >= self._resting[name][0]
            if connection != there.activations or again:
                due[name] = there.activations
        if not due:
            return
        body = self._offer_body()
        question = Question(
            step=fleet_pb2.OFFER,
            bodies=dict.fromkeys(due, body),
            deadline_s=self._federation.exchange_deadline_s,
            payload={},
            once=True,
        )
        for answer in self._courier.ask(question):
            if isinstance(answer, Answer):
                self._came.setdefault(answer.node, self._clock())
                self._offered[answer.node] = (due[answer.node], self._clock())
                self._take(answer.node, answer.body)
            elif answer.answered:
                self._offered[answer.node] = (due[answer.node], self._clock())
                self._set(answer.node, "refused", f"{answer.code}: {answer.reason}")

    def _offer_body(self) -> bytes:
        signed = self._run.signed
        offer = fleet_pb2.Offer(
            specification=signed.specification,
            initial_model_sha256=signed.initial_model_sha256,
            signature=signed.signature,
            administrator=signed.administrator,
            roster=self._roster.signed,
            run_id=signed.run_id,
            nonce=signed.nonce,
            expires_at=signed.expires_at,
            parent_run_id=signed.parent_run_id,
            parent_round=signed.parent_round,
            cosigned=[fleet_pb2.Cosignature(administrator=name, signature=one) for name, one in signed.cosigned],
        )
        return offer.SerializeToString(deterministic=True)

    def _take(self, node: str, body: bytes) -> None:
        try:
            answer = fleet_pb2.OfferAnswer.FromString(body)
        except DecodeError:
            self._set(node, "refused", str(TransportError("its answer is not an OfferAnswer")))
            return
        self._resting.pop(node, None)
        if answer.accepted:
            if answer.busy_s:
                self.rests(node, answer.busy_s, printable(answer.reason))
            self._round_s[node] = claimed_s(answer.round_s)
            precision = answer.precision if answer.precision in _PRECISIONS else ""
            self._set(node, "accepted", "", precision, _hardware(answer.hardware))
        elif answer.waiting:
            if answer.preparing and answer.busy_s:
                self._busy_until[node] = self._clock() + answer.busy_s
                self._courier.on_busy(node, float(answer.busy_s))
            self._set(node, "preparing" if answer.preparing else "waiting", printable(answer.reason))
        else:
            self._set(node, "refused", printable(answer.reason))

    def _set(
        self, node: str, answer: str, reason: str, precision: str = "", hardware: Mapping[str, Any] = _UNTOLD
    ) -> None:
        if self._answers[node] == answer:
            return
        self._answers[node] = answer
        event = OfferAnswered(
            node=node,
            accepted=answer == "accepted",
            waiting=answer in ("waiting", "preparing"),
            preparing=answer == "preparing",
            reason=reason,
            round_s=round(self._round_s.get(node, 0.0), 3),
            precision=precision,
            hardware=dict(hardware),
        )
        self._book.answered(self._run.run_id, answer, event)


def _hardware(said: fleet_pb2.Hardware) -> dict[str, Any]:
    """What a node told of its machine, bounded, and fit to be shown; what it did not tell is left out."""
    units = [line(unit, 20) for unit in said.vector_units[:_MOST_UNITS]]
    told = {
        "cores": said.cores,
        "memory_gib": said.memory_gib,
        "vector_units": units,
        "accelerator": line(said.accelerator, 80),
    }
    return {name: value for name, value in told.items() if value}
