"""One node's answers to instructions: the Runtime behind the ClientApp.

Order of every answer: parse and check; the same reply again if it was given before; decide or work; sign; keep;
write the audit log; send. What goes wrong becomes a Failure with a code and a message for the coordinator's operator.
"""

import logging
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from confide.errors import ConfideError, FailureName, NotNow, ProtocolFailure, RetryableError, TransportError
from confide.identity.submission import SignedEnd, verify_end
from confide.proto import fleet_pb2
from confide.rounds.heads import head_of_message
from confide.runs.deadline import refuse_too_slow
from confide.sealing.roles import WORK
from confide.text import line
from confide.transport.messages import parse
from flwr.app import RecordDict

from confide_client.agent.envelope import pack, unpack
from confide_client.agent.notifying import notify
from confide_client.runs import approvals
from confide_client.runs.endings import OPEN, finish, forget_text, settle_alone, unended
from confide_client.runs.heads import Heads
from confide_client.runs.offers import VerifiedOffer, parse_offer, verify_offer
from confide_client.runs.records import OfferStatus, Record
from confide_client.runs.replies import (
    Outgoing,
    ReplyStore,
    busy_answer,
    check_instruction,
    failure_of,
    no_room_answer,
    parse_instruction,
    public_text,
    signed_reply,
)
from confide_client.runs.run import Node, Run
from confide_client.runs.trial import Trial

log = logging.getLogger(__name__)

_KEPT = WORK | {fleet_pb2.ADVERTISE, fleet_pb2.SHARE, fleet_pb2.CONFIRM, fleet_pb2.REVEAL}
"""Steps whose reply is kept and given again. An offer and an end may be answered anew: nothing secret is in them."""
_BEGINS = frozenset({fleet_pb2.OFFER, fleet_pb2.ADVERTISE, fleet_pb2.ANCHOR, fleet_pb2.TRAIN})
"""Steps with which another run would begin something here. Those that go on with what has begun wait in line."""
MOST_ASKED = 200
"""Runs in one question about their ends; a coordinator answers no more at once."""
READY_SHARE = 1 / 3
"""Of the time that an answer may take: how long that to an offer waits until the run's libraries are loaded."""


class NodeRuntime:
    """Answers for one node, one instruction at a time."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._runs: dict[str, Run] = {}
        self._preparing: dict[str, Run] = {}
        """Allowed, and not accepted before it is known how fast this machine is for them."""
        self._trials: dict[str, Trial] = {}
        """Of runs that the policy alone may approve."""
        self._unknown: set[str] = set()
        """Runs that the coordinator does not know, as was said already."""

    @property
    def open_runs(self) -> int:
        """How many accepted runs have not ended: while there are some, the agent polls quickly."""
        return len(self._runs) + len(self._preparing)

    def close(self) -> None:
        """Let go of every run's files; they go on from there after a restart."""
        for run in (*self._runs.values(), *self._preparing.values()):
            run.close()
        self._runs.clear()
        self._preparing.clear()
        self._node.close()

    def answer(self, record: RecordDict) -> RecordDict:
        """A signed reply to one instruction. Never raises for what came."""
        instruction = fleet_pb2.Instruction(version=1)
        try:
            body, payload = unpack(record)
            instruction = parse_instruction(body)
            check_instruction(instruction, payload)
            return self._answer(instruction, body, payload)
        except Exception as error:
            return self._fail(instruction, error)

    def busy(self, record: RecordDict) -> RecordDict | None:
        """While this node works on a slot: the signed answer BUSY to what another run asks for. Else None.

        May be called from another thread than `answer`, which then is in the middle of that work: nothing of a run is
        touched here, and what was asked is asked again.
        """
        doing = self._node.progress.working()
        if doing is None:
            return None
        try:
            instruction = parse_instruction(unpack(record)[0])
        except ConfideError:
            return None  # said in its turn, with all else that is wrong
        if instruction.run_id == doing.run_id or instruction.step not in _BEGINS:
            return None
        self._node.audit.note_when_there_is_room(
            "busy", run=instruction.run_id[:32], step=_step_name(instruction), seconds=doing.busy_s
        )
        outcome = busy_answer(instruction.step, doing.busy_s)
        node = self._node.member
        return pack(signed_reply(instruction, node.name, node.identity, outcome, {}))

    def _answer(self, instruction: fleet_pb2.Instruction, body: bytes, payload: dict[str, bytes]) -> RecordDict:
        keep = instruction.step in _KEPT
        replies = ReplyStore(self._node.state.run(instruction.run_id) / "replies")
        if keep and (given := replies.find(body, instruction.sequence)) is not None:
            signed, path = given
            return self._send(instruction, signed, Outgoing(b"", path), again=True)
        outcome: Outgoing | fleet_pb2.Failure
        try:
            outcome = self._work(instruction, payload)
        except Exception as error:
            if isinstance(error, RetryableError) and not keep:
                raise  # answered as there being no room, and done when it is asked again
            self._note_failure(instruction, error)
            run = self._runs.get(instruction.run_id)
            outcome = failure_of(error, private=run is not None and run.private)
        sending = _payload(outcome)
        signed = signed_reply(instruction, self._node.member.name, self._node.member.identity, outcome, sending)
        if keep and instruction.run_id in self._runs:
            upload = outcome.upload if isinstance(outcome, Outgoing) else None
            replies.keep(body, instruction.sequence, signed, upload, slot=self._runs[instruction.run_id].slot)
        return self._send(instruction, signed, outcome, again=False, payload=sending)

    def _work(self, instruction: fleet_pb2.Instruction, payload: dict[str, bytes]) -> Outgoing:
        if instruction.step == fleet_pb2.OFFER:
            answer = self._offer(instruction)
            return Outgoing(answer.SerializeToString(deterministic=True))
        if instruction.step == fleet_pb2.END:
            return self._end(instruction)
        return self._run(instruction.run_id).step(instruction, payload)

    def _run(self, run_id: str) -> Run:
        if run_id not in self._runs:
            self._runs[run_id] = Run.load(self._node, run_id)
        return self._runs[run_id]

    # --- the offer

    def _offer(self, instruction: fleet_pb2.Instruction) -> fleet_pb2.OfferAnswer:
        run_id, node = instruction.run_id, self._node
        message = parse_offer(instruction.body)
        asked = {"run": run_id, "administrator": message.administrator[:64]}
        try:
            roster = node.member.roster.accept(message.roster, now=node.clock())
            offer = verify_offer(message, run_id, node.member, roster)
            asked |= {"specification": offer.specification.digest, "name": offer.specification.name}
            self._check_unchanged(run_id, offer)
        except RetryableError:
            raise  # the roster does not fit on the disk: no reason to refuse the run for good
        except ConfideError as error:
            # Nothing of it is believed, so nothing of it is kept beside the audit log.
            node.audit.note("offer refused", **asked, code=error.code, reason=public_text(str(error)))
            return fleet_pb2.OfferAnswer(accepted=False, reason=public_text(error.coded))
        return self._decide(run_id, offer, asked)

    def _check_unchanged(self, run_id: str, offer: VerifiedOffer) -> None:
        known = Record.load(self._node.state.run(run_id))
        if known is not None and known.offer_sha256 != offer.sha256:
            raise ProtocolFailure(
                FailureName.SPEC_CHANGED, f"run {run_id[:8]} was offered before with another specification"
            )
        if known is not None and known.status == OfferStatus.ENDED:
            self._node.submissions.ended(run_id)
        try:
            self._node.submissions.check_submission(offer.signed, self._node.clock())
        except ProtocolFailure as error:
            if known is not None and known.status == OfferStatus.WAITING:
                known.status, known.reason = OfferStatus.REFUSED, str(error)
                known.save(self._node.state.run(run_id))
            raise

    def _decide(self, run_id: str, offer: VerifiedOffer, asked: dict[str, Any]) -> fleet_pb2.OfferAnswer:
        node, folder = self._node, self._node.state.run(run_id)
        known = Record.load(folder)
        if known is not None and known.status == OfferStatus.ACCEPTED:
            if run_id not in self._runs:
                self._open(run_id, offer)
            return self._ready(run_id)
        offer.save(folder)
        record = Record(
            status=OfferStatus.WAITING,
            name=offer.specification.name,
            administrator=offer.administrator,
            offer_sha256=offer.sha256,
            rounds=offer.specification.federation.rounds,
            sealing=offer.specification.sealing.kind.value,
            offered_at=known.offered_at if known else node.clock(),
        )
        try:
            node.check_allowed(offer.specification)
            node.check_new_answers(run_id, offer.specification)
            decision = approvals.decision(folder, offer.sha256)
            if node.policy.approval == "auto" and decision is None:
                if not self._tried(run_id, offer):
                    return self._not_ready(folder, record)
                trial = self._trials[run_id]
                record.reason = trial.summary
                decision = None if trial.asks_person(node.policy) else "approved"
            if decision == "approved":
                if not self._prepared(run_id, offer):
                    return self._not_ready(folder, record)
                node.approve_spending(run_id, offer.specification)
                node.submissions.accepted(offer.signed, node.clock())
        except RetryableError:
            raise
        except NotNow as error:  # above all while somebody edits the policy: no reason to refuse for good
            record.reason = str(error)
            new = known is None or known.reason != record.reason
            answer = self._settle(run_id, offer, record, None, asked, new=new)
            answer.reason = public_text(record.reason)
            return answer
        except ConfideError as error:
            record.status, record.reason = OfferStatus.REFUSED, error.coded
            record.save(folder)
            self._let_go(run_id)
            node.audit.note("offer refused", **asked, code=error.code, reason=public_text(str(error)))
            said = failure_of(error, private=offer.specification.privacy.unit != "none")
            return fleet_pb2.OfferAnswer(accepted=False, reason=public_text(f"{said.code}: {said.message}"))
        return self._settle(
            run_id, offer, record, decision, asked, new=known is None or known.status != OfferStatus.WAITING
        )

    def _settle(
        self,
        run_id: str,
        offer: VerifiedOffer,
        record: Record,
        decision: approvals.Decision | None,
        asked: dict[str, Any],
        *,
        new: bool,
    ) -> fleet_pb2.OfferAnswer:
        node, folder = self._node, self._node.state.run(run_id)
        answered = approvals.load(folder)
        by = answered.by if answered and decision and answered.offer_sha256 == offer.sha256 else "policy"
        if decision is None:
            record.save(folder)
            if new:
                node.audit.note(
                    "offer waits for approval", **asked, **({"reason": record.reason} if record.reason else {})
                )
                self._tell_people(run_id, offer, record)
            return fleet_pb2.OfferAnswer(
                accepted=False, waiting=True, reason="the node's operator has not approved this run yet"
            )
        if decision == "refused":
            self._let_go(run_id)
            record.status, record.reason = OfferStatus.REFUSED, f"refused by {by}"
            record.save(folder)
            node.audit.note("offer refused", **asked, code="Refused", reason=record.reason)
            return fleet_pb2.OfferAnswer(accepted=False, reason="the node's operator refused this run")
        record.status = OfferStatus.ACCEPTED
        record.save(folder)
        node.audit.note("offer accepted", **asked, by=by)
        self._open(run_id, offer)
        return self._ready(run_id)

    def _tell_people(self, run_id: str, offer: VerifiedOffer, record: Record) -> None:
        why = f" ({record.reason})" if record.reason else ""
        said = (
            f"confide: run {run_id[:8]}, {offer.specification.name} of {offer.administrator}, waits for approval{why}"
        )
        notify(self._node.state.settings.notify, run_id, f"{said} at node {self._node.member.name}")

    def _tried(self, run_id: str, offer: VerifiedOffer) -> bool:
        """Whether it is known if this node's records go with the run's method."""
        if run_id not in self._trials:
            node = self._node
            self._trials[run_id] = Trial(run_id, lambda: node.tries(node.state, offer.specification))
        return self._trials[run_id].ended(READY_SHARE * offer.specification.federation.exchange_deadline_s)

    def _prepared(self, run_id: str, offer: VerifiedOffer) -> bool:
        """Whether it is known how long a round takes this machine, which may need the base model. Raises TooSlow."""
        if run_id not in self._preparing:
            self._preparing[run_id] = Run(self._node, run_id, offer)
        run = self._preparing[run_id]
        if not run.timed(READY_SHARE * run.specification.federation.exchange_deadline_s):
            return False
        refuse_too_slow(offer.specification, run.round_s)
        return True

    def _not_ready(self, folder: Path, record: Record) -> fleet_pb2.OfferAnswer:
        record.status, record.reason = OfferStatus.PREPARING, "loads the base model and measures how long a round takes"
        record.save(folder)
        return fleet_pb2.OfferAnswer(accepted=False, waiting=True, preparing=True, reason=f"it {record.reason}")

    def _let_go(self, run_id: str) -> None:
        self._trials.pop(run_id, None)
        run: Run | None = self._preparing.pop(run_id, None)
        if run is not None:
            run.close()

    def _ready(self, run_id: str) -> fleet_pb2.OfferAnswer:
        """Accepted, once small exchanges can be answered in time: importing torch takes longer than one may, on a
        machine that has much else to do. Nothing is trained meanwhile; a TRAIN that came now would be checked as ever.
        """
        run = self._runs[run_id]
        try:
            self._node.policy.check_hours(datetime.fromtimestamp(self._node.clock()))
        except NotNow as error:
            return fleet_pb2.OfferAnswer(
                accepted=True, round_s=run.round_s, busy_s=error.seconds, reason=public_text(str(error))
            )
        if run.warm_up().measured(READY_SHARE * run.specification.federation.exchange_deadline_s):
            return fleet_pb2.OfferAnswer(
                accepted=True, round_s=run.round_s, precision=run.arithmetic, hardware=run.hardware
            )
        return fleet_pb2.OfferAnswer(
            accepted=False, waiting=True, preparing=True, reason="it accepted, and is still loading its libraries"
        )

    def _open(self, run_id: str, offer: VerifiedOffer) -> None:
        self._trials.pop(run_id, None)
        prepared: Run | None = self._preparing.pop(run_id, None)
        self._runs[run_id] = prepared if prepared is not None else Run(self._node, run_id, offer)
        self._runs[run_id].warm_up()

    # --- the end

    def _end(self, instruction: fleet_pb2.Instruction) -> Outgoing:
        end = parse(fleet_pb2.End, instruction.body, "the end of a slot")
        if end.run_ended:
            self._end_run(instruction.run_id, end)
        else:
            record = Record.load(self._node.state.run(instruction.run_id))
            if record is not None and record.status == OfferStatus.ACCEPTED:
                self._run(instruction.run_id).slot_ended(end)
                self._note_round_end(instruction.run_id, end)
                self._take_head(instruction.run_id, end)
        return Outgoing(b"")

    def _take_head(self, run_id: str, end: fleet_pb2.End) -> None:
        """Keep the coordinator's word for all rounds so far. Raises TwoHeads where two contradict."""
        if end.committed and end.HasField("head"):
            head = head_of_message(run_id, end.head)
            Heads(self._node.state.run(run_id)).take(head, self._node.member.roster)

    def _note_round_end(self, run_id: str, end: fleet_pb2.End) -> None:
        run = self._runs[run_id]
        if run.slot == end.slot and run.told_slot != end.slot:  # an end may come twice, and of a slot unknown here
            run.told_slot = end.slot
            self._node.audit.note(
                "round ended",
                run=run_id,
                round=run.round,
                slot=end.slot,
                committed=end.committed,
                contributed=end.committed and self._node.member.name in end.contributors,
                reason=line(end.failure),
            )

    def _end_run(self, run_id: str, end: fleet_pb2.End) -> None:
        self._check_run_end(run_id, end)
        record = Record.load(self._node.state.run(run_id))
        if record is None:
            return  # it was never offered here: nothing of it is kept
        self._node.submissions.ended(run_id)
        if record.status in OPEN:
            self._let_go(run_id)
            run: Run | None = self._runs.pop(run_id, None)
            if run is not None:
                run.run_ended(end)
            finish(self._node, run_id, end)
        who = {"stopped_by": end.stopped_by} if end.stopped_by else {}
        self._node.audit.note("run ended", run=run_id, reason=line(end.failure), said_by=end.coordinator, **who)

    def reconcile(self, ask: Callable[[list[str]], fleet_pb2.RunEnds]) -> None:
        """End the runs whose end this node missed. ask: the coordinator, which of these runs have ended, and how.

        Guarantee: an end that comes so is checked as any other; what a coordinator says without a signature, or not at
        all, ends nothing.
        """
        for run_id in settle_alone(self._node):
            self._let_go(run_id)
            self._node.audit.note("run ended", run=run_id, reason="nobody accepted it in time", said_by="this node")
        waiting = unended(self._node.state)
        for start in range(0, len(waiting), MOST_ASKED):
            asked = waiting[start : start + MOST_ASKED]
            answer = ask(asked)
            for item in answer.ends:
                if item.run_id in asked:
                    self._end_missed(item.run_id, item.end)
            unknown = [run_id for run_id in asked if run_id in answer.unknown]
            forget_text(self._node.state, unknown)
            for run_id in set(unknown) - self._unknown:
                log.warning("run %s is not known to the coordinator; its encoded text was erased", run_id[:8])
            self._unknown.update(unknown)

    def _end_missed(self, run_id: str, end: fleet_pb2.End) -> None:
        try:
            if not end.run_ended:
                raise TransportError("the coordinator answered with the end of a slot")
            self._end_run(run_id, end)
        except ConfideError as error:
            log.warning("run %s was not ended: %s", run_id[:8], error)
            self._node.audit.note(
                "step failed", run=run_id, step="END", code=error.code, reason=public_text(str(error))
            )

    def _check_run_end(self, run_id: str, end: fleet_pb2.End) -> None:
        """What a run's end erases does not come back: only the coordinator says it, over its signature."""
        said = SignedEnd(
            run_id=run_id,
            failure=end.failure,
            stopped_by=end.stopped_by,
            stop_signature=end.stop_signature,
            coordinator=end.coordinator,
            signature=end.signature,
        )
        verify_end(self._node.member.roster.current, said)

    # --- sending

    def _send(
        self,
        instruction: fleet_pb2.Instruction,
        signed: bytes,
        outcome: Outgoing | fleet_pb2.Failure,
        *,
        again: bool,
        payload: dict[str, bytes] | None = None,
    ) -> RecordDict:
        sending = _payload(outcome) if payload is None else payload
        self._node.audit.sent(instruction.run_id, _step_name(instruction), signed, sending, again=again)
        run = self._runs.get(instruction.run_id)
        if run is not None and not again:
            size = len(signed) + sum(len(data) for data in sending.values())
            run.sent(size, uploaded=bool(sending))
        return pack(signed, sending)

    def _note_failure(self, instruction: fleet_pb2.Instruction, error: Exception) -> None:
        step, failure = _step_name(instruction), failure_of(error)
        reason = failure.message
        if isinstance(error, ConfideError):
            log.warning("run %s: %s failed: %s", instruction.run_id[:8], step, error)
            reason = public_text(str(error))
        else:
            log.error("run %s: %s failed", instruction.run_id[:8], step, exc_info=error)
        self._node.audit.note_when_there_is_room(
            "step failed", run=instruction.run_id[:64], step=step, code=failure.code, reason=reason
        )

    def _fail(self, instruction: fleet_pb2.Instruction, error: Exception) -> RecordDict:
        """What could not even be parsed, or not be kept: answered, never acted on.

        On a full disk the answer goes before its entry: it says that there is no room, and carries nothing else.
        """
        self._note_failure(instruction, error)
        outcome = no_room_answer(instruction.step, error) if isinstance(error, RetryableError) else failure_of(error)
        return pack(signed_reply(instruction, self._node.member.name, self._node.member.identity, outcome, {}))


def _step_name(instruction: fleet_pb2.Instruction) -> str:
    known = instruction.step in fleet_pb2.Step.values()
    return fleet_pb2.Step.Name(instruction.step) if known else str(int(instruction.step))


def _payload(outcome: Outgoing | fleet_pb2.Failure) -> dict[str, bytes]:
    if not isinstance(outcome, Outgoing) or outcome.upload is None:
        return {}
    return {"upload": outcome.upload.read_bytes()}
