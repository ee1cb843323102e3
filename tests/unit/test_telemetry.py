"""Logs that say what they are about, in text and JSON, private and rotated; figures that name no organization."""

import io
import json
import logging
import urllib.request

import pytest
from confide.errors import StateError
from confide_server.state.event_lines import log_event
from confide_server.state.events import Contributed, Dropped, RoundCommitted, RunFailed
from confide_server.telemetry.logs import about, configure
from confide_server.telemetry.metrics import Gauges, Metrics

RUN = "0f" * 16


@pytest.fixture
def root_logger():
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    root.handlers = []
    yield root
    for handler in root.handlers:
        handler.close()
    root.handlers, root.level = before, level


def test_json_lines_say_run_round_slot_and_node(root_logger):
    stream = io.StringIO()
    configure(logging.INFO, "json", stream=stream)
    with about(run=RUN, round=3), about(slot=7):
        logging.getLogger("x").warning("odd\x1b[2J\nthing")
    log_event(RUN, Dropped(round=2, node="hospital-a", code="TransportError", reason="gone"))
    try:
        raise ValueError("inside")
    except ValueError:
        logging.getLogger("x").exception("broke")
    first, second, third = map(json.loads, stream.getvalue().splitlines())
    assert (first["run"], first["round"], first["slot"], first["level"]) == (RUN, 3, 7, "WARNING")
    assert "\x1b" not in first["message"] and "node" not in first
    assert (second["run"], second["round"], second["node"]) == (RUN, 2, "hospital-a")
    assert "ValueError: inside" in third["error"] and "run" not in third


def test_text_lines_say_it_once(root_logger):
    stream = io.StringIO()
    configure(logging.INFO, "text", stream=stream)
    with about(run=RUN):
        logging.getLogger("x").info("said")
    log_event(RUN, Contributed(round=2, node="hospital-a", bytes=9))
    first, second = stream.getvalue().splitlines()
    assert first.endswith(f"x: said [run={RUN}]") and "contributed" in second and "[run=" not in second


def test_a_log_file_is_private_and_rotated(root_logger, tmp_path):
    path = tmp_path / "server.log"
    configure(logging.INFO, "text", path=path, max_bytes=2000)
    for number in range(100):
        logging.getLogger("x").info("line %d of a log that grows", number)
    files = sorted(tmp_path.iterdir())
    assert 2 < len(files) <= 9 and all(file.stat().st_mode & 0o777 == 0o600 for file in files)


def gauges() -> Gauges:
    return Gauges(
        runs={"running": 2},
        nodes_connected=3,
        nodes_known=4,
        enrolments_waiting=0,
        event_streams=1,
        disk_free_bytes={"state": 5.0},
        threads=2,
        threads_alive=2,
        troubled=False,
        roster_expires_at=10.0,
        certificate_expires_at=20.0,
    )


def test_prometheus_reads_the_coordinators_figures_and_nothing_of_one_organization():
    metrics = Metrics(gauges)
    committed = RoundCommitted(
        round=1,
        metrics={"train_loss": {"mean": 7.125, "count": 3}},
        contributors=["hospital-a"],
        dropped={"hospital-b": "gone"},
        seconds=4.0,
        model_sha256="ab",
        update_norm=0.123,
    )
    for event in (
        committed,
        Dropped(round=1, node="hospital-b", code="TransportError", reason="gone"),
        Contributed(round=1, node="hospital-a", bytes=1000),
        RunFailed(code="QUORUM_SHORT", reason="hospital-b is away"),
    ):
        metrics.take(RUN, event)
    port, stop = metrics.serve("127.0.0.1", 0)
    try:
        said = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60).read().decode()
    finally:
        stop()
    for wanted in (
        'confide_runs{status="running"} 2.0',
        "confide_rounds_committed_total 1.0",
        'confide_dropped_total{code="TransportError"} 1.0',
        "confide_received_bytes_total 1000.0",
        'confide_runs_ended_total{status="failed"} 1.0',
        'confide_round_seconds_bucket{le="5.0"} 1.0',
        "confide_nodes_connected 3.0",
    ):
        assert wanted in said, wanted
    for private in ("hospital", RUN, "7.125", "0.123"):
        assert private not in said, private


def test_a_metrics_port_that_is_in_use_is_named():
    port, stop = Metrics(gauges).serve("127.0.0.1", 0)
    try:
        with pytest.raises(StateError, match=f"127.0.0.1:{port} cannot be opened"):
            Metrics(gauges).serve("127.0.0.1", port)
    finally:
        stop()
