"""Two `confide server start` over one database: the second is refused by name, however the database is spelled."""

import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confide_server.coordinator.process import Settings, write_settings
from confide_simulations.forks import shared
from sqlalchemy import NullPool, create_engine, text

from tests.coordinator_world import World
from tests.databases import database_url, postgres  # noqa: F401 - fixtures

HANGS_S = 120
"""Far more than any of these needs: who is refused must not run on."""


@pytest.fixture
def worlds(tmp_path: Path, database_url: str) -> Iterator[tuple[World, World]]:  # noqa: F811
    """Two coordinators' folders with one database."""
    made = (World.create(tmp_path / "first", nodes=0), World.create(tmp_path / "second", nodes=0))
    for world in made:
        use(world, database_url)
    yield made
    for world in made:
        world.end_processes()


def use(world: World, url: str) -> None:
    write_settings(world.server, Settings(bind="127.0.0.1", fleet_port=0, control_port=0, database=url))


def confide(*arguments: str, directory: Path | None = None) -> tuple[int, str]:
    """A command's exit status, and what it says."""
    with tempfile.TemporaryFile() as said:
        status = shared().start("confide", arguments, said.fileno(), directory=directory).wait(HANGS_S)
        said.seek(0)
        return status, " ".join(said.read().decode().split())


def refused(said: tuple[int, str], holder: int) -> None:
    status, words = said
    assert status == 1 and f"process {holder}, since 20" in words and "used by a coordinator on" in words, words
    assert "Traceback" not in words


def events(url: str) -> list[tuple[object, ...]]:
    """Everything that both could have written."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        queries = ("SELECT kind, number FROM events", "SELECT number FROM audit", "SELECT number FROM heads")
        return [tuple(row) for query in queries for row in connection.execute(text(query))]


def test_the_second_is_refused_and_may_start_after_a_kill(
    worlds: tuple[World, World],
    database_url: str,  # noqa: F811
) -> None:
    first, second = worlds
    first.start_server()
    pid = first.addresses()["pid"]
    before = events(database_url)
    refused(confide("server", "start", str(second.server)), pid)
    refused(confide("server", "gc", str(second.server)), pid)
    assert events(database_url) == before
    assert not (second.server / "addresses.json").exists()
    first.processes[-1].kill()
    first.processes[-1].wait()
    second.start_server()
    refused(confide("server", "start", str(first.server)), second.addresses()["pid"])


def test_every_spelling_of_a_file(tmp_path: Path) -> None:
    first, second = World.create(tmp_path / "first", nodes=0), World.create(tmp_path / "second", nodes=0)
    try:
        first.start_server()
        pid, file = first.addresses()["pid"], first.server / "coordinator.db"
        link, folder = tmp_path / "link.db", tmp_path / "folder"
        link.symlink_to(file)
        folder.symlink_to(first.server, target_is_directory=True)
        for url in (
            f"sqlite:///{file}",
            f"sqlite:///{link}",
            f"sqlite:///{folder}/coordinator.db",
            "sqlite:///link.db",
        ):
            use(second, url)
            refused(confide("server", "start", str(second.server), directory=tmp_path), pid)
        assert confide("server", "status", str(first.server))[0] == 0
        use(second, "")
        second.start_server()  # one of its own
    finally:
        first.end_processes()
        second.end_processes()


def test_whoever_lost_the_database_ends(worlds: tuple[World, World], database_url: str) -> None:  # noqa: F811
    """As after a partition: somebody else counts as its coordinator. It says so, and its process ends."""
    first, _ = worlds
    first.start_server()
    engine = create_engine(database_url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("UPDATE heads SET number = number + 1 WHERE name = 'coordinator'"))
    assert first.processes[-1].wait(HANGS_S) == 1
    assert "another coordinator took the database" in (first.folder / "server.log").read_text()
    assert not (first.server / "addresses.json").exists()


def test_a_dropped_connection_is_taken_again(tmp_path: Path, postgres: Path) -> None:  # noqa: F811
    subprocess.run(["createdb", "-h", postgres, "-U", "confide", "dropped"], check=True)
    url = f"postgresql+psycopg://confide@/dropped?host={postgres}"
    first, second = World.create(tmp_path / "first", nodes=0), World.create(tmp_path / "second", nodes=0)
    for world in (first, second):
        use(world, url)
    try:
        first.start_server()
        drop = (
            "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE application_name LIKE 'confide coord%'"
        )
        with create_engine(url, poolclass=NullPool).connect() as connection:
            assert list(connection.execute(text(drop)).scalars()) == [True]
        log, end = first.folder / "server.log", time.monotonic() + HANGS_S
        while "was taken again" not in log.read_text() and time.monotonic() < end:
            time.sleep(0.1)
        assert "was taken again" in log.read_text()
        refused(confide("server", "start", str(second.server)), first.addresses()["pid"])
    finally:
        first.end_processes()
        second.end_processes()
