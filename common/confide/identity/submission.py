"""What an administrator signs when a run is submitted, stopped, or ended, and how everybody checks it.

The signature of a submission covers the run's id, a nonce, an expiry, the specification and the first model's digest: a
coordinator can change none of them, and can offer one submission as one run only (docs/sealing.md, "Submissions").

>>> key = SigningKey.generate()
>>> signed = sign_submission(key, "administrator", b"specification", bytes(32), now=0.0)
>>> len(signed.run_id), len(signed.nonce), len(signed.signature), signed.expires_at
(32, 32, 64, 604800)
"""

import functools
import hashlib
import json
import re
import secrets
import time
from dataclasses import dataclass

from confide import canonical
from confide.errors import FailureName, IdentityError, ProtocolFailure, SpecificationError
from confide.identity.keys import SigningKey, verify
from confide.identity.roster import MAX_CLOCK_SKEW_S, Role, Roster, utc
from confide.runs.specification import Specification, parse_canonical

DOMAIN = "submission"
COSIGN_DOMAIN = "cosignature"
STOP_DOMAIN = "stop"
END_DOMAIN = "run-end"
RELEASE_DOMAIN = "release"
OVERRIDE_DOMAIN = "release-override"
STOPPED = "STOPPED"
"""Why a run ended that an administrator stopped: the one reason that needs an administrator's signature."""
NONCE_BYTES = 32
VALID_S = 7 * 86400
"""How long nodes may accept a submission, unless its administrator says otherwise."""
MAX_VALID_S = 90 * 86400
_RUN_ID = re.compile(r"[0-9a-f]{32}")
_LAST_SECOND = 1 << 40


@dataclass(frozen=True, kw_only=True)
class SignedSubmission:
    """A run as its administrator signed it."""

    run_id: str
    """32 characters of lower-case hex, drawn by the administrator."""
    nonce: bytes
    """32 random bytes: a node accepts them once."""
    expires_at: int
    """Unix seconds. Who has not accepted the run until then does not accept it any more; who has goes on."""
    specification: bytes
    initial_model_sha256: bytes
    administrator: str
    signature: bytes
    parent_run_id: str = ""
    """The run whose model after `parent_round` is this one's first; "" for none."""
    parent_round: int = 0
    cosigned: tuple[tuple[str, bytes], ...] = ()
    """(name, signature) of further administrators, over the same statement, where the roster's rules ask for them."""

    @property
    def earlier(self) -> bool:
        """Signed by a release that knew neither run id, nonce nor expiry: may be read where it is stored, no more."""
        return not self.nonce and not self.expires_at

    @property
    def statement(self) -> bytes:
        """What is signed. Raises SpecificationError for a submission that is out of range."""
        if len(self.initial_model_sha256) != 32:
            raise SpecificationError(
                f"the first model's digest has {len(self.initial_model_sha256)} bytes; SHA-256 has 32"
            )
        if self.earlier:
            return hashlib.sha256(self.specification).digest() + self.initial_model_sha256
        if len(self.nonce) != NONCE_BYTES or not _RUN_ID.fullmatch(self.run_id):
            raise SpecificationError(
                f"the submission has the run id {self.run_id[:40]!r} and a nonce of {len(self.nonce)} bytes; needed "
                f"are 32 characters of hex and {NONCE_BYTES} bytes. Submit it anew, with this release"
            )
        if not 0 < self.expires_at < _LAST_SECOND:
            raise SpecificationError(f"the submission expires at {self.expires_at}, which is no time; submit it anew")
        said = (
            self.run_id.encode(),
            self.nonce,
            self.expires_at.to_bytes(8, "big"),
            hashlib.sha256(self.specification).digest(),
            self.initial_model_sha256,
        )
        if asks_feedback(self.specification):
            if self.parent_run_id or self.parent_round:
                raise SpecificationError("a feedback run goes on from no other: it has no model; submit it by itself")
            return canonical.hash_fields("confide/v1/feedback", *said)
        if not self.parent_run_id and not self.parent_round:
            return canonical.hash_fields("confide/v1/submission", *said)
        if not _RUN_ID.fullmatch(self.parent_run_id) or not 0 <= self.parent_round < 1 << 31:
            raise SpecificationError(
                f"the submission goes on from round {self.parent_round} of run {self.parent_run_id[:40]!r}, which is "
                "no run id: 32 characters of hex"
            )
        parent = (self.parent_run_id.encode(), self.parent_round.to_bytes(8, "big"))
        return canonical.hash_fields("confide/v1/continuation", *said, *parent)

    def check_in_time(self, now: float) -> None:
        """Raise SUBMISSION_EXPIRED, or SpecificationError when it is valid for longer than 90 days from now.

        Clocks may differ by `MAX_CLOCK_SKEW_S`, either way.
        """
        if now > self.expires_at + MAX_CLOCK_SKEW_S:
            raise ProtocolFailure(
                FailureName.SUBMISSION_EXPIRED,
                f"run {self.run_id[:8]} could be accepted until {utc(self.expires_at)}, and it is {utc(now)} here; "
                "submit it anew, or set this machine's clock",
            )
        if self.expires_at > now + MAX_VALID_S + MAX_CLOCK_SKEW_S:
            raise SpecificationError(
                f"run {self.run_id[:8]} may be accepted until {utc(self.expires_at)}, and it is {utc(now)} here; at "
                f"most {MAX_VALID_S // 86400} days are allowed. Submit it with a shorter --valid-days"
            )


def sign_submission(
    key: SigningKey,
    administrator: str,
    specification: bytes,
    initial_model_sha256: bytes,
    *,
    run_id: str = "",
    valid_s: int = VALID_S,
    now: float | None = None,
    parent_run_id: str = "",
    parent_round: int = 0,
) -> SignedSubmission:
    """A new submission with a fresh nonce, and a fresh run id unless one is given. now: Unix seconds.

    parent_run_id, parent_round: whose checkpoint the first model is, for a run that goes on from another one.
    """
    unsigned = SignedSubmission(
        run_id=run_id or secrets.token_hex(16),
        nonce=secrets.token_bytes(NONCE_BYTES),
        expires_at=int(time.time() if now is None else now) + valid_s,
        specification=specification,
        initial_model_sha256=initial_model_sha256,
        administrator=administrator,
        signature=b"",
        parent_run_id=parent_run_id,
        parent_round=parent_round,
    )
    return SignedSubmission(**(vars(unsigned) | {"signature": key.sign(DOMAIN, unsigned.statement)}))


@functools.lru_cache(maxsize=64)
def asks_feedback(specification: bytes) -> bool:
    """Whether canonical bytes ask nodes for opinions: such a submission is a kind of its own, signed as one.

    False for what is no specification: whoever goes on to parse it says what is wrong.
    """
    try:
        return bool(json.loads(specification)["method"]["name"] == "feedback")
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def sign_cosignature(key: SigningKey, signed: SignedSubmission) -> bytes:
    """A further administrator's signature over a submission that another one signed."""
    return key.sign(COSIGN_DOMAIN, signed.statement)


def signers(roster: Roster, signed: SignedSubmission) -> tuple[str, ...]:
    """The different administrators who signed. Raises as `verify_submission` for a signature that does not hold."""
    names = [signed.administrator]
    verify(_administrator(roster, signed.administrator, "submits"), DOMAIN, signed.statement, signed.signature)
    for name, signature in signed.cosigned:
        if name in names:
            raise IdentityError(f"{name} signed run {signed.run_id[:8]} twice; two different administrators are needed")
        verify(_administrator(roster, name, "submits"), COSIGN_DOMAIN, signed.statement, signature)
        names.append(name)
    return tuple(names)


def verify_submission(
    roster: Roster, signed: SignedSubmission, *, stored: bool = False, complete: bool = True
) -> Specification:
    """The parsed specification, if as many active administrators as the roster's rules ask signed the whole submission.

    Whether it is in time, and whether it came before, is asked apart: both depend on who has accepted it already.
    stored: of a run that was accepted here; one of an earlier release, without a nonce, is then good enough to read,
    and so is one with as many signatures as were asked for then. complete: False lets one wait for further ones.
    Raises IdentityError (unknown, not an administrator, signature), ProtocolFailure REVOKED, SpecificationError.

    Guarantee: run id, nonce, expiry, specification and first model are those that the administrator signed, against
    anyone without its identity key.
    """
    _administrator(roster, signed.administrator, "submits")
    if signed.earlier and not stored:
        raise SpecificationError(
            "the submission has no nonce and no expiry, as in earlier releases, so that it could be used again for "
            "ever; submit it anew, with this release"
        )
    names = signers(roster, signed)
    if complete and not stored and len(names) < roster.rules.submission:
        raise IdentityError(
            f"run {signed.run_id[:8]} is signed by {', '.join(names)}; the roster's rules ask for "
            f"{roster.rules.submission} administrators. Another one signs it with `confide run cosign`"
        )
    return parse_canonical(signed.specification)


def sign_stop(key: SigningKey, run_id: str) -> bytes:
    """An administrator's order to stop a run. It names the run: shown again, it can stop that run only."""
    return key.sign(STOP_DOMAIN, run_id.encode())


def verify_stop(roster: Roster, administrator: str, run_id: str, signature: bytes) -> None:
    """Raise unless an active administrator ordered this run to stop. Raises as `verify_submission`."""
    verify(_administrator(roster, administrator, "stops"), STOP_DOMAIN, run_id.encode(), signature)


def sign_release(key: SigningKey, document: bytes) -> bytes:
    """An administrator's word that this model is to be released under this name (canonical bytes of a release)."""
    return key.sign(RELEASE_DOMAIN, document)


def verify_release(roster: Roster, administrator: str, document: bytes, signature: bytes) -> None:
    """Raise unless an active administrator signed this release. Raises as `verify_submission`."""
    verify(_administrator(roster, administrator, "releases models of"), RELEASE_DOMAIN, document, signature)


def _override(document: bytes, reason: str) -> bytes:
    return canonical.hash_fields("confide/v1/release-override", document, reason.encode())


def sign_override(key: SigningKey, document: bytes, reason: str) -> bytes:
    """An administrator's word that this release may do without the gate's evidence, and why."""
    return key.sign(OVERRIDE_DOMAIN, _override(document, reason))


def verify_override(roster: Roster, administrator: str, document: bytes, reason: str, signature: bytes) -> None:
    """Raise unless an active administrator signed for this release and this reason. Raises as `verify_submission`."""
    key = _administrator(roster, administrator, "overrides the gate for releases of")
    verify(key, OVERRIDE_DOMAIN, _override(document, reason), signature)


@dataclass(frozen=True)
class SignedEnd:
    """A coordinator's word that a run has ended, and an administrator's order where one was given."""

    run_id: str
    failure: str
    """"" when it finished; STOPPED when an administrator stopped it; else why it failed."""
    stopped_by: str = ""
    stop_signature: bytes = b""
    coordinator: str = ""
    signature: bytes = b""

    @property
    def statement(self) -> bytes:
        """What the coordinator signs."""
        return canonical.hash_fields(
            "confide/v1/run-end",
            self.run_id.encode(),
            self.failure.encode(),
            self.stopped_by.encode(),
            self.stop_signature,
        )


def sign_end(key: SigningKey, coordinator: str, end: SignedEnd) -> SignedEnd:
    """The same end, signed."""
    return SignedEnd(**(vars(end) | {"coordinator": coordinator, "signature": key.sign(END_DOMAIN, end.statement)}))


def verify_end(roster: Roster, end: SignedEnd) -> None:
    """Raise IdentityError or REVOKED unless a coordinator of the roster says so, and for STOPPED an administrator too.

    Guarantee: nobody but a coordinator that the root admitted ends a run at a node, and not even it can say that an
    administrator stopped a run that none did. That a run finished or failed is its own word.
    """
    member = roster.member(end.coordinator)
    if member.role is not Role.COORDINATOR:
        raise IdentityError(f"{end.coordinator} is a {member.role.value}; only the coordinator says that a run ended")
    verify(bytes.fromhex(member.identity_key), END_DOMAIN, end.statement, end.signature)
    if (end.failure == STOPPED) != bool(end.stopped_by):
        raise IdentityError(f"run {end.run_id[:8]} is said to have ended as {end.failure[:40]!r}, stopped by nobody")
    if end.stopped_by:
        verify_stop(roster, end.stopped_by, end.run_id, end.stop_signature)


def _administrator(roster: Roster, name: str, does: str) -> bytes:
    member = roster.member(name)
    if member.role is not Role.ADMINISTRATOR:
        raise IdentityError(f"{name} is a {member.role.value}; only an administrator {does} runs")
    return bytes.fromhex(member.identity_key)
