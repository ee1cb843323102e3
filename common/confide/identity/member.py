"""A member's own state folder, once it was admitted: keys, certificate, and the roster it last saw.

identity.key  fleet.key  tls.key      private keys, 0600 (fleet.key on nodes only)
tls.crt  ca.crt  root.pub             its certificate, the consortium's authority, the root's public key (hex)
roster.json  consortium.json          the newest signed roster; names and addresses
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import Field

from confide.errors import IdentityError
from confide.identity.certificates import CertificateClaim, check_certificate
from confide.identity.keys import SigningKey, load_p256
from confide.identity.roster import Role, RosterStore
from confide.identity.signed import Document, validated
from confide.runs.sections import Name

Address = Annotated[str, Field(max_length=300)]


class Membership(Document):
    """consortium.json: where this member belongs."""

    name: Name
    role: Role
    consortium: Name
    demo: bool
    root_public: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """The root's Ed25519 public key, hex: the value that members compare by telephone and pin in their policy."""
    control_address: Address = ""
    """host:port of the coordinator's gRPC control service."""
    fleet_address: Address = ""
    """host:port of the coordinator's Fleet port."""


@dataclass(frozen=True)
class LocalMember:
    """An admitted member on its own machine."""

    folder: Path
    membership: Membership
    identity: SigningKey
    roster: RosterStore
    claim: CertificateClaim

    @property
    def name(self) -> str:
        """Its name in the roster."""
        return self.membership.name

    @property
    def root_public(self) -> bytes:
        """The consortium root's public key, 32 bytes."""
        return bytes.fromhex(self.membership.root_public)

    @property
    def tls_key_path(self) -> Path:
        """PEM private key, P-256."""
        return self.folder / "tls.key"

    @property
    def tls_certificate_path(self) -> Path:
        """PEM certificate of this member."""
        return self.folder / "tls.crt"

    @property
    def ca_certificate_path(self) -> Path:
        """PEM certificate of the consortium's authority."""
        return self.folder / "ca.crt"

    def fleet_key(self) -> ec.EllipticCurvePrivateKey:
        """The P-256 key of Flower's node authentication (nodes only)."""
        return load_p256(self.folder / "fleet.key")


def read_text(path: Path) -> str:
    """A file of an admitted member's folder. Raises IdentityError naming the remedy when it is missing."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise IdentityError(
            f"cannot read {path}: {error}. Was this member admitted, and the admission accepted here?"
        ) from error


def read_membership(folder: Path) -> Membership:
    """consortium.json of the folder."""
    import json

    path = folder / "consortium.json"
    try:
        document = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise IdentityError(f"{path} is damaged; accept the admission again") from error
    return validated(Membership, document if isinstance(document, dict) else {}, str(path))


def load_member(folder: Path, *, now: float | None = None) -> LocalMember:
    """Load and cross-check the folder. An expired roster is loaded all the same: a newer one can then be fetched.

    Raises IdentityError naming what does not fit: missing files, expired or foreign certificate, keys that differ
    from the roster's.
    """
    membership = read_membership(folder)
    root_public = bytes.fromhex(membership.root_public)
    identity = SigningKey.load(folder / "identity.key")
    tls_key = load_p256(folder / "tls.key")
    roster = RosterStore(folder / "roster.json", root_public)
    current = roster.current
    claim = check_certificate(
        read_text(folder / "tls.crt"),
        current.ca_certificate,
        time.time() if now is None else now,
        name=membership.name,
        key=tls_key,
        folder=folder,
    )
    if claim.role != membership.role:
        raise IdentityError(f"the certificate in {folder} is that of a {claim.role}, not of a {membership.role.value}")
    return LocalMember(folder=folder, membership=membership, identity=identity, roster=roster, claim=claim)
