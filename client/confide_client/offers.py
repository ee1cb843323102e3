"""Is this offer what it says it is? Checked before anything of it is believed, let alone run.

An offer carries the specification, the first model's hash, the administrator's signature over both, and the roster.
What is allowed is another question: confide_client.policy.
"""

from dataclasses import dataclass
from pathlib import Path

from confide import canonical
from confide.errors import IdentityError, SpecificationError, StateError, TransportError
from confide.files import private_folder, write_atomic
from confide.identity.member import LocalMember
from confide.identity.roster import Role, Roster
from confide.identity.submission import verify_submission
from confide.proto import fleet_pb2
from confide.runs.specification import Specification
from google.protobuf.message import DecodeError


@dataclass(frozen=True)
class VerifiedOffer:
    """A run that an administrator of this consortium really asks for."""

    specification: Specification
    initial_model_sha256: bytes
    administrator: str
    message: fleet_pb2.Offer

    @property
    def sha256(self) -> str:
        """Names what an operator approves: specification, first model and administrator; not the roster of the day."""
        return canonical.hash_fields(
            "confide/v1/offer", self.message.specification, self.initial_model_sha256, self.administrator.encode()
        ).hex()

    def save(self, folder: Path) -> None:
        """Keep it in the run's folder."""
        private_folder(folder)
        write_atomic(folder / "offer.bin", self.message.SerializeToString(deterministic=True))


def parse_offer(body: bytes) -> fleet_pb2.Offer:
    """An Offer message. Raises TransportError."""
    offer = fleet_pb2.Offer()
    try:
        offer.ParseFromString(body)
    except DecodeError as error:
        raise TransportError("the offer cannot be parsed; both sides need the same release") from error
    return offer


def verify_offer(offer: fleet_pb2.Offer, member: LocalMember, roster: Roster) -> VerifiedOffer:
    """Check an offer against the roster, in the order in which trust grows.

    Guarantee: what is returned was signed as a whole by an administrator that the root admitted and has not revoked,
    and names this node's cohort, against anyone without that administrator's key.
    """
    specification = verify_submission(
        roster, offer.administrator, offer.specification, offer.initial_model_sha256, offer.signature
    )
    if roster.member(member.name).role is not Role.NODE:
        raise IdentityError(f"{member.name} is not a node in the roster; it takes part in no run")
    nodes = specification.federation.nodes
    if nodes and member.name not in nodes:
        raise SpecificationError(f"{member.name} is not among the nodes of this run ({', '.join(nodes)})")
    return VerifiedOffer(
        specification=specification,
        initial_model_sha256=offer.initial_model_sha256,
        administrator=offer.administrator,
        message=offer,
    )


def load_offer(folder: Path, member: LocalMember) -> VerifiedOffer:
    """The offer that a run's folder holds, verified again under the newest roster."""
    path = folder / "offer.bin"
    if not path.exists():
        raise StateError(f"run {folder.name[:8]} was never offered to this node")
    return verify_offer(parse_offer(path.read_bytes()), member, member.roster.current)
