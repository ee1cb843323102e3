"""A private key under a passphrase: scrypt (RFC 7914) and ChaCha20-Poly1305 (RFC 8439), in a small JSON document.

The PEM encryption of the cryptography library derives its key with 2,048 rounds of PBKDF2, which a graphics card tries
by the million a second. Scrypt at n = 2^17, r = 8 takes 128 MiB and half a second a try.

>>> sealed = lock(b"-----BEGIN PRIVATE KEY-----", b"correct horse", cost=2**4)
>>> unlock(sealed, b"correct horse", "root.key")
b'-----BEGIN PRIVATE KEY-----'
"""

import secrets
from typing import Annotated, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from confide import canonical
from confide.errors import IdentityError

COST = 2**17
_BLOCK, _PARALLEL = 8, 1
_DOMAIN = b"confide/v1/locked-key"


class LockedKey(BaseModel):
    """What stands in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[1] = 1
    kind: Literal["confide-locked-key"] = "confide-locked-key"
    cost: Annotated[int, Field(ge=2, le=2**20)]
    """scrypt's n; r = 8, p = 1. Bounded, so that a foreign file cannot take more than 1 GiB."""
    salt: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    nonce: Annotated[str, Field(pattern=r"^[0-9a-f]{24}$")]
    ciphertext: Annotated[str, Field(pattern=r"^([0-9a-f]{2}){16,8192}$")]


def lock(secret: bytes, passphrase: bytes, *, cost: int = COST) -> bytes:
    """Encrypt; every call under a fresh salt and nonce.

    Guarantee: without the passphrase the secret is as hidden as ChaCha20-Poly1305 and the passphrase's own strength
    under scrypt make it; an altered file is refused.
    """
    salt, nonce = secrets.token_bytes(16), secrets.token_bytes(12)
    ciphertext = ChaCha20Poly1305(_key(passphrase, salt, cost)).encrypt(nonce, secret, _DOMAIN)
    locked = LockedKey(cost=cost, salt=salt.hex(), nonce=nonce.hex(), ciphertext=ciphertext.hex())
    return canonical.encode(locked.model_dump(mode="json"))


def is_locked(data: bytes) -> bool:
    """Whether a key file's bytes are such a document rather than PEM."""
    return data.lstrip()[:1] == b"{"


def unlock(data: bytes, passphrase: bytes, what: str) -> bytes:
    """What `lock` hid. Raises IdentityError for a wrong passphrase or a damaged file, which cannot be told apart."""
    try:
        locked = LockedKey.model_validate_json(data)
    except ValidationError as error:
        raise IdentityError(f"{what} is damaged; restore it from a backup") from error
    key = _key(passphrase, bytes.fromhex(locked.salt), locked.cost)
    try:
        return ChaCha20Poly1305(key).decrypt(bytes.fromhex(locked.nonce), bytes.fromhex(locked.ciphertext), _DOMAIN)
    except InvalidTag as error:
        raise IdentityError(f"the passphrase does not open {what}, or the file is damaged; try again") from error


def _key(passphrase: bytes, salt: bytes, cost: int) -> bytes:
    try:
        return Scrypt(salt=salt, length=32, n=cost, r=_BLOCK, p=_PARALLEL).derive(passphrase)
    except (ValueError, MemoryError) as error:
        raise IdentityError(f"a scrypt cost of {cost} is not possible here: {error}") from error
