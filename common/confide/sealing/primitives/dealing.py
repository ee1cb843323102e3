"""Dealing: a node's secrets of an epoch as signed shares, one ciphertext for each receiver and direction.

Bonawitz et al. 2017, round 1; signed shares let a coordinator prove a bad dealer.
"""

from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

from confide import canonical
from confide.errors import FailureName, IdentityError, ProtocolFailure
from confide.identity.keys import SigningKey, verify
from confide.proto import sealing_pb2
from confide.sealing.primitives import keys, shamir, wire
from confide.sealing.primitives.bundles import EpochTerms, OwnSecrets

DOMAIN = "sealing/share"
SELF_MASK = sealing_pb2.SELF_MASK
MASK_SECRET = sealing_pb2.MASK_SECRET
_NONCE = bytes(12)


@dataclass(frozen=True, kw_only=True)
class EpochKey:
    """The public facts of an epoch that shares are bound to."""

    terms: EpochTerms
    members: tuple[str, ...]
    bundles: bytes
    """Digest of all bundles."""
    threshold: int

    def number(self, name: str) -> int:
        """A member's x in Shamir's scheme: 1-based, in order of the names."""
        return self.members.index(name) + 1


def statement(epoch: EpochKey, slot: int, kind: int, dealer: str, receiver: str, share: bytes) -> bytes:
    """What a dealer signs about one share."""
    return canonical.hash_fields(
        "confide/v1/sealing/share",
        epoch.terms.run_id.encode(),
        epoch.bundles,
        slot.to_bytes(8, "big"),
        kind.to_bytes(1, "big"),
        dealer.encode(),
        receiver.encode(),
        share,
    )


def check_share(
    epoch: EpochKey, slot: int, kind: int, dealer: str, receiver: str, share: sealing_pb2.DealtShare, identity: bytes
) -> None:
    """Raise BAD_SHARE unless `share` is an element of the field that the dealer signed for this receiver."""
    shamir.check_share(share.share)
    try:
        verify(identity, DOMAIN, statement(epoch, slot, kind, dealer, receiver, share.share), share.signature)
    except IdentityError as error:
        raise ProtocolFailure(
            FailureName.BAD_SHARE, f"the share of {dealer} that {receiver} holds is not signed by {dealer}"
        ) from error


def deal(epoch: EpochKey, node: str, own: OwnSecrets, identity: SigningKey) -> dict[str, sealing_pb2.DealtShares]:
    """Signed shares of every slot's seed and mask secret for every member, the dealer itself included.

    Guarantee: fewer than `threshold` receivers together learn nothing about a secret.
    """
    dealt = {name: sealing_pb2.DealtShares() for name in epoch.members}
    for index in range(epoch.terms.slots):
        slot = epoch.terms.first_slot + index
        for kind, secret in ((SELF_MASK, own.seeds[index]), (MASK_SECRET, own.mask_secrets[index])):
            if secret is None:
                raise ValueError(f"the secrets of slot {slot} were dropped already")
            shares = shamir.split(secret, threshold=epoch.threshold, members=len(epoch.members))
            for receiver, share in zip(epoch.members, shares, strict=True):
                signature = identity.sign(DOMAIN, statement(epoch, slot, kind, node, receiver, share))
                _of_kind(dealt[receiver], kind).append(sealing_pb2.DealtShare(share=share, signature=signature))
    return dealt


def share_of(dealt: sealing_pb2.DealtShares, kind: int, index: int) -> sealing_pb2.DealtShare:
    """The share of one secret in what a dealer dealt."""
    return _of_kind(dealt, kind)[index]


def _of_kind(dealt: sealing_pb2.DealtShares, kind: int) -> "RepeatedCompositeFieldContainer[sealing_pb2.DealtShare]":
    return dealt.self_mask if kind == SELF_MASK else dealt.mask_secret


def encrypt(epoch: EpochKey, node: str, receiver: str, secret: bytes, public: bytes, plain: bytes) -> bytes:
    """The dealing's ciphertext. The key serves this one message: it is bound to epoch, direction and all bundles."""
    key = keys.share_key(secret, public, epoch.bundles, node, receiver)
    return ChaCha20Poly1305(key).encrypt(_NONCE, plain, _associated(epoch, node, receiver))


def decrypt(
    epoch: EpochKey, dealer: str, node: str, secret: bytes, public: bytes, ciphertext: bytes, identity: bytes
) -> sealing_pb2.DealtShares:
    """What `dealer` dealt to `node`, every share's signature checked. Raises BAD_DEALING, which blames neither.

    Guarantee: only dealer and receiver can read or make it, against everyone else.
    """
    key = keys.share_key(secret, public, epoch.bundles, dealer, node)
    try:
        plain = ChaCha20Poly1305(key).decrypt(_NONCE, ciphertext, _associated(epoch, dealer, node))
        dealt = wire.decode(sealing_pb2.DealtShares, plain)
        if not len(dealt.self_mask) == len(dealt.mask_secret) == epoch.terms.slots:
            raise wire.malformed(f"{len(dealt.self_mask)} shares for {epoch.terms.slots} slots")
        wire.require_length("ledger head", dealt.ledger_head, wire.DIGEST_BYTES)
        for index in range(epoch.terms.slots):
            for kind in (SELF_MASK, MASK_SECRET):
                share = share_of(dealt, kind, index)
                check_share(epoch, epoch.terms.first_slot + index, kind, dealer, node, share, identity)
    except (InvalidTag, ProtocolFailure) as error:
        raise ProtocolFailure(
            FailureName.BAD_DEALING,
            f"what {dealer} dealt to {node} in epoch {epoch.terms.epoch} does not open ({error or 'not authentic'}); "
            "neither is blamed, and the two cannot share an epoch",
        ) from error
    return dealt


def _associated(epoch: EpochKey, dealer: str, receiver: str) -> bytes:
    return canonical.hash_fields("confide/v1/sealing/dealing", epoch.bundles, dealer.encode(), receiver.encode())
