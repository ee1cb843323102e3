"""X25519 agreement with a check for low order, and what is derived from it by HKDF-SHA256.

>>> a, b = new_secret(), new_secret()
>>> agree(a, public_of(b)) == agree(b, public_of(a))
True
"""

import secrets

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from confide import canonical
from confide.errors import FailureName, ProtocolFailure

BYTES = 32
_P = 2**255 - 19
_ORDER_8 = (
    0x00B8495F16056286FDB1329CEB8D09DA6AC49FF1FAE35616AEB8413B7C7AEBE0,
    0x57119FD0DD4E22D8868E1C58C45C44045BEF839C55B1D0B1248C50A3BC959C5F,
)
_LOW_ORDER = frozenset({0, 1, _P - 1, *_ORDER_8})


def new_secret() -> bytes:
    """32 bytes from the operating system's generator: an X25519 private key or a self-mask seed."""
    return secrets.token_bytes(BYTES)


def public_of(secret: bytes) -> bytes:
    """The X25519 public key, 32 bytes (RFC 7748, 6.1)."""
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def check_order(public: bytes) -> None:
    """Raise LOW_ORDER_KEY for a public key that `agree` refuses with every secret, at a thousandth of its cost.

    Guarantee: exact. On Curve25519 and its twist only these five u have an order that divides the cofactor (Cremers and
    Jackson 2019, "Prime, Order Please!", table 1), and X25519 ignores the top bit and reduces u modulo p (RFC 7748, 5).
    """
    if (int.from_bytes(public, "little") & (2**255 - 1)) % _P in _LOW_ORDER:
        raise _low_order(public)


def agree(secret: bytes, public: bytes) -> bytes:
    """X25519 shared secret, 32 bytes. Raises LOW_ORDER_KEY when it is zero (RFC 7748, 6.1).

    Guarantee: no party can force a result that others know without holding one of the two secrets.
    """
    try:
        return X25519PrivateKey.from_private_bytes(secret).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise _low_order(public) from error


def _low_order(public: bytes) -> ProtocolFailure:
    return ProtocolFailure(
        FailureName.LOW_ORDER_KEY, f"the key {public.hex()} agrees on zero with everyone; its owner lies"
    )


def derive(secret: bytes, *, salt: bytes, label: str, names: tuple[str, ...]) -> bytes:
    """HKDF-SHA256 (RFC 5869), 32 bytes; info is "confide/v1/" + label and the names, length-prefixed."""
    info = b"".join(
        len(field).to_bytes(2, "big") + field for field in (f"confide/v1/{label}".encode(), *map(str.encode, names))
    )
    return HKDF(algorithm=hashes.SHA256(), length=BYTES, salt=salt, info=info).derive(secret)


def self_mask(seed: bytes, context: bytes, node: str) -> tuple[bytes, int]:
    """(seed of the mask's keystream, sign) of a node's self mask."""
    return derive(seed, salt=context, label="self-mask", names=(node,)), 1


def pairwise_mask(secret: bytes, public: bytes, context: bytes, node: str, peer: str) -> tuple[bytes, int]:
    """(seed, sign) with which `node` masks for `peer`; either's secret with the other's public key makes the seed."""
    names = (min(node, peer), max(node, peer))
    return derive(agree(secret, public), salt=context, label="pairwise-mask", names=names), 1 if node < peer else -1


def share_key(secret: bytes, public: bytes, bundles: bytes, dealer: str, receiver: str) -> bytes:
    """The key that encrypts the one message from dealer to receiver in this epoch."""
    return derive(agree(secret, public), salt=bundles, label="share-key", names=(dealer, receiver))


def commitment(seed: bytes, run_id: str, epoch: int, slot: int, node: str) -> bytes:
    """What a bundle says about a self-mask seed: 32 bytes.

    Guarantee: hides the seed (256 random bits) and binds the node to it, as far as SHA-256 holds.
    """
    return canonical.hash_fields(
        "confide/v1/sealing/seed",
        run_id.encode(),
        epoch.to_bytes(8, "big"),
        slot.to_bytes(8, "big"),
        node.encode(),
        seed,
    )
