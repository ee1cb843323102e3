"""Figures of this node for its own organization's Prometheus, on 127.0.0.1 and nowhere else.

They follow from records: when a node trains, and how long that takes. So nobody else may read them: the port is bound
to the loopback address, there is no setting for another, and the coordinator never asks. Whoever forwards them out of
the organization gives away what docs/privacy.md keeps in it. Needs the extra `telemetry`.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from confide.errors import ConfideError, StateError

from confide_client.runs.records import Record
from confide_client.state import StateFolder, read_json

if TYPE_CHECKING:
    from prometheus_client.core import Metric

ADDRESS = "127.0.0.1"
PREFIX = "confide_node_"


class NodeFigures:
    """Read from the state folder whenever Prometheus asks: nothing is counted twice, and a restart loses nothing."""

    def __init__(self, state: StateFolder) -> None:
        self._state = state

    def collect(self) -> "Iterable[Metric]":
        """Prometheus' families. A damaged file is 0, and the log says the rest."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        records = list(self._records())
        runs = GaugeMetricFamily(f"{PREFIX}runs", "Runs by how they stand here.", labels=["status"])
        for status, count in sorted(Counter(record.status.value for record in records).items()):
            runs.add_metric([status], count)
        yield runs
        yield CounterMetricFamily(f"{PREFIX}uploads", "Updates that left.", sum(one.uploads for one in records))
        yield CounterMetricFamily(f"{PREFIX}sent_bytes", "Bytes that left.", sum(one.bytes_sent for one in records))
        for name, about, figure in self._now():
            yield GaugeMetricFamily(PREFIX + name, about, value=figure)

    def _now(self) -> Iterator[tuple[str, str, float]]:
        agent, doing = self._state.agent(), read_json(self._state.progress)
        yield "connected", "1 while the agent has its place at the coordinator.", float(bool(agent.get("connected")))
        yield "paused", "1 while its operator paused it.", float(bool(self._state.pause()))
        yield "working", "1 while it works on a slot.", float(bool(doing))
        yield "seconds_left", "Of that work, about.", float(doing.get("seconds_left", 0) or 0)
        with contextlib.suppress(ConfideError):
            member = self._state.member()
            for what, at in (
                ("roster", member.roster.current.expires_at),
                ("certificate", member.claim.expires_at),
            ):
                yield f"{what}_seconds_left", f"Until the {what} expires.", float(at - time.time())

    def _records(self) -> Iterator[Record]:
        for run_id in self._state.run_ids():
            with contextlib.suppress(ConfideError):
                if (record := Record.load(self._state.run(run_id))) is not None:
                    yield record


@contextlib.contextmanager
def serving(state: StateFolder) -> Iterator[int]:
    """Answer GET /metrics within the block, where the node's settings ask for it; gives the port, or 0.

    Raises StateError when the port is in use or prometheus-client is not installed.
    """
    wanted = state.settings.metrics_port
    if wanted is None:
        yield 0
        return
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError as error:
        raise StateError("metrics need the extra telemetry: pip install 'confide[telemetry]'") from error
    registry = CollectorRegistry()
    registry.register(NodeFigures(state))
    try:
        server, thread = start_http_server(wanted, addr=ADDRESS, registry=registry)
    except OSError as error:
        raise StateError(f"the metrics port {ADDRESS}:{wanted} cannot be opened: {error.strerror}") from error
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
