"""What travels so that only its receiver can read it: HPKE (RFC 9180), and lengths in steps.

X25519, HKDF-SHA256 and ChaCha20-Poly1305, base mode: who sent it says the signature inside. `info` binds a ciphertext
to what it is and to whom it goes.

>>> key = BoxKey()
>>> box = seal(b"question", key.public, b"inquiry", step=64)
>>> key.open(box, b"inquiry"), len(box) == len(seal(b"q", key.public, b"inquiry", step=64))
(b'question', True)

Guarantee: nobody without the private key learns more of a body than its length in steps, as far as X25519 and
ChaCha20-Poly1305 hold. A key lives in the memory of one process: what it received cannot be opened once that has ended.
"""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from confide.errors import TransportError

_SUITE = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305)
_LENGTH_BYTES = 4


class BoxKey:
    """A fresh key pair, in memory only."""

    def __init__(self) -> None:
        self._key = X25519PrivateKey.generate()
        self.public: bytes = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def open(self, box: bytes, info: bytes) -> bytes:
        """The body. Raises TransportError for what was sealed to another key, for another purpose, or altered."""
        try:
            padded = _SUITE.decrypt(box, self._key, info=info)
        except (InvalidTag, ValueError) as error:
            raise TransportError(
                f"{len(box)} sealed bytes do not open: they were altered, or sealed to a key of before a restart; "
                "fetch the node's card and ask again"
            ) from error
        length = int.from_bytes(padded[:_LENGTH_BYTES], "big")
        body = padded[_LENGTH_BYTES : _LENGTH_BYTES + length]
        if len(body) != length:
            raise TransportError("what was sealed is shorter than it says; ask again")
        return body


def seal(body: bytes, public: bytes, info: bytes, *, step: int) -> bytes:
    """Seal to 32 raw bytes of a public key. step: the padded length is a multiple of it. Raises TransportError."""
    whole = len(body).to_bytes(_LENGTH_BYTES, "big") + body
    try:
        key = X25519PublicKey.from_public_bytes(public)
        return _SUITE.encrypt(whole + bytes(-len(whole) % step), key, info=info)
    except ValueError as error:
        raise TransportError(f"{public.hex()[:64]} is no X25519 key that can be sealed to") from error
