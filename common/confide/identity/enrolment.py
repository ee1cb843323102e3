"""How a member comes in, seen from its own machine: a request goes out, an admission comes back.

A request holds public keys only and is signed by the identity key; the TLS key signs the CSR in it and the fleet key
a proof, so that nobody can enrol another's key. An admission is signed by the consortium's root.

>>> import tempfile
>>> request = make_request(Path(tempfile.mkdtemp()) / "node", "hospital-a", "node")
>>> read_request(request).name
'hospital-a'
"""

import hmac
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import Field, ValidationError

from confide import canonical
from confide.errors import IdentityError
from confide.files import private_folder, write_atomic
from confide.identity.certificates import check_certificate, general_names, load_csr, make_csr
from confide.identity.expiry import INVITED_UNTIL
from confide.identity.invitation import Invitation
from confide.identity.keys import (
    SigningKey,
    check_p256_proof,
    generate_p256,
    load_p256,
    load_spki,
    prove_p256,
    spki,
    spki_sha256,
)
from confide.identity.member import LocalMember, Membership, load_member, read_membership
from confide.identity.roster import Member, Role, Roster, RosterStore, Seconds, verify_roster
from confide.identity.signed import Document, open_document, parse_document, sign_document, validated
from confide.runs.sections import Name

REQUEST, ADMISSION, FLEET_PROOF = "request", "admission", "fleet-proof"
NEXT_TLS_KEY = "tls.key.next"


class EnrolmentRequest(Document):
    """request.json: what a member asks the consortium to put into the roster."""

    version: Literal[1] = 1
    name: Name
    role: Role
    identity_key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    fleet_key: Annotated[str, Field(pattern=r"^([0-9a-f]{182})?$")]
    fleet_proof: Annotated[str, Field(pattern=r"^([0-9a-f]{2}){0,80}$")]
    csr: Annotated[str, Field(max_length=8192)]
    addresses: Annotated[tuple[Annotated[str, Field(max_length=253)], ...], Field(max_length=16)] = ()
    created_at: Seconds
    invitation_proof: Annotated[str, Field(pattern=r"^([0-9a-f]{2}){0,80}$")] = ""
    """The invitation's key over name and identity key; "" where the request was not made from an invitation."""

    @property
    def tls_key(self) -> ec.EllipticCurvePublicKey:
        """The TLS key that is to be certified."""
        return load_csr(self.csr, self.name)

    def member(self, admitted_at: int, group: str = "", block: str = "") -> Member:
        """The roster's entry for it; group and block are the root's choice."""
        return Member(
            name=self.name,
            role=self.role,
            identity_key=self.identity_key,
            fleet_key=self.fleet_key,
            tls_key=spki_sha256(self.tls_key),
            admitted_at=admitted_at,
            group=group,
            block=block,
        )


class Admission(Document):
    """admission.json: the root's answer. The roster in it is signed by itself too, so that it can be passed on."""

    version: Literal[1] = 1
    membership: Membership
    identity_key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    certificate: Annotated[str, Field(max_length=8192)]
    roster: str


def make_request(
    folder: Path,
    name: str,
    role: Role | str,
    addresses: Sequence[str] = (),
    *,
    now: float | None = None,
    invitation: Invitation | None = None,
) -> bytes:
    """Make a new member's keys in `folder` (0700, files 0600), write request.json there, and return its bytes.

    addresses: of a coordinator: host names and IP addresses without ports. invitation: of this very name; the request
    then proves to the root that its holder made it. Raises IdentityError when the folder has keys already, or the name,
    role or addresses are not possible.
    """
    if (folder / "identity.key").exists():
        raise IdentityError(f"{folder} has keys already; use another folder, or renew the certificate")
    _check_asked(name, role, addresses)
    private_folder(folder)
    generate_p256(folder / "tls.key")
    if role == Role.NODE:
        generate_p256(folder / "fleet.key")
    SigningKey.generate().save(folder / "identity.key")
    return _write_request(folder, name, Role(role), addresses, folder / "tls.key", now, invitation)


def make_renewal(folder: Path, addresses: Sequence[str] | None = None, *, now: float | None = None) -> bytes:
    """A request for a new certificate over a fresh TLS key; identity and fleet key stay. The old one works until then.

    addresses: of a coordinator, when they change; else those of the request before.
    """
    membership = read_membership(folder)
    if addresses is None:
        addresses = read_request((folder / "request.json").read_bytes()).addresses
    _check_asked(membership.name, membership.role, addresses)
    generate_p256(folder / NEXT_TLS_KEY)
    return _write_request(folder, membership.name, membership.role, addresses, folder / NEXT_TLS_KEY, now)


def read_request(data: bytes) -> EnrolmentRequest:
    """Parse and verify a request: its own signature, the CSR's, and the proof of the fleet key.

    Guarantee: its sender held all private keys that it names. Who that is, the administrator must find out
    elsewhere (by comparing `identity_key` over another channel).
    """
    document, _ = parse_document(data, "the enrolment request")
    request = validated(EnrolmentRequest, document, "the enrolment request")
    open_document(data, REQUEST, bytes.fromhex(request.identity_key))
    _check_asked(request.name, request.role, request.addresses)
    if request.role is Role.NODE:
        fleet_key = load_spki(bytes.fromhex(request.fleet_key), "fleet_key")
        body = _fleet_proof_body(request.name, request.identity_key)
        check_p256_proof(fleet_key, FLEET_PROOF, body, bytes.fromhex(request.fleet_proof))
    elif request.fleet_key or request.fleet_proof:
        raise IdentityError(f"{request.name} is a {request.role.value}; only a node has a fleet key")
    _ = request.tls_key
    return request


def sign_admission(admission: Admission, root_key: SigningKey) -> bytes:
    """The bytes that travel back."""
    return sign_document(admission.model_dump(mode="json"), ADMISSION, root_key)


def read_admission(data: bytes, now: float, *, root: str | None = None) -> tuple[Admission, Roster]:
    """Verify an admission under the root that it names, or only under `root` (hex) when that is given.

    Raises IdentityError, or ProtocolFailure ROSTER_STALE for an old one.
    """
    document, _ = parse_document(data, "the admission")
    admission = validated(Admission, document, "the admission")
    membership = admission.membership
    if root is not None and not hmac.compare_digest(root.strip().lower().encode(), membership.root_public.encode()):
        raise IdentityError(
            f"the admission is signed by the root {membership.root_public}, and {root} was expected; "
            "compare the root's key with the consortium's administrator"
        )
    root_public = bytes.fromhex(membership.root_public)
    open_document(data, ADMISSION, root_public)
    roster = verify_roster(admission.roster.encode(), root_public, now)
    return admission, roster


def accept_admission(folder: Path, admission: bytes, now: float, *, root: str | None = None) -> LocalMember:
    """Verify an admission against this folder's keys and store it. Again, after a crash or for a renewal, is fine.

    root: the root's public key (hex) as the member learned it elsewhere. Without it the first root is believed, and
    later ones must be the same.
    """
    pinned = root if root is not None else _stored_root(folder)
    parsed, roster = read_admission(admission, now, root=pinned)
    membership = parsed.membership
    if (roster.consortium, roster.demo) != (membership.consortium, membership.demo):
        raise IdentityError(f"the admission to {membership.consortium} carries the roster of {roster.consortium}")
    store, signed = RosterStore(folder / "roster.json", bytes.fromhex(membership.root_public)), parsed.roster.encode()
    if (folder / "roster.json").exists() and store.current.version > roster.version:
        # One that came since the admission was made decides, revocations included.
        roster, signed = store.current, store.signed
    member = roster.member(membership.name)
    _check_own_keys(folder, member, membership)
    tls_key_path = _matching_tls_key(folder, member)
    claim = check_certificate(
        parsed.certificate, roster.ca_certificate, now, name=membership.name, key=load_p256(tls_key_path)
    )
    if claim.role != membership.role:
        raise IdentityError(f"the admission of a {membership.role.value} carries the certificate of a {claim.role}")
    store.accept(signed, now=now)
    write_atomic(folder / "root.pub", membership.root_public.encode())
    write_atomic(folder / "ca.crt", roster.ca_certificate.encode())
    write_atomic(folder / "consortium.json", canonical.encode(membership.model_dump(mode="json")))
    # The key first: were we killed in between, accepting the same admission again completes it.
    if tls_key_path.name == NEXT_TLS_KEY:
        tls_key_path.replace(folder / "tls.key")
    write_atomic(folder / "tls.crt", parsed.certificate.encode())
    return load_member(folder, now=now)


def _check_own_keys(folder: Path, member: Member, membership: Membership) -> None:
    identity = SigningKey.load(folder / "identity.key")
    if member.identity_key != identity.public.hex() or member.role != membership.role:
        raise IdentityError(
            f"the admission is for {member.name} ({member.role.value}) with the identity key "
            f"{member.identity_key[:16]}, and {folder} has {identity.public.hex()[:16]}; is it the right folder?"
        )
    if member.fleet_key and member.fleet_key != spki(load_p256(folder / "fleet.key")).hex():
        raise IdentityError(f"the admission names another fleet key than {folder / 'fleet.key'}; enrol again")


def _matching_tls_key(folder: Path, member: Member) -> Path:
    for path in (folder / "tls.key", folder / NEXT_TLS_KEY):
        if path.exists() and spki_sha256(load_p256(path)) == member.tls_key:
            return path
    raise IdentityError(
        f"the admission of {member.name} is for the TLS key {member.tls_key[:16]}, which {folder} does not have; "
        "it answers another request"
    )


def _stored_root(folder: Path) -> str | None:
    path = folder / "root.pub"
    return path.read_text() if path.exists() else None


def _check_asked(name: str, role: Role | str, addresses: Sequence[str]) -> None:
    if role not in set(Role):
        raise IdentityError(f"{role!r} is no role; choose one of {', '.join(Role)}")
    if (role == Role.COORDINATOR) != bool(addresses):
        raise IdentityError(f"a {role} with the addresses {list(addresses)}: a coordinator needs some, others none")
    general_names(addresses)
    check_name(name)


def check_name(name: str) -> None:
    """Raises IdentityError for a name that no member may have."""
    try:
        _NameOnly(name=name)
    except ValidationError as error:
        raise IdentityError(
            f"{name!r} is no member's name: lower-case letters, digits, dot, dash and underscore, at most 64"
        ) from error


class _NameOnly(Document):
    name: Name


def _fleet_proof_body(name: str, identity_key: str) -> bytes:
    return canonical.encode([name, identity_key])


def _write_request(
    folder: Path,
    name: str,
    role: Role,
    addresses: Sequence[str],
    tls_key_path: Path,
    now: float | None,
    invitation: Invitation | None = None,
) -> bytes:
    identity = SigningKey.load(folder / "identity.key")
    fleet_key, proof = "", b""
    if role is Role.NODE:
        key = load_p256(folder / "fleet.key")
        fleet_key = spki(key).hex()
        proof = prove_p256(key, FLEET_PROOF, _fleet_proof_body(name, identity.public.hex()))
    request = EnrolmentRequest(
        name=name,
        role=role,
        identity_key=identity.public.hex(),
        fleet_key=fleet_key,
        fleet_proof=proof.hex(),
        csr=make_csr(name, role.value, load_p256(tls_key_path), addresses),
        addresses=tuple(addresses),
        created_at=int(time.time() if now is None else now),
        invitation_proof="" if invitation is None else invitation.prove(identity.public.hex()),
    )
    data = sign_document(request.model_dump(mode="json"), REQUEST, identity)
    if invitation is not None:
        write_atomic(folder / INVITED_UNTIL, str(invitation.expires_at).encode())
    write_atomic(folder / "request.json", data)
    return data
