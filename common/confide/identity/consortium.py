"""The consortium's root, on an offline machine: it makes rosters and certificates, and signs nothing else.

    root.key  ca.key        private keys, 0600, under a passphrase: they never leave this folder, and never reach
                            the coordinator
    token.json              instead of both: the PKCS #11 token that holds them
    ca.crt  root.pub        the authority's certificate, the root's public key (hex)
    roster.json             the newest signed roster
    consortium.json         name, addresses
    invitations/            public halves of invitations that were handed out

Guarantee: without root.key nobody adds, changes or brings back a member; without ca.key nobody makes a certificate.
Where a token holds both, the same holds for the token and its PIN.
"""

import functools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from confide import canonical
from confide.errors import IdentityError
from confide.files import private_folder, write_atomic
from confide.identity.certificates import MEMBER_DAYS, issue_certificate, make_authority
from confide.identity.enrolment import Admission, EnrolmentRequest, read_request, sign_admission
from confide.identity.invitation import Invitation, check_proof, make_invitation
from confide.identity.keys import Passphrase, SigningKey, generate_p256, load_p256
from confide.identity.member import Address, Membership, read_text
from confide.identity.pkcs11_keys import TokenPlace, make_keys, open_keys, read_place
from confide.identity.roster import GateRule, Member, Role, Roster, RosterStore, Rules, sign_roster
from confide.identity.signed import Document, open_document, parse_document, sign_document, validated
from confide.runs.sections import Name

DAY_S = 86400
APPROVAL_DOMAIN = "revocation-approval"
ROSTER_DAYS = 30
TOKEN_FILE = "token.json"


class Settings(Document):
    """consortium.json of the root's folder."""

    name: Name
    demo: bool
    control_address: Address = ""
    fleet_address: Address = ""


@dataclass(frozen=True)
class Consortium:
    """The opened folder of the root."""

    folder: Path
    settings: Settings
    root: SigningKey
    roster: RosterStore
    authority: ec.EllipticCurvePrivateKey

    @classmethod
    def create(
        cls,
        folder: Path,
        name: str,
        *,
        demo: bool = False,
        control_address: str = "",
        fleet_address: str = "",
        roster_days: int = ROSTER_DAYS,
        now: float | None = None,
        passphrase: bytes | None = None,
        token: TokenPlace | None = None,
    ) -> "Consortium":
        """Make root and authority and the first, empty roster. Raises IdentityError when the folder has a root.

        passphrase: both private keys are locked with it; None leaves them as plain files. token: makes and keeps them
        instead, and the passphrase is its PIN.
        """
        if has_root(folder):
            raise IdentityError(f"{folder} holds a consortium's root already; choose another folder")
        moment = _now(now)
        document = {"name": name, "demo": demo, "control_address": control_address, "fleet_address": fleet_address}
        settings = validated(Settings, document, "the consortium")
        private_folder(folder)
        root, ca_key = _new_keys(folder, passphrase, token)
        authority = make_authority(name, ca_key, moment)
        write_atomic(folder / "ca.crt", authority.encode())
        write_atomic(folder / "root.pub", root.public.hex().encode())
        write_atomic(folder / "consortium.json", canonical.encode(settings.model_dump(mode="json")))
        first = Roster(
            version=1,
            previous="",
            consortium=name,
            demo=demo,
            issued_at=moment,
            expires_at=moment + roster_days * DAY_S,
            ca_certificate=authority,
            members=(),
            rules=Rules(release_gate=GateRule.ALIGNED),
        )
        (folder / "roster.json").unlink(missing_ok=True)
        RosterStore(folder / "roster.json", root.public).accept(sign_roster(first, root), now=moment)
        _keep_root(folder, root, passphrase, token)
        return cls.open(folder, None if passphrase is None else lambda: passphrase)

    @classmethod
    def open(cls, folder: Path, passphrase: Passphrase | None = None) -> "Consortium":
        """Open what `create` made. Raises IdentityError naming what is missing or damaged.

        passphrase: asked, once, when the keys are locked.
        """
        ask = None if passphrase is None else functools.cache(passphrase)
        root, authority = _opened_keys(folder, ask)
        try:
            document = json.loads(read_text(folder / "consortium.json"))
        except (ValueError, RecursionError) as error:
            raise IdentityError(f"{folder / 'consortium.json'} is damaged; restore it from a backup") from error
        settings = validated(Settings, document if isinstance(document, dict) else {}, "consortium.json")
        return cls(folder, settings, root, RosterStore(folder / "roster.json", root.public), authority)

    def admit(
        self,
        request: bytes,
        *,
        now: float | None = None,
        days: int = MEMBER_DAYS,
        roster_days: int = ROSTER_DAYS,
        group: str = "",
        block: str = "",
    ) -> bytes:
        """Take a new member in; returns its admission. The same request again gets a new certificate.

        group: of a node, with whose other nodes it is summed; block: within it, without whom it is never summed; both
        are fixed for good.
        Raises IdentityError when the name or a key is taken, or the group or block is another than it has.
        """
        moment, asked = _now(now), read_request(request)
        known = {member.name: member for member in self.roster.current.members}.get(asked.name)
        if known is None:
            self._next([*self.roster.current.members, asked.member(moment, group, block)], moment, roster_days)
        elif known.revoked_at is not None:
            raise IdentityError(f"{asked.name} was revoked; a revoked name never returns. Enrol under another name.")
        elif (group and group != known.group) or (block and block != known.block):
            raise IdentityError(
                f"{asked.name} is in group {known.group!r}, block {known.block!r}; both are fixed, so it cannot join "
                f"group {group!r}, block {block!r}"
            )
        elif known != asked.member(known.admitted_at, known.group, known.block):
            raise IdentityError(
                f"{asked.name} is a member with other keys already; for a new certificate use `renew`, for another "
                "organization another name"
            )
        return self._answer(asked, moment, days)

    def renew(
        self, request: bytes, *, now: float | None = None, days: int = MEMBER_DAYS, roster_days: int = ROSTER_DAYS
    ) -> bytes:
        """Certify a member's fresh TLS key; its identity, fleet key and role must be those of the roster."""
        moment, asked = _now(now), read_request(request)
        known = self.roster.current.member(asked.name)
        renewed = asked.member(known.admitted_at, known.group, known.block)
        if renewed.model_copy(update={"tls_key": known.tls_key}) != known:
            raise IdentityError(
                f"the renewal of {asked.name} has the identity key {asked.identity_key[:16]} and the role "
                f"{asked.role.value}; the roster says {known.identity_key[:16]} and {known.role.value} "
                "(and the fleet key must be the same)"
            )
        if renewed != known:
            members = [renewed if member.name == known.name else member for member in self.roster.current.members]
            self._next(members, moment, roster_days)
        return self._answer(asked, moment, days)

    def set_rules(self, rules: Rules, *, now: float | None = None, roster_days: int = ROSTER_DAYS) -> Roster:
        """How many administrators sign what, and who passes the gate. Raises IdentityError where there are fewer."""
        there, asked = len(self.roster.current.active(Role.ADMINISTRATOR)), rules.most_signatures
        if there < asked:
            raise IdentityError(f"{asked} administrators would have to sign, and there are {there}; admit another one")
        return self._next(list(self.roster.current.members), _now(now), roster_days, rules)

    def revoke(
        self,
        name: str,
        *,
        now: float | None = None,
        roster_days: int = ROSTER_DAYS,
        approvals: Sequence[bytes] = (),
    ) -> Roster:
        """Mark a member as revoked, for good. Takes effect wherever the new roster arrives.

        approvals: of administrators (`approve_revocation`), as many as the roster's rules ask beside the root; with the
        rule of one the root decides alone. Raises IdentityError naming who is missing.
        """
        moment = _now(now)
        check_approvals(self.roster.current, name, approvals)
        gone = self.roster.current.member(name).model_copy(update={"revoked_at": moment})
        members = [gone if member.name == name else member for member in self.roster.current.members]
        return self._next(members, moment, roster_days)

    def refresh(self, *, now: float | None = None, roster_days: int = ROSTER_DAYS) -> Roster:
        """The same members in a new version that expires later."""
        return self._next(list(self.roster.current.members), _now(now), roster_days)

    def invite(self, name: str, *, now: float | None = None, hours: float = 48.0) -> Invitation:
        """A bootstrap for `name`: a short-lived certificate with its key, good for one enrolment by gRPC only.

        The root keeps the public half, against which `check_invited` holds the request that comes.
        """
        moment = _now(now)
        if any(member.name == name for member in self.roster.current.members):
            raise IdentityError(f"{name} is or was a member already; invite another name, or renew its certificate")
        invitation = make_invitation(
            self.roster.current.ca_certificate,
            self.authority,
            consortium=self.settings.name,
            name=name,
            root_public=self.root.public,
            control_address=self.settings.control_address,
            now=moment,
            hours=hours,
        )
        private_folder(self._invitations)
        write_atomic(self._invitations / f"{name}.pub", invitation.public_key.encode())
        return invitation

    def check_invited(self, request: bytes) -> EnrolmentRequest:
        """The request, if whoever was invited under its name made it. Raises IdentityError.

        Guarantee: its keys are those of the invitation's holder, even if the coordinator that kept it lies.
        """
        asked = read_request(request)
        path = self._invitations / f"{asked.name}.pub"
        if not asked.invitation_proof or not path.exists():
            raise IdentityError(
                f"the request of {asked.name} was not made from an invitation of this root; compare its identity key "
                f"{asked.identity_key} with them by telephone, and admit its file with --key"
            )
        check_proof(read_text(path), asked.name, asked.identity_key, asked.invitation_proof)
        return asked

    def invited(self) -> list[str]:
        """Names that were invited and are no members yet."""
        members = {member.name for member in self.roster.current.members}
        return sorted({path.stem for path in self._invitations.glob("*.pub")} - members)

    @property
    def _invitations(self) -> Path:
        return self.folder / "invitations"

    def _next(self, members: list[Member], now: int, roster_days: int, rules: Rules | None = None) -> Roster:
        current = self.roster.current
        document: dict[str, Any] = current.model_dump(mode="json") | {
            "version": current.version + 1,
            "previous": current.digest,
            "issued_at": now,
            "expires_at": now + roster_days * DAY_S,
            "members": [member.model_dump(mode="json") for member in sorted(members, key=lambda one: one.name)],
        }
        if rules is not None:
            document["rules"] = rules.model_dump(mode="json")
        roster = validated(Roster, document, "the next roster")
        return self.roster.accept(sign_roster(roster, self.root), now=now)

    def _answer(self, asked: EnrolmentRequest, now: int, days: int) -> bytes:
        roster = self.roster.current
        if roster.expires_at <= now:
            roster = self.refresh(now=now)
        certificate = issue_certificate(
            roster.ca_certificate,
            self.authority,
            asked.tls_key,
            name=asked.name,
            role=asked.role.value,
            now=now,
            addresses=asked.addresses,
            lifetime_s=days * DAY_S,
        )
        membership = Membership(
            name=asked.name,
            role=asked.role,
            consortium=self.settings.name,
            demo=self.settings.demo,
            root_public=self.root.public.hex(),
            control_address=self.settings.control_address,
            fleet_address=self.settings.fleet_address,
        )
        admission = Admission(
            membership=membership,
            identity_key=asked.identity_key,
            certificate=certificate,
            roster=self.roster.signed.decode(),
        )
        return sign_admission(admission, self.root)


def has_root(folder: Path) -> bool:
    """Whether the folder is that of a root, whose keys lie in it or in a token."""
    return (folder / "root.key").exists() or (folder / TOKEN_FILE).exists()


def _new_keys(
    folder: Path, passphrase: bytes | None, token: TokenPlace | None
) -> tuple[SigningKey, ec.EllipticCurvePrivateKey]:
    if token is None:
        return SigningKey.generate(), generate_p256(folder / "ca.key", passphrase)
    if passphrase is None:
        raise IdentityError("a token signs after its PIN only: give it by --passphrase-file, or at the terminal")
    keys = make_keys(token, passphrase)
    return keys.root, keys.authority


def _keep_root(folder: Path, root: SigningKey, passphrase: bytes | None, token: TokenPlace | None) -> None:
    """Last, so that a folder with a root has everything else."""
    if token is None:
        root.save(folder / "root.key", passphrase)
    else:
        write_atomic(folder / TOKEN_FILE, canonical.encode(token.model_dump(mode="json")))


def _opened_keys(folder: Path, ask: Passphrase | None) -> tuple[SigningKey, ec.EllipticCurvePrivateKey]:
    if not (folder / TOKEN_FILE).exists():
        return SigningKey.load(folder / "root.key", ask), load_p256(folder / "ca.key", ask)
    if ask is None:
        raise IdentityError(f"the keys of {folder} are in a token, whose PIN is needed")
    keys = open_keys(read_place(folder / TOKEN_FILE), ask())
    _check_token(folder, keys.root)
    return keys.root, keys.authority


def _check_token(folder: Path, root: SigningKey) -> None:
    known = read_text(folder / "root.pub").strip()
    if known != root.public.hex():
        raise IdentityError(
            f"the token holds the root {root.public.hex()[:16]}, and {folder} is of {known[:16]}; take that one's token"
        )


def approve_revocation(key: SigningKey, administrator: str, name: str, roster: Roster) -> bytes:
    """An administrator's signed word that a member is to be revoked, under this version of the roster only."""
    said = {"administrator": administrator, "revoke": name, "roster": roster.digest}
    return sign_document(said, APPROVAL_DOMAIN, key)


def check_approvals(roster: Roster, name: str, approvals: Sequence[bytes]) -> None:
    """Raise IdentityError unless as many different administrators as the roster's rules ask approved under it."""
    if roster.rules.revocation < 2:
        return
    names: set[str] = set()
    for data in approvals:
        said, _ = parse_document(data, "an approval of a revocation")
        member = roster.member(str(said.get("administrator")))
        if member.role is not Role.ADMINISTRATOR:
            raise IdentityError(f"{member.name} is a {member.role.value}; administrators approve a revocation")
        open_document(data, APPROVAL_DOMAIN, bytes.fromhex(member.identity_key))
        if said != {"administrator": member.name, "revoke": name, "roster": roster.digest}:
            raise IdentityError(
                f"{member.name} approved something else: to revoke {said.get('revoke')!r}, perhaps under another "
                "version of the roster. Approve again"
            )
        names.add(member.name)
    if len(names) < roster.rules.revocation:
        raise IdentityError(
            f"the revocation of {name} is approved by {', '.join(sorted(names)) or 'nobody'}; the roster's rules ask "
            f"for {roster.rules.revocation} administrators (`confide consortium approve-revocation`)"
        )


def _now(now: float | None) -> int:
    return int(time.time() if now is None else now)
