"""A consortium, its coordinator's control service on loopback, and members, for tests of the service."""

import contextlib
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

from confide.errors import StateError
from confide.identity.certificates import issue_certificate
from confide.identity.consortium import Consortium
from confide.identity.enrolment import accept_admission, make_request
from confide.identity.keys import load_p256
from confide.identity.member import LocalMember
from confide.proto import admin_pb2 as pb
from confide.transport.admin import AdminClient
from confide_server.api.grpc.admin.members import MemberMethods
from confide_server.api.grpc.admin.submissions import SubmissionMethods
from confide_server.api.grpc.endpoint import Surroundings, snake
from confide_server.api.grpc.incoming_model import IncomingModels
from confide_server.api.grpc.server import ControlServer
from confide_server.membership.enrolment import EnrolmentQueue
from confide_server.membership.intake import RosterIntake
from confide_server.state.database import Database
from confide_server.state.idempotency import Idempotency
from confide_server.state.runs.service import RunEvent, RunSummary, StoredModel, Submission
from google.protobuf.json_format import ParseDict

MODEL = bytes(range(256)) * 20000  # 5 chunks
RUN_ID = "0123456789abcdef" * 2


def stored(manifest, model):
    """A model that a run service hands out."""
    return StoredModel(manifest, len(model), lambda step: (model[at : at + step] for at in range(0, len(model), step)))


@dataclass
class MemoryRunService:
    """A run book in memory with one run, whose events a test adds."""

    submitted: list[Submission] = field(default_factory=list)
    happened: list[RunEvent] = field(default_factory=list)
    stopped: list[tuple[str, str, bytes]] = field(default_factory=list)
    said: list[dict] = field(default_factory=list)
    status: str = "running"
    changed: threading.Condition = field(default_factory=threading.Condition)

    def check_new(self, signed):
        signed.check_in_time(time.time())

    def submit(self, submission):
        self.submitted.append(replace(submission, initial_model=bytes(submission.initial_model)))
        return submission.signed.run_id

    def runs(self):
        return [RunSummary(RUN_ID, "example", self.status, 1, 3, "none", "über alles", 12.5)]

    def add(self, kind, data):
        with self.changed:
            self.happened.append(RunEvent(len(self.happened) + 1, 1.5, kind, data))
            self.changed.notify_all()

    def events(self, run_id, after, timeout_s):
        self._known(run_id)
        with self.changed:
            self.changed.wait_for(lambda: len(self.happened) > after, timeout_s)
            return self.happened[after:]

    def stop(self, run_id, administrator, signature):
        self._known(run_id)
        self.stopped.append((run_id, administrator, signature))

    def stored_model(self, run_id, round):
        self._known(run_id)
        return stored({"run_id": run_id, "round": round or 3}, MODEL)

    def _known(self, run_id):
        if run_id != RUN_ID:
            raise StateError(f"there is no run {run_id}; `confide run list` shows those there are")


def admin_of(book, member, folder):
    """The functions of the administration service that `confide run` asks, over the run book in memory."""

    def line(run):
        known = pb.RunLine.DESCRIPTOR.fields_by_name
        return pb.RunLine(**{name: value for name, value in vars(run).items() if name in known and value is not None})

    def list_runs(caller, request):
        found = [run for run in book.runs() if run.run_id.startswith(request.run_id_prefix) and not request.statuses]
        return pb.RunPage(runs=[line(run) for run in found], total=len(found))

    def stream_events(caller, request, active):
        for number, event in enumerate(book.events(request.run_id, request.after, 0.0), start=request.after + 1):
            said = pb.Event(number=number, run_id=RUN_ID, sequence=number, time=event.time, kind=event.kind)
            ParseDict(dict(event.data), getattr(said, event.kind), ignore_unknown_fields=True)
            getattr(said, event.kind).SetInParent()
            yield said

    def order_stop(caller, request):
        book.stop(request.run_id, caller.name, request.signature)
        return pb.RunChanged(run=line(book.runs()[0]))

    def not_here(caller, request, *_):
        raise StateError("this coordinator has a run book in memory alone; ask a whole one")

    every = {snake(method.name): not_here for method in pb.DESCRIPTOR.services_by_name["Admin"].methods}
    parts = SimpleNamespace(
        journal=book,
        member=member,
        incoming=IncomingModels(folder / "incoming", max_bytes=len(MODEL)),
        views=SimpleNamespace(line=lambda run_id: SimpleNamespace(_mapping={"run_id": run_id, "status": "submitted"})),
        enrolment=EnrolmentQueue(folder / "state" / "enrolment"),
        intake=RosterIntake(member.roster),
        audit=SimpleNamespace(note=lambda entry: None),
    )
    submissions, members = SubmissionMethods(parts), MemberMethods(parts)
    ours = {"list_runs": list_runs, "stream_events": stream_events, "order_stop": order_stop}
    theirs = (submissions.submit_run, submissions.export_run, members.list_enrolments, members.take_roster,
              members.admit_member)  # fmt: skip
    return every | ours | {method.__name__: method for method in theirs}


@dataclass
class Federation:
    """A consortium, its coordinator's control service, and members' folders."""

    folder: Path
    consortium: Consortium
    server: ControlServer
    book: MemoryRunService
    coordinator: LocalMember
    address: str
    accepted: list[int]

    def admit(self, name, role="node", *, publish=True):
        folder = self.folder / name
        admission = self.consortium.admit(make_request(folder, name, role))
        member = accept_admission(folder, admission, time.time(), root=self.consortium.root.public.hex())
        if publish:
            self.coordinator.roster.accept(self.consortium.roster.signed)
        return member

    def client(self, member):
        return AdminClient.of_member(member, self.address)

    def raw(self, member, **changes):
        """A client without the checks that `of_member` makes on its own side."""
        given = {
            "address": self.address,
            "ca_certificate": self.consortium.roster.current.ca_certificate.encode(),
            "private_key": member.tls_key_path.read_bytes(),
            "certificate": member.tls_certificate_path.read_bytes(),
            "root_public": member.root_public,
            "roster": member.roster,
        }
        return AdminClient(**(given | changes))

    def certify(self, member, **options):
        """A certificate over the member's own TLS key that says something else."""
        authority, key = self.consortium.roster.current.ca_certificate, load_p256(self.consortium.folder / "ca.key")
        said = {"name": member.name, "role": member.membership.role.value, "now": time.time()} | options
        return issue_certificate(authority, key, load_p256(member.tls_key_path).public_key(), **said).encode()


@contextlib.contextmanager
def running_federation(tmp_path):
    """A consortium with one coordinator, whose control service runs on loopback."""
    consortium = Consortium.create(tmp_path / "root", "example")
    folder = tmp_path / "coordinator"
    admission = consortium.admit(make_request(folder, "coordinator", "coordinator", ["127.0.0.1"]))
    coordinator, book, accepted = accept_admission(folder, admission, time.time()), MemoryRunService(), []
    changes = Database(f"sqlite:///{tmp_path / 'changes.db'}")
    server = ControlServer(
        member=coordinator,
        folder=tmp_path / "state",
        address="127.0.0.1:0",
        on_roster=lambda roster: accepted.append(roster.version),
        admin=admin_of(book, coordinator, tmp_path),
        surroundings=Surroundings(coordinator, Idempotency(changes), lambda *_: None),
    )
    address = f"127.0.0.1:{server.start()}"
    try:
        yield Federation(tmp_path, consortium, server, book, coordinator, address, accepted)
    finally:
        server.stop()
        changes.close()
