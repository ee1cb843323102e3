"""Carries one question to several nodes and brings back, one at a time, answers that are proven to be theirs.

Guarantee: an answer that is handed on was signed by its node's identity key for this run, step and sequence number,
and its payload is the one that was signed. Everything else becomes "node X did not contribute, because ...".
"""

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from confide import __version__, canonical
from confide.codec.digest import DigestedFile
from confide.errors import ConfideError, IdentityError, RetryableError, TransportError, UpdateError
from confide.identity.keys import verify
from confide.identity.roster import Roster
from confide.memory import trim
from confide.proto import fleet_pb2
from confide.text import identifier, line
from confide.transport.envelope import BUSY, VERSION, digest_of_entries, payload_digest
from google.protobuf.message import DecodeError

from confide_server.fleet.flower import FleetReply, Presence
from confide_server.fleet.port import Link, Session
from confide_server.state.runs.journal import RunJournal

SOONEST_AGAIN_S, LATEST_AGAIN_S = 0.5, 60.0
"""After which a busy node is asked again: work may end sooner than it said, and a lie must not cost hours."""
TICK_S = 0.25
"""How often stops, restarted nodes and silent nodes are looked for. Replies are handed on at once."""
REASON_CHARS = 500


@dataclass(frozen=True)
class Answer:
    """A node's proven answer; the payload's file is removed when the next answer is asked for."""

    node: str
    body: bytes
    upload: DigestedFile | None


@dataclass(frozen=True)
class Silence:
    """A node did not answer, or not acceptably.

    answered: it did say something, so that it is there to hear how the slot ended.
    rests_s: its policy does not let it take part now; after so many seconds it is worth asking again.
    """

    node: str
    code: str
    reason: str
    answered: bool
    rests_s: int = 0


@dataclass(frozen=True)
class Busy:
    """A node works for another run; it is asked again."""

    node: str
    seconds: float


@dataclass(frozen=True)
class Question:
    """What is asked: bodies by node, and the payload that travels beside each."""

    step: fleet_pb2.Step
    bodies: Mapping[str, bytes]
    deadline_s: float
    payload: Mapping[str, bytes]
    once: bool = False
    """Not numbered by its bytes: asked again, it is a new question (an offer that waits for a person)."""
    each_s: float = 0.0
    """Above 0, the deadline counts from the newest answer, so that nobody is left out because this side is slow to
    take many answers; the deadline once and this for each node is the most."""


class _Asked:
    """One node's question that is out."""

    def __init__(self, instruction: bytes, sequence: int) -> None:
        self.instruction = instruction
        self.sequence = sequence
        self.message_id = ""
        self.activations = 0
        self.silent_since: float | None = None
        self.again_at: float | None = None
        """When to ask a busy node again."""


class Courier:
    """Asks for one run, over one Flower session."""

    def __init__(
        self,
        link: Link,
        session: Session,
        book: RunJournal,
        run_id: str,
        roster: Callable[[], Roster],
        check: Callable[[], None],
        silence_s: float,
        deadline_factor: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        on_busy: Callable[[str, float], None] = lambda node, seconds: None,
    ) -> None:
        """on_busy: told of each node that works for another run, and for about how many seconds; 0 when it answers.

        check: raises when the run or the process is to stop; called often.

        silence_s: a node whose heartbeats stay away this long is given up for the question at hand.
        deadline_factor: every deadline of a question times this.
        """
        self._link = link
        self._session = session
        self._book = book
        self._run_id = run_id
        self._roster = roster
        self._check = check
        self._silence_s = silence_s
        self.deadline_factor = deadline_factor
        self.clock = clock
        self.on_busy = on_busy

    def ask(self, question: Question) -> Iterator[Answer | Silence]:
        """Answers as they come, then a Silence for every node without one. Each node comes exactly once.

        A node that is busy is asked again when it said, and has that much longer, at most the deadline once more.
        """
        waiting = self._send_all(question)
        for node in [node for node, asked in waiting.items() if not asked.message_id]:
            del waiting[node]
            yield Silence(node, "TransportError", f"{node} is not connected", answered=False)
        deadline_s = question.deadline_s * self.deadline_factor
        end = self.clock() + deadline_s
        latest = end + max(deadline_s, question.each_s * self.deadline_factor * len(question.bodies))
        try:
            while waiting and (left := end - self.clock()) > 0:
                self._check()
                if not self._session.alive:
                    raise RetryableError("the Flower run lapsed; the run goes on in a new one")
                by_id = {asked.message_id: node for node, asked in waiting.items() if asked.again_at is None}
                for reply in self._session.replies(by_id, min(TICK_S, left)):
                    node = by_id[reply.message_id]
                    for outcome in self._opened(node, question, waiting[node], reply):
                        if isinstance(outcome, Busy):
                            end = min(latest, end + self._put_off(waiting[node], outcome))
                            continue
                        del waiting[node]
                        if question.each_s:
                            end = max(end, min(latest, self.clock() + deadline_s))
                        yield outcome
                if not by_id:
                    time.sleep(min(TICK_S, left))  # every node that is waited for is busy
                self._ask_again(waiting, question)
                yield from self._look_after(waiting, question)
        finally:
            self._session.withdraw([asked.message_id for asked in waiting.values()])
            if question.payload:
                trim()
        for node, asked in waiting.items():
            if asked.again_at is not None:
                yield Silence(node, BUSY, f"{node} works for another run all the time", answered=False)
                continue
            reason = f"{node} did not answer within {deadline_s:.0f} s"
            yield Silence(node, "TransportError", reason, answered=False)

    def _put_off(self, asked: _Asked, busy: Busy) -> float:
        """Ask again later; returns how much later."""
        pause_s = min(max(busy.seconds, SOONEST_AGAIN_S), LATEST_AGAIN_S)
        asked.again_at = self.clock() + pause_s
        self.on_busy(busy.node, busy.seconds)
        return pause_s

    def _ask_again(self, waiting: dict[str, _Asked], question: Question) -> None:
        presence = self._link.presence()
        for node, asked in waiting.items():
            if asked.again_at is not None and self.clock() >= asked.again_at:
                self._session.withdraw([asked.message_id])
                asked.again_at = None
                self.on_busy(node, 0.0)
                self._send(node, asked, question.payload, presence.get(node))

    def tell(self, question: Question) -> list[str]:
        """Send without waiting; returns the message ids, which the caller withdraws later."""
        return [asked.message_id for asked in self._send_all(question).values() if asked.message_id]

    def withdraw(self, message_ids: list[str]) -> None:
        """Forget what `tell` sent."""
        self._session.withdraw(message_ids)

    # --- sending

    def _send_all(self, question: Question) -> dict[str, _Asked]:
        digest = payload_digest(question.payload)
        nodes = list(question.bodies)
        salt = secrets.token_bytes(8) if question.once else b""
        step = int(question.step).to_bytes(4, "big")
        keys = [canonical.hash_fields("confide/v1/ask", step, question.bodies[node], digest, salt) for node in nodes]
        # Once for all, and before the first is sent: who connects anew meanwhile is noticed, and asked again.
        presence = self._link.presence()
        asked: dict[str, _Asked] = {}
        made: dict[int, bytes] = {}  # the same words for many nodes stand in memory once
        for node, sequence in zip(nodes, self._book.sequences(self._run_id, keys), strict=True):
            if sequence not in made:
                made[sequence] = self._instruction(question, question.bodies[node], sequence, digest)
            asked[node] = _Asked(made[sequence], sequence)
            self._send(node, asked[node], question.payload, presence.get(node))
        return asked

    def _instruction(self, question: Question, body: bytes, sequence: int, digest: bytes) -> bytes:
        instruction = fleet_pb2.Instruction(
            version=VERSION,
            release=__version__,
            run_id=self._run_id,
            step=question.step,
            sequence=sequence,
            body=body,
            payload_digest=digest,
        )
        return instruction.SerializeToString(deterministic=True)

    def _send(self, node: str, asked: _Asked, payload: Mapping[str, bytes], presence: Presence | None) -> None:
        asked.activations = presence.activations if presence else 0
        with contextlib.suppress(TransportError):
            asked.message_id = self._session.send(node, asked.instruction, payload)

    def _look_after(self, waiting: dict[str, _Asked], question: Question) -> Iterator[Silence]:
        """Send again to nodes that connected anew; give up those that are gone."""
        presence = self._link.presence()
        for node, asked in list(waiting.items()):
            now_there = presence.get(node)
            if now_there is None:
                del waiting[node]
                self._session.withdraw([asked.message_id])
                yield Silence(node, "REVOKED", f"{node} is no longer in the roster", answered=False)
            elif now_there.activations != asked.activations:
                self._session.withdraw([asked.message_id])
                asked.silent_since = asked.again_at = None
                self._send(node, asked, question.payload, now_there)
            elif now_there.online:
                asked.silent_since = None
            else:
                asked.silent_since = asked.silent_since or self.clock()
                if self.clock() - asked.silent_since >= self._silence_s:
                    del waiting[node]
                    self._session.withdraw([asked.message_id])
                    yield Silence(node, "TransportError", f"{node} sends no heartbeats any more", answered=False)

    # --- receiving

    def _opened(
        self, node: str, question: Question, asked: _Asked, reply: FleetReply
    ) -> Iterator[Answer | Silence | Busy]:
        try:
            yield self._verified(node, question.step, asked.sequence, reply)
        except ConfideError as error:
            yield Silence(node, error.code, printable(str(error)), answered=True)
        finally:
            for file in reply.payload.values():
                file.path.unlink(missing_ok=True)

    def _verified(self, node: str, step: fleet_pb2.Step, sequence: int, outer: FleetReply) -> Answer | Silence | Busy:
        if outer.fault:
            raise UpdateError(f"{node}: {outer.fault}")
        signed, reply = _parse(node, outer.body)
        member = self._roster().member(node)
        verify(bytes.fromhex(member.identity_key), "reply", signed.reply, signed.signature)
        if reply.version != VERSION:
            side = "the coordinator" if reply.version > VERSION else node
            raise TransportError(
                f"{node} speaks version {reply.version} of the protocol (release {reply.release[:20]}), this "
                f"coordinator version {VERSION} (release {__version__}); upgrade {side}"
            )
        stated = (reply.run_id, reply.node, reply.step, reply.sequence)
        if stated != (self._run_id, node, step, sequence):
            raise IdentityError(f"{node} signed an answer to another question: {stated}")
        if set(outer.payload) - {"upload"}:
            raise UpdateError(f"{node} sent the payload entries {sorted(outer.payload)}; only 'upload' is known")
        if digest_of_entries({name: file.digest for name, file in outer.payload.items()}) != reply.payload_digest:
            raise UpdateError(f"the payload that came from {node} is not the one it signed")
        if reply.WhichOneof("outcome") == "failure" and reply.failure.code == BUSY and reply.failure.busy_s:
            return Busy(node, float(reply.failure.busy_s))
        if reply.WhichOneof("outcome") == "failure":
            said = reply.failure
            return Silence(node, _code(said.code), printable(said.message), answered=True, rests_s=said.busy_s)
        return Answer(node, reply.body, outer.payload.get("upload"))


def _parse(node: str, body: bytes) -> tuple[fleet_pb2.SignedReply, fleet_pb2.Reply]:
    try:
        signed = fleet_pb2.SignedReply.FromString(body)
        return signed, fleet_pb2.Reply.FromString(signed.reply)
    except DecodeError as error:
        raise TransportError(f"{node} answered with bytes that are not a SignedReply") from error


def _code(text: str) -> str:
    return identifier(text)


def printable(text: str) -> str:
    """A node's words, fit for a terminal and a log: one line, no control characters, not long."""
    return line(text, REASON_CHARS)
