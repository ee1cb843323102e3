"""Steps 1 and 2 at a node: advertise one's public keys, then deal shares of one's secrets to all others.

Guarantee: one bundle and one dealing an epoch, whatever is asked how often; the secrets are in memory only.
"""

import secrets
from dataclasses import dataclass, field

from confide.errors import FailureName, IdentityError, ProtocolFailure
from confide.identity.keys import verify
from confide.proto import sealing_pb2
from confide.runs.parameters import Parameters, eligible, for_epoch
from confide.sealing.crash_points import reached
from confide.sealing.member.context import MemberContext
from confide.sealing.member.heights import MOST_HEARD
from confide.sealing.member.roster import HeldRoster
from confide.sealing.primitives import bundles, dealing, wire
from confide.sealing.primitives.bundles import EpochTerms, OwnSecrets
from confide.sealing.primitives.dealing import EpochKey


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

    def drop_shares(self, before: int) -> None:
        """Overwrite what others dealt for the slots with index below `before`."""
        for dealt in self.received.values():
            for index in range(before):
                dealt.self_mask[index].Clear()
                dealt.mask_secret[index].Clear()


class MemberEpochs:
    """The epochs of one member, one at a time."""

    def __init__(self, context: MemberContext, roster: HeldRoster) -> None:
        self._context, self._roster = context, roster
        self._incarnation = secrets.token_bytes(bundles.INCARNATION_BYTES)
        self.current: MemberEpoch | None = None

    def require(self, number: int) -> MemberEpoch:
        """The epoch in memory. Raises EPOCH_REPLAYED for another one."""
        if self.current is None or self.current.terms.epoch != number:
            held = "none" if self.current is None else f"epoch {self.current.terms.epoch}"
            raise ProtocolFailure(
                FailureName.EPOCH_REPLAYED,
                f"epoch {number} came; in memory is {held} (a restart or a newer roster forgets it: open a new epoch)",
            )
        return self.current

    # ------------------------------------------------------------------ ADVERTISE

    def advertised(self, body: bytes) -> bytes | None:
        """The bundle, when it was made for this very request."""
        return self.current.signed_bundle if self.current is not None and self.current.request == body else None

    def make(self, body: bytes) -> MemberEpoch:
        """Make an epoch's secrets and sign their public halves. Its number is used up, whatever comes after."""
        context = self._context
        terms = EpochTerms.of_request(wire.decode(sealing_pb2.AdvertiseRequest, body))
        self._check_terms(terms)
        context.log.write(
            "epoch", run=context.run_id, epoch=terms.epoch, first_slot=terms.first_slot, slots=terms.slots
        )  # fmt: skip
        reached("member.epoch_written")
        own = OwnSecrets.fresh(terms.slots)
        ledger = context.heights.begin(context.run_id, terms.epoch)
        signed = bundles.make_bundle(
            terms, context.node, own, context.identity, incarnation=self._incarnation, ledger=ledger
        )  # fmt: skip
        return MemberEpoch(terms=terms, request=bytes(body), own=own, signed_bundle=signed)

    def enter(self, epoch: MemberEpoch) -> bytes:
        """Take part in an epoch that `make` made; returns the signed bundle."""
        self.current = epoch
        reached("member.bundle_ready")
        return epoch.signed_bundle

    def forget(self) -> None:
        """Drop the epoch with its secrets."""
        self.current = None

    def _check_terms(self, terms: EpochTerms) -> None:
        context = self._context
        if terms.run_id != context.run_id:
            raise ProtocolFailure(FailureName.CONTEXT_MISMATCH, f"the epoch is of another run, {terms.run_id[:32]!r}")
        if terms.epoch <= context.log.last_epoch:
            raise ProtocolFailure(
                FailureName.EPOCH_REPLAYED, f"epoch {terms.epoch} came; epoch {context.log.last_epoch} was seen already"
            )
        if terms.first_slot <= context.log.last_slot:
            raise ProtocolFailure(
                FailureName.SLOT_REUSED,
                f"epoch {terms.epoch} begins with slot {terms.first_slot}; slot {context.log.last_slot} was used "
                "already",
            )
        if terms.specification_sha256.hex() != context.specification.digest:
            raise ProtocolFailure(
                FailureName.SPEC_CHANGED, "the epoch names another specification than the one accepted here"
            )
        if terms.slots != context.specification.sealing.slots_per_epoch:
            raise ProtocolFailure(
                FailureName.SPEC_CHANGED,
                f"the epoch has {terms.slots} slots; specified are {context.specification.sealing.slots_per_epoch}",
            )
        self._check_roster(terms)

    def _check_roster(self, terms: EpochTerms) -> None:
        self._roster.check_own()
        held = self._roster.current
        if terms.roster_version != held.version:
            raise ProtocolFailure(
                FailureName.ROSTER_STALE,
                f"the epoch names version {terms.roster_version} of the roster, this node holds {held.version}; "
                "the older one has to be replaced first",
            )
        if terms.roster_sha256.hex() != held.digest:
            raise ProtocolFailure(FailureName.CONTEXT_MISMATCH, "the epoch names another roster of the same version")

    # ------------------------------------------------------------------ SHARE

    def share(self, body: bytes) -> bytes:
        """Verify everyone's bundle and deal, once."""
        context = self._context
        request = wire.decode(sealing_pb2.ShareRequest, body)
        epoch = self.require(request.epoch)
        opened = bundles.open_bundles(request.bundles, epoch.terms, self._roster.current)
        if epoch.share_request:
            if epoch.share_request == body:
                return epoch.share_reply
            _blame_changed_bundle(epoch, opened)
        self._check_members(epoch, request, opened)
        parameters = for_epoch(
            context.specification,
            len(opened),
            eligible=eligible(context.specification, self._roster.group_members),
            min_cohort=context.rules.min_cohort,
            waive_colluding=context.rules.waive_colluding,
        )
        context.heights.hear(
            {
                name: (bundle.ledger_length, bundle.ledger_head.hex(), bundle.ledger_signature.hex())
                for name, bundle in opened.items()
                if name != context.node
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

    def _check_members(
        self, epoch: MemberEpoch, request: sealing_pb2.ShareRequest, opened: dict[str, sealing_pb2.Bundle]
    ) -> None:
        node = self._context.node
        if node not in opened:
            raise ProtocolFailure(FailureName.OMITTED_SELF, "this node's bundle is not among those of the epoch")
        own = wire.decode(sealing_pb2.SignedBundle, epoch.signed_bundle)
        if request.bundles[list(opened).index(node)].bundle != own.bundle:
            # Its signature holds, so whoever made it has this node's identity key: a clone.
            raise bundles.equivocation(node, epoch.terms.epoch)
        self._roster.check_cohort(opened)

    def _deal(self, epoch: MemberEpoch, key: EpochKey) -> bytes:
        """Ciphertexts for all others; the polynomials live in this call only."""
        context, secret = self._context, epoch.own.share_secret
        if secret is None:
            raise ProtocolFailure(FailureName.EPOCH_REPLAYED, f"epoch {epoch.terms.epoch} has been dealt")
        dealt = dealing.deal(key, context.node, epoch.own, context.identity)
        epoch.kept = dealt.pop(context.node)
        reply = sealing_pb2.ShareReply(version=wire.VERSION, epoch=epoch.terms.epoch)
        for receiver, shares in dealt.items():
            length, head, signature = context.heights.of(receiver)
            shares.ledger_length, shares.ledger_head = length, bytes.fromhex(head)
            shares.ledger_signature = bytes.fromhex(signature)
            for length, head, signature in context.heights.earlier(receiver):
                shares.earlier.add(length=length, head=bytes.fromhex(head), signature=bytes.fromhex(signature))
            public = epoch.opened[receiver].share_key
            ciphertext = dealing.encrypt(key, context.node, receiver, secret, public, wire.encode(shares))
            reply.dealings.add(dealer=context.node, receiver=receiver, ciphertext=ciphertext)
        return wire.encode(reply)

    # ------------------------------------------------------------------ with the first TRAIN

    def open_dealings(self, epoch: MemberEpoch, dealings: list[sealing_pb2.Dealing]) -> None:
        """Open what the others dealt to this node, once, and drop the share key."""
        node, key, kept = self._context.node, epoch.key, epoch.kept
        if epoch.received:
            return
        if key is None or kept is None or epoch.own.share_secret is None:
            raise ProtocolFailure(FailureName.EPOCH_REPLAYED, f"epoch {epoch.terms.epoch} has not been dealt yet")
        dealers = [item.dealer for item in dealings]
        if dealers != [name for name in key.members if name != node] or any(item.receiver != node for item in dealings):
            raise ProtocolFailure(
                FailureName.COHORT_NOT_EPOCH, f"the dealings are from {dealers}, not from all others of the epoch"
            )
        received = {node: kept}
        for item in dealings:
            received[item.dealer] = self._open_dealing(epoch, key, item, epoch.own.share_secret)
        epoch.received, epoch.kept, epoch.own.share_secret = received, None, None

    def _open_dealing(
        self, epoch: MemberEpoch, key: EpochKey, item: sealing_pb2.Dealing, secret: bytes
    ) -> sealing_pb2.DealtShares:
        context = self._context
        identity = bytes.fromhex(self._roster.current.member(item.dealer).identity_key)
        public = epoch.opened[item.dealer].share_key
        dealt = dealing.decrypt(key, item.dealer, context.node, secret, public, item.ciphertext, identity)
        self._check_ledger(item.dealer, dealt.ledger_length, dealt.ledger_head.hex(), dealt.ledger_signature)
        if len(dealt.earlier) >= MOST_HEARD:
            raise ProtocolFailure(
                FailureName.BAD_DEALING, f"{item.dealer} names {len(dealt.earlier)} ledgers more; it keeps fewer"
            )
        for claim in dealt.earlier:
            if not context.heights.agrees(claim.length, claim.head.hex()):
                self._check_ledger(item.dealer, claim.length, claim.head.hex(), claim.signature)
        del dealt.earlier[:]
        return dealt

    def _check_ledger(self, dealer: str, length: int, head: str, signature: bytes) -> None:
        """What a dealer says that it was shown of this node's ledger. Raises BAD_DEALING or ROLLBACK_DETECTED."""
        context = self._context
        claim = bundles.ledger_statement(context.node, length, head)
        try:
            verify(context.identity.public, bundles.LEDGER_DOMAIN, claim, signature)
        except IdentityError as error:
            raise ProtocolFailure(
                FailureName.BAD_DEALING, f"{dealer} claims to have seen a ledger that this node never signed"
            ) from error
        context.heights.check(dealer, length, head)


def _blame_changed_bundle(epoch: MemberEpoch, opened: dict[str, sealing_pb2.Bundle]) -> None:
    """A second SHARE of one epoch: name the member with two bundles, else the coordinator's changed cohort."""
    for name, bundle in opened.items():
        if name in epoch.opened and epoch.opened[name] != bundle:
            raise bundles.equivocation(name, epoch.terms.epoch)
    raise ProtocolFailure(
        FailureName.COHORT_NOT_EPOCH, f"epoch {epoch.terms.epoch} was shared already, among other members"
    )
