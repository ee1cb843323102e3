"""What the administration service works with, and what its methods share."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from confide.errors import TransportError
from confide.identity.member import LocalMember

from confide_server.api.grpc.incoming_model import IncomingModels
from confide_server.fleet.port import Standing
from confide_server.membership.enrolment import EnrolmentQueue
from confide_server.membership.intake import RosterIntake
from confide_server.state.audit_log import AuditLog
from confide_server.state.event_tail import EventTail
from confide_server.state.preference_tables import PreferenceStore
from confide_server.state.receipts import ReceiptStore
from confide_server.state.releases import Releases
from confide_server.state.runs.control import RunControl
from confide_server.state.runs.journal import RunJournal
from confide_server.state.sightings import Sightings
from confide_server.state.views import Views

MAX_STREAMS = 64


@dataclass(frozen=True)
class Disk:
    """One place where this coordinator keeps things, in bytes; used 0: not known."""

    what: str
    path: str
    used: int
    free: int
    total: int


@dataclass(frozen=True, kw_only=True)
class ServerFacts:
    """What the coordinator's process knows of itself."""

    started_at: float
    trouble: str
    trouble_since: float
    disks: Sequence[Disk]
    threads: Mapping[str, bool]
    """Name of each thread that should live, and whether it does."""
    max_concurrent_runs: int


@dataclass(frozen=True, kw_only=True)
class AdminParts:
    """Everything behind the service."""

    member: LocalMember
    journal: RunJournal
    views: Views
    control: RunControl
    tail: EventTail
    releases: Releases
    preferences: PreferenceStore
    receipts: ReceiptStore
    audit: AuditLog
    enrolment: EnrolmentQueue
    intake: RosterIntake
    incoming: IncomingModels
    sightings: Sightings
    standing: Callable[[], Mapping[str, Standing]]
    """How each node of the roster stands to the fleet port."""
    facts: Callable[[], ServerFacts]
    streams: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(MAX_STREAMS))

    @property
    def open_streams(self) -> int:
        """Event streams that are open now."""
        return MAX_STREAMS - self.streams._value  # a count for people; a semaphore has no other way to tell it


def limited(asked: int, *, default: int, most: int) -> int:
    """How many entries of a page. Raises TransportError for more than there are at a time."""
    if not 0 <= asked <= most:
        raise TransportError(f"{asked} entries of a page were asked for; from 1 to {most} come at a time")
    return asked or default
