"""From an instruction's bytes to a signed reply's bytes, and the same reply again for the same instruction.

Guarantee: a reply that was given once is given again bit by bit, also after a crash, until its slot has ended; the
same sequence number with other content is refused. Nothing that must not be recomputed is ever recomputed.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from confide import __version__, canonical
from confide.errors import (
    ConfideError,
    DataError,
    FailureName,
    LedgerError,
    NotNow,
    ProtocolFailure,
    RetryableError,
    StateError,
    TrainingError,
    TransportError,
    UpdateError,
)
from confide.files import private_folder, write_atomic
from confide.identity.keys import SigningKey
from confide.proto import fleet_pb2
from confide.text import line
from confide.transport.envelope import BUSY, VERSION, payload_digest
from confide.transport.messages import parse

from confide_client.state import read_json

_RUN_ID = re.compile(r"[0-9a-f]{32}")
_PATH = re.compile(r"(?<![\w.])(?:~|[A-Za-z]:)?(?:/[^\s'\":,;]+)+")
_MESSAGE_CHARACTERS = 600
MAX_BODY_BYTES = {fleet_pb2.OFFER: 4 << 20, fleet_pb2.END: 64 << 10}
"""An offer holds a roster; an end, the names of a cohort."""
MAX_STEP_BODY_BYTES = 64 << 20
"""Of the other steps: the bundles and dealings of 100 members. Models travel beside the body."""
_OF_DATA = (DataError, TrainingError, UpdateError)
_OF_LEDGER = (
    "this node's privacy ledger does not allow it, and does not say more: budgets, groups and other runs are its own. "
    "Nothing was spent. Its operator finds the reason in `confide node status`. Ask for less, or go without it"
)


@dataclass(frozen=True)
class Outgoing:
    """A reply's body, and the file that travels as payload "upload" beside it, if any."""

    body: bytes
    upload: Path | None = None


def parse_instruction(body: bytes) -> fleet_pb2.Instruction:
    """The instruction as it came, not yet checked. Raises TransportError."""
    return parse(fleet_pb2.Instruction, body, "the instruction")


def check_instruction(instruction: fleet_pb2.Instruction, payload: Mapping[str, bytes]) -> None:
    """Raise TransportError unless version, run id, step and payload hash hold."""
    if instruction.version != VERSION:
        older = "node" if instruction.version > VERSION else "coordinator"
        raise TransportError(
            f"the coordinator (confide {line(instruction.release, 32) or 'unknown'}) speaks fleet message version "
            f"{instruction.version}; this node (confide {__version__}) speaks {VERSION}. Upgrade the {older}."
        )
    if not _RUN_ID.fullmatch(instruction.run_id):
        raise TransportError(f"{instruction.run_id[:64]!r} is not a run id (32 characters of lower-case hex)")
    if instruction.step == fleet_pb2.STEP_UNSPECIFIED or instruction.step not in fleet_pb2.Step.values():
        raise TransportError(f"step {instruction.step} is unknown to confide {__version__}; upgrade the node")
    most = MAX_BODY_BYTES.get(instruction.step, MAX_STEP_BODY_BYTES)
    if len(instruction.body) > most:
        raise TransportError(
            f"a body of {len(instruction.body)} bytes came with step {fleet_pb2.Step.Name(instruction.step)}; at most "
            f"{most} are read"
        )
    if instruction.payload_digest != payload_digest(payload):
        raise TransportError("the payload does not have the stated digest: it was damaged or exchanged on its way")


def signed_reply(
    instruction: fleet_pb2.Instruction,
    node: str,
    key: SigningKey,
    outcome: Outgoing | fleet_pb2.Failure,
    payload: Mapping[str, bytes],
) -> bytes:
    """The serialized SignedReply. Signature: domain "reply", over the reply's bytes."""
    reply = fleet_pb2.Reply(
        version=VERSION,
        release=__version__,
        run_id=instruction.run_id,
        step=instruction.step,
        sequence=instruction.sequence,
        node=node,
        payload_digest=payload_digest(payload),
    )
    if isinstance(outcome, Outgoing):
        reply.body = outcome.body
    else:
        reply.failure.CopyFrom(outcome)
    data = reply.SerializeToString(deterministic=True)
    signed = fleet_pb2.SignedReply(reply=data, signature=key.sign("reply", data))
    return signed.SerializeToString(deterministic=True)


def busy_answer(step: fleet_pb2.Step, busy_s: int) -> Outgoing | fleet_pb2.Failure:
    """What another run is told while this node works. busy_s: for about how long.

    An offer gets an answer that coordinators of earlier releases understand too: the run is offered again.
    """
    why = f"this node works for another run, for about {busy_s} s"
    if step != fleet_pb2.OFFER:
        return fleet_pb2.Failure(code=BUSY, message=f"{why}; ask again then", busy_s=busy_s)
    answer = fleet_pb2.OfferAnswer(accepted=False, waiting=True, preparing=True, reason=why, busy_s=busy_s)
    return Outgoing(answer.SerializeToString(deterministic=True))


def no_room_answer(step: fleet_pb2.Step, error: RetryableError) -> Outgoing | fleet_pb2.Failure:
    """What is told while this node's disk is full. An offer is made again, and accepted once there is room."""
    if step != fleet_pb2.OFFER:
        return failure_of(error)
    reason = public_text(error.coded)
    answer = fleet_pb2.OfferAnswer(accepted=False, waiting=True, preparing=True, reason=reason)
    return Outgoing(answer.SerializeToString(deterministic=True))


def _of_ledger(error: ConfideError) -> bool:
    budget = isinstance(error, ProtocolFailure) and error.name is FailureName.BUDGET_EXHAUSTED
    return budget or isinstance(error, LedgerError)


def failure_of(error: BaseException, *, private: bool = False) -> fleet_pb2.Failure:
    """What the coordinator may know of an error: never a path, never text that was not written for it.

    private: of a run with differential privacy. How training or data failed depends on the records, and nobody charged
    for it: then there is one fixed text for all of it. What the ledger says has one in every run.
    """
    if private and (isinstance(error, _OF_DATA) or not isinstance(error, ConfideError)):
        return fleet_pb2.Failure(
            code="TrainingError",
            message="the node could not do its part; in a private run it does not say why. Its operator finds the "
            "reason in its log and in `confide node status`",
        )
    if isinstance(error, ConfideError) and _of_ledger(error):
        return fleet_pb2.Failure(code=error.code, message=_OF_LEDGER)
    if isinstance(error, NotNow):
        return fleet_pb2.Failure(code=error.code, message=public_text(str(error)), busy_s=error.seconds)
    if isinstance(error, ConfideError):
        return fleet_pb2.Failure(code=error.code, message=public_text(str(error)))
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return fleet_pb2.Failure(
            code="TrainingError", message="the node ran out of memory; lower training.micro_batch_size or max_length"
        )
    return fleet_pb2.Failure(
        code="InternalError", message=f"{type(error).__name__} on the node; its operator finds the details in its log"
    )


def public_text(text: str) -> str:
    """A message without the node's paths, in one line of bounded length."""
    return line(_PATH.sub("(a path on the node)", text), _MESSAGE_CHARACTERS)


class ReplyStore:
    """Replies of one run that were given and may be asked for again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, instruction: bytes, sequence: int) -> tuple[bytes, Path | None] | None:
        """(signed reply, file of payload "upload") for exactly this instruction, or None.

        Raises TransportError when the sequence number was used for another instruction.
        """
        note = read_json(self._folder / f"{sequence}.json")
        if not note:
            return None
        if note.get("instruction_sha256") != hashlib.sha256(instruction).hexdigest():
            raise TransportError(
                f"instruction {sequence} of this run came before with other content; a sequence number is used once"
            )
        upload = note.get("upload")
        if upload is not None and not Path(upload).is_file():
            raise StateError("the upload of this slot is no longer held; the slot has ended")
        try:
            signed = (self._folder / f"{sequence}.reply").read_bytes()
        except OSError as error:
            raise StateError(f"the reply to instruction {sequence} is no longer held: {error.strerror}") from error
        return signed, None if upload is None else Path(upload)

    def keep(self, instruction: bytes, sequence: int, signed: bytes, upload: Path | None, *, slot: int) -> None:
        """Durable before it returns. slot: the one that was open; its end erases the reply."""
        private_folder(self._folder)
        write_atomic(self._folder / f"{sequence}.reply", signed)
        note = {
            "instruction_sha256": hashlib.sha256(instruction).hexdigest(),
            "upload": None if upload is None else str(upload),
            "slot": slot,
        }
        write_atomic(self._folder / f"{sequence}.json", canonical.encode(note))

    def erase(self, slot: int | None = None) -> None:
        """The slot has ended, or with None the run: replies of later slots stay."""
        if not self._folder.is_dir():
            return
        for path in self._folder.glob("*.json"):
            if slot is None or read_json(path).get("slot", 0) <= slot:
                path.unlink()
                path.with_suffix(".reply").unlink(missing_ok=True)
