"""An invitation: what a new member needs to enrol by gRPC, where every call is mTLS, before it has a certificate.

It holds a short-lived client certificate for one name with its private key. The control service lets its holder
enrol and fetch the admission, and nothing else. It is a secret until it was used: hand it over as such.
"""

import json
from typing import Annotated, Literal

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import Field

from confide import canonical
from confide.errors import IdentityError
from confide.identity.certificates import BOOTSTRAP, issue_certificate
from confide.identity.keys import new_p256, p256_pem
from confide.identity.member import Address
from confide.identity.roster import Seconds
from confide.identity.signed import MAX_BYTES, Document, validated
from confide.runs.specification import Name


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
