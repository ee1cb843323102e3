"""X.509 certificates of the consortium: its own authority (P-256, offline), one short certificate a member.

A certificate says a member's name and role; the roster says which TLS key that member has. Both must agree
(RFC 5280 for the fields; names of coordinators in the SAN as RFC 6125 wants them).
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from confide.errors import IdentityError
from confide.identity.keys import spki_sha256
from confide.identity.roster import Role

AUTHORITY_DAYS = 3650
MEMBER_DAYS = 180
CLOCK_SKEW = timedelta(minutes=5)
BOOTSTRAP = "bootstrap"
"""The role written into an invitation's certificate: it may enrol and do nothing else."""

_COMMANDS = {Role.NODE: "node", Role.COORDINATOR: "server", Role.ADMINISTRATOR: "run"}
_HOST = re.compile(r"^(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,62})(\.[a-z0-9]([a-z0-9-]{0,62}))*$")


@dataclass(frozen=True)
class CertificateClaim:
    """What a certificate says, after `check_certificate`."""

    name: str
    role: str
    """A Role's value, or "bootstrap"."""
    tls_key: str
    """SHA-256 of the SubjectPublicKeyInfo, hex."""
    serial: int
    expires_at: float
    """Unix seconds."""

    @property
    def expires_on(self) -> str:
        """For people."""
        return f"{datetime.fromtimestamp(self.expires_at, UTC):%Y-%m-%d %H:%M} UTC"


def make_authority(consortium: str, key: ec.EllipticCurvePrivateKey, now: float) -> str:
    """The consortium's self-signed CA certificate as PEM; it can issue members' certificates only."""
    name = x509.Name([_attribute(NameOID.ORGANIZATION_NAME, consortium), _attribute(NameOID.COMMON_NAME, "authority")])
    usage = _key_usage(authority=True)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        _builder(name, name, key.public_key(), now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(Encoding.PEM).decode()


def make_csr(name: str, role: str, key: ec.EllipticCurvePrivateKey, addresses: Sequence[str] = ()) -> str:
    """A certificate signing request (PEM, PKCS#10), which proves that its sender holds the TLS key."""
    subject = x509.Name([_attribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role), _attribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    if addresses:
        builder = builder.add_extension(x509.SubjectAlternativeName(general_names(addresses)), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def load_csr(pem: str, name: str) -> ec.EllipticCurvePublicKey:
    """The P-256 TLS key of a CSR whose own signature holds. What else the CSR says is not used."""
    try:
        request = x509.load_pem_x509_csr(pem.encode())
        key = request.public_key()
        valid = request.is_signature_valid
    except Exception as error:  # the parser raises several kinds for hostile bytes
        raise IdentityError(f"the certificate request of {name!r} cannot be read: {error}") from error
    if not valid:
        raise IdentityError(f"the certificate request of {name!r} is not signed by its own key; make it again")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise IdentityError(f"the certificate request of {name!r} has a key that is not P-256; make it again")
    return key


def issue_certificate(
    authority_pem: str,
    authority_key: ec.EllipticCurvePrivateKey,
    key: ec.EllipticCurvePublicKey,
    *,
    name: str,
    role: str,
    now: float,
    addresses: Sequence[str] = (),
    lifetime_s: float = MEMBER_DAYS * 86400.0,
) -> str:
    """A member's certificate as PEM. Only a coordinator may be a TLS server, and only under `addresses`.

    Guarantee: a node's or administrator's certificate cannot pass for a coordinator's, since it lacks both the
    server usage and every name.
    """
    server = role == Role.COORDINATOR
    if server != bool(addresses):
        raise IdentityError(f"{name} is a {role} with addresses {list(addresses)}; coordinators need some, others none")
    authority = load_certificate(authority_pem, "the authority's certificate")
    organization = authority.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    subject = x509.Name(
        [
            *organization,
            _attribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role),
            _attribute(NameOID.COMMON_NAME, name),
        ]
    )
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH] + ([ExtendedKeyUsageOID.SERVER_AUTH] if server else [])
    builder = (
        _builder(subject, authority.subject, key, now, lifetime_s / 86400.0)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )
    if server:
        builder = builder.add_extension(x509.SubjectAlternativeName(general_names(addresses)), critical=False)
    return builder.sign(authority_key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def load_certificate(pem: str, what: str) -> x509.Certificate:
    """One certificate from PEM. Raises IdentityError naming what it should have been."""
    try:
        return x509.load_pem_x509_certificate(pem.encode())
    except Exception as error:  # the parser raises several kinds for hostile bytes
        raise IdentityError(f"{what} cannot be read: {error}. Accept the consortium's admission again.") from error


def check_certificate(
    pem: str,
    authority_pem: str,
    now: float,
    *,
    name: str | None = None,
    key: ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey | None = None,
    folder: object = "FOLDER",
) -> CertificateClaim:
    """What the certificate says, after checking issuer, time, and (when given) name and key.

    folder: of the member, for the command that renews.

    Raises IdentityError naming the value and the remedy: expired, foreign, of another name, of another key.
    """
    certificate = load_certificate(pem, "a member's certificate")
    authority = load_certificate(authority_pem, "the authority's certificate")
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise IdentityError(
            f"the certificate of {certificate.subject.rfc4514_string()} was not issued by this consortium's authority "
            f"({authority.subject.rfc4514_string()}); use the one from its admission"
        ) from error
    claim = read_claim(certificate)
    _check_time(certificate, claim, now, folder)
    if name is not None and claim.name != name:
        raise IdentityError(f"the certificate is that of {claim.name!r}; {name!r} was expected. Check the folder.")
    if key is not None and claim.tls_key != spki_sha256(key):
        raise IdentityError(
            f"the certificate of {claim.name} is for the TLS key {claim.tls_key[:16]}, and tls.key is "
            f"{spki_sha256(key)[:16]}; accept the newest admission, or renew the certificate"
        )
    return claim


def read_claim(certificate: x509.Certificate) -> CertificateClaim:
    """Name, role and key of a certificate whose issuer was checked already (here or by TLS)."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    roles = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
    key = certificate.public_key()
    if len(names) != 1 or len(roles) != 1 or not isinstance(key, ec.EllipticCurvePublicKey):
        raise IdentityError(
            f"the certificate of {certificate.subject.rfc4514_string()} is not a member's: it needs one CN, one OU "
            "and a P-256 key"
        )
    return CertificateClaim(
        name=str(names[0].value),
        role=str(roles[0].value),
        tls_key=spki_sha256(key),
        serial=certificate.serial_number,
        expires_at=certificate.not_valid_after_utc.timestamp(),
    )


def general_names(addresses: Sequence[str]) -> list[x509.GeneralName]:
    """Host names and IP addresses (no ports) as SAN entries. Raises IdentityError for anything else."""
    names: list[x509.GeneralName] = []
    for address in addresses:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(address)))
        except ValueError:
            if not _HOST.fullmatch(address) or address.replace(".", "").isdigit():
                raise IdentityError(
                    f"{address!r} is neither a host name in lower case nor an IP address; "
                    "give names without scheme and port, such as coordinator.example.org"
                ) from None
            names.append(x509.DNSName(address))
    return names


def renewal_of(role: str, folder: object = "FOLDER") -> str:
    """The command by which a member of this role asks for a new certificate."""
    return f"confide {_COMMANDS[Role(role)]} renew {folder}"


def _check_time(certificate: x509.Certificate, claim: CertificateClaim, now: float, folder: object) -> None:
    moment = datetime.fromtimestamp(now, UTC)
    if moment >= certificate.not_valid_after_utc and claim.role == BOOTSTRAP:
        raise IdentityError(
            f"the invitation of {claim.name} expired on {claim.expires_on}; ask the consortium's administrator for "
            f"another one, or another start kit: `confide consortium invite {claim.name} --out FILE`"
        )
    if moment >= certificate.not_valid_after_utc:
        raise IdentityError(
            f"the certificate of {claim.name} expired on {claim.expires_on}; renew it: "
            f"`{renewal_of(claim.role, folder)}`"
        )
    if moment < certificate.not_valid_before_utc:
        raise IdentityError(
            f"the certificate of {claim.name} holds from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on; "
            "set this machine's clock"
        )


def _attribute(kind: x509.ObjectIdentifier, value: str) -> x509.NameAttribute[str]:
    return x509.NameAttribute(kind, value)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: float, days: float
) -> x509.CertificateBuilder:
    moment = datetime.fromtimestamp(int(now), UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - CLOCK_SKEW)
        .not_valid_after(moment + timedelta(days=days))
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
