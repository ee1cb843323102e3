"""A consortium with a long history for `confide bench console`: real keys, database and admin port, and a console.

Runs, rounds, events, checkpoints and receipts are written as rows that a coordinator would have written; nothing of
them was trained. The console's process and the coordinator's are one here, which is the slower way: both share a core.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confide import canonical
from confide.files import private_folder
from confide.identity.consortium import Consortium
from confide.identity.enrolment import accept_admission, make_request
from confide.identity.member import LocalMember
from confide.identity.roster import Role
from confide.journal import Journal
from confide.runs.specification import EXAMPLE, Specification, parse_toml
from confide_server.api.grpc.admin import functions
from confide_server.api.grpc.admin.parts import AdminParts, Disk, ServerFacts
from confide_server.api.grpc.endpoint import Surroundings
from confide_server.api.grpc.incoming_model import IncomingModels
from confide_server.api.grpc.server import ControlServer
from confide_server.console.federation.connection import Connection
from confide_server.console.settings import Settings
from confide_server.console.web.app import Console
from confide_server.fleet.port import Standing
from confide_server.membership.enrolment import EnrolmentQueue
from confide_server.membership.intake import RosterIntake
from confide_server.rlhf import release_evidence
from confide_server.state.audit_log import AuditLog
from confide_server.state.checkpoints import CheckpointStore
from confide_server.state.database import Checkpoint, Database, Event, Head, Round, Run, append_audit
from confide_server.state.event_tail import EventTail
from confide_server.state.events import Contributed, RoundCommitted
from confide_server.state.idempotency import Idempotency
from confide_server.state.preference_tables import PreferenceStore
from confide_server.state.receipts import ReceiptStore
from confide_server.state.release_gate import ReleaseGate
from confide_server.state.releases import Releases
from confide_server.state.runs.control import RunControl
from confide_server.state.runs.journal import RunJournal
from confide_server.state.sightings import Sightings
from confide_server.state.views import Views
from sqlalchemy import insert

COHORT = 20
ROUNDS = 30
_LIVE = 8
_AT_ONCE = 20_000


@dataclass(frozen=True)
class History:
    """How much of everything."""

    nodes: int
    runs: int
    events: int
    receipts: int
    audit: int


@dataclass(frozen=True)
class Stage:
    """A console, and the live run whose events are the newest."""

    console: Console
    run_id: str
    database: Database
    journal: RunJournal

    def commit(self) -> int:
        """Its next round after its last contribution, as a coordinator's driver would commit it; the round's number."""
        with self.database.transaction() as session:
            run = session.get_one(Run, self.run_id)
            run.round += 1
            number = run.round
            session.execute(insert(Checkpoint), [_checkpoint(self.run_id, number)])
            session.execute(insert(Round), [_round(self.run_id, number, run.cohort, time.time())])
            last = Contributed(round=number, node=run.cohort[-1], bytes=1_000_000)
            self.journal.add_event(session, self.run_id, last)
            told = RoundCommitted(
                round=number, metrics={}, contributors=run.cohort[1:], dropped={}, seconds=60.0, update_norm=1.0,
                model_sha256="ab" * 32,
            )  # fmt: skip
            self.journal.add_event(session, self.run_id, told)
        self.journal.notify()
        return number


@contextlib.contextmanager
def console_over(folder: Path, history: History) -> Iterator["Stage"]:
    """A console that asks a coordinator with this history."""
    consortium = Consortium.create(folder / "root", "example", demo=True)
    coordinator = _member(consortium, folder, "coordinator", Role.COORDINATOR)
    console = _member(consortium, folder, "console", Role.CONSOLE)
    names = [f"organization-{number:03}" for number in range(history.nodes)]
    for name in names:
        consortium.admit(make_request(folder / name, name, Role.NODE))
    coordinator.roster.accept(consortium.roster.signed)
    with contextlib.ExitStack() as opened:
        database = Database(f"sqlite:///{folder / 'coordinator.db'}")
        opened.callback(database.close)
        newest = _fill(database, history, names)
        _write_receipts(folder / "receipts.log", history, names)
        receipts = ReceiptStore(folder / "receipts.log")
        opened.callback(receipts.close)
        checkpoints = CheckpointStore(str(private_folder(folder / "checkpoints")))
        journal = RunJournal(database, checkpoints, coordinator.roster, receipts.of_run)
        server = _port(folder, coordinator, database, journal, receipts, names)
        opened.callback(server.stop)
        connection = Connection(console, f"127.0.0.1:{server.start()}")
        opened.callback(connection.close)
        made = Console(private_folder(folder / "console"), Settings(), connection, issuer="bench", port=9444)
        opened.callback(made.close)
        yield Stage(made, newest, database, journal)


def _member(consortium: Consortium, folder: Path, name: str, role: Role) -> LocalMember:
    addresses = ["127.0.0.1"] if role is Role.COORDINATOR else []
    admission = consortium.admit(make_request(folder / name, name, role, addresses))
    return accept_admission(folder / name, admission, time.time())


def _specification() -> Specification:
    privacy = {"unit": "record", "epsilon": 8.0, "delta": 1e-5, "clip": 1.0}
    base = parse_toml(EXAMPLE)
    return base.model_copy(update={"privacy": base.privacy.model_copy(update=privacy)})


def _fill(database: Database, history: History, names: list[str]) -> str:
    """Write the rows; returns the id of a live run whose events are the newest."""
    specification, now = _specification().canonical_bytes(), time.time()
    each = max(1, history.events // history.runs)
    cohorts = [[names[(number * 7 + place) % len(names)] for place in range(COHORT)] for number in range(history.runs)]
    for number, cohort in enumerate(cohorts):
        live = number >= history.runs - _LIVE
        run_id = f"{number:032x}"
        with database.transaction() as session:
            session.execute(insert(Run), [_run(number, live, cohort, specification, now, (number + 1) * each)])
            session.execute(insert(Checkpoint), [_checkpoint(run_id, round) for round in range(ROUNDS)])
            session.execute(insert(Round), [_round(run_id, round, cohort, now) for round in range(1, ROUNDS)])
            events = [_event(run_id, number * each, place, cohort, now) for place in range(1, each + 1)]
            for first in range(0, len(events), _AT_ONCE):
                session.execute(insert(Event), events[first : first + _AT_ONCE])
    with database.transaction() as session:
        session.get_one(Head, "events").number = history.runs * each
        for number in range(history.audit):
            append_audit(
                session, {"event": "run_submitted", "run_id": f"{number % history.runs:032x}", "by": "somebody"}
            )
    return f"{history.runs - 1:032x}"


def _run(number: int, live: bool, cohort: list[str], body: bytes, now: float, last: int) -> dict[str, Any]:
    return {
        "run_id": f"{number:032x}", "number": number + 1, "name": f"run-{number}", "specification": body,
        "status": "running" if live else "failed" if number % 50 == 0 else "finished", "detail": "",
        "initial_model_sha256": bytes(32), "signature": bytes(64), "administrator": "administrator",
        "schema": bytes(20_000), "submitted_at": now - 3600.0, "started_at": now - 3000.0,
        "ended_at": None if live else now - 100_000.0, "round": ROUNDS - 1,
        "rounds": 2 * ROUNDS if live else ROUNDS, "sealing": "sealed",
        "cohort": cohort, "method": "sft", "data": "notes", "privacy_unit": "record", "last_event": last,
        "parent_run_id": f"{number - 1:032x}" if number % 3 else "", "parent_round": ROUNDS - 1 if number % 3 else 0,
        "privacy_epsilon": 8.0, "privacy_delta": 1e-5, "base_sha256": "ab" * 32, "base_name": "base",
    }  # fmt: skip


def _checkpoint(run_id: str, round: int) -> dict[str, Any]:
    digest = canonical.hash_fields("bench", run_id.encode(), bytes([round]))
    return {"run_id": run_id, "round": round, "model_sha256": digest, "model_file": "x.bin", "outer_file": ""}


def _round(run_id: str, round: int, cohort: list[str], now: float) -> dict[str, Any]:
    return {
        "run_id": run_id, "round": round, "slot": round, "attempts": 1, "contributors": cohort[1:],
        "dropped": {cohort[0]: "LATE_UPLOAD: it came after the list was fixed"},
        "promise": {"kind": "sealed", "words": "with 20 organizations, the coordinator and any 6 learn the sum only"},
        "metrics": {"train_loss": {"mean": 3.0 / round, "count": 20.0}}, "evidence": [], "update_norm": 1.0 / round,
        "seconds": 60.0, "committed_at": now - 3000.0 + 60.0 * round, "phases": {"train": 50.0, "reveal": 2.0},
        "received": dict.fromkeys(cohort, 1_000_000),
    }  # fmt: skip


def _event(run_id: str, before: int, place: int, cohort: list[str], now: float) -> dict[str, Any]:
    node = cohort[place % len(cohort)]
    if place <= len(cohort):
        kind = "offer_answered"
        data: Mapping[str, Any] = {"node": node, "accepted": True, "round_s": 60.0, "precision": "float32"}
    else:
        kind, data = "contributed", {"round": 1 + place % ROUNDS, "node": node, "bytes": 1_000_000}
    return {"run_id": run_id, "sequence": place, "time": now, "kind": kind, "data": data, "number": before + place}


def _write_receipts(path: Path, history: History, names: list[str]) -> None:
    """As nodes sent them; their signatures are not asked for again once they are kept."""
    journal = Journal(path)
    for number in range(history.receipts):
        run, slot = (number // COHORT) % history.runs, 1 + number // (COHORT * history.runs)
        node = names[(run * 7 + number % COHORT) % len(names)]
        document = {"run_id": f"{run:032x}", "slot": slot, "group": "notes", "spent_slots": slot, "approved_slots": 40}
        entry = {"run_id": f"{run:032x}", "node": node, "receipt": document, "signature": "00" * 64,
                 "sha256": f"{number:064x}"}  # fmt: skip
        journal.append(entry, durable=False)
    journal.close()


def _port(
    folder: Path, coordinator: LocalMember, database: Database, journal: RunJournal, receipts: ReceiptStore,
    names: list[str],
) -> ControlServer:  # fmt: skip
    views, sightings = Views(database), Sightings(database)
    enrolment = EnrolmentQueue(private_folder(folder / "enrolment"))
    intake = RosterIntake(coordinator.roster, lambda roster: None)
    standing = {name: Standing(number % 40 != 0, time.time(), False) for number, name in enumerate(names)}
    facts = ServerFacts(
        started_at=time.time(), trouble="", trouble_since=0.0, disks=[Disk("state", str(folder), 1, 50, 100)],
        threads={"driver": True}, max_concurrent_runs=_LIVE,
    )  # fmt: skip
    parts = AdminParts(
        member=coordinator, journal=journal, views=views, control=RunControl(database, journal),
        tail=EventTail(journal, views),
        releases=Releases(database, coordinator.roster, ReleaseGate(coordinator.roster, release_evidence.check)),
        preferences=PreferenceStore(database),
        receipts=receipts,
        audit=AuditLog(database), enrolment=enrolment, intake=intake, sightings=sightings,
        incoming=IncomingModels(folder / "incoming"), standing=lambda: standing, facts=lambda: facts,
    )  # fmt: skip
    return ControlServer(
        member=coordinator, folder=folder, address="127.0.0.1:0", receipts=receipts,
        enrolment=enrolment, intake=intake, admin=functions(parts),
        surroundings=Surroundings(coordinator, Idempotency(database), sightings.note),
    )  # fmt: skip
