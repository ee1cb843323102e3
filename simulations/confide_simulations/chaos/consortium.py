"""A consortium whose keys follow from its names alone: the same in every process, so that a seed's bytes are too.

Its roster is a demo roster, which production nodes refuse, and nothing here listens on a network.
"""

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from confide.identity.certificates import CertificateClaim
from confide.identity.keys import SigningKey, spki, spki_sha256
from confide.identity.member import LocalMember, Membership
from confide.identity.roster import Member, Role, Roster, RosterStore, sign_roster
from confide.journal import Journal
from confide.models.store import ModelStore
from confide.runs.specification import Specification
from confide_client.audit.log import Audit
from confide_client.data.datasets import DataSets
from confide_client.runs.run import Node
from confide_client.state import Settings, StateFolder
from confide_server.state.database import Database
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confide_simulations.benchmarks.fleet.stand_in import write_base
from confide_simulations.chaos.database import WatchedDatabase
from confide_simulations.chaos.training import make_trainer, schema_of
from confide_simulations.local_federation import policy_text

CONSORTIUM, ADMINISTRATOR, COORDINATOR = "chaos", "administrator", "coordinator"
BEGAN = 1_790_000_000
"""Unix seconds at which every seed begins."""
ROSTER_VALID_S = 30 * 86400
DATA = "records"
NODES = tuple(f"hospital-{letter}" for letter in "abcdef")


def _key(name: str) -> SigningKey:
    return SigningKey(Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"chaos/{name}".encode()).digest()))


def _p256(name: str) -> ec.EllipticCurvePrivateKey:
    number = int.from_bytes(hashlib.sha256(f"chaos/p256/{name}".encode()).digest(), "big")
    return ec.derive_private_key(number >> 1 | 1, ec.SECP256R1())


def _member(name: str, role: Role, group: str) -> Member:
    return Member(
        name=name,
        role=role,
        identity_key=_key(name).public.hex(),
        fleet_key=spki(_p256(f"fleet/{name}").public_key()).hex() if role is Role.NODE else "",
        tls_key=spki_sha256(_p256(f"tls/{name}").public_key()),
        admitted_at=BEGAN,
        group=group,
    )


@dataclass(frozen=True)
class Consortium:
    """Who there is, and what the root signed."""

    names: tuple[str, ...]
    root: SigningKey
    keys: dict[str, SigningKey]
    roster: Roster
    signed_roster: bytes

    @property
    def groups(self) -> dict[str, str]:
        """Of each node."""
        return {name: self.roster.member(name).group for name in self.names}


@functools.cache
def consortium_of(nodes: int, groups: int = 1) -> Consortium:
    """Of so many nodes; with more than one group, dealt to them in turn."""
    names = NODES[:nodes]
    group = {name: "" if groups == 1 else f"g{number % groups + 1}" for number, name in enumerate(names)}
    members = [_member(ADMINISTRATOR, Role.ADMINISTRATOR, ""), _member(COORDINATOR, Role.COORDINATOR, "")]
    members += [_member(name, Role.NODE, group[name]) for name in names]
    root = _key("root")
    roster = Roster(
        version=1,
        previous="",
        consortium=CONSORTIUM,
        demo=True,
        issued_at=BEGAN,
        expires_at=BEGAN + ROSTER_VALID_S,
        ca_certificate="",
        members=tuple(sorted(members, key=lambda member: member.name)),
    )
    keys = {member.name: _key(member.name) for member in members}
    return Consortium(names, root, keys, roster, sign_roster(roster, root))


class Ground:
    """What all seeds of a process share: a base model that is none, a file of records, an empty database."""

    def __init__(self, folder: Path) -> None:
        """folder: empty, and there as long as seeds run."""
        self.folder = folder
        self.models = folder / "models"
        base = write_base(folder / "base")
        (base / "config.json").write_text('{"model_type": "llama"}')  # of a family that trains under privacy
        self.base_sha256 = ModelStore(self.models).add(str(base), "stand-in")
        self.records = folder / "records.jsonl"
        self.records.write_text('{"question": "q", "answer": "a"}\n' * 64)
        self.empty_database = folder / "empty.db"
        Database(f"sqlite:///{self.empty_database}").close()
        self.database = WatchedDatabase(folder / "coordinator.db")

    def equip(self, folder: Path, consortium: Consortium, name: str, specification: Specification) -> None:
        """A node's state folder: settings, a policy that allows exactly this run, records and the roster."""
        state = StateFolder.create(folder)
        state.save_settings(Settings(models=str(self.models), threads=1))
        root = consortium.root.public.hex()
        state.policy.write_text(policy_text(specification, root_public=root, data=DATA, budget_epsilon=50.0))
        seed = hashlib.sha256(name.encode()).hexdigest()
        DataSets(folder).add(DATA, self.records, evaluation_fraction=0.0, split_seed=seed)
        RosterStore(folder / "roster.json", consortium.root.public).accept(consortium.signed_roster, now=float(BEGAN))

    def node(self, folder: Path, consortium: Consortium, name: str, clock: Callable[[], float]) -> Node:
        """The parts that a node's runtime works with, when its process begins."""
        root = consortium.root.public
        known = consortium.roster.member(name)
        membership = Membership(
            name=name, role=Role.NODE, consortium=CONSORTIUM, demo=True, root_public=root.hex()
        )  # fmt: skip
        member = LocalMember(
            folder=folder,
            membership=membership,
            identity=consortium.keys[name],
            roster=RosterStore(folder / "roster.json", root),
            claim=CertificateClaim(name, Role.NODE.value, known.tls_key, 0, float(consortium.roster.expires_at)),
        )
        state = StateFolder.at(folder)
        return Node(
            state=state,
            member=member,
            audit=Audit(Journal(state.audit), clock),
            make_trainer=make_trainer,
            schema=schema_of,
            clock=clock,
            measures=False,
            tries=lambda *_: None,
        )
