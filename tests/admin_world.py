"""A coordinator's control port with the administration service over a real database, and a member of every role."""

import contextlib
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from confide import canonical
from confide.codec.tensors import model_digest
from confide.identity.consortium import Consortium
from confide.identity.enrolment import accept_admission, make_request
from confide.identity.member import LocalMember
from confide.identity.roster import Role
from confide.identity.submission import sign_submission
from confide.privacy.receipts import Receipt
from confide.runs.metrics import Metric
from confide.runs.sections import Method
from confide.runs.specification import Specification
from confide.sealing.roles import Opened, SlotPlan
from confide.transport.admin import ActingUser, AdminClient
from confide_server.api.grpc.admin import functions
from confide_server.api.grpc.admin.parts import AdminParts, Disk, ServerFacts
from confide_server.api.grpc.endpoint import Surroundings
from confide_server.api.grpc.incoming_model import IncomingModels
from confide_server.api.grpc.server import ControlServer
from confide_server.fleet.port import Standing
from confide_server.membership.enrolment import EnrolmentQueue
from confide_server.membership.intake import RosterIntake
from confide_server.rlhf import release_evidence
from confide_server.state.audit_log import AuditLog
from confide_server.state.checkpoints import CheckpointStore
from confide_server.state.database import Database
from confide_server.state.event_tail import EventTail
from confide_server.state.events import OfferAnswered, RunFinished, RunStarted
from confide_server.state.idempotency import Idempotency
from confide_server.state.preference_tables import PreferenceStore
from confide_server.state.receipts import ReceiptStore
from confide_server.state.release_gate import ReleaseGate
from confide_server.state.releases import Releases
from confide_server.state.runs.control import RunControl
from confide_server.state.runs.journal import Committed, RunJournal
from confide_server.state.runs.service import Submission
from confide_server.state.runs.status import RunStatus
from confide_server.state.sightings import Sightings
from confide_server.state.views import Views

from tests.coordinator_world import specification

MODEL = np.arange(8, dtype="<f4").tobytes()
NODES = ("hospital-a", "hospital-b", "hospital-c")


@dataclass
class AdminWorld:
    """One running control port."""

    folder: Path
    consortium: Consortium
    coordinator: LocalMember
    database: Database
    journal: RunJournal
    views: Views
    parts: AdminParts
    address: str
    members: dict[str, LocalMember] = field(default_factory=dict)
    clients: dict[str, AdminClient] = field(default_factory=dict)

    def admit(self, name: str, role: Role) -> AdminClient:
        """A new member, known to the coordinator; its client."""
        folder = self.folder / name
        admission = self.consortium.admit(make_request(folder, name, role))
        self.members[name] = accept_admission(folder, admission, time.time())
        self.coordinator.roster.accept(self.consortium.roster.signed)
        self.clients[name] = AdminClient.of_member(self.members[name], self.address)
        return self.clients[name]

    def member(self, role: Role) -> LocalMember:
        """The member of this role; of the nodes hospital-a."""
        return self.members["hospital-a" if role is Role.NODE else role.value]

    def client(self, role: Role) -> AdminClient:
        """Its connection."""
        return self.clients[self.member(role).name]

    def console(self, role: str, organization: str = "hospital-a") -> AdminClient:
        """The console's connection for somebody of this role."""
        user = ActingUser(name="ada", role=role, organization=organization if role == Role.NODE else "")
        return self.clients["console"].acting_for(user)

    def specification(self, name: str, method: Literal["sft", "dpo", "classification"] = "sft") -> Specification:
        """A small run of two rounds."""
        asked = Method(name=method, labels=("a", "b") if method == "classification" else ())
        return specification().model_copy(update={"name": name, "method": asked})

    def submit(self, name: str, method: Literal["sft", "dpo", "classification"] = "sft", parent: str = "") -> str:
        """A run that waits; its id. parent: the run whose first round it goes on from."""
        body, digest = self.specification(name, method).canonical_bytes(), model_digest(MODEL)
        signed = sign_submission(
            self.member(Role.ADMINISTRATOR).identity,
            "administrator",
            body,
            model_digest(MODEL[:-4] + np.float32(1).tobytes()) if parent else digest,
            parent_run_id=parent,
            parent_round=1 if parent else 0,
        )
        return self.journal.continue_from(signed) if parent else self.journal.submit(Submission(signed, MODEL))

    def finished(self, name: str, method: Literal["sft", "dpo", "classification"] = "sft", parent: str = "") -> str:
        """A run of two rounds, to the second of which hospital-b did not contribute."""
        run_id, both = self.submit(name, method, parent), ["hospital-a", "hospital-b"]
        self.journal.update(run_id, cohort=both, status=RunStatus.RUNNING)
        for node in both:
            self.journal.answered(run_id, "accepted", OfferAnswered(node=node, accepted=True))
        self.journal.record(run_id, RunStarted(nodes=both, rounds=2, sealing="none", name=name))
        for number, there in ((1, both), (2, both[:1])):
            self._commit(run_id, number, there, {} if number == 1 else {"hospital-b": "TransportError: no answer"})
        self.journal.end(run_id, RunStatus.FINISHED, RunFinished(rounds=2, model_sha256="ab" * 32))
        return run_id

    def _commit(self, run_id: str, number: int, there: list[str], dropped: dict[str, str]) -> None:
        slot, attempt = self.journal.plan_slot(run_id, number)
        plan = SlotPlan(slot=slot, round=number, attempt=attempt, model_sha256=b"", parent_model_sha256=b"")
        data = MODEL[:-4] + np.float32(number).tobytes()
        opened = Opened(
            update_sum=np.ones(8),
            weight_sum=float(len(there)),
            metrics={Metric.TRAIN_LOSS: (3.0, 2)},
            contributors=tuple(there),
            dropped=dropped,
            promise={"kind": "none", "words": "nothing is hidden"},
        )
        file = self.journal.checkpoints.put(data, "bin")
        received = dict.fromkeys(there, 10)
        done = Committed(plan, opened, file, "", model_digest(data), len(data), 0.5, 1.25, {"train": 1.0}, received)
        self.journal.commit_round(run_id, done)

    def receipt(self, run_id: str, node: str, *, slot: int, spent: int) -> None:
        """A node's ledger receipt, as it would send it."""
        receipt = Receipt(
            run_id=run_id,
            slot=slot,
            group="records",
            specification="0" * 64,
            events_sha256="0" * 64,
            spent_slots=spent,
            approved_slots=3,
            ledger_length=slot + 1,
            ledger_head="0" * 64,
        )
        body, member = canonical.encode(receipt.model_dump(mode="json")), self.members[node]
        signature = member.identity.sign("receipt", body)
        self.parts.receipts.put(self.coordinator.roster.current.member(node), run_id, body, signature)


def standing() -> dict[str, Standing]:
    """One node is there, one was stopped, one never came."""
    now = time.time()
    return {
        "hospital-a": Standing(True, now, False),
        "hospital-b": Standing(False, now - 60, True),
        "hospital-c": Standing(False, 0.0, False),
    }


@contextlib.contextmanager
def running_world(folder: Path):
    """The world, with its port on loopback."""
    consortium = Consortium.create(folder / "root", "example", demo=True)
    place = folder / "coordinator"
    request = make_request(place, "coordinator", Role.COORDINATOR, ["127.0.0.1"])
    coordinator = accept_admission(place, consortium.admit(request), time.time())
    database = Database(f"sqlite:///{folder / 'c.db'}")
    receipts = ReceiptStore(folder / "receipts.log")
    checkpoints = CheckpointStore(str(folder / "checkpoints"))
    journal = RunJournal(database, checkpoints, coordinator.roster, receipts.of_run)
    views, sightings = Views(database), Sightings(database)
    intake = RosterIntake(coordinator.roster, lambda roster: journal.keep_roster())
    facts = ServerFacts(
        started_at=1.0,
        trouble="",
        trouble_since=0.0,
        disks=[Disk("state", str(folder), 1, 2, 3)],
        threads={thread.name: True for thread in threading.enumerate()},
        max_concurrent_runs=1,
    )
    parts = AdminParts(
        member=coordinator,
        journal=journal,
        views=views,
        control=RunControl(database, journal),
        tail=EventTail(journal, views),
        releases=Releases(database, coordinator.roster, ReleaseGate(coordinator.roster, release_evidence.check)),
        preferences=PreferenceStore(database),
        receipts=receipts,
        audit=AuditLog(database),
        enrolment=EnrolmentQueue(folder / "enrolment"),
        intake=intake,
        incoming=IncomingModels(folder / "incoming"),
        sightings=sightings,
        standing=standing,
        facts=lambda: facts,
    )
    server = ControlServer(
        member=coordinator,
        folder=folder,
        address="127.0.0.1:0",
        receipts=receipts,
        enrolment=parts.enrolment,
        intake=intake,
        admin=functions(parts),
        surroundings=Surroundings(coordinator, Idempotency(database), sightings.note),
    )
    address = f"127.0.0.1:{server.start()}"
    world = AdminWorld(folder, consortium, coordinator, database, journal, views, parts, address)
    try:
        for role in (Role.ADMINISTRATOR, Role.OPERATOR, Role.AUDITOR, Role.ANNOTATOR, Role.CONSOLE):
            world.admit(role.value, role)
        for name in NODES:
            world.admit(name, Role.NODE)
        yield world
    finally:
        for client in world.clients.values():
            client.close()
        server.stop()
        receipts.close()
        database.close()
