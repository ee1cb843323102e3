"""Figures for Prometheus: of the coordinator itself, never of one organization.

No label names an organization or a run, and nothing that nodes computed (losses, norms) is among them. Needs the extra
`telemetry` (prometheus-client).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.errors import StateError

from confide_server.state.events import (
    Contributed,
    Dropped,
    Happening,
    RoundCommitted,
    RunFailed,
    RunFinished,
    RunStopped,
    SlotAbandoned,
)

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_SECONDS = (0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)


@dataclass(frozen=True, kw_only=True)
class Gauges:
    """How things stand at a moment. Each: {label value: figure}."""

    runs: Mapping[str, float]
    """By status."""
    nodes_connected: int
    nodes_known: int
    enrolments_waiting: int
    event_streams: int
    disk_free_bytes: Mapping[str, float]
    threads_alive: int
    threads: int
    troubled: bool
    roster_expires_at: float
    certificate_expires_at: float


class Metrics:
    """One coordinator's."""

    def __init__(self, gauges: Callable[[], Gauges]) -> None:
        """Raises StateError when prometheus-client is not installed."""
        try:
            from prometheus_client import CollectorRegistry, Counter, Histogram
        except ImportError as error:
            raise StateError("metrics need the extra telemetry: pip install 'confide[telemetry]'") from error
        self.registry: CollectorRegistry = CollectorRegistry()
        self._gauges = gauges
        self._ends = Counter("confide_runs_ended", "Runs by how they ended.", ["status"], registry=self.registry)
        self._rounds = Counter("confide_rounds_committed", "Rounds that are durable.", registry=self.registry)
        self._abandoned = Counter("confide_slots_abandoned", "Attempts.", ["code"], registry=self.registry)
        self._dropped = Counter("confide_dropped", "Missed contributions and steps.", ["code"], registry=self.registry)
        self._received = Counter("confide_received_bytes", "Uploads.", registry=self.registry)
        self._seconds = Histogram(
            "confide_round_seconds", "From a round's plan to its commit.", buckets=_SECONDS, registry=self.registry
        )
        self.registry.register(self)

    def take(self, run_id: str, event: Happening) -> None:
        """Count something that happened."""
        match event:
            case RoundCommitted():
                self._rounds.inc()
                self._seconds.observe(event.seconds)
            case SlotAbandoned():
                self._abandoned.labels(event.code).inc()
            case Dropped():
                self._dropped.labels(event.code).inc()
            case Contributed():
                self._received.inc(event.bytes)
            case RunFinished() | RunFailed() | RunStopped():
                self._ends.labels(event.kind.removeprefix("run_")).inc()

    def collect(self) -> "Iterable[Metric]":
        """The gauges, read when Prometheus asks."""
        from prometheus_client.core import GaugeMetricFamily

        now = self._gauges()
        for name, about, label, figures in (
            ("confide_runs", "Runs by status.", "status", now.runs),
            ("confide_disk_free_bytes", "Free space.", "what", now.disk_free_bytes),
        ):
            family = GaugeMetricFamily(name, about, labels=[label])
            for value, figure in figures.items():
                family.add_metric([value], figure)
            yield family
        for name, about, figure in (
            ("confide_nodes_connected", "Nodes with a heartbeat within the last minute.", now.nodes_connected),
            ("confide_nodes_known", "Nodes of the roster.", now.nodes_known),
            ("confide_enrolments_waiting", "Requests that wait for the root.", now.enrolments_waiting),
            ("confide_event_streams", "Open streams.", now.event_streams),
            ("confide_threads", "Threads that should live.", now.threads),
            ("confide_threads_alive", "Threads that do.", now.threads_alive),
            ("confide_troubled", "1 while something keeps a run from being driven.", int(now.troubled)),
            ("confide_roster_expires_timestamp_seconds", "When the roster expires.", now.roster_expires_at),
            ("confide_certificate_expires_timestamp_seconds", "When TLS ends.", now.certificate_expires_at),
        ):
            yield GaugeMetricFamily(name, about, value=figure)

    def serve(self, address: str, port: int) -> tuple[int, Callable[[], None]]:
        """Answer GET /metrics over HTTP, without authentication: bind it where only Prometheus reaches it.

        Returns (port, how to stop). Raises StateError when the port is in use.
        """
        from prometheus_client import start_http_server

        try:
            server, thread = start_http_server(port, addr=address, registry=self.registry)
        except OSError as error:
            raise StateError(f"the metrics port {address}:{port} cannot be opened: {error.strerror}") from error

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return int(server.server_address[1]), stop
