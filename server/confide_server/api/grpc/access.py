"""Who calls the control port's services, and whether that one may: decided before a byte of the request is parsed.

TLS has already checked that the caller's certificate was issued by the consortium's authority and holds now. Here
its name, role and key are set against the root-signed roster.
"""

import hmac
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from confide.errors import IdentityError
from confide.identity.certificates import BOOTSTRAP, CertificateClaim, load_certificate, read_claim
from confide.identity.roster import Member, Role, Roster
from confide.inquiries import documents
from confide.text import line
from confide.transport.failures import (
    ACTING_ORGANIZATION_KEY,
    ACTING_ROLE_KEY,
    ACTING_USER_KEY,
    PROTOCOL_KEY,
    RELEASE_KEY,
    check_protocol,
)


@dataclass(frozen=True)
class Rule:
    """Who may call a method. A revoked member may call none."""

    roles: frozenset[Role]
    own: frozenset[Role] = frozenset()
    """Also these, who see their own things only."""
    change: bool = False
    """It changes something: done once for each idempotency key."""
    bootstrap: bool = False
    """Also the holder of an invitation."""
    certified: bool = False
    """Also a certificate whose name or key this coordinator's roster does not have (yet, or any more)."""
    superseded: bool = False
    """Also a member's certificate from before its renewal."""
    expired_roster: bool = False
    """Also while this coordinator's own roster is expired."""
    console: bool = False
    """Also the console, for a person whose role is among these."""


EVERY_MEMBER = frozenset(Role)
_ADMINISTRATOR, _OPERATOR, _AUDITOR, _ANNOTATOR = Role.ADMINISTRATOR, Role.OPERATOR, Role.AUDITOR, Role.ANNOTATOR
_NODE = frozenset({Role.NODE})
NODES = Rule(_NODE)
ASKERS = Rule(documents.ASKERS)
_WATCH = Rule(frozenset({_ADMINISTRATOR, _OPERATOR, _AUDITOR}), own=_NODE, console=True)
_OVERSEE = replace(_WATCH, own=frozenset())
_OPERATE = Rule(frozenset({_ADMINISTRATOR, _OPERATOR}), change=True, console=True)
_ADMINISTER = Rule(frozenset({_ADMINISTRATOR}), change=True, console=True)
_AUDIT = Rule(frozenset({_ADMINISTRATOR, _AUDITOR}), console=True)
_EVERYBODY = Rule(frozenset({_ADMINISTRATOR, _OPERATOR, _AUDITOR, _ANNOTATOR, Role.NODE}), console=True)

RULES: Mapping[str, Rule] = {
    "Control/Hello": Rule(EVERY_MEMBER, bootstrap=True, certified=True, superseded=True, expired_roster=True),
    "Control/PublishRoster": Rule(EVERY_MEMBER, certified=True, superseded=True, expired_roster=True),
    "Control/Enrol": Rule(EVERY_MEMBER, bootstrap=True, superseded=True),
    "Control/FetchAdmission": Rule(EVERY_MEMBER, bootstrap=True, superseded=True),
    "Control/GetRoster": Rule(EVERY_MEMBER),
    "Control/PutReceipt": NODES,
    "Control/ProveRun": NODES,
    "Inquiries/ListCards": ASKERS,
    "Inquiries/Inquire": ASKERS,
    "Inquiries/PublishCard": NODES,
    "Inquiries/AwaitInquiries": NODES,
    "Inquiries/AnswerInquiry": NODES,
    "Admin/GetServerStatus": _OVERSEE,
    "Admin/SubmitRun": _ADMINISTER,
    "Admin/ListRuns": _WATCH,
    "Admin/GetRun": _WATCH,
    "Admin/ListRounds": _WATCH,
    "Admin/StreamEvents": _WATCH,
    "Admin/PauseRun": _OPERATE,
    "Admin/ResumeRun": _OPERATE,
    "Admin/OrderStop": _ADMINISTER,
    "Admin/ContinueRun": _ADMINISTER,
    "Admin/CosignRun": _ADMINISTER,
    "Admin/DeleteRun": _ADMINISTER,
    "Admin/SetPriority": _OPERATE,
    "Admin/ListMembers": _WATCH,
    "Admin/GetSignedRoster": _EVERYBODY,
    "Admin/ListRosters": _EVERYBODY,
    "Admin/TakeRoster": replace(_OPERATE, expired_roster=True),
    "Admin/ListEnrolments": _OVERSEE,
    "Admin/AdmitMember": replace(_OPERATE, expired_roster=True),
    "Admin/ListReceipts": _WATCH,
    "Admin/GetPrivacySpent": _WATCH,
    "Admin/ExportRun": Rule(frozenset({_ADMINISTRATOR}), console=True),
    "Admin/ListCheckpoints": _WATCH,
    "Admin/CreateRelease": _ADMINISTER,
    "Admin/SignRelease": _ADMINISTER,
    "Admin/AttachEvidence": _ADMINISTER,
    "Admin/OverrideGate": _ADMINISTER,
    "Admin/PublishRelease": _ADMINISTER,
    "Admin/RollBackRelease": _ADMINISTER,
    "Admin/ListReleases": _EVERYBODY,
    "Admin/GetLineage": _OVERSEE,
    "Admin/PutCandidates": _OPERATE,
    "Admin/PutRatings": Rule(frozenset({_ADMINISTRATOR, _ANNOTATOR}), change=True, console=True),
    "Admin/ListRatings": Rule(frozenset({_ADMINISTRATOR, _OPERATOR}), console=True),
    "Admin/ListAudit": _AUDIT,
    "Admin/VerifyAudit": _AUDIT,
    "Admin/ExportAudit": _AUDIT,
}


@dataclass(frozen=True)
class Acting:
    """For whom a console calls, as it says: it signed that person in, and answers for it."""

    user: str = ""
    role: str = ""
    organization: str = ""
    """The node that a person of an organization belongs to."""


@dataclass(frozen=True)
class Caller:
    """Who is calling."""

    claim: CertificateClaim
    member: Member | None
    """The roster's entry, when the caller has exactly its key; None for everybody else."""
    listed: Member | None
    """The roster's entry of this name, also when the caller's key is one from before a renewal."""
    acting: Acting = field(default_factory=Acting)
    scope: str = ""
    """The organization whose things alone it may see; "" for all."""

    @property
    def name(self) -> str:
        """The certificate's name."""
        return self.claim.name

    @property
    def by(self) -> str:
        """For the audit log: the caller, or the person for whom the console called."""
        return f"{self.acting.user}@{self.name}"[:64] if self.acting.user else self.name

    @property
    def invited(self) -> bool:
        """Whether it came with an invitation's certificate."""
        return self.claim.role == BOOTSTRAP

    def check_sees(self, organization: str) -> None:
        """Raise IdentityError for an organization that asks for another one's things."""
        if self.scope and organization != self.scope:
            raise IdentityError(f"{self.name} asked about {organization[:64]!r}; an organization sees its own only")


def check_version(metadata: Iterable[tuple[str, str | bytes]]) -> None:
    """Refuse a caller of another protocol version. Raises TransportError saying which side to upgrade."""
    said = _texts(metadata)
    check_protocol(said.get(PROTOCOL_KEY, ""), said.get(RELEASE_KEY, ""), peer="the caller", own="this coordinator")


def release_of(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The caller's release, as it says."""
    return _texts(metadata).get(RELEASE_KEY, "")


def acting_of(metadata: Iterable[tuple[str, str | bytes]]) -> Acting:
    """For whom the caller says that it calls; believed of a console only."""
    said = _texts(metadata)
    user, role = line(said.get(ACTING_USER_KEY, ""), 64), said.get(ACTING_ROLE_KEY, "")
    return Acting(user, role, said.get(ACTING_ORGANIZATION_KEY, ""))


def _texts(metadata: Iterable[tuple[str, str | bytes]]) -> dict[str, str]:
    return {key: value if isinstance(value, str) else "" for key, value in metadata}


def claim_of(auth_context: Mapping[str, Iterable[bytes]]) -> CertificateClaim:
    """What the TLS client certificate says."""
    certificates = list(auth_context.get("x509_pem_cert", ()))
    if len(certificates) != 1:
        raise IdentityError("this call came without a client certificate; use one of the consortium")
    return read_claim(load_certificate(certificates[0].decode("ascii", "replace"), "the caller's certificate"))


def identify(
    claim: CertificateClaim,
    rule: Rule,
    roster: Roster,
    *,
    now: float | None = None,
    acting: Acting | None = None,
) -> Caller:
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
    if rule.console and member.role is Role.CONSOLE and member.role == claim.role:
        return _for_a_person(claim, member, rule, acting or Acting(), roster)
    if member.role != claim.role or member.role not in rule.roles | rule.own:
        raise IdentityError(f"{claim.name} is a {member.role.value}; this is for the role {_allowed(rule)} only")
    own = member.name if member.role not in rule.roles else ""
    return Caller(claim, member, member, scope=own)


def _for_a_person(claim: CertificateClaim, member: Member, rule: Rule, acting: Acting, roster: Roster) -> Caller:
    if not acting.user:
        raise IdentityError(f"{claim.name} is a console, which calls for people only, and named nobody")
    if acting.role not in rule.roles | rule.own:
        raise IdentityError(
            f"{claim.name} called for {acting.user}, whose role is {acting.role[:40]!r}; this is for the role "
            f"{_allowed(rule)} only"
        )
    if acting.role != Role.NODE:
        return Caller(claim, member, member, acting)
    organization = roster.member(acting.organization)
    if organization.role is not Role.NODE:
        raise IdentityError(f"{acting.user} belongs to {organization.name}, which is a {organization.role.value}")
    return Caller(claim, member, member, acting, scope=organization.name if Role.NODE not in rule.roles else "")


def _allowed(rule: Rule) -> str:
    return " or ".join(sorted(rule.roles | rule.own))


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
