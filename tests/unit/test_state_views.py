"""What is listed, kept and changed of runs, on each kind of database alike."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from confide.errors import StateError, TransportError
from confide.identity.keys import SigningKey
from confide.identity.member import load_member
from confide.identity.submission import sign_release
from confide_server.rlhf import release_evidence
from confide_server.state.audit_log import AuditLog
from confide_server.state.checkpoints import CheckpointStore
from confide_server.state.database import Database
from confide_server.state.event_tail import EventTail
from confide_server.state.events import Contributed, OfferAnswered
from confide_server.state.idempotency import Idempotency
from confide_server.state.release_gate import ReleaseGate
from confide_server.state.releases import Releases
from confide_server.state.runs.control import RunControl
from confide_server.state.runs.journal import RunJournal
from confide_server.state.runs.status import RunStatus
from confide_server.state.sightings import Sightings
from confide_server.state.views import Filters, Views

from tests.coordinator_world import World, specification
from tests.databases import database_url, postgres  # noqa: F401 - fixtures
from tests.unit.test_server_state import commit

MODEL = np.arange(8, dtype="<f4")


@dataclass
class Parts:
    world: World
    database: Database
    journal: RunJournal
    views: Views

    def submit(self, name: str, cohort: list[str]) -> str:
        asked = specification().model_copy(update={"name": name})
        run_id = self.journal.submit(self.world.submission(asked, MODEL))
        self.journal.update(run_id, cohort=cohort)
        return run_id


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.create(tmp_path_factory.mktemp("world"), nodes=2)


@pytest.fixture
def parts(world: World, database_url: str, tmp_path: Path) -> Iterator[Parts]:  # noqa: F811
    database = Database(database_url)
    journal = RunJournal(database, CheckpointStore(str(tmp_path / "checkpoints")), load_member(world.server).roster)
    yield Parts(world, database, journal, Views(database))
    database.close()


def test_filters_find_whole_names_only(parts: Parts) -> None:
    first = parts.submit("alpha_1", ["hospital-a", "hospital-b"])
    second = parts.submit("alphax1", ["hospital-b"])

    def found(**filters: object) -> list[str]:
        return [row.run_id for row in parts.views.runs(Filters(**filters), limit=9).rows]  # type: ignore[arg-type]

    assert found() == [second, first]
    assert found(organization="hospital-a") == [first] and found(organization="hospital") == []
    assert found(organization='hospital-a"]') == [] and found(name_contains="a_1") == [first]
    assert found(run_id_prefix=second[:9]) == [second] and found(statuses=["running"]) == []
    parts.journal.waits(first, ["hospital-a"], "waits for a person")
    RunControl(parts.database, parts.journal).pause(second, "night", "operator")
    assert found(statuses=["waiting"]) == [first] and found(statuses=["paused", "waiting"]) == [second, first]
    assert parts.views.counts() == {"waiting": 1, "paused": 1}
    page = parts.views.runs(Filters(), limit=1)
    assert (page.total, [row.run_id for row in page.rows]) == (2, [second])
    assert [row.run_id for row in parts.views.runs(Filters(), limit=1, cursor=page.next_cursor).rows] == [first]
    with pytest.raises(TransportError):
        parts.views.runs(Filters(), limit=1, cursor="1 or 1")


def test_events_of_all_runs_come_in_one_order_from_memory_as_from_the_database(parts: Parts) -> None:
    tail = EventTail(parts.journal, parts.views)
    first, second = parts.submit("one", []), parts.submit("two", [])
    for number in range(3):
        parts.journal.record(first, Contributed(round=number, node="hospital-a", bytes=1))
        parts.journal.record(second, Contributed(round=number, node="hospital-b", bytes=1))
    numbers = [event.number for event in parts.views.events_after(0)]
    assert numbers == list(range(1, 9))
    for run_id in ("", first):
        for after in range(9):
            stored = [event.number for event in parts.views.events_after(after, run_id)]
            assert [event.number for event in tail.after(after, run_id, 0.0)] == stored
    late = EventTail(parts.journal, parts.views)
    assert [event.number for event in late.after(5, "", 0.0)] == [6, 7, 8], "older than what it holds"
    assert parts.views.line(second).last_event == 8


def test_releases_lineage_audit_and_deletion(parts: Parts) -> None:
    run_id = parts.submit("made", ["hospital-a"])
    parts.journal.answered(run_id, "accepted", OfferAnswered(node="hospital-a", accepted=True))
    commit(parts.journal, run_id, 1, MODEL.tobytes())
    roster = load_member(parts.world.server).roster
    releases = Releases(parts.database, roster, ReleaseGate(roster, release_evidence.check))
    made = releases.create("support", run_id, 0, "notes", "administrator")
    key = SigningKey.load(parts.world.of("administrator") / "identity.key")
    assert releases.sign("support", 1, "administrator", sign_release(key, made.document)).status == "signed"
    assert releases.publish("support", 1, "administrator").status == "published"
    assert [one.number for one in releases.list(name="support")] == [1]
    assert releases.list(before=(made.created_at, "support", 1)) == []
    edges = parts.views.lineage(run_id).edges
    assert (f"run:{run_id}", "release:support/1", 1) in edges
    audit = AuditLog(parts.database)
    assert [entry.body["event"] for entry in audit.page(limit=9, run_id=run_id, event="release_signed")] == [
        "release_signed"
    ]
    control, other = RunControl(parts.database, parts.journal), parts.submit("other", [])
    parts.journal.update(run_id, status=RunStatus.FINISHED)
    with pytest.raises(StateError, match="release support/1"):
        control.delete(run_id, "administrator")
    parts.journal.stop(other, *parts.world.stop_order(other))
    control.delete(other, "administrator")
    control.delete(other, "administrator")
    assert [row.run_id for row in parts.views.runs(Filters(), limit=9).rows] == [run_id]
    assert parts.journal.model(run_id, 1).data == MODEL.tobytes(), "shared with the run that is gone"


def test_changes_are_done_once_and_sightings_kept(parts: Parts) -> None:
    once, done = Idempotency(parts.database), []

    def work() -> bytes:
        done.append(1)
        return b"answer"

    for _ in range(2):
        assert once.once("ada", "k" * 16, "Admin/PauseRun", b"request", work) == b"answer"
    assert once.once("bob", "k" * 16, "Admin/PauseRun", b"request", work) == b"answer" and len(done) == 2
    with pytest.raises(StateError, match="served another request"):
        once.once("ada", "k" * 16, "Admin/PauseRun", b"another", work)
    now = [100.0]
    sightings = Sightings(parts.database, lambda: now[0])
    sightings.note("hospital-a", "0.1.0", 500.0)
    now[0] = 120.0
    sightings.note("hospital-a", "0.1.0", 500.0)
    assert sightings.all()["hospital-a"].at == 100.0, "nothing new within a minute is not written"
    sightings.note("hospital-a", "0.2.0", 500.0)
    assert (sightings.all()["hospital-a"].at, sightings.all()["hospital-a"].release) == (120.0, "0.2.0")
