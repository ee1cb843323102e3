"""Is this offer what it says it is? Checked before anything of it is believed, let alone run.

An offer carries the administrator's signed submission (run id, nonce, expiry, specification, first model's hash) and
the roster. What is allowed is another question (confide_client.policy.policy), and whether it came before
(confide_client.runs.submissions).
"""

from dataclasses import dataclass
from pathlib import Path

from confide import canonical
from confide.errors import FailureName, IdentityError, ProtocolFailure, SpecificationError, StateError
from confide.files import private_folder, write_atomic
from confide.identity.member import LocalMember
from confide.identity.roster import Role, Roster
from confide.identity.submission import SignedSubmission, verify_submission
from confide.proto import fleet_pb2
from confide.runs.specification import Specification
from confide.transport.messages import parse


@dataclass(frozen=True)
class VerifiedOffer:
    """A run that an administrator of this consortium really asks for."""

    specification: Specification
    signed: SignedSubmission
    message: fleet_pb2.Offer

    @property
    def initial_model_sha256(self) -> bytes:
        """Of the first model, as the administrator signed it."""
        return self.signed.initial_model_sha256

    @property
    def administrator(self) -> str:
        """Who submitted the run."""
        return self.signed.administrator

    @property
    def sha256(self) -> str:
        """Names what an operator approves: the signed submission and its administrator; not the roster of the day."""
        said = [self.signed.statement]
        if self.signed.earlier:  # what an operator approved under an earlier release stays approved
            said = [self.message.specification, self.initial_model_sha256]
        return canonical.hash_fields("confide/v1/offer", *said, self.administrator.encode()).hex()

    def save(self, folder: Path) -> None:
        """Keep it in the run's folder."""
        private_folder(folder)
        write_atomic(folder / "offer.bin", self.message.SerializeToString(deterministic=True))


def parse_offer(body: bytes) -> fleet_pb2.Offer:
    """An Offer message. Raises TransportError."""
    return parse(fleet_pb2.Offer, body, "the offer")


def verify_offer(
    offer: fleet_pb2.Offer, run_id: str, member: LocalMember, roster: Roster, *, stored: bool = False
) -> VerifiedOffer:
    """Check an offer that came as run `run_id` against the roster, in the order in which trust grows.

    stored: it lies in the run's folder, perhaps since an earlier release.

    Guarantee: what is returned was signed as a whole, for this run id, by an administrator that the root admitted and
    has not revoked, and names this node's cohort, against anyone without that administrator's key.
    """
    signed = SignedSubmission(
        run_id=run_id,
        nonce=offer.nonce,
        expires_at=offer.expires_at,
        specification=offer.specification,
        initial_model_sha256=offer.initial_model_sha256,
        administrator=offer.administrator,
        signature=offer.signature,
        parent_run_id=offer.parent_run_id,
        parent_round=offer.parent_round,
        cosigned=tuple((one.administrator, one.signature) for one in offer.cosigned),
    )
    if offer.run_id != run_id and not (stored and signed.earlier):
        raise ProtocolFailure(
            FailureName.SUBMISSION_REPLAYED,
            f"a submission for run {offer.run_id[:8]!r} came as run {run_id[:8]}; one submission is one run",
        )
    specification = verify_submission(roster, signed, stored=stored)
    if roster.member(member.name).role is not Role.NODE:
        raise IdentityError(f"{member.name} is not a node in the roster; it takes part in no run")
    nodes = specification.federation.nodes
    if nodes and member.name not in nodes:
        raise SpecificationError(f"{member.name} is not among the nodes of this run ({', '.join(nodes)})")
    return VerifiedOffer(specification=specification, signed=signed, message=offer)


def load_offer(folder: Path, member: LocalMember) -> VerifiedOffer:
    """The offer that a run's folder holds, verified again under the newest roster."""
    path = folder / "offer.bin"
    if not path.exists():
        raise StateError(f"run {folder.name[:8]} was never offered to this node")
    return verify_offer(parse_offer(path.read_bytes()), folder.name, member, member.roster.current, stored=True)
