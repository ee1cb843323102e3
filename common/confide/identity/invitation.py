"""An invitation: what a new member needs to enrol by gRPC, where every call is mTLS, before it has a certificate.

It holds a short-lived client certificate for one name with its private key. The control service lets its holder
enrol and fetch the admission, and nothing else. It is a secret until it was used: hand it over as such.

The holder also proves to the root, past the coordinator, that the request is its own: it carries a signature of the
invitation's key over the new identity key. The coordinator never has that key, so it cannot put keys of its own into an
invited organization's place.
"""

import json
from typing import Annotated, Literal

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import Field

from confide import canonical
from confide.errors import IdentityError
from confide.identity.certificates import BOOTSTRAP, issue_certificate
from confide.identity.keys import check_p256_proof, load_p256_pem, load_spki, new_p256, p256_pem, prove_p256, spki
from confide.identity.member import Address
from confide.identity.roster import Seconds
from confide.identity.signed import MAX_BYTES, Document, validated
from confide.runs.sections import Name

PROOF = "invitation-proof"


class Invitation(Document):
    """invitation.json, mode 0600."""

    version: Literal[1] = 1
    kind: Literal["confide-invitation"] = "confide-invitation"
    consortium: Name
    name: Name
    root_public: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    ca_certificate: Annotated[str, Field(max_length=8192)]
    certificate: Annotated[str, Field(max_length=8192)]
    private_key: Annotated[str, Field(max_length=8192, repr=False)]
    control_address: Address
    expires_at: Seconds

    def to_bytes(self) -> bytes:
        """The file's content."""
        return canonical.encode(self.model_dump(mode="json"))

    @property
    def public_key(self) -> str:
        """DER SubjectPublicKeyInfo of its key, hex: what the root keeps to check a proof."""
        return spki(load_p256_pem(self.private_key.encode(), "the invitation's key")).hex()

    def prove(self, identity_key: str) -> str:
        """Signature over this member's name and new identity key (hex), hex."""
        key = load_p256_pem(self.private_key.encode(), "the invitation's key")
        return prove_p256(key, PROOF, _proof_body(self.name, identity_key)).hex()


def check_proof(public_key: str, name: str, identity_key: str, proof: str) -> None:
    """Raise IdentityError unless the holder of the invitation made `proof` for this name and identity key.

    Guarantee: the request was made by whoever was handed the invitation, whatever carried it.
    """
    key = load_spki(bytes.fromhex(public_key), "the invitation's key")
    check_p256_proof(key, PROOF, _proof_body(name, identity_key), bytes.fromhex(proof))


def _proof_body(name: str, identity_key: str) -> bytes:
    return canonical.encode([name, identity_key])


def make_invitation(
    authority_pem: str,
    authority_key: ec.EllipticCurvePrivateKey,
    *,
    consortium: str,
    name: str,
    root_public: bytes,
    control_address: str,
    now: int,
    hours: float,
) -> Invitation:
    """A fresh bootstrap key and certificate for `name`, good for `hours`."""
    key = new_p256()
    certificate = issue_certificate(
        authority_pem, authority_key, key.public_key(), name=name, role=BOOTSTRAP, now=now, lifetime_s=hours * 3600
    )
    document = {
        "consortium": consortium,
        "name": name,
        "root_public": root_public.hex(),
        "ca_certificate": authority_pem,
        "certificate": certificate,
        "private_key": p256_pem(key).decode(),
        "control_address": control_address,
        "expires_at": now + int(hours * 3600),
    }
    return validated(Invitation, document, "the invitation")


def read_invitation(data: bytes) -> Invitation:
    """Parse an invitation. Raises IdentityError."""
    if len(data) > MAX_BYTES:
        raise IdentityError(f"the invitation has {len(data)} bytes; at most {MAX_BYTES} are accepted")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise IdentityError("the invitation is not JSON: the file is damaged or is something else") from error
    if not isinstance(document, dict):
        raise IdentityError("the invitation is not a JSON object: the file is something else")
    return validated(Invitation, document, "the invitation")
