"""The coordinator's one process: fleet port, control port, run driver. Started by `confide server start`.

Guarantee: two processes never serve one folder or one database; SIGTERM and SIGINT leave every run where it can go on.
"""

import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

import uvicorn
from confide import canonical
from confide.errors import IdentityError, StateError
from confide.files import private_folder, write_atomic
from confide.identity.expiry import DailyWarning, Notice, notices
from confide.identity.member import LocalMember, load_member
from confide.identity.roster import Role, Roster
from confide.identity.signed import Document, validated
from confide.memory import map_big_buffers
from confide.running import hold, mark, runs
from pydantic import Field

from confide_server.alerts.looking import look
from confide_server.alerts.service import NAME as ALERTS
from confide_server.alerts.service import AlertService
from confide_server.alerts.settings import Alerts
from confide_server.api.grpc.access import Caller
from confide_server.api.grpc.admin import functions
from confide_server.api.grpc.admin.parts import AdminParts, Disk, ServerFacts
from confide_server.api.grpc.endpoint import Function, Surroundings
from confide_server.api.grpc.incoming_model import IncomingModels
from confide_server.api.grpc.server import PASSAGE_DESCRIPTORS, ControlServer
from confide_server.bounded_http import BoundedServer
from confide_server.fleet.flower import FleetLink
from confide_server.inquiries.relay import InquiryRelay
from confide_server.membership.enrolment import EnrolmentQueue
from confide_server.membership.intake import RosterIntake
from confide_server.membership.waiting import waiting_notices
from confide_server.quota import Quota, listening, room_for
from confide_server.rlhf import release_evidence
from confide_server.rounds.driver import Parts
from confide_server.rounds.scheduler import Scheduler
from confide_server.state.audit_log import AuditLog
from confide_server.state.checkpoints import CheckpointStore
from confide_server.state.database import Database, append_audit
from confide_server.state.event_tail import EventTail
from confide_server.state.idempotency import Idempotency
from confide_server.state.lease import LOOK_S, LeaseLost
from confide_server.state.preference_tables import PreferenceStore
from confide_server.state.receipts import ReceiptStore
from confide_server.state.release_gate import ReleaseGate
from confide_server.state.releases import Releases
from confide_server.state.runs.control import RunControl
from confide_server.state.runs.ends import RunEnds
from confide_server.state.runs.journal import RunJournal
from confide_server.state.runs.round_log import RoundLog
from confide_server.state.sightings import Sightings
from confide_server.state.views import Views
from confide_server.telemetry import traces
from confide_server.telemetry.metrics import Gauges, Metrics

Port = Annotated[int, Field(ge=0, le=65535)]
RENEWAL_CHECK_S = 30.0
DRIVER_FILE = "driver.json"
ENROLMENT_FOLDER = "enrolment"
"""What keeps the run driver from driving, for `confide server status`."""
log = logging.getLogger(__name__)


class Settings(Document):
    """server.json: how this coordinator listens and where it keeps its state."""

    bind: str = "0.0.0.0"  # noqa: S104 - nodes connect from elsewhere
    fleet_port: Port = 9442
    """0 takes a free port; addresses.json in the folder then says which."""
    control_port: Port = 9443
    database: str = ""
    """SQLAlchemy URL; "" is coordinator.db in the folder."""
    checkpoints: str = ""
    """Folder or fsspec URL; "" is checkpoints/ in the folder."""
    connections: Annotated[int, Field(ge=16, le=65536)] = 1024
    """Most open connections of the fleet port; fewer where the process may not open that many files."""
    connections_per_address: Annotated[int, Field(ge=4, le=65536)] = 256
    """Of these, from one IPv4 address or IPv6 /64. A node has up to four."""
    max_concurrent_runs: Annotated[int, Field(ge=1, le=64)] = 4
    """Runs that work with nodes at the same time; runs that wait for somebody do not count."""
    log_format: Literal["text", "json"] = "text"
    log_file: str = ""
    """Where the log goes, rotated; "" is standard error."""
    metrics_port: Port | None = None
    """Where Prometheus asks; None: nowhere. There is no authentication: keep it on an address that only it reaches."""
    metrics_bind: str = "127.0.0.1"
    alerts: Alerts | None = None
    """Who is told what needs somebody (docs/alerts.md); None: nobody."""
    traces: str = ""
    """Where spans go: "otlp", or a file; "" for nowhere (confide_server.telemetry.traces)."""


def read_settings(folder: Path) -> Settings:
    """server.json of the folder, defaults where it is missing. Raises StateError."""
    path = folder / "server.json"
    if not path.exists():
        return Settings()
    try:
        document = json.loads(path.read_text())
        return validated(Settings, document, str(path))
    except (OSError, ValueError, IdentityError) as error:
        raise StateError(
            f"{path} cannot be used: {error}. Correct it, or make it anew with `confide server init`."
        ) from error


def changed(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """The settings with other values. Raises StateError naming what is not possible."""
    try:
        return validated(Settings, settings.model_dump(mode="json") | dict(values), "what was given for server.json")
    except IdentityError as error:
        raise StateError(str(error)) from error


def write_settings(folder: Path, settings: Settings) -> None:
    """Write server.json."""
    write_atomic(folder / "server.json", canonical.encode(settings.model_dump(mode="json")))


def standing(folder: Path) -> dict[str, Any]:
    """Whether a coordinator runs on the folder, and what is wrong: {"running", "trouble", "since", ports and pid}.

    Reads files only. Raises StateError when one is damaged.
    """
    found: dict[str, Any] = {"running": False, "trouble": "", "since": 0.0}
    try:
        if (folder / DRIVER_FILE).exists():
            driver = json.loads((folder / DRIVER_FILE).read_bytes())
            found |= {"trouble": str(driver["trouble"]), "since": float(driver["at"])}
        if (folder / "addresses.json").exists():
            addresses = json.loads((folder / "addresses.json").read_bytes())
            found |= {"fleet_port": addresses["fleet_port"], "control_port": addresses["control_port"]}
            found |= {"pid": int(addresses["pid"]), "running": runs(addresses)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StateError(f"{folder} holds a damaged file: {error}; restart the coordinator") from error
    return found


def due_here(folder: Path, now: float) -> list[Notice]:
    """What of the coordinator's own papers ends soon, and who waits to be admitted. Reads files only."""
    queue = EnrolmentQueue(folder / ENROLMENT_FOLDER)
    return [*notices(folder, now), *waiting_notices(queue, now)]


def _database(folder: Path, settings: Settings) -> Database:
    return Database(settings.database or f"sqlite:///{folder.resolve() / 'coordinator.db'}", leased=True)


def _checkpoints(folder: Path, settings: Settings) -> CheckpointStore:
    return CheckpointStore(settings.checkpoints or str(private_folder(folder / "checkpoints")))


@contextlib.contextmanager
def at_rest(folder: Path) -> Iterator[tuple[Database, CheckpointStore]]:
    """The state of a coordinator that does not run, and cannot be started meanwhile. Raises StateError when it runs."""
    settings, lock = read_settings(folder), _exclusive(folder)
    try:
        database = _database(folder, settings)
        try:
            yield database, _checkpoints(folder, settings)
        finally:
            database.close()
    finally:
        os.close(lock)


class Coordinator:
    """All parts of a running coordinator."""

    def __init__(self, folder: Path) -> None:
        """Open everything; nothing listens yet. Raises ConfideError naming what does not fit."""
        map_big_buffers()
        self.folder = folder
        self.settings = read_settings(folder)
        self.member = load_member(folder)
        if self.member.membership.role is not Role.COORDINATOR:
            role = self.member.membership.role.value
            raise IdentityError(f"{folder} is that of {self.member.name}, a {role}; a coordinator's folder is needed")
        with contextlib.ExitStack() as opened:
            opened.callback(os.close, _exclusive(folder))
            self._open(opened)
            self._opened = opened.pop_all()
        self._fleet_thread = threading.Thread(target=self._serve_fleet, name="fleet-port", daemon=True)
        self._lease_thread = threading.Thread(target=self._keep_lease, name="database-lease", daemon=True)
        self._ended = threading.Event()
        self._lost: LeaseLost | None = None
        self._socket: socket.socket | None = None
        self.fleet_port = 0
        self.control_port = 0
        self.metrics_port = 0

    def _open(self, opened: contextlib.ExitStack) -> None:
        """What is kept first, then who works with it, then the ports that ask for it."""
        self._tls = _tls_context(self.member)
        checkpoints = self._open_state(opened)
        round_log = RoundLog(self.database, checkpoints, self.member)
        self._scheduler = Scheduler(self._driving(round_log))
        self._started_at = time.time()
        self.admin = self._administration()
        self._metrics = Metrics(self._gauges) if self.settings.metrics_port is not None else None
        if self._metrics is not None:
            self.book.listeners.append(self._metrics.take)
        answers = functions(self.admin)
        self._alerts = self._alerting(answers) if self.settings.alerts is not None else None
        self._control = self._control_port(answers, round_log)
        self._fleet = self._fleet_port()

    def _open_state(self, opened: contextlib.ExitStack) -> CheckpointStore:
        """Database, fleet state, receipts, checkpoints and the journal over them; closed in the opposite order."""
        folder = self.folder
        self.database = _database(folder, self.settings)
        opened.callback(self.database.close)
        self.link = FleetLink(folder / "fleet")
        opened.callback(self.link.release)
        self._receipts = ReceiptStore(folder / "receipts.log")
        opened.callback(self._receipts.close)
        checkpoints = _checkpoints(folder, self.settings)
        self.book = RunJournal(self.database, checkpoints, self.member.roster, self._receipts.of_run)
        self.link.on_report = self.book.progress.take
        self.link.run_ends = RunEnds(self.database, self.member).of
        return checkpoints

    def _driving(self, round_log: RoundLog) -> Parts:
        return Parts(
            book=self.book,
            link=self.link,
            roster=self.member.roster,
            name=self.member.name,
            identity=self.member.identity,
            folder=private_folder(self.folder / "runs"),
            head=round_log.head,
            on_trouble=self._note_driver,
            max_concurrent_runs=self.settings.max_concurrent_runs,
        )

    def _administration(self) -> AdminParts:
        views, roster = Views(self.database), self.member.roster
        return AdminParts(
            member=self.member,
            journal=self.book,
            views=views,
            control=RunControl(self.database, self.book, self._scheduler.forget),
            tail=EventTail(self.book, views),
            releases=Releases(self.database, roster, ReleaseGate(roster, release_evidence.check)),
            preferences=PreferenceStore(self.database),
            receipts=self._receipts,
            audit=AuditLog(self.database),
            enrolment=EnrolmentQueue(self.folder / ENROLMENT_FOLDER),
            intake=RosterIntake(roster, self._take_roster),
            incoming=IncomingModels(self.folder / "incoming"),
            sightings=Sightings(self.database),
            standing=self.link.standing,
            facts=self.facts,
        )

    def _control_port(self, answers: Mapping[str, Function], round_log: RoundLog) -> ControlServer:
        return ControlServer(
            member=self.member,
            folder=self.folder,
            address=f"{self.settings.bind}:{self.settings.control_port}",
            receipts=self._receipts,
            round_log=round_log,
            enrolment=self.admin.enrolment,
            intake=self.admin.intake,
            admin=answers,
            surroundings=Surroundings(self.member, Idempotency(self.database), self.admin.sightings.note),
            relay=InquiryRelay(self.member.roster, private_folder(self.folder / "cards"), self._note_inquiry),
        )

    def _fleet_port(self) -> BoundedServer:
        room = room_for(self.settings.connections + PASSAGE_DESCRIPTORS) - PASSAGE_DESCRIPTORS
        quota = Quota(most=max(room, 4), of_one_address=min(self.settings.connections_per_address, max(room // 2, 4)))
        return BoundedServer(
            uvicorn.Config(
                self.link.app(),
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=3,
                h11_max_incomplete_event_size=16384,
                ws="none",
                lifespan="on",
            ),
            quota,
        )

    def _alerting(self, answers: Mapping[str, Function]) -> AlertService:
        # Asked within the process, as the coordinator itself: it sees everything, and changes nothing.
        itself = Caller(self.member.claim, None, None)
        service = AlertService(
            self.settings.alerts or Alerts(),
            self.folder / "alerts.json",
            look=lambda: look(lambda method, request: answers[method](itself, request)),
            note=self.admin.audit.note,
            names=(self.member.membership.consortium, self.member.name),
        )
        self.book.listeners.append(service.happened)
        return service

    def facts(self) -> ServerFacts:
        """What the administration service tells of this process."""
        found = standing(self.folder)
        threads = {one.name: one.is_alive() for one in (self._fleet_thread, self._lease_thread)}
        threads |= self._scheduler.threads
        if self._alerts is not None:
            threads[ALERTS] = self._alerts.alive
        return ServerFacts(
            started_at=self._started_at,
            trouble=found["trouble"],
            trouble_since=found["since"] if found["trouble"] else 0.0,
            disks=self._disks(),
            threads=threads,
            max_concurrent_runs=self.settings.max_concurrent_runs,
        )

    def _gauges(self) -> Gauges:
        facts, standing_now = self.facts(), self.link.standing()
        return Gauges(
            runs=dict(self.admin.views.counts()),
            nodes_connected=sum(one.online for one in standing_now.values()),
            nodes_known=len(standing_now),
            enrolments_waiting=len(self.admin.enrolment.pending()),
            event_streams=self.admin.open_streams,
            disk_free_bytes={disk.what: disk.free for disk in facts.disks},
            threads=len(facts.threads),
            threads_alive=sum(facts.threads.values()),
            troubled=bool(facts.trouble),
            roster_expires_at=self.member.roster.current.expires_at,
            certificate_expires_at=self.member.claim.expires_at,
        )

    def _disks(self) -> list[Disk]:
        places = {"state": self.folder}
        if not self.settings.checkpoints:
            places["checkpoints"] = self.folder / "checkpoints"
        return [_disk(what, path) for what, path in places.items()]

    def _note_driver(self, trouble: str) -> None:
        with contextlib.suppress(StateError):  # a full disk is the likeliest trouble; the log says it too
            write_atomic(self.folder / DRIVER_FILE, canonical.encode({"at": time.time(), "trouble": trouble}))

    def _note_inquiry(self, asker: str, nodes: Sequence[str]) -> None:
        with self.database.transaction() as session:
            append_audit(session, {"event": "inquiry", "by": asker, "nodes": sorted(nodes)})

    def _take_roster(self, roster: Roster) -> None:
        self.link.admit(roster)
        self.book.keep_roster()
        with self.database.transaction() as session:
            append_audit(session, {"event": "roster", "version": roster.version, "sha256": roster.digest})

    def start(self) -> None:
        """Listen and drive. Raises StateError when a port is in use."""
        self._socket = listening(
            self.settings.bind,
            self.settings.fleet_port,
            "the fleet",
            "choose another port with `confide server start --fleet-port`",
        )
        self.fleet_port = self._socket.getsockname()[1]
        self._take_roster(self.member.roster.current)
        self._fleet_thread.start()
        while not self._fleet.started and self._fleet_thread.is_alive():
            self._fleet_thread.join(0.02)
        self.control_port = self._control.start()
        if self._metrics is not None and self.settings.metrics_port is not None:
            served = self._metrics.serve(self.settings.metrics_bind, self.settings.metrics_port)
            self.metrics_port, stop_metrics = served
            self._opened.callback(stop_metrics)
        if self.settings.traces:
            self._opened.callback(traces.configure(self.settings.traces))
        self._note_driver("")
        self._lease_thread.start()
        self._scheduler.start()
        if self._alerts is not None:
            self._alerts.start()
        addresses = {"fleet_port": self.fleet_port, "control_port": self.control_port, **mark()}
        write_atomic(self.folder / "addresses.json", canonical.encode(addresses))

    def _keep_lease(self) -> None:
        said = ""
        while not self._ended.wait(LOOK_S):
            try:
                if self.database.look_after_lease():
                    log.warning("the lease of the database had been lost, and was taken again")
                said = ""
            except LeaseLost as error:
                self._lost = error
                self._ended.set()
            except StateError as error:
                if str(error) != said:
                    log.warning("the lease of the database is not held: %s It is tried again.", error)
                said = str(error)

    def _serve_fleet(self) -> None:
        assert self._socket is not None  # noqa: S101 - start set it
        self._fleet.config.load()
        self._fleet.config.ssl = self._tls
        self._fleet.run(sockets=[self._socket])

    def stop(self) -> None:
        """Let go of everything, in the order that leaves nothing half done."""
        self._ended.set()
        if self._alerts is not None:
            self._alerts.stop()
        self._scheduler.stop()
        self._control.stop()
        self.link.close()
        self._fleet.should_exit = True
        if self._fleet_thread.is_alive():
            self._fleet_thread.join(10.0)
        if self._lease_thread.is_alive():
            self._lease_thread.join(10.0)
        if self._socket is not None:
            self._socket.close()
        (self.folder / "addresses.json").unlink(missing_ok=True)
        self._opened.close()

    def run_until_signal(self) -> None:
        """Serve until SIGTERM or SIGINT. A renewed certificate in the folder is used within half a minute.

        Raises LeaseLost once another coordinator took the database.
        """

        def on_signal(number: int, frame: FrameType | None) -> None:
            self._ended.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, on_signal)
        stamp = self.member.tls_certificate_path.stat().st_mtime_ns
        papers = DailyWarning(partial(due_here, self.folder))
        while not self._ended.wait(RENEWAL_CHECK_S):
            papers.look()
            newest = self.member.tls_certificate_path.stat().st_mtime_ns
            if newest != stamp:
                _load_chain(self._tls, self.member)
                stamp = newest
        if self._lost is not None:
            raise self._lost


def _disk(what: str, path: Path) -> Disk:
    usage = shutil.disk_usage(path)
    with os.scandir(path) as entries:
        used = sum(entry.stat().st_size for entry in entries if entry.is_file())
    return Disk(what, str(path), used, usage.free, usage.total)


def _exclusive(folder: Path) -> int:
    return hold(folder / ".running", f"a coordinator runs on {folder} already; stop it first, or use another folder")


def _tls_context(member: LocalMember) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    _load_chain(context, member)
    return context


def _load_chain(context: ssl.SSLContext, member: LocalMember) -> None:
    try:
        context.load_cert_chain(member.tls_certificate_path, member.tls_key_path)
    except (ssl.SSLError, OSError) as error:
        raise IdentityError(
            f"{member.tls_certificate_path} and {member.tls_key_path} do not serve TLS: {error}. Accept the newest "
            "admission again, or renew the certificate."
        ) from error
