"""The node half of sealing. It treats the coordinator as an adversary: every check stands before what it guards.

    no epoch -> ADVERTISE -> SHARE -> (TRAIN -> CONFIRM -> REVEAL -> slot_ended)* -> no epoch

This module holds the epoch; slot.py holds a slot. Epoch secrets live in memory only: a restarted member
has none, refuses the rest of the epoch by name, and takes part again in the next.
"""

import secrets
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from confide.codec.tensors import TensorSchema
from confide.errors import FailureName, IdentityError, ProtocolFailure
from confide.files import private_folder
from confide.identity.keys import SigningKey, verify
from confide.identity.roster import Roster
from confide.models.travel import Travel
from confide.proto import fleet_pb2, sealing_pb2
from confide.runs.parameters import Parameters, eligible, for_epoch
from confide.runs.specification import Specification
from confide.sealing.crash_points import reached
from confide.sealing.differences import Blocks
from confide.sealing.member.chain import ModelChain
from confide.sealing.member.heights import Heights
from confide.sealing.member.revealed import NAME, Memory, Revealed
from confide.sealing.member.seal_log import Costs, NoCosts, SealLog
from confide.sealing.member.slot import MemberSlot
from confide.sealing.primitives import bundles, dealing, wire
from confide.sealing.primitives.bundles import EpochTerms, OwnSecrets
from confide.sealing.primitives.dealing import EpochKey
from confide.sealing.roles import Answer, Train


@dataclass(frozen=True, kw_only=True)
class NodeRules:
    """What this node's own policy adds to the specification."""

    min_cohort: int = 0
    """Fewest organizations in a sum, when above the specification's."""
    waive_colluding: bool = False
    """Accept c = 0: sealing holds against the coordinator alone."""
    accept_differences: bool = False
    """Accept runs that say sealing.differences = "accepted"."""


@dataclass(repr=False)
class MemberEpoch:
    """One epoch at a node. Its secrets are dropped as docs/sealing.md says."""

    terms: EpochTerms
    request: bytes
    own: OwnSecrets
    signed_bundle: bytes
    share_request: bytes = b""
    share_reply: bytes = b""
    opened: dict[str, sealing_pb2.Bundle] = field(default_factory=dict)
    key: EpochKey | None = None
    parameters: Parameters | None = None
    kept: sealing_pb2.DealtShares | None = None
    """What the node dealt to itself, until the others' dealings are opened."""
    received: dict[str, sealing_pb2.DealtShares] = field(default_factory=dict)
    """By dealer, the node itself included."""


class SealedMember:
    """One node in one run.

    Guarantee: whatever the coordinator sends, and with up to c other members helping it, it learns of this node's
    update at most one sum over at least `smallest_list` members per slot, as long as q, t, c, d hold
    (docs/sealing.md).
    """

    def __init__(
        self,
        *,
        specification: Specification,
        roster: Roster,
        node: str,
        identity_key: SigningKey,
        folder: Path,
        run_id: str,
        schema: TensorSchema,
        initial_model_sha256: bytes,
        rules: NodeRules,
        costs: Costs | None = None,
        memory: Memory | None = None,
        heights: Heights | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """folder: the run's own at this node; the seal log in it survives restarts. clock: Unix seconds.

        memory: what the node has revealed for on this run's data, over all its runs. Without one it begins with the
        run, in `folder`, which is for a node that never takes part in another.
        heights: the node's, over all its runs. Without them they begin with the run, in `folder`.
        """
        self.specification = specification
        self.node = node
        self.identity = identity_key
        self.run_id = run_id
        self.travel = Travel(specification, schema)
        self.rules = rules
        self.folder = private_folder(folder)
        self.log = SealLog(folder / "seal-log.jsonl")
        self.costs: Costs = costs or NoCosts()
        self._owns_heights = heights is None
        self.heights = Heights(folder) if heights is None else heights
        self._own_memory = Revealed(folder / NAME) if memory is None else None
        self.memory = memory or self._own_memory.on(specification.federation.data)  # type: ignore[union-attr]
        self.clock = clock
        self.chain = ModelChain(
            specification,
            initial_sha256=initial_model_sha256,
            travel=self.travel,
            log=self.log,
            folder=self.folder,
        )
        self.roster = roster
        self.epoch: MemberEpoch | None = None
        self.slots = MemberSlot(self)
        self._incarnation = secrets.token_bytes(bundles.INCARNATION_BYTES)
        self.update_roster(roster)

    def handle(self, step: fleet_pb2.Step, body: bytes, train: Train, model: bytes | memoryview = b"") -> Answer:
        """Answer one instruction; docs/sealing.md lists the checks of each step in order."""
        self.log.require_running()
        self.heights.require_running()
        match step:
            case fleet_pb2.ADVERTISE:
                return Answer(self._advertise(body))
            case fleet_pb2.SHARE:
                return Answer(self._share(body))
            case fleet_pb2.ANCHOR:
                return self._anchor(body, model)
            case fleet_pb2.TRAIN:
                return self.slots.train(body, train, model)
            case fleet_pb2.CONFIRM:
                return Answer(self.slots.confirm(body))
            case fleet_pb2.REVEAL:
                return Answer(self.slots.reveal(body))
        raise wire.malformed(f"step {step} is none of ADVERTISE, SHARE, ANCHOR, TRAIN, CONFIRM, REVEAL")

    def _anchor(self, body: bytes, model: bytes | memoryview) -> Answer:
        """Take the signed first model, where this node has followed none from it."""
        if body:
            raise wire.malformed("ANCHOR has no body")
        self._check_roster()
        self.slots.require_closed()
        self.chain.begin(model)
        return Answer(b"")

    def slot_ended(self, end: fleet_pb2.End) -> None:
        """Erase what the slot needed; the run's end erases the epoch too."""
        self.slots.ended(end)
        if end.run_ended:
            self.epoch = None

    def close(self) -> None:
        """Release the seal log; whatever was in memory is over."""
        self.slots.forget()
        self.epoch = None
        self.log.journal.close()
        if self._own_memory is not None:
            self._own_memory.close()
        if self._owns_heights:
            self.heights.close()

    def update_roster(self, roster: Roster) -> None:
        """Use a newer roster; its version is remembered durably. One that revokes a member ends the epoch."""
        version, sha256 = self.log.roster
        if roster.version < version or (roster.version == version and roster.digest != sha256):
            raise ProtocolFailure(
                FailureName.ROSTER_STALE,
                f"version {roster.version} of the roster came, {roster.digest[:16]}; version {version}, {sha256[:16]}, "
                "was seen already",
            )
        if roster.version > version:
            self.log.write("roster", version=roster.version, sha256=roster.digest)
        self.roster = roster
        standing = {member.name for member in roster.members if member.revoked_at is None}
        if self.epoch is not None and not set(self.epoch.opened) <= standing:
            self.slots.forget()
            self.epoch = None

    def _check_roster(self) -> None:
        self.roster.check_fresh(self.clock())
        self.roster.member(self.node)

    def _advertise(self, body: bytes) -> bytes:
        """Make this epoch's secrets and publish their public halves, once."""
        if self.epoch is not None and self.epoch.request == body:
            return self.epoch.signed_bundle
        request = wire.decode(sealing_pb2.AdvertiseRequest, body)
        terms = EpochTerms.of_request(request)
        self._check_terms(terms)
        self.log.write(
            "epoch", run=self.run_id, epoch=terms.epoch, first_slot=terms.first_slot, slots=terms.slots
        )  # fmt: skip
        reached("member.epoch_written")
        own = OwnSecrets.fresh(terms.slots)
        ledger = self.heights.begin(self.run_id, terms.epoch)
        signed = bundles.make_bundle(
            terms, self.node, own, self.identity, incarnation=self._incarnation, ledger=ledger
        )  # fmt: skip
        self.slots.forget()
        self.epoch = MemberEpoch(terms=terms, request=bytes(body), own=own, signed_bundle=signed)
        reached("member.bundle_ready")
        return signed

    def _check_terms(self, terms: EpochTerms) -> None:
        if terms.run_id != self.run_id:
            raise ProtocolFailure(FailureName.CONTEXT_MISMATCH, f"the epoch is of another run, {terms.run_id[:32]!r}")
        if terms.epoch <= self.log.last_epoch:
            raise ProtocolFailure(
                FailureName.EPOCH_REPLAYED, f"epoch {terms.epoch} came; epoch {self.log.last_epoch} was seen already"
            )
        if terms.first_slot <= self.log.last_slot:
            raise ProtocolFailure(
                FailureName.SLOT_REUSED,
                f"epoch {terms.epoch} begins with slot {terms.first_slot}; slot {self.log.last_slot} was used already",
            )
        if terms.specification_sha256.hex() != self.specification.digest:
            raise ProtocolFailure(
                FailureName.SPEC_CHANGED, "the epoch names another specification than the one accepted here"
            )
        if terms.slots != self.specification.sealing.slots_per_epoch:
            raise ProtocolFailure(
                FailureName.SPEC_CHANGED,
                f"the epoch has {terms.slots} slots; specified are {self.specification.sealing.slots_per_epoch}",
            )
        self._check_roster()
        if terms.roster_version != self.roster.version:
            raise ProtocolFailure(
                FailureName.ROSTER_STALE,
                f"the epoch names version {terms.roster_version} of the roster, this node holds {self.roster.version}; "
                "the older one has to be replaced first",
            )
        if terms.roster_sha256.hex() != self.roster.digest:
            raise ProtocolFailure(FailureName.CONTEXT_MISMATCH, "the epoch names another roster of the same version")

    def _share(self, body: bytes) -> bytes:
        """Verify everyone's bundle and deal, once."""
        request = wire.decode(sealing_pb2.ShareRequest, body)
        epoch = self.require_epoch(request.epoch)
        opened = bundles.open_bundles(request.bundles, epoch.terms, self.roster)
        if epoch.share_request:
            if epoch.share_request == body:
                return epoch.share_reply
            self._blame_changed_bundle(epoch, opened)
        self._check_members(epoch, request, opened)
        parameters = for_epoch(
            self.specification,
            len(opened),
            eligible=eligible(self.specification, self.roster.groups[self.group]),
            min_cohort=self.rules.min_cohort,
            waive_colluding=self.rules.waive_colluding,
        )
        self.heights.hear(
            {
                name: (bundle.ledger_length, bundle.ledger_head.hex(), bundle.ledger_signature.hex())
                for name, bundle in opened.items()
                if name != self.node
            }
        )
        epoch.opened, epoch.parameters = opened, parameters
        epoch.key = EpochKey(
            terms=epoch.terms,
            members=tuple(opened),
            bundles=bundles.digest(request.bundles),
            threshold=parameters.threshold,
        )
        epoch.share_reply = self._deal(epoch, epoch.key)
        epoch.share_request = bytes(body)
        reached("member.dealt")
        return epoch.share_reply

    def _blame_changed_bundle(self, epoch: MemberEpoch, opened: dict[str, sealing_pb2.Bundle]) -> None:
        """A second SHARE of one epoch: name the member with two bundles, else the coordinator's changed cohort."""
        for name, bundle in opened.items():
            if name in epoch.opened and epoch.opened[name] != bundle:
                raise bundles.equivocation(name, epoch.terms.epoch)
        raise ProtocolFailure(
            FailureName.COHORT_NOT_EPOCH, f"epoch {epoch.terms.epoch} was shared already, among other members"
        )

    def _check_members(
        self, epoch: MemberEpoch, request: sealing_pb2.ShareRequest, opened: dict[str, sealing_pb2.Bundle]
    ) -> None:
        if self.node not in opened:
            raise ProtocolFailure(FailureName.OMITTED_SELF, "this node's bundle is not among those of the epoch")
        own = wire.decode(sealing_pb2.SignedBundle, epoch.signed_bundle)
        if request.bundles[list(opened).index(self.node)].bundle != own.bundle:
            # Its signature holds, so whoever made it has this node's identity key: a clone.
            raise bundles.equivocation(self.node, epoch.terms.epoch)
        allowed = self.specification.federation.nodes
        strangers = [name for name in opened if allowed and name not in allowed]
        if strangers:
            raise ProtocolFailure(
                FailureName.COHORT_NOT_EPOCH, f"{strangers[0]} is not among the nodes that the specification names"
            )
        group = self.group
        others = [name for name in opened if self.roster.member(name).group != group]
        if others:
            raise ProtocolFailure(
                FailureName.COHORT_NOT_EPOCH,
                f"{others[0]} is of group {self.roster.member(others[0]).group!r} in the roster that the root signed, "
                f"this node of {group!r}; it is summed with its own group only",
            )
        self.check_blocks(opened)

    @property
    def group(self) -> str:
        """This node's, in the roster that it holds."""
        return self.roster.member(self.node).group

    def check_blocks(self, names: Collection[str]) -> None:
        """Raise BLOCK_SPLIT unless these members may be summed together, by the roster's blocks and what was revealed.

        Nothing is refused where something else bounds what two sums tell, or this node accepts it.
        """
        if self.guards_differences:
            blocks = Blocks.of(self.specification, self.roster, self.group)
            blocks.check(names)
            self.memory.check_split(names, blocks.fewest)

    @property
    def guards_differences(self) -> bool:
        """Whether two sums must not take a block apart, by the specification, unless this node accepts it too."""
        asked = self.specification.sealing.differences == "accepted"
        return self.specification.refuses_differences or (asked and self._must_refuse)

    @property
    def _must_refuse(self) -> bool:
        return self.specification.privacy.unit != "organization" and not self.rules.accept_differences

    @property
    def fewest_together(self) -> int | None:
        """Fewest members that sums may set apart; None where any may be."""
        return self.specification.sealing.block_colluding + 2 if self.guards_differences else None

    def _deal(self, epoch: MemberEpoch, key: EpochKey) -> bytes:
        """Ciphertexts for all others; the polynomials live in this call only."""
        if epoch.own.share_secret is None:
            raise ProtocolFailure(FailureName.EPOCH_REPLAYED, f"epoch {epoch.terms.epoch} has been dealt")
        dealt = dealing.deal(key, self.node, epoch.own, self.identity)
        epoch.kept = dealt.pop(self.node)
        reply = sealing_pb2.ShareReply(version=wire.VERSION, epoch=epoch.terms.epoch)
        for receiver, shares in dealt.items():
            length, head, signature = self.heights.of(receiver)
            shares.ledger_length, shares.ledger_head = length, bytes.fromhex(head)
            shares.ledger_signature = bytes.fromhex(signature)
            public = epoch.opened[receiver].share_key
            ciphertext = dealing.encrypt(
                key, self.node, receiver, epoch.own.share_secret, public, wire.encode(shares)
            )  # fmt: skip
            reply.dealings.add(dealer=self.node, receiver=receiver, ciphertext=ciphertext)
        return wire.encode(reply)

    def require_epoch(self, number: int) -> MemberEpoch:
        """The epoch in memory. Raises EPOCH_REPLAYED for another one."""
        if self.epoch is None or self.epoch.terms.epoch != number:
            held = "none" if self.epoch is None else f"epoch {self.epoch.terms.epoch}"
            raise ProtocolFailure(
                FailureName.EPOCH_REPLAYED,
                f"epoch {number} came; in memory is {held} (a restart or a newer roster forgets it: open a new epoch)",
            )
        return self.epoch

    def open_dealings(self, epoch: MemberEpoch, dealings: list[sealing_pb2.Dealing]) -> None:
        """Open what the others dealt to this node, once, and drop the share key."""
        key, kept = epoch.key, epoch.kept
        if epoch.received:
            return
        if key is None or kept is None or epoch.own.share_secret is None:
            raise ProtocolFailure(FailureName.EPOCH_REPLAYED, f"epoch {epoch.terms.epoch} has not been dealt yet")
        dealers = [item.dealer for item in dealings]
        if dealers != [name for name in key.members if name != self.node] or any(
            item.receiver != self.node for item in dealings
        ):
            raise ProtocolFailure(
                FailureName.COHORT_NOT_EPOCH, f"the dealings are from {dealers}, not from all others of the epoch"
            )
        received = {self.node: kept}
        for item in dealings:
            received[item.dealer] = self._open_dealing(epoch, key, item, epoch.own.share_secret)
        epoch.received, epoch.kept, epoch.own.share_secret = received, None, None

    def _open_dealing(
        self, epoch: MemberEpoch, key: EpochKey, item: sealing_pb2.Dealing, secret: bytes
    ) -> sealing_pb2.DealtShares:
        identity = bytes.fromhex(self.roster.member(item.dealer).identity_key)
        public = epoch.opened[item.dealer].share_key
        dealt = dealing.decrypt(key, item.dealer, self.node, secret, public, item.ciphertext, identity)
        head = dealt.ledger_head.hex()
        claim = bundles.ledger_statement(self.node, dealt.ledger_length, head)
        try:
            verify(self.identity.public, bundles.LEDGER_DOMAIN, claim, dealt.ledger_signature)
        except IdentityError as error:
            raise ProtocolFailure(
                FailureName.BAD_DEALING, f"{item.dealer} claims to have seen a ledger that this node never signed"
            ) from error
        self.heights.check(item.dealer, dealt.ledger_length, head)
        return dealt
