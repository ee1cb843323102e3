"""What an administrator signs when a run is submitted, and how everybody checks it.

The signature covers SHA-256(specification) and the digest of the first model, so that a coordinator can change
neither: every node checks it again when the run is offered to it.

>>> key = SigningKey.generate()
>>> len(sign_submission(key, b"specification", bytes(32)))
64
"""

import hashlib

from confide.errors import IdentityError, SpecificationError
from confide.identity.keys import SigningKey, verify
from confide.identity.roster import Role, Roster
from confide.runs.specification import Specification, parse_canonical

DOMAIN = "submission"


def submission_body(specification: bytes, initial_model_sha256: bytes) -> bytes:
    """SHA-256(specification's canonical bytes) || initial_model_sha256: 64 bytes."""
    if len(initial_model_sha256) != 32:
        raise SpecificationError(f"the first model's digest has {len(initial_model_sha256)} bytes; SHA-256 has 32")
    return hashlib.sha256(specification).digest() + initial_model_sha256


def sign_submission(key: SigningKey, specification: bytes, initial_model_sha256: bytes) -> bytes:
    """The administrator's signature."""
    return key.sign(DOMAIN, submission_body(specification, initial_model_sha256))


def verify_submission(
    roster: Roster, administrator: str, specification: bytes, initial_model_sha256: bytes, signature: bytes
) -> Specification:
    """The parsed specification, if an active administrator of the roster signed it together with the first model.

    Raises IdentityError (unknown, not an administrator, signature), ProtocolFailure REVOKED, SpecificationError.

    Guarantee: the specification and first model are those that the administrator signed, against anyone without
    its identity key.
    """
    member = roster.member(administrator)
    if member.role is not Role.ADMINISTRATOR:
        raise IdentityError(f"{administrator} is a {member.role.value}; only an administrator submits runs")
    body = submission_body(specification, initial_model_sha256)
    verify(bytes.fromhex(member.identity_key), DOMAIN, body, signature)
    return parse_canonical(specification)
