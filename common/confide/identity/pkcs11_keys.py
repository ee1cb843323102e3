"""The root's keys in a PKCS #11 token (a smart card, an HSM): they are made there, sign there, and never leave it.

    place = TokenPlace(module="/usr/lib/softhsm/libsofthsm2.so", token="root")
    keys = make_keys(place, b"the PIN")
    keys.root.sign("roster", body); keys.authority.sign(data, ec.ECDSA(hashes.SHA256()))

PKCS #11 v3.0: Ed25519 by CKM_EDDSA, P-256 by CKM_ECDSA. Needs the extra `pkcs11` (python-pkcs11). The module is native
code of the token's maker that this process loads: whoever makes the root names it, on that machine, never a peer. A
process is logged in at a token once: opening it again ends what was opened before.

Guarantee: a copy of the root's folder signs nothing; whoever has the token and its PIN does. That the token keeps its
keys is its maker's word.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from pydantic import Field

from confide import canonical
from confide.errors import IdentityError
from confide.identity.keys import SigningKey
from confide.identity.member import read_text
from confide.identity.signed import Document, validated

ROOT_LABEL, AUTHORITY_LABEL = "confide-root", "confide-authority"
_RAW_BYTES, _POINT_BYTES, _HALF = 32, 65, 32


class TokenPlace(Document):
    """token.json of the root's folder: where its keys are. No secret."""

    version: Annotated[int, Field(ge=1, le=1)] = 1
    module: Annotated[str, Field(min_length=1, max_length=4096)]
    """Path of the maker's PKCS #11 library."""
    token: Annotated[str, Field(min_length=1, max_length=32)]
    """The token's label."""


def read_place(path: Path) -> TokenPlace:
    """Raises IdentityError for what is none."""
    try:
        document = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise IdentityError(f"{path} is damaged; it names the PKCS #11 module and the token's label") from error
    return validated(TokenPlace, document if isinstance(document, dict) else {}, path.name)


class TokenSigningKey(SigningKey):
    """The root's Ed25519 key, in the token."""

    def __init__(self, private: Any, public: bytes) -> None:
        self._private = private
        self.public = public

    def save(self, path: Path, passphrase: bytes | None = None) -> None:
        """There is nothing to save. Raises IdentityError."""
        raise IdentityError("a key in a token cannot be written to a file; that is what the token is for")

    def sign(self, domain: str, body: bytes) -> bytes:
        """As SigningKey.sign. Raises IdentityError where the token does not."""
        from pkcs11 import Mechanism

        with _failing("sign"):
            message = canonical.hash_fields("confide/v1/" + domain, body)
            return bytes(self._private.sign(message, mechanism=Mechanism.EDDSA))


class TokenAuthority(ec.EllipticCurvePrivateKey):
    """The certificate authority's P-256 key, in the token, as `cryptography` signs certificates with it."""

    def __init__(self, private: Any, point: bytes) -> None:
        self._private = private
        self._public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """ECDSA over SHA-256, DER."""
        from pkcs11 import Mechanism

        with _failing("sign"):
            raw = bytes(self._private.sign(hashlib.sha256(data).digest(), mechanism=Mechanism.ECDSA))
        return encode_dss_signature(*(int.from_bytes(half, "big") for half in (raw[:_HALF], raw[_HALF:])))

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """Its public half."""
        return self._public

    @property
    def curve(self) -> ec.EllipticCurve:
        """P-256."""
        return self._public.curve

    @property
    def key_size(self) -> int:
        """Bits."""
        return self._public.key_size

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> NoReturn:
        """It only signs."""
        raise _stays()

    def private_numbers(self) -> NoReturn:
        """It stays in the token."""
        raise _stays()

    def private_bytes(self, *_: Any) -> NoReturn:
        """It stays in the token."""
        raise _stays()

    def __copy__(self) -> "TokenAuthority":
        return self

    def __deepcopy__(self, memo: dict[Any, Any]) -> "TokenAuthority":
        return self


@dataclass(frozen=True)
class TokenKeys:
    """Both keys of a root."""

    root: TokenSigningKey
    authority: TokenAuthority


def make_keys(place: TokenPlace, pin: bytes) -> TokenKeys:
    """Two fresh keys, made in the token, sensitive and not extractable.

    Raises IdentityError where the token has keys of a root already, does not know Ed25519, or refuses.
    """
    from pkcs11 import KeyType, Mechanism

    session = _session(place, pin, writing=True)
    for label in (ROOT_LABEL, AUTHORITY_LABEL):
        if _found(session, label):
            raise IdentityError(
                f"the token {place.token!r} holds a key {label!r} already; take an empty token for a root"
            )
    with _failing(f"make keys in {place.token!r} (Ed25519 and P-256 are needed)"):
        _generate(session, KeyType.EC_EDWARDS, _ED25519, ROOT_LABEL, mechanism=Mechanism.EC_EDWARDS_KEY_PAIR_GEN)
        _generate(session, KeyType.EC, _P256, AUTHORITY_LABEL)
    return _keys(session, place)


def open_keys(place: TokenPlace, pin: bytes) -> TokenKeys:
    """The keys that `make_keys` made. Raises IdentityError: no such token, wrong PIN, no such keys."""
    return _keys(_session(place, pin), place)


_ED25519 = b"\x13\x0cedwards25519"
"""Domain parameters, PKCS #11 v3.0 section 2.3.10: the curve's name, a PrintableString."""
_SESSIONS: dict[tuple[str, str], Any] = {}
"""Open in this process, by module and token."""
_P256 = bytes.fromhex("06082a8648ce3d030107")
"""The curve's object identifier, DER."""


def _generate(session: Any, kind: Any, curve: bytes, label: str, **options: Any) -> None:
    from pkcs11 import Attribute

    parameters = session.create_domain_parameters(kind, {Attribute.EC_PARAMS: curve}, local=True)
    private = {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False}
    parameters.generate_keypair(store=True, label=label, private_template=private, **options)


def _session(place: TokenPlace, pin: bytes, *, writing: bool = False) -> Any:
    try:
        import pkcs11
    except ImportError as error:
        raise IdentityError("keys in a token need the extra `pkcs11`: pip install 'confide[pkcs11]'") from error
    with _failing(f"open the token {place.token!r} by {place.module}"):
        library = pkcs11.lib(place.module)
        if (before := _SESSIONS.pop((place.module, place.token), None)) is not None:
            before.close()
        opened = library.get_token(token_label=place.token).open(rw=writing, user_pin=pin.decode())
    _SESSIONS[place.module, place.token] = opened
    return opened


def _found(session: Any, label: str) -> list[Any]:
    from pkcs11 import Attribute, ObjectClass

    with _failing(f"look for {label!r}"):
        return list(session.get_objects({Attribute.LABEL: label, Attribute.CLASS: ObjectClass.PRIVATE_KEY}))


def _keys(session: Any, place: TokenPlace) -> TokenKeys:
    root, authority = (_pair(session, place, label) for label in (ROOT_LABEL, AUTHORITY_LABEL))
    return TokenKeys(
        TokenSigningKey(root[0], root[1][-_RAW_BYTES:]), TokenAuthority(authority[0], authority[1][-_POINT_BYTES:])
    )


def _pair(session: Any, place: TokenPlace, label: str) -> tuple[Any, bytes]:
    from pkcs11 import Attribute, ObjectClass

    private = _found(session, label)
    with _failing(f"read the public half of {label!r}"):
        public = list(session.get_objects({Attribute.LABEL: label, Attribute.CLASS: ObjectClass.PUBLIC_KEY}))
        if len(private) == len(public) == 1:
            return private[0], bytes(public[0][Attribute.EC_POINT])
    raise IdentityError(
        f"the token {place.token!r} has {len(private)} private and {len(public)} public keys named {label!r}; a root's "
        "has one of each. Is it the right token?"
    )


@contextlib.contextmanager
def _failing(what: str) -> Iterator[None]:
    """Errors of the token, by name and with what was tried."""
    from pkcs11 import PinIncorrect, PinLocked, PKCS11Error
    from pkcs11.exceptions import PinInvalid, PinLenRange

    try:
        yield
    except (PinIncorrect, PinInvalid, PinLenRange) as error:
        raise IdentityError("the token says that the PIN is wrong; after a few tries most tokens lock it") from error
    except PinLocked as error:
        raise IdentityError("the token has locked its PIN; its maker's tool unlocks it with the SO PIN") from error
    except (PKCS11Error, RuntimeError, UnicodeDecodeError) as error:
        raise IdentityError(f"the token did not {what}: {str(error) or type(error).__name__}") from error


def _stays() -> IdentityError:
    return IdentityError("the authority's key stays in its token: it signs certificates, and does nothing else")
