"""What was seen of a seed from outside: answers that left a node, masks that were used, rounds that were committed.

Journals may be lost or restored; what left is remembered here.
"""

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from confide import journal
from confide.codec.layout import VectorLayout
from confide.errors import RetryableError
from confide.privacy import LEDGER_NAME
from confide.proto import fleet_pb2, sealing_pb2
from confide.sealing.member import upload as masking

_ENCODE = "encode_upload"
_KEPT = (fleet_pb2.ADVERTISE, fleet_pb2.SHARE, fleet_pb2.TRAIN, fleet_pb2.CONFIRM, fleet_pb2.REVEAL)


@dataclass(frozen=True)
class Violation:
    """What must never be. invariant: its short name."""

    invariant: str
    detail: str


@dataclass
class Witness:
    """Of one seed. Slots are named by (run id, slot)."""

    sealed: bool
    groups: Mapping[str, str]
    """Of each node: each group opens a sum of its own."""
    violations: list[Violation] = field(default_factory=list)
    uploads: dict[tuple[str, int, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    """By run, slot and node: digests of the uploads that left."""
    signed: dict[tuple[str, int, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    """By run, slot and node: the lists that it signed."""
    opened: dict[tuple[str, int, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    """By run, slot and group: the lists for which somebody revealed."""
    committed: dict[tuple[str, int], str] = field(default_factory=dict)
    """By run and round: the model's SHA-256, as was said in public."""
    heard: dict[tuple[str, int], str] = field(default_factory=dict)
    """By run and slot: the model's SHA-256, as a node was told at the slot's end."""
    lost: set[str] = field(default_factory=set)
    """SHA-256 of models that a restored coordinator does not know any more; a late message may yet speak of them."""
    masks: dict[tuple[str, bytes], set[str]] = field(default_factory=lambda: defaultdict(set))
    """By node and key of a mask: what was hidden under it."""
    stopped: set[str] = field(default_factory=set)
    """Nodes that said ROLLBACK_DETECTED."""
    _answers: dict[tuple[str, bytes], bytes] = field(default_factory=dict)
    _died: set[str] = field(default_factory=set)
    """Nodes whose process has died since the last slot ended there."""

    def violated(self, invariant: str, detail: str) -> None:
        """Remember it once."""
        found = Violation(invariant, detail)
        if found not in self.violations:
            self.violations.append(found)

    # --- what left a node

    def left(self, node: str, folder: Path, private: bool, asked: bytes, answered: bytes, upload: bytes | None) -> None:
        """An answer leaves. folder: the node's."""
        instruction = fleet_pb2.Instruction.FromString(asked)
        reply = fleet_pb2.Reply.FromString(fleet_pb2.SignedReply.FromString(answered).reply)
        if reply.failure.code != RetryableError.__name__:  # "not now" is no answer: it is asked again
            self._check_same(node, instruction, asked, answered, failed=reply.HasField("failure"))
        if reply.HasField("failure"):
            self._failed(node, reply)
            return
        run_id = instruction.run_id
        match instruction.step:
            case fleet_pb2.TRAIN if upload is not None:
                self._uploaded(node, folder, private, instruction, upload)
            case fleet_pb2.CONFIRM:
                request = sealing_pb2.ConfirmRequest.FromString(instruction.body)
                self.signed[run_id, request.slot, node].add(_list_of(request.survivors))
            case fleet_pb2.END:
                end = fleet_pb2.End.FromString(instruction.body)
                if end.committed and end.slot:
                    self.heard[run_id, end.slot] = end.next_model_sha256.hex()
            case fleet_pb2.REVEAL:
                asked_for = sealing_pb2.RevealRequest.FromString(instruction.body)
                self.opened[run_id, asked_for.slot, self.groups[node]].add(_list_of(asked_for.survivors))

    def _check_same(
        self, node: str, instruction: fleet_pb2.Instruction, asked: bytes, answered: bytes, *, failed: bool
    ) -> None:
        """Whatever was answered once is answered again with the same bytes, until the slot has ended.

        An upload is not held over a restart, since its epoch is lost: then the answer may be that it is gone.
        """
        if instruction.step not in _KEPT:
            return
        before = self._answers.setdefault((node, sha256(asked).digest()), answered)
        gone = failed and instruction.step == fleet_pb2.TRAIN and node in self._died
        if before != answered and not gone:
            step = fleet_pb2.Step.Name(instruction.step)
            self.violated(
                "one answer", f"{node} gave two answers to one {step}{', the second a failure' if failed else ''}"
            )

    def node_died(self, node: str) -> None:
        """Its process is gone."""
        self._died.add(node)

    def forget_answers(self, node: str) -> None:
        """It may answer anew: it was told that the slot has ended, or its disk is an older one."""
        self._answers = {key: one for key, one in self._answers.items() if key[0] != node}
        self._died.discard(node)

    def _failed(self, node: str, reply: fleet_pb2.Reply) -> None:
        code, message = reply.failure.code, reply.failure.message
        if code == "ROLLBACK_DETECTED":
            self.stopped.add(node)
        damaged = code == "StateError" and ("damaged" in message or "does not follow" in message)
        if code == "InternalError" or damaged:
            self.violated("named failures", f"{node} failed with {code}: {message}")

    def _uploaded(
        self, node: str, folder: Path, private: bool, instruction: fleet_pb2.Instruction, upload: bytes
    ) -> None:
        run_id = instruction.run_id
        kind = sealing_pb2.SealedOpen if self.sealed else fleet_pb2.SlotOpen
        slot = kind.FromString(instruction.body).slot
        self.uploads[run_id, slot, node].add(sha256(upload).hexdigest())
        if private and (run_id, slot) not in spent_in_ledger(folder):
            self.violated("ledgers", f"{node} sent an update in slot {slot} that its ledger had not spent")

    # --- what was drawn and committed

    @contextlib.contextmanager
    def watching_masks(self, running: Any) -> Iterator[None]:
        """Within the block every mask that is used is noted. running: whose code runs."""
        real = getattr(masking, _ENCODE)

        def encode(update: Any, scalars: Any, layout: VectorLayout, *, masks: Sequence[Any], **rest: Any) -> bytes:
            digest: bytes = real(update, scalars, layout, masks=masks, **rest)
            for seed, _ in masks:
                self.masks[running(), bytes(seed)].add(digest.hex())
            return digest

        setattr(masking, _ENCODE, encode)
        try:
            yield
        finally:
            setattr(masking, _ENCODE, real)

    def round_committed(self, run_id: str, number: int, model_sha256: str) -> None:
        """Somebody was told."""
        before = self.committed.setdefault((run_id, number), model_sha256)
        if before != model_sha256:
            self.violated("committed rounds", f"round {number} was committed with two models")

    def forget_rounds(self, kept: Mapping[tuple[str, int], str]) -> None:
        """The coordinator was restored from a copy that has these; the others are lost, as documented."""
        self.lost |= {*self.committed.values(), *self.heard.values()} - set(kept.values())
        self.committed = {key: one for key, one in self.committed.items() if key in kept}


def _list_of(survivors: Sequence[sealing_pb2.Survivor]) -> str:
    return sha256(b"".join(item.SerializeToString(deterministic=True) for item in survivors)).hexdigest()[:16]


def spent_in_ledger(folder: Path) -> set[tuple[str, int]]:
    """(run, slot) of each line that spends, in a node's privacy ledger as it is on disk."""
    path = folder / LEDGER_NAME
    if not path.exists():
        return set()
    bodies, _ = journal.read(path)
    return {(body["run"], body["slot"]) for body in bodies if body["kind"] == "spent"}
