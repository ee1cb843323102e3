"""Rosters of invented organizations with real keys, for tests of update transport."""

import functools
import hashlib
from collections.abc import Iterable, Mapping

from confide.identity.keys import SigningKey, spki
from confide.identity.roster import Member, Role, Roster
from cryptography.hazmat.primitives.asymmetric import ec

ISSUED_AT, EXPIRES_AT = 1_000_000, 2_000_000


@functools.cache
def fleet_key(name: str) -> str:
    """A P-256 public key that is always the same for one name."""
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()) >> 8
    return spki(ec.derive_private_key(number, ec.SECP256R1())).hex()


def make_roster(
    keys: dict[str, SigningKey],
    *,
    version: int = 1,
    revoked: Iterable[str] = (),
    groups: Mapping[str, str] | None = None,
    blocks: Mapping[str, str] | None = None,
) -> Roster:
    """A roster in which everyone of `keys` is a node, in the group and block that are named for it."""
    members = tuple(
        Member(
            name=name,
            role=Role.NODE,
            identity_key=key.public.hex(),
            fleet_key=fleet_key(name),
            tls_key=hashlib.sha256(name.encode()).hexdigest(),
            admitted_at=ISSUED_AT,
            revoked_at=ISSUED_AT + 1 if name in set(revoked) else None,
            group=(groups or {}).get(name, ""),
            block=(blocks or {}).get(name, ""),
        )
        for name, key in sorted(keys.items())
    )
    return Roster(
        version=version,
        previous="" if version == 1 else "0" * 64,
        consortium="example",
        demo=True,
        issued_at=ISSUED_AT,
        expires_at=EXPIRES_AT,
        ca_certificate="",
        members=members,
    )
