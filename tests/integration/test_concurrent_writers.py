"""Many threads and processes write to one coordinator's database: everything arrives, numbered without gap or fork."""

import multiprocessing
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from confide.identity.member import load_member
from confide_server.state.checkpoints import CheckpointStore
from confide_server.state.database import Database
from confide_server.state.events import Contributed
from confide_server.state.runs.journal import RunJournal
from confide_server.state.views import Views

from tests.audit_writer import append_many
from tests.coordinator_world import World, specification
from tests.databases import database_url, postgres  # noqa: F401 - fixtures

WRITERS, EACH = 3, 20
MODEL = np.arange(8, dtype="<f4")


def test_processes_and_threads_append_to_one_audit_log(database_url: str) -> None:  # noqa: F811
    with multiprocessing.get_context("spawn").Pool(WRITERS) as pool:
        done = pool.starmap(append_many, [(database_url, writer, EACH) for writer in range(WRITERS)])
    assert sum(done) == WRITERS * EACH
    database = Database(database_url)
    assert database.verify_audit() == WRITERS * EACH
    database.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.create(tmp_path_factory.mktemp("world"), nodes=2)


@pytest.fixture
def books(world: World, database_url: str, tmp_path: Path) -> Iterator[list[RunJournal]]:  # noqa: F811
    """Two coordinators' run books on one database, as while one takes over from the other."""
    roster, checkpoints = load_member(world.server).roster, CheckpointStore(str(tmp_path / "checkpoints"))
    databases = [Database(database_url) for _ in range(2)]
    yield [RunJournal(database, checkpoints, roster) for database in databases]
    for database in databases:
        database.close()


def test_everything_that_is_numbered_is_numbered_once(world: World, books: list[RunJournal]) -> None:
    with ThreadPoolExecutor(6) as pool:
        submissions = [world.submission(specification(), MODEL) for _ in range(6)]
        runs = list(pool.map(lambda number: books[number % 2].submit(submissions[number]), range(6)))
        run_id = runs[0]
        together = threading.Barrier(6)

        def write(number: int) -> list[int]:
            book = books[number % 2]
            together.wait(60)
            for index in range(5):
                book.record(run_id, Contributed(round=index, node=f"writer-{number}", bytes=1))
            return book.sequences(run_id, [bytes([number, index]) * 16 for index in range(5)])

        given = sorted(sequence for sequences in pool.map(write, range(6)) for sequence in sequences)
        slots = list(pool.map(lambda number: books[number % 2].plan_slot(run_id, number + 1), range(6)))
    assert given == list(range(1, 31))
    assert [event.sequence for event in books[0].events(run_id, 0, 0.0)] == list(range(1, 32))
    assert [event.number for event in Views(books[1]._database).events_after(0)] == list(range(1, 37))
    assert sorted(slot for slot, _ in slots) == list(range(1, 7))
    assert {run.run_id for run in books[0].runs()} == set(runs)
    assert books[1]._database.verify_audit() == 6
    for book in books:
        book._database.close()
