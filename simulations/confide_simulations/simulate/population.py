"""The virtual nodes' side of a consortium: real keys and a real signed roster, and a state folder for each node.

    roster.json  root.pub  administrator.key  coordinator.key
    nodes/<name>/   identity.key  node.json  policy.toml  datasets.json  and what the node's runtime keeps

Nothing listens on a network here, so that nodes have no TLS or fleet keys: the roster names keys whose private halves
were never kept. The root's key is forgotten when the roster is signed; it is a demo root, refused in production.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from confide import canonical
from confide.codec.tensors import TensorSchema
from confide.errors import StateError
from confide.files import private_folder, sha256_file, write_atomic
from confide.identity.certificates import CertificateClaim
from confide.identity.keys import SigningKey, spki, spki_sha256
from confide.identity.member import LocalMember, Membership
from confide.identity.roster import Member, Role, Roster, RosterStore, sign_roster
from confide.journal import Journal
from confide.planning.run_plan import group_sizes
from confide.runs.specification import Specification
from confide_client.audit.log import Audit
from confide_client.data.datasets import DataSets
from confide_client.runs.loading import MakeTrainer
from confide_client.runs.run import Node
from confide_client.state import Settings, StateFolder
from cryptography.hazmat.primitives.asymmetric import ec

from confide_simulations.local_federation import policy_text

CONSORTIUM, ADMINISTRATOR, COORDINATOR = "simulation", "researcher", "coordinator"
_LIFETIME_S = 10 * 365 * 86400
"""A simulation can be resumed for as long."""


@dataclass(frozen=True)
class Population:
    """An opened folder."""

    folder: Path
    root_public: bytes
    administrator: SigningKey
    coordinator: SigningKey
    roster: RosterStore

    @classmethod
    def create(cls, folder: Path, names: Sequence[str], groups: int = 1) -> "Population":
        """Make keys for the administrator, the coordinator and every node, and the roster that names them.

        groups: above 1 the nodes stand in so many groups of equal size, in order of their names.
        """
        group_of = grouped(names, groups)
        root, administrator, coordinator = (SigningKey.generate() for _ in range(3))
        now = int(time.time())
        members = [
            _member(ADMINISTRATOR, Role.ADMINISTRATOR, administrator, now),
            _member(COORDINATOR, Role.COORDINATOR, coordinator, now),
        ]
        for name in names:
            key = SigningKey.generate()
            private_folder(folder / "nodes" / name)
            key.save(folder / "nodes" / name / "identity.key")
            members.append(_member(name, Role.NODE, key, now, group_of[name]))
        roster = Roster(
            version=1,
            previous="",
            consortium=CONSORTIUM,
            demo=True,
            issued_at=now,
            expires_at=now + _LIFETIME_S,
            ca_certificate="",
            members=tuple(sorted(members, key=lambda member: member.name)),
        )
        administrator.save(folder / "administrator.key")
        coordinator.save(folder / "coordinator.key")
        write_atomic(folder / "root.pub", root.public.hex().encode())
        RosterStore(folder / "roster.json", root.public).accept(sign_roster(roster, root))
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> "Population":
        """What `create` made. Raises IdentityError or StateError when something is missing."""
        try:
            root_public = bytes.fromhex((folder / "root.pub").read_text())
        except (OSError, ValueError) as error:
            raise StateError(f"{folder} holds no keys of a simulation: {error}. Choose another --output.") from error
        administrator = SigningKey.load(folder / "administrator.key")
        coordinator = SigningKey.load(folder / "coordinator.key")
        return cls(folder, root_public, administrator, coordinator, RosterStore(folder / "roster.json", root_public))

    def node_folder(self, name: str) -> Path:
        """A node's state folder."""
        return self.folder / "nodes" / name

    def equip(
        self, specification: Specification, shards: Mapping[str, Path], models: Path, evaluation: float = 0.1
    ) -> None:
        """Give every node its settings, a policy that allows exactly this run, and its shard.

        evaluation: share of the shard that the node keeps for evaluating received models.
        """
        data = specification.federation.data
        policy = policy_text(specification, root_public=self.root_public.hex(), data=data).encode()
        for name, shard in shards.items():
            folder = self.node_folder(name)
            StateFolder.create(folder).save_settings(Settings(models=str(models.resolve()), threads=1))
            write_atomic(folder / "policy.toml", policy)
            seed = split_seed(specification.seed, name, shard)
            DataSets(folder).add(data, shard, evaluation_fraction=evaluation, split_seed=seed)

    def node(self, name: str, make_trainer: MakeTrainer, schema: Callable[[Specification, Path], TensorSchema]) -> Node:
        """The parts that a node's runtime works with, in this process. Raises StateError when another one holds it."""
        folder = self.node_folder(name)
        known = self.roster.current.member(name)
        membership = Membership(
            name=name, role=Role.NODE, consortium=CONSORTIUM, demo=True, root_public=self.root_public.hex()
        )
        member = LocalMember(
            folder=folder,
            membership=membership,
            identity=SigningKey.load(folder / "identity.key"),
            roster=self.roster,
            claim=CertificateClaim(name, Role.NODE.value, known.tls_key, 0, float(self.roster.current.expires_at)),
        )
        state = StateFolder.at(folder)
        audit = Audit(Journal(state.audit))
        return Node(
            state=state,
            member=member,
            audit=audit,
            make_trainer=make_trainer,
            schema=schema,
            measures=False,
            tries=lambda *_: None,  # whoever simulates sees the data and the outcome
        )


def split_seed(seed: int, name: str, shard: Path) -> str:
    """What fixes a virtual node's split into training and evaluation records: 64 hex characters."""
    fields = (str(seed).encode(), name.encode(), bytes.fromhex(sha256_file(shard)))
    return canonical.hash_fields("confide/v1/simulated-split", *fields).hex()


def grouped(names: Sequence[str], groups: int) -> dict[str, str]:
    """Each node's group: "" for one group, else g01, g02, ...

    >>> grouped(("a", "b", "c"), 2)
    {'a': 'g01', 'b': 'g01', 'c': 'g02'}
    """
    if groups == 1:
        return dict.fromkeys(names, "")
    labels = (f"g{number:02d}" for number, size in enumerate(group_sizes(len(names), groups), 1) for _ in range(size))
    return dict(zip(sorted(names), labels, strict=True))


def _member(name: str, role: Role, identity: SigningKey, now: int, group: str = "") -> Member:
    tls, fleet = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    return Member(
        name=name,
        role=role,
        identity_key=identity.public.hex(),
        fleet_key=spki(fleet.public_key()).hex() if role is Role.NODE else "",
        tls_key=spki_sha256(tls.public_key()),
        admitted_at=now,
        group=group,
    )
