"""Two organizations with their own documents and desks, an asker, and a client that carries between them in memory."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from confide.identity.keys import SigningKey
from confide.identity.roster import Member, Role, Roster
from confide.inquiries.asking import Inquirer
from confide.inquiries.documents import IndexCard, Inquiry, digest, info_of_answer, info_of_inquiry, signed
from confide.inquiries.sealed import BoxKey, seal
from confide.rag.access import Caller
from confide.rag.library import Library, settings_for
from confide_client.policy.policy import Policy, parse_policy
from confide_client.retrieval.desk import Desk
from confide_client.retrieval.finding import Finder
from confide_client.retrieval.log import NAME, InquiryLog

from tests.rag_worlds import FEES, WALLS, embedder
from tests.sealing_rosters import make_roster

NOW = 1_000_100.0
POLICY = """version = 1
[retrieval]
collections = ["leaflets"]
askers = ["administrator"]
purposes = ["care"]
answers = "quotes"
least_cosine = -1.0
"""
DOCUMENTS = {"clinic": FEES, "builders": WALLS}


class Organization:
    """One node's desk over its own library."""

    def __init__(self, world: "InquiryWorld", name: str, text: str, **settings: object) -> None:
        self.name, self.identity, self._world = name, SigningKey.generate(), world
        self.folder = world.folder / name
        self.folder.mkdir()
        file = self.folder / "fees.md"
        file.write_text(text)
        self.library, self.caller = Library(self.folder / "library"), Caller.operator(name)
        chosen = settings_for(embedder(), **{"most_tokens": 60, **settings})
        report = self.library.add(self.caller, "leaflets", [file], embedder(), chosen, lambda _: None)
        assert not report.failed
        self.policy = POLICY
        self.open_desk()

    def open_desk(self) -> None:
        """As the serving process does when it starts."""
        self.log = InquiryLog(self.folder / NAME, lambda: self._world.now)
        finder = Finder(self.library, self.caller, embedder())
        self.desk = Desk(
            self.name,
            self.identity,
            lambda: self._world.roster,
            self._policy,
            finder,
            self.log,
            lambda: self._world.now,
        )

    def _policy(self) -> Policy:
        return parse_policy(self.policy)

    def card(self) -> IndexCard:
        """What it publishes, without an outline."""
        now = int(self._world.now)
        return IndexCard(
            node=self.name, key=self.desk.key.public.hex(), embedder=embedder().sha256, dimension=embedder().dimension,
            issued_at=now, expires_at=now + 3600,
        )  # fmt: skip

    def close(self) -> None:
        """Let go of files."""
        self.log.close()
        self.library.close()


class Carrier:
    """What a coordinator does, in this process; `meddle` may change what it carries back."""

    def __init__(self, world: "InquiryWorld") -> None:
        self._world = world

    def cards(self) -> list[bytes]:
        return [signed(one.card(), one.identity) for one in self._world.organizations.values()]

    def inquire(self, sealed: Mapping[str, bytes], *, deadline_s: int) -> Iterator[tuple[str, bytes, str]]:
        for node, box in sealed.items():
            reply = self._world.organizations[node].desk.answer(box)
            yield node, reply.sealed, reply.failure


class InquiryWorld:
    """A roster of an administrator, an auditor and two nodes."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder, self.now = folder, NOW
        self.administrator, self.auditor = SigningKey.generate(), SigningKey.generate()
        self.roster: Roster
        self.organizations = {name: Organization(self, name, text, **settings) for name, text in DOCUMENTS.items()}
        self.enrol()

    def enrol(self, revoked: tuple[str, ...] = ()) -> None:
        """Make the roster; some may be revoked."""
        nodes = make_roster({name: one.identity for name, one in self.organizations.items()}, revoked=revoked)
        people = [
            _person(name, role, key, revoked)
            for name, role, key in (
                ("administrator", Role.ADMINISTRATOR, self.administrator),
                ("auditor", Role.AUDITOR, self.auditor),
            )
        ]
        members = tuple(sorted((*nodes.members, *people), key=lambda one: one.name))
        self.roster = nodes.model_copy(update={"members": members})

    def inquirer(self, carrier: object | None = None, **options: object) -> Inquirer:
        """The administrator, asking for care."""
        chosen = {"purpose": "care", "quotes": 2, "clock": lambda: self.now, **options}
        return Inquirer(
            "administrator", self.administrator, lambda: self.roster, carrier or Carrier(self), embedder(), **chosen
        )

    def inquiry(self, node: str = "clinic", **changes: object) -> tuple[Inquiry, BoxKey]:
        """One of the administrator's, and the key to which its answer is sealed."""
        key = BoxKey()
        said = {
            "id": hashlib.sha256(str(changes).encode() + key.public).hexdigest()[:32], "asker": "administrator",
            "node": node, "purpose": "care", "question": "What does a visit cost?", "quotes": 2,
            "issued_at": int(self.now), "expires_at": int(self.now) + 60, "reply_key": key.public.hex(),
        }  # fmt: skip
        return Inquiry.model_validate(said | changes), key

    def box(self, data: bytes, node: str = "clinic") -> bytes:
        """A signed inquiry, sealed to a node."""
        return seal(data, self.organizations[node].desk.key.public, info_of_inquiry(node), step=2048)

    def opened(self, sealed: bytes, key: BoxKey, data: bytes) -> bytes:
        """A sealed answer's signed document."""
        return key.open(sealed, info_of_answer(digest(data)))

    def close(self) -> None:
        """Let go of files."""
        for one in self.organizations.values():
            one.close()


def _person(name: str, role: Role, key: SigningKey, revoked: tuple[str, ...]) -> Member:
    return Member(
        name=name, role=role, identity_key=key.public.hex(), fleet_key="",
        tls_key=hashlib.sha256(name.encode()).hexdigest(), admitted_at=1_000_000,
        revoked_at=1_000_001 if name in revoked else None,
    )  # fmt: skip
