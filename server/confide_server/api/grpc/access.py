"""Who calls the control service, and whether that one may: decided before a byte of the request is parsed.

TLS has already checked that the caller's certificate was issued by the consortium's authority and holds now. Here
its name, role and key are set against the root-signed roster.
"""

import hmac
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from confide.errors import IdentityError
from confide.identity.certificates import BOOTSTRAP, CertificateClaim, load_certificate, read_claim
from confide.identity.roster import Member, Role, Roster
from confide.transport.failures import PROTOCOL_KEY, RELEASE_KEY, check_protocol


@dataclass(frozen=True)
class Rule:
    """Who may call a method. A revoked member may call none."""

    roles: frozenset[Role]
    bootstrap: bool = False
    """Also the holder of an invitation."""
    certified: bool = False
    """Also a certificate whose name or key this coordinator's roster does not have (yet, or any more)."""
    superseded: bool = False
    """Also a member's certificate from before its renewal."""
    expired_roster: bool = False
    """Also while this coordinator's own roster is expired."""


EVERY_MEMBER = frozenset(Role)
ADMINISTRATORS = Rule(frozenset({Role.ADMINISTRATOR}))
NODES = Rule(frozenset({Role.NODE}))
RULES: Mapping[str, Rule] = {
    "Hello": Rule(EVERY_MEMBER, bootstrap=True, certified=True, superseded=True, expired_roster=True),
    "PublishRoster": Rule(EVERY_MEMBER, certified=True, superseded=True, expired_roster=True),
    "Enrol": Rule(EVERY_MEMBER, bootstrap=True, superseded=True),
    "FetchAdmission": Rule(EVERY_MEMBER, bootstrap=True, superseded=True),
    "GetRoster": Rule(EVERY_MEMBER),
    "PutReceipt": NODES,
    "ListRequests": ADMINISTRATORS,
    "PublishAdmission": Rule(frozenset({Role.ADMINISTRATOR}), expired_roster=True),
    "SubmitRun": ADMINISTRATORS,
    "ListRuns": ADMINISTRATORS,
    "WatchRun": ADMINISTRATORS,
    "StopRun": ADMINISTRATORS,
    "ExportRun": ADMINISTRATORS,
}


@dataclass(frozen=True)
class Caller:
    """Who is calling."""

    claim: CertificateClaim
    member: Member | None
    """The roster's entry, when the caller has exactly its key; None for everybody else."""
    listed: Member | None
    """The roster's entry of this name, also when the caller's key is one from before a renewal."""

    @property
    def name(self) -> str:
        """The certificate's name."""
        return self.claim.name

    @property
    def invited(self) -> bool:
        """Whether it came with an invitation's certificate."""
        return self.claim.role == BOOTSTRAP


def check_version(metadata: Iterable[tuple[str, str | bytes]]) -> None:
    """Refuse a caller of another protocol version. Raises TransportError saying which side to upgrade."""
    said = {key: value if isinstance(value, str) else "" for key, value in metadata}
    check_protocol(said.get(PROTOCOL_KEY, ""), said.get(RELEASE_KEY, ""), peer="the caller", own="this coordinator")


def claim_of(auth_context: Mapping[str, Iterable[bytes]]) -> CertificateClaim:
    """What the TLS client certificate says."""
    certificates = list(auth_context.get("x509_pem_cert", ()))
    if len(certificates) != 1:
        raise IdentityError("this call came without a client certificate; use one of the consortium")
    return read_claim(load_certificate(certificates[0].decode("ascii", "replace"), "the caller's certificate"))


def identify(claim: CertificateClaim, rule: Rule, roster: Roster, *, now: float | None = None) -> Caller:
    """The caller, if the rule lets it in. Raises IdentityError, or ProtocolFailure REVOKED or ROSTER_STALE.

    Guarantee: a caller with `member` set holds the TLS key that the root signed for that name, and was not revoked
    in the newest roster that this coordinator has.
    """
    known = any(member.name == claim.name for member in roster.members)
    member = roster.member(claim.name) if known else None
    if not rule.expired_roster:
        roster.check_fresh(time.time() if now is None else now)
    if claim.role == BOOTSTRAP:
        if not rule.bootstrap:
            raise IdentityError(
                f"an invitation lets {claim.name} enrol and nothing else; accept the admission and use its certificate"
            )
        return Caller(claim, None, None)
    if member is None or not hmac.compare_digest(member.tls_key, claim.tls_key):
        return _outside(claim, member, rule, roster)
    if member.role != claim.role or member.role not in rule.roles:
        allowed = " or ".join(sorted(rule.roles))
        raise IdentityError(f"{claim.name} is a {member.role.value}; this is for the role {allowed} only")
    return Caller(claim, member, member)


def check_listed(claim: CertificateClaim, roster: Roster) -> None:
    """Raise IdentityError or REVOKED unless the roster has this caller with exactly this key and role."""
    identify(claim, Rule(EVERY_MEMBER, expired_roster=True), roster)


def _outside(claim: CertificateClaim, member: Member | None, rule: Rule, roster: Roster) -> Caller:
    if rule.certified or (rule.superseded and member is not None and member.role == claim.role):
        return Caller(claim, None, member)
    if member is None:
        raise IdentityError(
            f"{claim.name!r} is not in version {roster.version} of this coordinator's roster; publish the newest one "
            "with `confide consortium roster publish`"
        )
    raise IdentityError(
        f"{claim.name} called with the TLS key {claim.tls_key[:16]}; version {roster.version} of the roster says "
        f"{member.tls_key[:16]}. Accept the newest admission, or publish the newest roster."
    )
