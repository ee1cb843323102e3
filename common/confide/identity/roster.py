"""The roster: who is a member, with which keys, said by the consortium's root and by nobody else.

Every version names its predecessor's hash and expires soon, so that a coordinator can neither invent members nor
hold back a revocation for long.

>>> root = SigningKey.generate()
>>> roster = Roster(version=1, previous="", consortium="example", demo=True, issued_at=0, expires_at=60,
...                 ca_certificate="", members=())
>>> verify_roster(sign_roster(roster, root), root.public, now=30.0) == roster
True
"""

import fcntl
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from confide.documents import digest_of
from confide.errors import FailureName, IdentityError, ProtocolFailure
from confide.files import write_atomic
from confide.identity.keys import SigningKey, load_spki
from confide.identity.signed import Document, open_document, sign_document, validated
from confide.runs.sections import Name, Sha256

DOMAIN = "roster"
MAX_CLOCK_SKEW_S = 300.0
Seconds = Annotated[int, Field(ge=0, lt=2**40)]


class Role(StrEnum):
    """What a member may do."""

    NODE = "node"
    """An organization: trains, and sees its own things."""
    COORDINATOR = "coordinator"
    ADMINISTRATOR = "administrator"
    """Submits, stops and releases, over its signature; may see and do everything that anybody may."""
    OPERATOR = "operator"
    """Pauses, resumes and orders runs, publishes what the root signed; sees everything but the audit log."""
    AUDITOR = "auditor"
    """Sees everything and changes nothing."""
    ANNOTATOR = "annotator"
    """Compares answers of models; sees releases."""
    CONSOLE = "console"
    """The web console: asks on behalf of people whom it signed in, of whose roles it tells."""


class Member(Document):
    """One member and the keys by which it is known."""

    name: Name
    role: Role
    identity_key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Ed25519 public key, raw, hex: signs replies, shares, lists, receipts, submissions."""
    fleet_key: Annotated[str, Field(pattern=r"^([0-9a-f]{182})?$")]
    """P-256 public key of Flower's node authentication, DER SubjectPublicKeyInfo, hex; "" unless a node."""
    tls_key: Sha256
    """SHA-256 of the TLS key's SubjectPublicKeyInfo."""
    admitted_at: Seconds
    revoked_at: Seconds | None = None
    group: Annotated[str, Field(pattern=r"^([a-z0-9][a-z0-9._-]{0,63})?$")] = ""
    """With whom the node's updates are summed: all nodes of the same group. "" is a group too, the only one by default.

    A larger consortium than one sum can hold has several; each opens its own sum. Fixed when the root admits a node.
    """
    block: Annotated[str, Field(pattern=r"^([a-z0-9][a-z0-9._-]{0,63})?$")] = ""
    """Within the group: without whom a node's updates are never summed. Fixed when the root admits a node."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.group or self.block) and self.role is not Role.NODE:
            raise ValueError(f"{self.name} is a {self.role.value}; only nodes are in a group or block")
        if (self.role is Role.NODE) != bool(self.fleet_key):
            raise ValueError(f"{self.name} is a {self.role.value}; a fleet_key goes with role node, and only with it")
        if self.fleet_key:
            try:
                load_spki(bytes.fromhex(self.fleet_key), "fleet_key")
            except IdentityError as error:
                raise ValueError(str(error)) from error
        return self


class GateRule(StrEnum):
    """Which releases the coordinator publishes only with evidence that they passed the gate (docs/rlhf.md)."""

    OFF = "off"
    ALIGNED = "aligned"
    """Models that were optimised for preferences, themselves or in a run that they go on from."""
    REQUIRED = "required"
    """Every model that answers in words."""


class Rules(Document):
    """How many different administrators have to sign. A submission and a release are checked by whoever takes them."""

    submission: Annotated[int, Field(ge=1, le=2)] = 1
    release: Annotated[int, Field(ge=1, le=2)] = 1
    revocation: Annotated[int, Field(ge=1, le=2)] = 1
    release_gate: GateRule = GateRule.OFF
    """Off is what was done before there was a gate; a consortium that is made now begins with "aligned"."""

    @property
    def most_signatures(self) -> int:
        """The largest number of different administrators that anything asks for."""
        return max(self.submission, self.release, self.revocation)


class Roster(Document):
    """One version of the membership. Members stand in order of their names."""

    version: Annotated[int, Field(ge=1, lt=2**40)]
    previous: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
    """Digest of the version before this one; "" for version 1."""
    consortium: Name
    demo: bool
    """True for a root that lies beside its members on one machine. A production node refuses it."""
    issued_at: Seconds
    expires_at: Seconds
    """Unix seconds."""
    ca_certificate: str
    """PEM: issues every member's TLS certificate."""
    members: tuple[Member, ...]
    rules: Rules = Rules()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.version == 1) != (self.previous == ""):
            raise ValueError(f"version {self.version} names the predecessor {self.previous!r}; only version 1 has none")
        if self.expires_at <= self.issued_at:
            raise ValueError(f"expires_at {self.expires_at} is not after issued_at {self.issued_at}")
        names = [member.name for member in self.members]
        if names != sorted(set(names)):
            raise ValueError("members are not in order of their names, or a name stands twice")
        for field in ("identity_key", "fleet_key", "tls_key"):
            keys = Counter(getattr(member, field) for member in self.members)
            twice = [key for key, count in keys.items() if key and count > 1]
            if twice:
                raise ValueError(f"two members share the {field} {twice[0][:16]}")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical bytes, hex."""
        return digest_of(self)

    def member(self, name: str) -> Member:
        """The member of this name. Raises IdentityError when unknown, ProtocolFailure REVOKED when revoked."""
        for member in self.members:
            if member.name == name:
                return self._standing(member)
        raise IdentityError(
            f"{name!r} is not in version {self.version} of the roster of {self.consortium}; "
            "the consortium's administrator admits members with `confide consortium admit`"
        )

    def active(self, role: Role | str) -> tuple[Member, ...]:
        """Members of this role that are not revoked, sorted by name."""
        return tuple(member for member in self.members if member.role == Role(role) and member.revoked_at is None)

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Names of the active nodes by group; both sorted. {"": all of them} where there are no groups."""
        found: dict[str, list[str]] = {}
        for member in self.active(Role.NODE):
            found.setdefault(member.group, []).append(member.name)
        return {group: tuple(names) for group, names in sorted(found.items())}

    def blocks(self, group: str) -> dict[str, tuple[str, ...]]:
        """Names of a group's active nodes by block; both sorted. {"": all of them} where there are no blocks."""
        found: dict[str, list[str]] = {}
        for member in self.active(Role.NODE):
            if member.group == group:
                found.setdefault(member.block, []).append(member.name)
        return {block: tuple(names) for block, names in sorted(found.items())}

    def by_fleet_key(self, fleet_key: str) -> Member:
        """The node with this fleet key (hex). Raises as `member` does."""
        for member in self.members:
            if fleet_key and member.fleet_key == fleet_key:
                return self._standing(member)
        raise IdentityError(
            f"no node of version {self.version} of the roster has the fleet key {fleet_key[-32:]!r}; "
            "is this node admitted, and the roster the newest?"
        )

    def check_fresh(self, now: float) -> None:
        """Raise ProtocolFailure ROSTER_STALE after `expires_at`, IdentityError well before `issued_at`."""
        if now >= self.expires_at:
            raise ProtocolFailure(
                FailureName.ROSTER_STALE,
                f"version {self.version} of the roster of {self.consortium} "
                f"expired {int(now) - self.expires_at} s ago; "
                "the consortium's administrator renews it with `confide consortium renew` and `roster publish`",
            )
        if now < self.issued_at - MAX_CLOCK_SKEW_S:
            raise IdentityError(
                f"the roster was issued {self.issued_at - int(now)} s in the future: set this machine's clock"
            )

    def _standing(self, member: Member) -> Member:
        if member.revoked_at is not None:
            raise ProtocolFailure(
                FailureName.REVOKED,
                f"{member.name} was revoked on {utc(member.revoked_at)} in version {self.version} of the roster of "
                f"{self.consortium}, for good; it can come back under another name only, by another admission",
                culprit=member.name,
            )
        return member


def utc(seconds: float) -> str:
    """A moment for people."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def sign_roster(roster: Roster, root_key: SigningKey) -> bytes:
    """The bytes that travel: the roster and the root's signature over it."""
    return sign_document(roster.model_dump(mode="json"), DOMAIN, root_key)


def open_roster(data: bytes, root_public: bytes) -> Roster:
    """The roster, verified under the root's key, expired or not. Raises IdentityError."""
    document = open_document(data, DOMAIN, root_public)
    roster = validated(Roster, document, "the roster")
    if roster.model_dump(mode="json") != document:
        raise IdentityError(
            "the roster is not in canonical form: a field is written out that says what its default does"
        )
    return roster


def verify_roster(data: bytes, root_public: bytes, now: float) -> Roster:
    """The roster, verified and in force at `now` (Unix seconds). Raises IdentityError or ROSTER_STALE.

    Guarantee: what is returned was signed by the root and has not expired, against anyone without the root's key.
    """
    roster = open_roster(data, root_public)
    roster.check_fresh(now)
    return roster


class RosterStore:
    """The newest roster that this party has seen, on disk. It never goes back.

    Guarantee: after `accept` returned, no older, other or expired roster is accepted in its place, crashes included,
    as long as the disk is not restored from an older state.
    """

    def __init__(self, path: Path, root_public: bytes) -> None:
        self._path = path
        self._root_public = root_public
        self._lock = threading.RLock()
        self._current: Roster | None = None
        self._signed = b""
        self._stamp: tuple[int, int, int] | None = None
        self._refresh()

    @property
    def current(self) -> Roster:
        """The newest one, also when another process accepted it. Raises IdentityError when there is none yet."""
        with self._lock:
            self._refresh()
            if self._current is None:
                raise IdentityError(f"{self._path} holds no roster yet; accept the consortium's admission first")
            return self._current

    @property
    def signed(self) -> bytes:
        """The newest one as signed bytes, to pass on."""
        with self._lock:
            _ = self.current
            return self._signed

    def accept(self, data: bytes, *, now: float | None = None) -> Roster:
        """Take a newer roster; durable before it returns. The newest one again changes nothing.

        Raises ProtocolFailure ROSTER_STALE for an older, forked or expired one, IdentityError for a foreign one.
        """
        moment = time.time() if now is None else now
        with self._lock, self._exclusive():
            self._refresh()
            if self._current is not None and data == self._signed:
                self._current.check_fresh(moment)  # its signature was verified when it was read
                return self._current
            roster = verify_roster(data, self._root_public, moment)
            if self._current is not None:
                _check_succession(self._current, roster)
                if roster.version == self._current.version:
                    return self._current
            write_atomic(self._path, data)
            self._refresh()
            return roster

    def _refresh(self) -> None:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return
        stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
        if stamp == self._stamp:
            return
        signed = self._path.read_bytes()
        self._current, self._signed, self._stamp = open_roster(signed, self._root_public), signed, stamp

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        # Two processes of one member (the agent and a command) may accept at once.
        descriptor = os.open(self._path.with_name(f".{self._path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _check_succession(current: Roster, new: Roster) -> None:
    def stale(detail: str) -> ProtocolFailure:
        return ProtocolFailure(FailureName.ROSTER_STALE, detail)

    if (new.consortium, new.demo) != (current.consortium, current.demo):
        raise IdentityError(
            f"a roster of {new.consortium} (demo: {new.demo}) came where that of {current.consortium} "
            f"(demo: {current.demo}) is held; a consortium never changes either"
        )
    if new.version < current.version:
        raise stale(f"version {new.version} of the roster came; version {current.version} is held already")
    if new.version == current.version and new.digest != current.digest:
        raise stale(f"two different rosters carry version {new.version}; tell the consortium's administrator")
    for kind in ("group", "block"):
        held = {member.name: getattr(member, kind) for member in current.members}
        moved = [
            member for member in new.members if held.get(member.name, getattr(member, kind)) != getattr(member, kind)
        ]
        if moved:
            raise IdentityError(
                f"version {new.version} of the roster moves {moved[0].name} from {kind} {held[moved[0].name]!r} to "
                f"{getattr(moved[0], kind)!r}; {kind}s are fixed, since whoever moves members between sums can take "
                "sums apart"
            )
    if new.version == current.version + 1 and new.previous != current.digest:
        raise stale(f"version {new.version} does not follow from the version {current.version} that is held here")
