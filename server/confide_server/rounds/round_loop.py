"""One round after the other: epoch where one is needed, slot, outer step, checkpoint, commit, end.

The order is what makes a crash harmless: the slot is in the journal before anyone is asked; an answer is on disk
before it counts; the checkpoint is durable before the round is committed in one transaction; the nodes hear of the
end after that. What a crash cuts off is found again in the collector's folder and the database.
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from confide.codec.tensors import model_digest
from confide.errors import (
    ConfideError,
    FailureName,
    IdentityError,
    ProtocolFailure,
    RetryableError,
    StateError,
    TrainingError,
)
from confide.identity.roster import Roster, RosterStore
from confide.identity.submission import SignedEnd
from confide.memory import trim
from confide.models.sent_coordinates import SentCoordinates
from confide.proto import fleet_pb2
from confide.rounds import merkle
from confide.rounds.outer_step import mean_update, next_model
from confide.rounds.record import RoundRecord, upload_leaves, uploads_of
from confide.sealing.member.chain import link_of
from confide.sealing.roles import WORK, Abandoned, Collector, Exchange, Opened, SlotPlan

from confide_server.rounds.attendance import Attendance
from confide_server.rounds.cohort import Cohort
from confide_server.rounds.exchange import Answer, Courier, Question, Silence
from confide_server.rounds.turns import Turn
from confide_server.state.events import (
    Contributed,
    Dropped,
    EpochStarted,
    RoundStarted,
)
from confide_server.state.runs.ends import end_message
from confide_server.state.runs.journal import Committed, Model, OpenRun, RunJournal
from confide_server.telemetry.logs import about
from confide_server.telemetry.traces import note, span

END_DEADLINE_S, END_EACH_S = 5.0, 1.0
"""How long answers to the end of a slot or run are waited for, from the newest one on; so much more in all a node."""
EPOCH_TRIES = 3
ROSTER_PAUSE_S = 1.0


class AttemptsUsedUp(ConfideError):
    """No slot for this model opened a sum."""

    @property
    def code(self) -> str:
        return "ATTEMPTS_USED_UP"


class Rounds:
    """Drives one run from its last committed round on."""

    def __init__(
        self,
        run: OpenRun,
        book: RunJournal,
        roster: RosterStore,
        courier: Courier,
        closing: Courier,
        cohort: Cohort,
        collector: Collector,
        pause: Callable[[float], None],
        sign: Callable[[SignedEnd], SignedEnd],
        turn: Turn,
        head: Callable[[str], fleet_pb2.RunHead | None],
    ) -> None:
        """closing: a courier that still works when the run is to stop. pause: as for Cohort.

        sign: as the coordinator. turn: taken for each round. head: of the run's log of rounds, signed.
        """
        self._run = run
        self._specification = run.specification
        self._federation = run.specification.federation
        self._coordinates = SentCoordinates(run.specification, run.schema)
        sealed = run.specification.sealed
        self._link = link_of(run.specification, self._coordinates) if sealed else None
        self._abandoned = ""
        """Why the last attempt opened nothing."""
        self._book = book
        self._roster = roster
        self._courier = courier
        self._closing = closing
        self._cohort = cohort
        self._collector = collector
        self._pause = pause
        self._sign = sign
        self._turn = turn
        self._head = head
        self._attendance = Attendance(
            run,
            book,
            cohort,
            collector,
            turn,
            pause,
            self._refresh_roster,
            grace_factor=courier.deadline_factor,
            clock=courier.clock,
        )
        self._roster_version = roster.current.version
        self._open: SlotPlan | None = None
        self._heard: set[str] = set()
        """Who answered something in the open slot: they are waited for at its end."""
        self._missing: set[str] = set()
        """Who was dropped since the last epoch was begun."""
        self._untold: list[str] = []
        self._connections: dict[str, int] = {}
        self._phases: dict[str, float] = {}
        """Seconds of the open round by step of the protocol."""
        self._received: dict[str, int] = {}

    def run_all(self) -> Model:
        """All rounds that are left; returns the last model."""
        model = self._book.model(self._run.run_id, self._run.round)
        self._settle(model)
        while model.round < self._federation.rounds:
            self._pause(0.0)  # between rounds an operator may let the run rest
            try:
                with about(round=model.round + 1), span("round", run=self._run.run_id, round=model.round + 1):
                    model = self._round(model)
            finally:
                self._turn.give_back()
            trim()
        return model

    def _settle(self, model: Model) -> None:
        """End a slot that was decided, but whose end the nodes may not have heard."""
        plan = self._collector.resumable
        if plan is not None and plan.round <= model.round:
            self._tell_end(plan, model.sha256, self._cohort.accepted(), self._courier)

    # --- one round

    def _round(self, model: Model) -> Model:
        number = model.round + 1
        began = self._courier.clock()
        self._phases, self._received = {}, {}
        while True:
            self._refresh_roster()
            self._turn.take(self._cohort.accepted())
            plan = self._resumed(number) or self._planned(number, model)
            outcome = self._slot(plan, model)
            if isinstance(outcome, Opened):
                try:
                    data, outer_state = self._stepped(plan, outcome, model)
                except (ProtocolFailure, TrainingError) as error:
                    outcome = Abandoned(error.code, str(error), outcome.dropped)
                else:
                    return self._commit(plan, outcome, model, data, outer_state, self._courier.clock() - began)
            self._abandoned = f"{outcome.code}: {outcome.reason}"
            self._abandon(plan, outcome.code, outcome.reason, model.sha256, self._courier)

    def _stepped(self, plan: SlotPlan, opened: Opened, model: Model) -> tuple[bytes, bytes]:
        """(model, outer state) after the round. Raises MODEL_CHAIN_BROKEN for a model that the nodes would refuse.

        One contributor can bend a sum so far, within what a sum may be: then it is not used, and the round tried again.
        """
        if plan.evaluate_only:
            return model.data, model.outer_state
        data, state = next_model(
            self._specification, self._coordinates, model.data, model.outer_state, opened, plan.round
        )
        if self._link is not None:
            self._link.check(data, plan.round + 1)
            self._link.check_step(model.data, data, plan.round, 1)
        return data, state

    def _refresh_roster(self) -> None:
        roster = self._fresh_roster()
        self._book.keep_roster()
        if roster.version != self._roster_version:
            self._collector.update_roster(roster)
            self._roster_version = roster.version

    def _fresh_roster(self) -> Roster:
        waited = False
        while True:
            roster = self._roster.current
            try:
                roster.check_fresh(self._book.clock())
            except (ProtocolFailure, IdentityError) as error:
                # Nodes would refuse everything; a newer roster lets the run go on, or this machine's clock set right.
                self._book.update(self._run.run_id, detail=f"waiting: {error}")
                self._book.waits(self._run.run_id, (), str(error))
                self._turn.give_back()
                self._pause(ROSTER_PAUSE_S)
                waited = True
            else:
                if waited:
                    self._book.waits(self._run.run_id, (), "")
                return roster

    def _resumed(self, number: int) -> SlotPlan | None:
        plan = self._collector.resumable
        if plan is None or plan.round != number:
            return None
        if self._open is None:
            self._open, self._heard = plan, set()
        return plan

    def _planned(self, number: int, model: Model) -> SlotPlan:
        made, most = self._book.attempts(self._run.run_id, number), self._specification.sealing.max_attempts
        if made >= most:
            raise AttemptsUsedUp(
                f"round {number} was tried {made} times and opened no sum; sealing.max_attempts is {most}. "
                f"The run's events say who did not contribute and why. {self._last_reason()}"
            )
        self._epoch(number)
        slot, attempt = self._book.plan_slot(self._run.run_id, number)
        plan = SlotPlan(
            slot=slot,
            round=number,
            attempt=attempt,
            model_sha256=model.sha256,
            parent_model_sha256=model.parent_sha256,
            evaluate_only=self._specification.training.local_steps == 0,
        )
        deadline_s = self._cohort.step_deadline_s(len(model.data))
        begun = RoundStarted(round=number, attempt=attempt, slot=slot, deadline_s=round(deadline_s))
        self._book.record(self._run.run_id, begun)
        self._open, self._heard = plan, set()
        return plan

    def _epoch(self, number: int) -> None:
        """Start an epoch where one is needed. Raises ProtocolFailure when none comes about."""
        for _ in range(EPOCH_TRIES):
            present = self._attendance.wait(number)
            self._note_connections()
            if not self._collector.epoch_needed(present):
                return
            self._missing = set()
            self._collector.begin_epoch(present)
            self._exchanges(number, {})
            outcome = self._collector.outcome
            if not isinstance(outcome, Abandoned) and not self._collector.epoch_needed(present):
                members = [name for name in present if name not in self._missing]
                begun = EpochStarted(members=members, slots=self._specification.sealing.slots_per_epoch)
                self._book.record(self._run.run_id, begun)
                return
        raise ProtocolFailure(
            FailureName.COHORT_NOT_EPOCH,
            f"no epoch came about in {EPOCH_TRIES} tries; the run's events say who is missing",
        )

    def _note_connections(self) -> None:
        """Tell the collector who connected anew since it last asked: a node that restarted lost its secrets."""
        now = self._cohort.connections()
        if anew := {name for name, count in now.items() if self._connections.get(name, count) != count}:
            self._collector.returned(anew)
        self._connections |= now

    def _slot(self, plan: SlotPlan, model: Model) -> Opened | Abandoned:
        with about(slot=plan.slot), span("slot", round=plan.round, attempt=plan.attempt, slot=plan.slot):
            self._collector.open_slot(plan)
            self._exchanges(plan.round, {"model": model.data})
            outcome = self._collector.outcome
            note(code=outcome.code if isinstance(outcome, Abandoned) else "")
        if outcome is None:
            raise RetryableError(f"slot {plan.slot} ended without an outcome; the coordinator begins it again")
        return outcome

    def _exchanges(self, number: int, model: Mapping[str, bytes]) -> None:
        while (exchange := self._collector.exchange()) is not None:
            began, step = self._courier.clock(), fleet_pb2.Step.Name(exchange.step).lower()
            with span("phase", step=step, asked=len(exchange.bodies)):
                self._exchange(number, exchange, model)
                self._collector.close_exchange()
            self._phases[step] = self._phases.get(step, 0.0) + self._courier.clock() - began

    def _exchange(self, number: int, exchange: Exchange, model: Mapping[str, bytes]) -> None:
        question = Question(
            step=exchange.step,
            bodies=exchange.bodies,
            deadline_s=self._deadline_s(exchange, model),
            payload=self._payload(exchange, model),
        )
        for answer in self._courier.ask(question):
            if not isinstance(answer, Answer):
                self._collector.lost(answer.node, answer.code, answer.reason)
                if answer.rests_s:
                    self._cohort.rests(answer.node, answer.rests_s, answer.reason)
                self._dropped(number, answer.node, answer.code, answer.reason, answered=answer.answered)
                continue
            self._heard.add(answer.node)
            size = answer.upload.path.stat().st_size if answer.upload else 0
            try:
                self._collector.receive(answer.node, answer.body, answer.upload)
            except StateError:
                raise
            except ConfideError as error:
                self._dropped(number, answer.node, error.code, str(error), answered=True)
                continue
            if exchange.step in WORK:
                self._received[answer.node] = size
                self._book.record(self._run.run_id, Contributed(round=number, node=answer.node, bytes=size))

    def _deadline_s(self, exchange: Exchange, model: Mapping[str, bytes]) -> float:
        """The collector knows how long the specification allows at most; the cohort what its nodes need."""
        if exchange.step not in WORK:
            return exchange.deadline_s
        return min(exchange.deadline_s, self._cohort.step_deadline_s(len(model.get("model", b""))))

    def _payload(self, exchange: Exchange, model: Mapping[str, bytes]) -> Mapping[str, bytes]:
        if exchange.step == fleet_pb2.ANCHOR:
            return {"model": self._book.model(self._run.run_id, 0).data}
        return model if exchange.with_model else {}

    def _dropped(self, number: int, node: str, code: str, reason: str, *, answered: bool) -> None:
        if answered:
            self._heard.add(node)
        else:
            self._heard.discard(node)
        self._missing.add(node)
        self._book.record(self._run.run_id, Dropped(round=number, node=node, code=code, reason=reason))

    # --- ends

    def _last_reason(self) -> str:
        return f"The last attempt: {self._abandoned}" if self._abandoned else ""

    def _commit(
        self, plan: SlotPlan, opened: Opened, model: Model, data: bytes, outer_state: bytes, seconds: float
    ) -> Model:
        store, update_norm, mean_file = self._book.checkpoints, 0.0, ""
        if not plan.evaluate_only:
            update_norm = float(np.linalg.norm(opened.update_sum)) / opened.weight_sum
            if self._specification.trains_model:
                mean_file = store.put(np.ascontiguousarray(mean_update(opened), "<f4").data, "mean")
        outer_file = store.put(outer_state, "safetensors") if outer_state else ""
        next_sha256 = model_digest(data)
        done = Committed(
            plan=plan,
            opened=opened,
            model_file=store.put(data, "bin"),
            outer_file=outer_file,
            mean_file=mean_file,
            record=self._record(plan, opened, model, next_sha256, mean_file, outer_file).canonical_bytes(),
            model_sha256=next_sha256,
            model_bytes=len(data),
            update_norm=update_norm,
            seconds=round(seconds, 3),
            phases={step: round(spent_s, 3) for step, spent_s in self._phases.items()},
            received={name: self._received[name] for name in opened.contributors if name in self._received},
        )
        self._book.commit_round(self._run.run_id, done)
        self._tell_end(plan, done.model_sha256, tuple(self._heard), self._courier)
        return Model(plan.round, done.model_sha256, model.sha256, data, outer_state, outer_file)

    def _record(
        self, plan: SlotPlan, opened: Opened, model: Model, next_sha256: bytes, mean_file: str, outer_file: str
    ) -> RoundRecord:
        """What is said of the round for good. Checkpoints are named by the SHA-256 of what they hold."""
        uploads = uploads_of(opened.evidence)
        return RoundRecord(
            run_id=self._run.run_id,
            round=plan.round,
            slot=plan.slot,
            attempt=plan.attempt,
            evaluate_only=plan.evaluate_only,
            model_sha256=model.sha256.hex(),
            next_model_sha256=next_sha256.hex(),
            uploads=len(uploads),
            uploads_root=merkle.root(upload_leaves(uploads)).hex(),
            mean_sha256=mean_file.partition(".")[0],
            outer_before_sha256=model.outer_file.partition(".")[0],
            outer_after_sha256=outer_file.partition(".")[0],
        )

    def _abandon(self, plan: SlotPlan, code: str, reason: str, model_sha256: bytes, courier: Courier) -> None:
        self._book.abandon_slot(self._run.run_id, plan, code, reason)
        self._open, end = None, self._collector.end_message(model_sha256)
        if end.committed:  # its sum was opened, and no model was made of it: nobody's update is in one
            end = fleet_pb2.End(slot=end.slot, committed=False, failure=code, next_model_sha256=model_sha256)
        self._say(end, tuple(self._heard), courier)

    def abandon_open(self, code: str, reason: str) -> None:
        """Close the open slot, if there is one: the run ends without it."""
        if self._open is not None:
            end = fleet_pb2.End(slot=self._open.slot, committed=False, failure=code)
            self._book.abandon_slot(self._run.run_id, self._open, code, reason)
            self._say(end, tuple(self._heard), self._closing)
            self._open = None

    def _tell_end(self, plan: SlotPlan, next_model_sha256: bytes, wait_for: tuple[str, ...], courier: Courier) -> None:
        self._open, end = None, self._collector.end_message(next_model_sha256)
        if (head := self._head(self._run.run_id)) is not None and end.committed:
            end.head.CopyFrom(head)
        self._say(end, wait_for, courier)

    def _say(self, end: fleet_pb2.End, wait_for: tuple[str, ...], courier: Courier) -> None:
        """Tell everyone who accepted; wait a moment for those who were heard of, not for the others.

        Who answers too late finds it at its next poll, until the next end or the end of the session.
        """
        courier.withdraw(self._untold)
        body = end.SerializeToString(deterministic=True)
        others = [name for name in self._cohort.accepted() if name not in wait_for]
        self._untold = self._told(courier, others, body)
        if wait_for:
            asked = dict.fromkeys(sorted(wait_for), body)
            answers = courier.ask(Question(fleet_pb2.END, asked, END_DEADLINE_S, {}, each_s=END_EACH_S))
            # The answers are receipts; they also come by the control service.
            late = [one.node for one in answers if isinstance(one, Silence) and not one.answered]
            self._untold += self._told(courier, late, body)

    def _told(self, courier: Courier, nodes: Iterable[str], body: bytes) -> list[str]:
        return courier.tell(Question(fleet_pb2.END, dict.fromkeys(nodes, body), END_DEADLINE_S, {}))

    def farewell(self, end: SignedEnd) -> None:
        """Tell everyone who is connected that the run has ended, over the coordinator's signature."""
        self._say(end_message(self._sign(end)), self._cohort.connected(), self._closing)
