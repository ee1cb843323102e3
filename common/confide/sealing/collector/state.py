"""What a coordinator knows of the open epoch and slot, rebuilt from its journal after a crash.

Every change is an event: written to the journal first, then applied by `CollectorState.apply`; a restarted coordinator
applies the same events again and stands where it stood. Answers (bundle, dealings, upload, confirmation, reveal) are
fsynced with the event that closes their exchange.

    epoch         {epoch, first_slot, members, wanted, roster_version, roster_sha256, eligible}
    bundle        {node, body}
    sharing       {}                     the bundles are complete: who sent none is not in the epoch
    dealings      {node}                 the ciphertexts lie in a file
    stands        {}
    epoch_failed  {code, reason}
    slot          {plan, sealed}         `sealed` is false when no epoch stood
    upload        {node, digest}
    upload_lost   {node}                 a restarted coordinator found its file missing or changed
    list          {nodes}
    confirmation  {node, body}
    quorum        {nodes}
    reveal        {node, body}
    bad_share     {node, dealers}        its reveal is dropped
    decided       {committed, failure, reason, contributors}
    ended         {next_model}
    convicted     {node, name, evidence}
"""

from dataclasses import dataclass, field
from typing import Any, TypeVar

from google.protobuf.message import Message

from confide.codec.layout import VectorLayout
from confide.models.sent_coordinates import SentCoordinates
from confide.proto import fleet_pb2, sealing_pb2
from confide.runs.parameters import Parameters, for_epoch
from confide.runs.specification import Specification
from confide.sealing.primitives import bundles, context, wire
from confide.sealing.primitives.bundles import EpochTerms
from confide.sealing.primitives.dealing import EpochKey
from confide.sealing.roles import SlotPlan

_M = TypeVar("_M", bound=Message)


@dataclass
class EpochRecord:
    """One epoch. phase: advertise -> share -> stands, or failed."""

    terms: EpochTerms
    asked: tuple[str, ...]
    wanted: tuple[str, ...]
    """Who was to be in it: more than were asked when some advertised before and did not deal."""
    eligible: int = 0
    """Nodes of the roster that the run may sum: c follows from them."""
    phase: str = "advertise"
    failure: tuple[str, str] = ("", "")
    signed: dict[str, sealing_pb2.SignedBundle] = field(default_factory=dict)
    opened: dict[str, sealing_pb2.Bundle] = field(default_factory=dict)
    """The bundles in `signed`, decoded."""
    dealt: set[str] = field(default_factory=set)
    """Whose ciphertexts are held, in files."""
    delivered: set[str] = field(default_factory=set)
    """Who uploaded in an earlier slot, and so holds its dealings."""
    key: EpochKey | None = None
    parameters: Parameters | None = None

    @property
    def members(self) -> tuple[str, ...]:
        """Who advertised, in order of the names."""
        return tuple(sorted(self.signed))


@dataclass
class SlotRecord:
    """One slot. phase: train -> confirm -> reveal -> decided."""

    plan: SlotPlan
    layout: VectorLayout | None = None
    context: bytes = b""
    phase: str = "train"
    uploads: dict[str, bytes] = field(default_factory=dict)
    survivors: tuple[str, ...] = ()
    listed: bytes = b""
    """Digest of the list L: what members sign."""
    confirmations: dict[str, sealing_pb2.Confirmation] = field(default_factory=dict)
    quorum: tuple[str, ...] = ()
    reveals: dict[str, sealing_pb2.Reveal] = field(default_factory=dict)
    committed: bool = False
    failure: str = ""
    contributors: tuple[str, ...] = ()
    ended: bool = False

    def survivor_list(self) -> list[sealing_pb2.Survivor]:
        """The list L with the uploads' digests."""
        return [sealing_pb2.Survivor(node=name, upload_digest=self.uploads[name]) for name in self.survivors]


@dataclass
class CollectorState:
    """Epoch and slot, and what outlives them."""

    specification: Specification
    run_id: str
    coordinates: SentCoordinates
    last_epoch: int = 0
    last_slot: int = 0
    epoch: EpochRecord | None = None
    slot: SlotRecord | None = None
    convicted: set[str] = field(default_factory=set)
    bound: tuple[str, ...] = ()
    """The list that members were asked to reveal for, while the model stays the same: they may have revealed, and sign
    for this model no other one. Empty where differences are accepted."""

    @property
    def resumable(self) -> SlotPlan | None:
        """The slot that is open, or that was when the last process ended."""
        return None if self.slot is None or self.slot.ended else self.slot.plan

    def apply(self, event: dict[str, Any], parsed: Message | None = None) -> None:
        """Change the state as one event says. parsed: the message in its `body`, when that was decoded before."""
        kind = event["event"]
        if kind == "epoch":
            self._epoch(event)
        elif kind == "convicted":
            self.convicted.add(event["node"])
        elif kind in {"bundle", "sharing", "dealings", "stands", "epoch_failed"}:
            self._within_epoch(kind, event, parsed)
        elif kind == "slot":
            self._slot(event)
        else:
            self._within_slot(kind, event, parsed)

    def _epoch(self, event: dict[str, Any]) -> None:
        self.last_epoch = event["epoch"]
        terms = EpochTerms(
            run_id=self.run_id,
            epoch=event["epoch"],
            first_slot=event["first_slot"],
            slots=self.specification.sealing.slots_per_epoch,
            specification_sha256=bytes.fromhex(self.specification.digest),
            roster_version=event["roster_version"],
            roster_sha256=bytes.fromhex(event["roster_sha256"]),
        )
        members, wanted = tuple(event["members"]), tuple(event["wanted"])
        self.epoch = EpochRecord(terms=terms, asked=members, wanted=wanted, eligible=event.get("eligible", 0))

    def _within_epoch(self, kind: str, event: dict[str, Any], parsed: Message | None) -> None:
        epoch = self.epoch
        assert epoch is not None  # noqa: S101 - the journal's order
        match kind:
            case "bundle":
                signed = _message(sealing_pb2.SignedBundle, event, parsed)
                epoch.signed[event["node"]] = signed
                epoch.opened[event["node"]] = wire.decode(sealing_pb2.Bundle, signed.bundle)
            case "sharing":
                # A node's own policy decides about c = 0; the coordinator asks for what is specified.
                epoch.parameters = for_epoch(
                    self.specification, len(epoch.signed), eligible=epoch.eligible, waive_colluding=True
                )
                epoch.key = EpochKey(
                    terms=epoch.terms,
                    members=epoch.members,
                    bundles=bundles.digest([epoch.signed[name] for name in epoch.members]),
                    threshold=epoch.parameters.threshold,
                )
                epoch.phase = "share"
            case "dealings":
                epoch.dealt.add(event["node"])
            case "stands":
                epoch.phase = "stands"
            case "epoch_failed":
                epoch.phase, epoch.failure = "failed", (event["code"], event["reason"])

    def _slot(self, event: dict[str, Any]) -> None:
        plan = SlotPlan.of(wire.decode(fleet_pb2.SlotOpen, bytes.fromhex(event["plan"])))
        self.last_slot = max(self.last_slot, plan.slot)
        previous, self.slot = self.slot, SlotRecord(plan=plan)
        epoch = self.epoch
        if not event["sealed"] or epoch is None or epoch.parameters is None or epoch.key is None:
            return
        if previous is not None and previous.plan.slot >= epoch.terms.first_slot:
            epoch.delivered |= set(previous.uploads)
        layout = context.slot_layout(
            self.specification, epoch.parameters, epoch.key.bundles, plan, self.coordinates
        )  # fmt: skip
        self.slot.layout = layout
        self.slot.context = context.slot_context(epoch.terms, epoch.parameters, epoch.key.bundles, plan, layout)

    def _within_slot(self, kind: str, event: dict[str, Any], parsed: Message | None) -> None:
        slot = self.slot
        assert slot is not None  # noqa: S101 - the journal's order
        match kind:
            case "upload":
                slot.uploads[event["node"]] = bytes.fromhex(event["digest"])
            case "upload_lost":
                del slot.uploads[event["node"]]
            case "list":
                slot.survivors, slot.phase = tuple(event["nodes"]), "confirm"
                slot.listed = context.list_digest(slot.context, slot.plan.slot, slot.survivor_list())
            case "confirmation":
                slot.confirmations[event["node"]] = _message(sealing_pb2.Confirmation, event, parsed)
            case "quorum":
                slot.quorum, slot.phase = tuple(event["nodes"]), "reveal"
                self.bound = slot.survivors if self.specification.refuses_differences else ()
            case "reveal":
                slot.reveals[event["node"]] = _message(sealing_pb2.Reveal, event, parsed)
            case "bad_share":
                del slot.reveals[event["node"]]
                self.convicted.add(event["node"])
            case "decided":
                slot.phase, slot.committed, slot.failure = "decided", event["committed"], event["failure"]
                slot.contributors = tuple(event["contributors"])
            case "ended":
                slot.ended = True
                if event.get("next_model", "") != slot.plan.model_sha256.hex():
                    self.bound = ()


def _message(kind: type[_M], event: dict[str, Any], parsed: Message | None) -> _M:
    return parsed if isinstance(parsed, kind) else wire.decode(kind, bytes.fromhex(event["body"]))
