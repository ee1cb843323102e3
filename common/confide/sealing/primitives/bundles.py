"""Bundles: what a member publishes at the start of an epoch, signed once with its identity key.

Both halves check a bundle with `open_bundle`; a node then checks the whole epoch's bundles with `open_bundles`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from confide import canonical
from confide.errors import FailureName, IdentityError, ProtocolFailure
from confide.identity.keys import SigningKey, verify
from confide.identity.roster import Role, Roster
from confide.proto import sealing_pb2
from confide.sealing.primitives import keys, wire

DOMAIN = "sealing/bundle"
LEDGER_DOMAIN = "sealing/ledger"
INCARNATION_BYTES = 16
MAX_SLOTS = 256


@dataclass(frozen=True, kw_only=True)
class EpochTerms:
    """What every bundle of an epoch must agree on."""

    run_id: str
    epoch: int
    first_slot: int
    slots: int
    specification_sha256: bytes
    roster_version: int
    roster_sha256: bytes

    @classmethod
    def of_request(cls, request: sealing_pb2.AdvertiseRequest) -> "EpochTerms":
        """The terms that an ADVERTISE names. Raises MALFORMED for values out of range."""
        wire.require_length("specification_sha256", request.specification_sha256, wire.DIGEST_BYTES)
        wire.require_length("roster_sha256", request.roster_sha256, wire.DIGEST_BYTES)
        if not (request.epoch >= 1 and request.first_slot >= 1 and 1 <= request.slots <= MAX_SLOTS):
            raise wire.malformed(
                f"epoch {request.epoch}, first slot {request.first_slot}, {request.slots} slots; epochs and slots "
                f"count from 1, and an epoch has 1 to {MAX_SLOTS} slots"
            )
        return cls(
            run_id=request.run_id,
            epoch=request.epoch,
            first_slot=request.first_slot,
            slots=request.slots,
            specification_sha256=request.specification_sha256,
            roster_version=request.roster_version,
            roster_sha256=request.roster_sha256,
        )

    def to_request(self) -> sealing_pb2.AdvertiseRequest:
        """The ADVERTISE message."""
        return sealing_pb2.AdvertiseRequest(
            version=wire.VERSION,
            run_id=self.run_id,
            epoch=self.epoch,
            first_slot=self.first_slot,
            slots=self.slots,
            specification_sha256=self.specification_sha256,
            roster_version=self.roster_version,
            roster_sha256=self.roster_sha256,
        )


@dataclass(repr=False)
class OwnSecrets:
    """A node's secrets of one epoch, in memory only; None once dropped. Never logged, never written."""

    share_secret: bytes | None = field(default_factory=keys.new_secret)
    mask_secrets: list[bytes | None] = field(default_factory=list)
    seeds: list[bytes | None] = field(default_factory=list)

    @classmethod
    def fresh(cls, slots: int) -> "OwnSecrets":
        """New secrets for every slot."""
        return cls(
            mask_secrets=[keys.new_secret() for _ in range(slots)], seeds=[keys.new_secret() for _ in range(slots)]
        )

    def drop_slots(self, before: int) -> None:
        """Forget the secrets of the slots with index below `before`."""
        for index in range(min(before, len(self.seeds))):
            self.mask_secrets[index] = self.seeds[index] = None


def make_bundle(
    terms: EpochTerms,
    node: str,
    own: OwnSecrets,
    identity: SigningKey,
    *,
    incarnation: bytes,
    ledger: tuple[int, str],
) -> bytes:
    """The SignedBundle of freshly made secrets."""
    if own.share_secret is None or None in own.seeds or None in own.mask_secrets:
        raise ValueError("a bundle is made once, from fresh secrets")
    bundle = sealing_pb2.Bundle(
        version=wire.VERSION,
        run_id=terms.run_id,
        epoch=terms.epoch,
        node=node,
        first_slot=terms.first_slot,
        share_key=keys.public_of(own.share_secret),
        mask_keys=[keys.public_of(secret) for secret in own.mask_secrets if secret is not None],
        seed_commitments=[
            keys.commitment(seed, terms.run_id, terms.epoch, terms.first_slot + index, node)
            for index, seed in enumerate(own.seeds)
            if seed is not None
        ],
        incarnation=incarnation,
        ledger_length=ledger[0],
        ledger_head=bytes.fromhex(ledger[1]),
        specification_sha256=terms.specification_sha256,
        roster_version=terms.roster_version,
        roster_sha256=terms.roster_sha256,
        ledger_signature=identity.sign(LEDGER_DOMAIN, ledger_statement(node, *ledger)),
    )
    data = wire.encode(bundle)
    return wire.encode(sealing_pb2.SignedBundle(bundle=data, signature=identity.sign(DOMAIN, data)))


def ledger_statement(node: str, length: int, head: str) -> bytes:
    """What a node signs about its ledger, so that a peer can show it to the node again, in any run."""
    return canonical.hash_fields(
        "confide/v1/sealing/ledger", node.encode(), length.to_bytes(8, "big"), bytes.fromhex(head)
    )


def open_bundle(signed: sealing_pb2.SignedBundle, terms: EpochTerms, roster: Roster) -> sealing_pb2.Bundle:
    """One member's bundle, its signature, keys and terms checked.

    Raises IdentityError for a signature that does not hold, and by name for anything else that is wrong.
    """
    bundle = wire.decode(sealing_pb2.Bundle, signed.bundle)
    member = roster.member(bundle.node)
    if member.role is not Role.NODE:
        raise IdentityError(f"{bundle.node} is a {member.role.value}; only nodes take part in an epoch")
    verify(bytes.fromhex(member.identity_key), DOMAIN, signed.bundle, signed.signature)
    _check_terms(bundle, terms)
    _check_keys(bundle, terms)
    ledger = ledger_statement(bundle.node, bundle.ledger_length, bundle.ledger_head.hex())
    verify(bytes.fromhex(member.identity_key), LEDGER_DOMAIN, ledger, bundle.ledger_signature)
    return bundle


def _check_terms(bundle: sealing_pb2.Bundle, terms: EpochTerms) -> None:
    name = bundle.node
    if (bundle.run_id, bundle.epoch, bundle.first_slot) != (terms.run_id, terms.epoch, terms.first_slot):
        raise ProtocolFailure(
            FailureName.EPOCH_REPLAYED,
            f"the bundle of {name} is of run {bundle.run_id[:32]!r}, epoch {bundle.epoch}, first slot "
            f"{bundle.first_slot}; this is run {terms.run_id}, epoch {terms.epoch}, first slot {terms.first_slot}",
        )
    if bundle.specification_sha256 != terms.specification_sha256:
        raise ProtocolFailure(FailureName.SPEC_CHANGED, f"{name} holds another specification of this run")
    if bundle.roster_version != terms.roster_version:
        raise ProtocolFailure(
            FailureName.ROSTER_STALE,
            f"{name} holds version {bundle.roster_version} of the roster, here it is {terms.roster_version}; "
            "the older one has to be replaced first",
        )
    if bundle.roster_sha256 != terms.roster_sha256:
        raise ProtocolFailure(FailureName.CONTEXT_MISMATCH, f"{name} holds another roster of the same version")


def _check_keys(bundle: sealing_pb2.Bundle, terms: EpochTerms) -> None:
    name = bundle.node
    if len(bundle.mask_keys) != terms.slots or len(bundle.seed_commitments) != terms.slots:
        raise wire.malformed(f"the bundle of {name} is not made for {terms.slots} slots")
    wire.require_length(f"incarnation of {name}", bundle.incarnation, INCARNATION_BYTES)
    wire.require_length(f"ledger head of {name}", bundle.ledger_head, wire.DIGEST_BYTES)
    for value in (bundle.share_key, *bundle.mask_keys, *bundle.seed_commitments):
        wire.require_length(f"a key or commitment of {name}", value, wire.KEY_BYTES)
    public = [bundle.share_key, *bundle.mask_keys]
    if len(set(public)) != len(public):
        raise wire.malformed(f"the bundle of {name} uses one key twice")
    try:
        for key in public:
            keys.check_order(key)
    except ProtocolFailure as error:
        raise ProtocolFailure(error.name, f"bundle of {name}: {error.detail}", culprit=name) from error


def open_bundles(
    signed: Sequence[sealing_pb2.SignedBundle], terms: EpochTerms, roster: Roster
) -> dict[str, sealing_pb2.Bundle]:
    """Every member's bundle by name, in order. Raises BUNDLE_EQUIVOCATION for two of one member, and as above."""
    opened: dict[str, sealing_pb2.Bundle] = {}
    for item in signed:
        bundle = open_bundle(item, terms, roster)
        if opened.get(bundle.node) == bundle:
            raise wire.malformed(f"the bundle of {bundle.node} stands twice")
        if bundle.node in opened:
            raise equivocation(bundle.node, terms.epoch)
        opened[bundle.node] = bundle
    wire.require_sorted("the bundles' members", list(opened))
    return opened


def equivocation(node: str, epoch: int) -> ProtocolFailure:
    """Two different signed bundles of one member in one epoch convict it."""
    return ProtocolFailure(
        FailureName.BUNDLE_EQUIVOCATION, f"two bundles of {node} came for epoch {epoch}", culprit=node
    )


def digest(bundles: Sequence[sealing_pb2.SignedBundle]) -> bytes:
    """The hash that names an epoch's key material; 32 bytes."""
    return canonical.hash_fields("confide/v1/sealing/bundles", *(item.bundle for item in bundles))
