"""Spans of real rounds, and a node's figures: what is in them, and that nothing of an organization is."""

import json
import stat
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from confide.errors import StateError
from confide_client.agent.metrics import serving
from confide_client.runs.records import OfferStatus, Record
from confide_client.state import Settings, StateFolder
from confide_server.telemetry import traces

from tests.coordinator_world import World
from tests.unit.test_scheduler import Desk, desk, make, world  # noqa: F401 - fixtures


def test_without_a_place_to_go_a_span_is_nothing() -> None:
    with traces.span("round", round=1):
        traces.note(code="x")


def test_a_sealed_run_is_one_trace_of_rounds_slots_and_steps(desk: Desk, tmp_path: Path) -> None:  # noqa: F811
    pytest.importorskip("opentelemetry.sdk")
    file = tmp_path / "spans.jsonl"
    stop = traces.configure(str(file))
    try:
        run_id = desk.submit("sealed", rounds=2)
        assert desk.ended(run_id)[-1].kind == "run_finished"
        desk.until(lambda: not desk.scheduler.threads.get(f"run-{run_id[:8]}", False))
    finally:
        stop()
    spans: list[dict[str, Any]] = [json.loads(line) for line in file.read_text().splitlines()]
    (run,) = (one for one in spans if one["name"] == "confide.run")
    assert run["confide.run"] == run_id
    rounds = [one for one in spans if one["name"] == "confide.round"]
    slots = {one["span"]: one for one in spans if one["name"] == "confide.slot"}
    assert [one["confide.round"] for one in rounds] == [1, 2]
    assert {one["parent"] for one in rounds} == {run["span"]}
    assert {one["parent"] for one in slots.values()} == {one["span"] for one in rounds}
    steps = [one["confide.step"] for one in spans if one["name"] == "confide.phase" and one["parent"] in slots]
    assert steps == ["train", "confirm", "reveal"] * 2
    assert {one["trace"] for one in spans} == {run["trace"]}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    text = file.read_text()
    assert not [name for name in desk.world.node_names if name in text], "no organization is named"
    known = {"name", "trace", "span", "parent", "began_ns", "ended_ns"}
    known |= {f"confide.{name}" for name in ("run", "round", "attempt", "slot", "step", "asked", "code")}
    assert set().union(*spans) <= known, "whoever adds an attribute looks here whether it tells of a node"


def test_an_error_leaves_its_code_and_no_word(tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.sdk")
    file = tmp_path / "spans.jsonl"
    stop = traces.configure(str(file))
    with pytest.raises(StateError), traces.span("run", run="1f" * 16):
        raise StateError("hospital-a lost its disk")
    with pytest.raises(ValueError), traces.span("run", run="1f" * 16):
        raise ValueError("hospital-b")
    stop()
    assert [json.loads(line)["confide.code"] for line in file.read_text().splitlines()] == ["StateError", "Internal"]
    assert "hospital" not in file.read_text()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.sdk")
    with pytest.raises(StateError, match="cannot be written"):
        traces.configure(str(tmp_path / "missing" / "spans.jsonl"))


# --- a node


def scrape(state: StateFolder) -> dict[str, float]:
    with serving(state) as port:
        said = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60).read().decode()
    pairs = (line.rsplit(" ", 1) for line in said.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def test_a_nodes_figures_come_from_its_folder_and_name_no_run(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    folder = World.create(tmp_path, nodes=1).of("hospital-a")
    state = StateFolder.at(folder)
    state.save_settings(Settings(metrics_port=0))
    for number, status in enumerate((OfferStatus.ACCEPTED, OfferStatus.ENDED, OfferStatus.ENDED)):
        record = Record(
            status=status, name="secret", administrator="admin", offer_sha256="0" * 64, rounds=3, sealing="sealed",
            offered_at=0.0, uploads=2, bytes_sent=1000,
        )  # fmt: skip
        record.save(state.run(f"{number:032x}"))
    found = scrape(state)
    assert found['confide_node_runs{status="ended"}'] == 2
    assert (found["confide_node_uploads_total"], found["confide_node_sent_bytes_total"]) == (6, 3000)
    assert (found["confide_node_connected"], found["confide_node_working"]) == (0, 0)
    assert found["confide_node_roster_seconds_left"] > 0
    (state.run(f"{1:032x}") / "run.json").write_text("{damaged")
    assert scrape(state)['confide_node_runs{status="ended"}'] in (1, 2)


def test_a_node_that_was_not_asked_to_answers_nobody(tmp_path: Path) -> None:
    state = StateFolder.create(tmp_path / "node")
    with serving(state) as port:
        assert port == 0


def test_spans_reach_a_collector(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    came: list[tuple[str, int]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append((self.path, len(self.rfile.read(int(self.headers["content-length"])))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    try:
        stop = traces.configure(traces.OTLP)
        assert desk.ended(desk.submit(rounds=1))[-1].kind == "run_finished"
        stop()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert came and {path for path, _ in came} == {"/v1/traces"}
