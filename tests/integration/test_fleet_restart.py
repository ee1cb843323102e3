"""The coordinator is killed in the middle of a run and started again; what cannot start says why."""

import json
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from confide.errors import IdentityError, StateError
from confide.identity.member import load_member
from confide.transport.admin import AdminClient
from confide_server.coordinator.process import Coordinator, Settings, write_settings
from confide_simulations.forks import shared
from typer.testing import CliRunner

from tests.coordinator_world import World, specification
from tests.fleet_node import invented_update

SIZE = 500


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World.create(tmp_path)
    yield world
    world.end_processes()


def control(world: World) -> AdminClient:
    port = world.addresses()["control_port"]
    return AdminClient.of_member(load_member(world.of("administrator")), f"127.0.0.1:{port}")


def kill_server(world: World, number: int) -> int:
    server = next(one for one in world.processes if one.pid == world.addresses()["pid"])
    server.send_signal(number)
    return server.wait(60)


def test_a_killed_coordinator_goes_on_with_the_open_slot(world: World) -> None:
    world.start_server()
    for name in world.node_names:
        world.start_node(name, "--delay", "3.0" if name == "hospital-c" else "0.0")
    model = np.ones(SIZE, dtype="<f4")
    administrator = load_member(world.of("administrator"))
    with control(world) as client:
        run_id = client.submit_run(
            specification(rounds=2, step_deadline_s=120.0, exchange_deadline_s=90.0),
            model.tobytes(),
            administrator.identity,
        )
        kept = 0
        for event in client.watch(run_id):
            kept += event.kind == "contributed"
            if kept == 2 + 3:  # round 1, and two of the three uploads of round 2 are on disk
                break
    kill_server(world, signal.SIGKILL)
    world.start_server()
    with control(world) as client:
        events = [event for event in client.watch(run_id) if event.kind != "progress"]
        manifest, data = client.export_run(run_id)
    assert events[-1].kind == "run_finished", events
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    kinds = [event.kind for event in events]
    assert kinds.count("round_committed") == 2 and "dropped" not in kinds and "slot_abandoned" not in kinds
    expected = np.ones(SIZE)
    for number in (1, 2):
        updates = [invented_update(name, number, SIZE, b"").astype(np.float64) for name in world.node_names]
        expected += np.mean(updates, axis=0)
    got = np.frombuffer(data, dtype="<f4")
    assert np.linalg.norm(got - expected) / np.linalg.norm(expected) < 1e-5
    assert [entry["attempts"] for entry in manifest["rounds"]] == [1, 1]
    log = (world.folder / "hospital-a.log").read_text()
    assert log.count("hospital-a trains round 2") == 1, "its upload was on disk: it does not train again"
    assert kill_server(world, signal.SIGTERM) == 0, "SIGTERM ends it in order"
    assert not (world.server / "addresses.json").exists()


def start_and_fail(world: World) -> str:
    """What `confide server start` says on stderr; it must end with status 1 and one line, after notices of expiry."""
    with tempfile.TemporaryFile() as said:
        assert shared().start("confide", ["server", "start", str(world.server)], said.fileno()).wait(120) == 1
        said.seek(0)
        lines = [line for line in said.read().decode().splitlines() if line and not line.startswith("! ")]
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def test_port_in_use(world: World) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        write_settings(world.server, Settings(bind="127.0.0.1", fleet_port=port, control_port=0))
        said = start_and_fail(world)
        assert f"127.0.0.1:{port}" in said and "in use" in said and "--fleet-port" in said
        write_settings(world.server, Settings(bind="127.0.0.1", fleet_port=0, control_port=port))
        said = start_and_fail(world)
        assert f"127.0.0.1:{port}" in said and "in use" in said


def test_damaged_databases(world: World) -> None:
    coordinator = Coordinator(world.server)
    coordinator.start()
    coordinator.stop()
    own, fleet = world.server / "coordinator.db", world.server / "fleet" / "fleet.db"
    for path, remedy in ((own, "restore it from a backup"), (fleet, "move it away")):
        good = path.read_bytes()
        for log in path.parent.glob(f"{path.name}-*"):
            log.unlink()  # SQLite would heal the file from its write-ahead log
        path.write_bytes(b"no database at all" * 100)
        with pytest.raises(StateError, match=remedy) as error:
            Coordinator(world.server)
        assert path.name in str(error.value)
        path.write_bytes(good) if path == own else path.unlink()
    again = Coordinator(world.server)
    again.start()
    again.stop()


def test_an_edited_audit_log(world: World) -> None:
    import sqlite3

    coordinator = Coordinator(world.server)
    coordinator.start()
    coordinator.stop()
    with sqlite3.connect(world.server / "coordinator.db") as connection:
        connection.execute("UPDATE audit SET body = ?", (json.dumps({"event": "nothing happened"}),))
    connection.close()
    with pytest.raises(StateError, match="audit entry 1 does not follow"):
        Coordinator(world.server)


def test_wrong_certificates(world: World) -> None:
    good = (world.server / "tls.crt").read_text()
    for name, words in (("hospital-a", "certificate is that of 'hospital-a'"), ("other", "not issued by this")):
        (world.server / "tls.crt").write_text(foreign(world) if name == "other" else read(world.of(name) / "tls.crt"))
        with pytest.raises(IdentityError, match=words):
            Coordinator(world.server)
    (world.server / "tls.crt").write_text(good)
    with pytest.raises(IdentityError, match="a node; a coordinator's folder is needed"):
        Coordinator(world.of("hospital-a"))
    assert "was issued" not in good


def read(path: Path) -> str:
    return path.read_text()


def foreign(world: World) -> str:
    return read(World.create(world.folder / "elsewhere", nodes=0).server / "tls.crt")


def test_an_expired_certificate(world: World) -> None:
    from confide.identity.enrolment import accept_admission, make_renewal

    past = time.time() - 20 * 86400
    request = make_renewal(world.server, now=past)
    admission = world.consortium.renew(request, now=past, days=1)
    accept_admission_now = accept_admission(world.server, admission, past)
    assert accept_admission_now.name == "coordinator"
    said = start_and_fail(world)
    assert "expired" in said and "renew" in said


def test_two_coordinators_on_one_folder(world: World) -> None:
    coordinator = Coordinator(world.server)
    coordinator.start()
    with pytest.raises(StateError, match=r"runs on .* already"):
        Coordinator(world.server)
    coordinator.stop()


FULL = """
import resource, signal, sys
from confide.errors import StateError
from confide_server.state.checkpoints import CheckpointStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = CheckpointStore(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))
try:
    store.put(bytes(1 << 20), "bin")
except StateError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(store.put(bytes(1 << 20), "bin"))
"""


def test_a_checkpoint_that_does_not_fit(tmp_path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True, check=True)
    said, name = done.stdout.splitlines()
    assert said.startswith("cannot write the checkpoint") and "File too large" in said and "1048576 bytes" in said
    assert [path.name for path in tmp_path.iterdir()] == [name], "nothing half-written stays behind"


def test_init_and_admission_by_command(tmp_path: Path) -> None:
    from confide.identity.consortium import Consortium
    from confide_server.admin_cli.server import app

    consortium = Consortium.create(tmp_path / "root", "example", demo=True)
    run = CliRunner().invoke
    folder, answer = tmp_path / "server", tmp_path / "admission.json"
    assert isinstance(run(app, ["init", str(folder)]).exception, IdentityError), "without an address"
    made = run(app, ["init", str(folder), "--address", "127.0.0.1", "--fleet-port", "0", "--control-port", "0"])
    assert made.exit_code == 0 and "request.json" in made.output
    assert isinstance(run(app, ["start", str(folder)]).exception, IdentityError), "not admitted yet"
    answer.write_bytes(consortium.admit((folder / "request.json").read_bytes()))
    admitted = run(app, ["init", str(folder), "--admission", str(answer), "--root", consortium.root.public.hex()])
    assert admitted.exit_code == 0 and consortium.root.public.hex() in admitted.output
    coordinator = Coordinator(folder)
    coordinator.start()
    assert coordinator.fleet_port > 0 and coordinator.control_port > 0
    coordinator.stop()
