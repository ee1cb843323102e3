"""Keys: Ed25519 signs what a member says, P-256 is for TLS and for Flower's node authentication.

>>> key = SigningKey.generate()
>>> verify(key.public, "receipt", b"body", key.sign("receipt", b"body"))
>>> verify(key.public, "roster", b"body", key.sign("receipt", b"body"))
Traceback (most recent call last):
confide.errors.IdentityError: signature over 'roster' does not verify under the key ...
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
    load_pem_private_key,
)

from confide import canonical
from confide.errors import IdentityError
from confide.files import write_atomic
from confide.identity.passphrase import is_locked, lock, unlock

Passphrase = Callable[[], bytes]
"""Asks for the passphrase of a locked key; called once a file that needs it."""


class SigningKey:
    """An Ed25519 key (RFC 8032). Every signature is bound to a domain, so that none can be taken for another kind.

    Guarantee: a signature made for one domain and body verifies for no other, against anyone without the key, as
    far as Ed25519 and SHA-256 hold.
    """

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public: bytes = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def __repr__(self) -> str:
        return f"SigningKey(public={self.public.hex()})"

    @classmethod
    def generate(cls) -> "SigningKey":
        """A fresh key from the operating system's generator."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path, passphrase: Passphrase | None = None) -> "SigningKey":
        """Read a PEM PKCS8 file of mode 0600. Raises IdentityError when it is missing, readable by others, or odd.

        passphrase: asked only when the file is locked with one.
        """
        key = _load_private(path, passphrase)
        if not isinstance(key, Ed25519PrivateKey):
            raise IdentityError(f"{path} holds a {type(key).__name__}; an Ed25519 private key is needed")
        return cls(key)

    def save(self, path: Path, passphrase: bytes | None = None) -> None:
        """Write PEM PKCS8 with mode 0600, durably; locked, where a passphrase is given (`passphrase.py`)."""
        _save_private(self._key, path, passphrase)

    def sign(self, domain: str, body: bytes) -> bytes:
        """64 bytes over hash_fields("confide/v1/" + domain, body)."""
        return _sign(self._key, self.public, canonical.hash_fields("confide/v1/" + domain, body))


def verify(public: bytes, domain: str, body: bytes, signature: bytes) -> None:
    """Check what SigningKey.sign made. Raises IdentityError; never returns a verdict.

    public: 32 raw bytes.
    """
    try:
        _check(public, canonical.hash_fields("confide/v1/" + domain, body), signature)
    except (InvalidSignature, ValueError) as error:
        raise IdentityError(
            f"signature over {domain!r} does not verify under the key {public.hex()[:64]}; "
            "the content was altered or somebody else signed it. Ask its sender for it again."
        ) from error


# These two stand apart so that a simulation of many parties in one process need not check the same bytes for each.


def _sign(key: Ed25519PrivateKey, public: bytes, digest: bytes) -> bytes:
    return key.sign(digest)


def _check(public: bytes, digest: bytes, signature: bytes) -> None:
    Ed25519PublicKey.from_public_bytes(public).verify(signature, digest)


def generate_p256(path: Path, passphrase: bytes | None = None) -> ec.EllipticCurvePrivateKey:
    """A fresh P-256 key, written as PEM PKCS8 with mode 0600; locked, where a passphrase is given."""
    key = new_p256()
    _save_private(key, path, passphrase)
    return key


def new_p256() -> ec.EllipticCurvePrivateKey:
    """A fresh P-256 key in memory."""
    return ec.generate_private_key(ec.SECP256R1())


def p256_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The private key as unencrypted PEM PKCS8: a secret."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def load_p256(path: Path, passphrase: Passphrase | None = None) -> ec.EllipticCurvePrivateKey:
    """Read what `generate_p256` wrote. Raises IdentityError as SigningKey.load does."""
    key = _load_private(path, passphrase)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise IdentityError(f"{path} holds a {type(key).__name__} that is not P-256; a P-256 private key is needed")
    return key


def load_p256_pem(data: bytes, what: str) -> ec.EllipticCurvePrivateKey:
    """Read what `p256_pem` wrote. Raises IdentityError."""
    try:
        key = load_pem_private_key(data, password=None)
    except Exception as error:  # the parser raises several kinds for damaged input
        raise IdentityError(f"{what} is not an unencrypted PEM private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise IdentityError(f"{what} is a {type(key).__name__} that is not P-256; a P-256 private key is needed")
    return key


def spki(key: ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey) -> bytes:
    """The public key as DER SubjectPublicKeyInfo (RFC 5280, 4.1.2.7)."""
    public = key.public_key() if isinstance(key, ec.EllipticCurvePrivateKey) else key
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def spki_sha256(key: ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of the SubjectPublicKeyInfo in hex: how the roster names a TLS key."""
    return hashlib.sha256(spki(key)).hexdigest()


def load_spki(data: bytes, what: str) -> ec.EllipticCurvePublicKey:
    """A P-256 public key from DER SubjectPublicKeyInfo in its one canonical encoding."""
    try:
        key = load_der_public_key(data)
    except Exception as error:  # the parser raises several kinds for hostile bytes
        raise IdentityError(f"{what} is not a DER public key: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1) or spki(key) != data:
        raise IdentityError(f"{what} is not an uncompressed P-256 public key in DER; make the request again")
    return key


def prove_p256(key: ec.EllipticCurvePrivateKey, domain: str, body: bytes) -> bytes:
    """ECDSA with SHA-256 over hash_fields("confide/v1/" + domain, body): proof of holding a P-256 key."""
    return key.sign(canonical.hash_fields("confide/v1/" + domain, body), ec.ECDSA(hashes.SHA256()))


def check_p256_proof(key: ec.EllipticCurvePublicKey, domain: str, body: bytes, proof: bytes) -> None:
    """Check what `prove_p256` made. Raises IdentityError."""
    try:
        key.verify(proof, canonical.hash_fields("confide/v1/" + domain, body), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise IdentityError(f"the {domain} does not verify: its sender does not hold that private key") from error


def _load_private(path: Path, passphrase: Passphrase | None = None) -> PrivateKeyTypes:
    try:
        mode = path.stat().st_mode & 0o777
        data = path.read_bytes()
    except OSError as error:
        raise IdentityError(f"cannot read the key {path}: {error.strerror}. Was it made on this machine?") from error
    if mode & 0o077:
        raise IdentityError(f"{path} has mode {mode:04o}: others can read this private key. Run `chmod 600 {path}`.")
    if is_locked(data):
        if passphrase is None:
            raise IdentityError(f"{path} is locked with a passphrase, and none was given")
        data = unlock(data, passphrase(), str(path))
    try:
        return load_pem_private_key(data, password=None)
    except Exception as error:  # the parser raises several kinds for damaged files
        raise IdentityError(f"{path} is not an unencrypted PEM private key; restore it from a backup") from error


def _save_private(
    key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey, path: Path, passphrase: bytes | None = None
) -> None:
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_atomic(path, pem if passphrase is None else lock(pem, passphrase), mode=0o600)
