"""From the folders of release 0.1: this release's coordinator and a node's real agent go on with them.

What single documents say stands in tests/unit/test_stored_documents.py. Certificates of then may have run out: the
root's folder of then renews them first, as it would.
"""

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confide import journal
from confide.identity.consortium import Consortium
from confide.identity.enrolment import accept_admission, make_renewal, make_request
from confide.identity.member import load_member
from confide.identity.roster import Role
from confide.transport.admin import AdminClient
from confide_client.runs.records import Record
from confide_client.state import StateFolder
from confide_server.coordinator.process import Coordinator, Settings, write_settings
from confide_simulations.forks import shared

from tests.coordinator_world import specification
from tests.fleet_node import FleetNode
from tests.waiting import until

RELEASE = Path(__file__).parent.parent / "fixtures" / "v0.1"
CLINICS = ("clinic-a", "clinic-b", "clinic-c")
SIZE = 64


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folders of then, with certificates and a roster of now, and three new organizations."""
    folder = tmp_path / "old"
    shutil.copytree(RELEASE, folder)
    for key in folder.glob("*/*.key"):
        key.chmod(0o600)  # which version control does not keep
    consortium = Consortium.open(folder / "consortium")
    for name in ("coordinator", "administrator", "node"):
        accept_admission(folder / name, consortium.renew(make_renewal(folder / name)), time.time())
    for name in CLINICS:
        request = make_request(folder / name, name, Role.NODE)
        accept_admission(folder / name, consortium.admit(request, block="clinics"), time.time())
    for name in ("coordinator", "administrator", "node"):
        load_member(folder / name).roster.accept(consortium.roster.signed)
    write_settings(folder / "coordinator", Settings(bind="127.0.0.1", fleet_port=0, control_port=0))
    return folder


@pytest.fixture
def coordinator(folder: Path) -> Iterator[Coordinator]:
    coordinator = Coordinator(folder / "coordinator")
    coordinator.start()
    yield coordinator
    coordinator.stop()


@pytest.fixture
def client(folder: Path, coordinator: Coordinator) -> Iterator[AdminClient]:
    member = load_member(folder / "administrator")
    with AdminClient.of_member(member, f"127.0.0.1:{coordinator.control_port}") as client:
        yield client


@contextlib.contextmanager
def agent(folder: Path, coordinator: Coordinator) -> Iterator[StateFolder]:
    """The node's agent over its folder of then, as a process."""
    settings = folder / "node" / "node.json"
    address = {"coordinator": f"127.0.0.1:{coordinator.fleet_port}"}
    settings.write_text(json.dumps(json.loads(settings.read_text()) | address))
    log = (folder / "node.log").open("ab")
    process = shared().start("confide", ["node", "start", str(folder / "node")], log.fileno())
    try:
        yield StateFolder.at(folder / "node")
    finally:
        process.kill()
        process.wait()
        log.close()


def test_a_coordinator_and_a_node_of_the_first_release_go_on(
    folder: Path, coordinator: Coordinator, client: AdminClient
) -> None:
    waiting, finished = client.list_runs().runs
    assert (waiting.name, finished.name, finished.status) == ("waiting", "finished", "finished")
    assert waiting.status in ("offering", "waiting"), "for organizations that are asked again"
    manifest, model = client.export_run(finished.run_id)
    assert model == (RELEASE / "documents" / "model.bin").read_bytes() and manifest["run_id"] == finished.run_id
    assert client.verify_audit().sound
    client.order_stop(waiting.run_id, load_member(folder / "administrator").identity)
    until(lambda: client.get_run(waiting.run_id).run.status == "stopped", 240)
    with agent(folder, coordinator) as node:
        _the_node_hears_how_its_run_of_then_ended(client, node, waiting.run_id)
    parent = bytes.fromhex(manifest["model_sha256"])
    asked = specification(CLINICS, sealing="sealed", min_cohort=3, rounds=2, clip_norm=100.0, exchange_deadline_s=60.0)
    nodes = [FleetNode(folder / name, coordinator.fleet_port, size=SIZE).start() for name in CLINICS]
    try:
        signing = load_member(folder / "administrator").identity
        continued = client.continue_run(
            asked, signing, parent_run_id=finished.run_id, parent_round=1, model_sha256=parent
        )
        assert [event.kind for event in client.watch(continued.run_id)][-1] == "run_finished"
    finally:
        for node in nodes:
            node.stop()
    made, _ = client.export_run(continued.run_id)
    assert made["chain"][0] == manifest["model_sha256"] and made["parent_run_id"] == finished.run_id
    assert len(made["rounds"]) == 2 and client.verify_audit().sound


def _the_node_hears_how_its_run_of_then_ended(client: AdminClient, node: StateFolder, run_id: str) -> None:
    ledger = (RELEASE / "node" / "privacy-ledger.jsonl").read_bytes()
    before = len(journal.read(RELEASE / "node" / "audit.log")[0])

    def heard() -> bool:
        record = Record.load(node.run(run_id))
        return record is not None and record.status == "ended"

    until(heard, 240)
    (line,) = [one for one in client.list_members("node").members if one.name == "hospital-a"]
    assert line.state == "connected"
    bodies, _ = journal.read(node.audit)
    assert len(bodies) > before, "its audit log goes on, chained to what was written then"
    assert (node.root / "privacy-ledger.jsonl").read_bytes() == ledger, "nothing was spent, and nothing forgotten"
