"""Signed heads: the coordinator's word for all rounds of a run so far, which it can give once only.

    head = sign_head(key, "coordinator", run_id, records)      # after each round, to every node
    verify_head(roster, head)

Two heads that cannot both be of one log convict whoever signed them, before anybody who has the root's key:

    proof = contradiction(first, second, leaves)               # None when they agree
    compare([proof], root)                                     # the same, found again by anybody
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, ValidationError

from confide import canonical
from confide.documents import StoredDocument
from confide.errors import FailureName, IdentityError, ProtocolFailure
from confide.identity.keys import SigningKey, verify
from confide.identity.roster import Role, Roster, open_roster
from confide.privacy.ledger_entries import RunId
from confide.proto import fleet_pb2
from confide.rounds import merkle
from confide.runs.sections import Name, Sha256

DOMAIN = "run-head"
MOST_ROUNDS = 1 << 20
Signature = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]


class SignedHead(StoredDocument):
    """Root of the Merkle tree over the records of the rounds 1 to `size` of a run."""

    version: int = Field(default=1, ge=1, le=1)
    run_id: RunId
    size: int = Field(ge=1, le=MOST_ROUNDS)
    root_sha256: Sha256
    coordinator: Name
    signature: Signature
    """The coordinator's identity key's, domain "run-head", over the canonical JSON [run id, size, root]."""

    @property
    def statement(self) -> bytes:
        """What is signed."""
        return canonical.encode([self.run_id, self.size, self.root_sha256])

    def to_message(self) -> fleet_pb2.RunHead:
        """The wire form, fleet.proto."""
        return fleet_pb2.RunHead(
            size=self.size,
            root_sha256=bytes.fromhex(self.root_sha256),
            coordinator=self.coordinator,
            signature=bytes.fromhex(self.signature),
        )


def head_of_message(run_id: str, message: fleet_pb2.RunHead) -> SignedHead:
    """Raises MALFORMED; the signature is not checked."""
    return parse_head(
        {
            "version": 1,
            "run_id": run_id,
            "size": message.size,
            "root_sha256": message.root_sha256.hex(),
            "coordinator": message.coordinator,
            "signature": message.signature.hex(),
        }
    )


def parse_head(document: object) -> SignedHead:
    """Raises MALFORMED; the signature is not checked."""
    try:
        return SignedHead.model_validate_json(canonical.encode(document))
    except (ValidationError, ValueError, TypeError, RecursionError) as error:
        raise ProtocolFailure(FailureName.MALFORMED, f"a head of the log of rounds is none: {error}") from error


def sign_head(key: SigningKey, coordinator: str, run_id: str, leaves: Sequence[bytes]) -> SignedHead:
    """leaves: leaf hashes of the records of all rounds so far, at least one."""
    unsigned = SignedHead(
        run_id=run_id,
        size=len(leaves),
        root_sha256=merkle.root(leaves).hex(),
        coordinator=coordinator,
        signature="0" * 128,
    )
    return unsigned.model_copy(update={"signature": key.sign(DOMAIN, unsigned.statement).hex()})


def verify_head(roster: Roster, head: SignedHead) -> None:
    """Raise IdentityError or REVOKED unless a coordinator of the roster signed it."""
    member = roster.member(head.coordinator)
    if member.role is not Role.COORDINATOR:
        raise IdentityError(f"{member.name} is a {member.role.value}; a coordinator signs the log of rounds")
    verify(bytes.fromhex(member.identity_key), DOMAIN, head.statement, bytes.fromhex(head.signature))


class TwoHeads(ProtocolFailure):
    """The coordinator signed two heads that are not of one log. `proof` shows it to whoever has the root's key."""

    def __init__(self, first: SignedHead, second: SignedHead, leaves: Sequence[bytes]) -> None:
        super().__init__(
            FailureName.TWO_HEADS,
            f"{first.coordinator} signed two logs of the rounds of run {first.run_id[:8]}: of {first.size} rounds "
            f"{first.root_sha256[:16]}, of {second.size} rounds {second.root_sha256[:16]}, which are not of one log",
            culprit=first.coordinator,
        )
        self._heads, self._leaves = (first, second), leaves

    def proof(self, signed_roster: Mapping[str, Any]) -> dict[str, Any]:
        """A document for `compare`. signed_roster: the roster's document, as the root signed it."""
        return {
            "version": 1,
            "kind": "equivocation",
            "roster": dict(signed_roster),
            "heads": [head.model_dump(mode="json") for head in self._heads],
            "leaves": [leaf.hex() for leaf in self._leaves],
        }


def contradiction(first: SignedHead, second: SignedHead, leaves: Sequence[bytes] = ()) -> TwoHeads | None:
    """Whether two heads, whose signatures were verified, cannot both be of one log of one run.

    leaves: leaf hashes of the larger log, needed where the sizes differ; those of another log show nothing.
    """
    if (first.run_id, first.coordinator) != (second.run_id, second.coordinator):
        return None
    small, large = sorted((first, second), key=lambda head: head.size)
    if small.size == large.size:
        return TwoHeads(small, large, ()) if small.root_sha256 != large.root_sha256 else None
    if len(leaves) != large.size or merkle.root(leaves).hex() != large.root_sha256:
        return None
    same = merkle.root(leaves[: small.size]).hex() == small.root_sha256
    return None if same else TwoHeads(small, large, leaves)


def compare(documents: Sequence[Mapping[str, Any]], root: bytes) -> TwoHeads | None:
    """The first contradiction in a proof, or among what several nodes kept; None where all heads can be of one log.

    documents: {"roster", "heads", perhaps "leaves"}; root: the consortium's public key, 32 raw bytes. Raises
    IdentityError for a head that no coordinator signed, MALFORMED for anything else.

    Guarantee: of two heads that are returned, a coordinator that the root admitted, or whoever has its identity key,
    signed both, and no log of a run has both.
    """
    heads: list[SignedHead] = []
    leaves: list[bytes] = []
    try:
        for document in documents:
            roster = open_roster(canonical.encode(document["roster"]), root)
            own = [parse_head(one) for one in document["heads"]]
            for head in own:
                _verify_past(roster, head)
            heads += own
            leaves += [bytes.fromhex(leaf) for leaf in document.get("leaves", ())]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ProtocolFailure(FailureName.MALFORMED, f"this holds no signed heads ({error})") from error
    return next((found for pair in itertools.combinations(heads, 2) if (found := contradiction(*pair, leaves))), None)


def _verify_past(roster: Roster, head: SignedHead) -> None:
    """As `verify_head`; that the coordinator was revoked since takes nothing back."""
    for member in roster.members:
        if member.name == head.coordinator and member.role is Role.COORDINATOR:
            key = bytes.fromhex(member.identity_key)
            return verify(key, DOMAIN, head.statement, bytes.fromhex(head.signature))
    raise IdentityError(f"{head.coordinator!r} is no coordinator of the roster")
