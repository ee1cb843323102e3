"""The lease of a database: one holder, named to others; once lost it is taken again, or its holder writes no more."""

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from confide.errors import RetryableError, StateError
from confide.running import Held
from confide_server.state.database import Database, append_audit
from confide_server.state.lease import LeaseLost, take_lease
from sqlalchemy import NullPool, create_engine, text

from tests.databases import database_url, postgres  # noqa: F401 - fixtures


@contextlib.contextmanager
def held(url: str) -> Iterator[Database]:
    database = Database(url, leased=True)
    try:
        yield database
    finally:
        database.close()


def write(database: Database) -> None:
    with database.transaction() as session:
        append_audit(session, {"event": "written"})


def break_lease(database: Database) -> None:
    """Take the lock away behind its holder's back."""
    if database.dialect == "sqlite":
        database._lease._path.unlink()  # type: ignore[union-attr]
        return
    with create_engine(database.url, poolclass=NullPool).connect() as other:
        number = database._lease._session.execute(text("SELECT pg_backend_pid()")).scalar()  # type: ignore[union-attr]
        assert other.execute(text(f"SELECT pg_terminate_backend({number}, 60000)")).scalar()


def test_one_holds_it_and_is_named(database_url: str) -> None:  # noqa: F811
    with held(database_url) as first:
        words = (
            rf"used by a coordinator on {os.uname().nodename}, process {os.getpid()}, since 20\d\d-.* UTC; stop it, or"
        )
        for _ in range(2):
            with pytest.raises(Held, match=words):
                Database(database_url, leased=True)
        write(first)
        beside = Database(database_url)  # a backup, a served endpoint, an auditor
        write(beside)
        assert beside.verify_audit() == 2 and not beside.look_after_lease()
        beside.close()
        assert not first.look_after_lease()
        write(first)
    with held(database_url) as second:
        assert second.verify_audit() == 3
        write(second)


def test_a_refused_one_touches_nothing(tmp_path: Path) -> None:
    path = tmp_path / "coordinator.db"
    with held(f"sqlite:///{path}"):
        path.unlink()
        with pytest.raises(Held):
            Database(f"sqlite:///{path}", leased=True)
        assert not path.exists()


def test_a_lost_lease_is_taken_again(database_url: str) -> None:  # noqa: F811
    with held(database_url) as first:
        break_lease(first)
        write(first)  # nobody else had it
        assert first.look_after_lease()
        assert not first.look_after_lease()
        with pytest.raises(Held):
            Database(database_url, leased=True)
        write(first)


def test_whoever_lost_it_to_another_one_writes_nothing_more(database_url: str) -> None:  # noqa: F811
    with held(database_url) as first:
        write(first)
        break_lease(first)
        with held(database_url) as second:
            write(second)
            with pytest.raises(LeaseLost, match=r"taken 2 times, the 1\. time by this process"):
                write(first)
            with pytest.raises(LeaseLost):
                first.look_after_lease()
        for _ in range(2):  # nor when the other one has ended
            with pytest.raises(LeaseLost):
                write(first)
            with pytest.raises(LeaseLost):
                first.look_after_lease()
        assert first.verify_audit() == 2


def test_a_newcomer_waits_for_what_is_under_way(database_url: str) -> None:  # noqa: F811
    """Else what its predecessor began to write would come after what it has read."""
    with held(database_url) as first:
        opened: list[Database] = []
        newcomer = threading.Thread(target=lambda: opened.append(Database(database_url, leased=True)))
        with first.transaction() as session:
            append_audit(session, {"event": "first"})
            break_lease(first)
            newcomer.start()
            newcomer.join(0.5)
            assert newcomer.is_alive()
            append_audit(session, {"event": "second"})
        newcomer.join(60)
        with contextlib.closing(opened[0]) as second:
            assert second.verify_audit() == 2
            with pytest.raises(LeaseLost):
                write(first)


def test_while_another_one_has_it_the_loss_is_said_and_passes(database_url: str) -> None:  # noqa: F811
    """Who only looks whether the database is free, and is gone again before it counted, stops nobody."""
    with held(database_url) as first:
        break_lease(first)
        peek = Database(database_url)
        lease = take_lease(peek._engine, "it")
        assert lease is not None
        for _ in range(2):
            with pytest.raises(Held):
                first.look_after_lease()
        lease.close()
        peek.close()
        assert first.look_after_lease()
        write(first)


def test_every_path_to_one_file_is_one_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real, target_is_directory=True)
    (tmp_path / "elsewhere.db").symlink_to(real / "coordinator.db")
    monkeypatch.chdir(real)
    urls = [
        f"sqlite:///{real / 'coordinator.db'}",
        f"sqlite:///{link / 'coordinator.db'}",
        f"sqlite:///{tmp_path / 'elsewhere.db'}",
        "sqlite:///coordinator.db",
        "sqlite:///../link/./coordinator.db",
        f"sqlite+pysqlite:///{real / 'coordinator.db'}?timeout=3",
    ]
    for first in urls:
        with held(first):
            for second in urls:
                with pytest.raises(Held):
                    Database(second, leased=True)


def test_a_copy_is_another_database(tmp_path: Path) -> None:
    path, copy = tmp_path / "one.db", tmp_path / "two.db"
    with held(f"sqlite:///{path}") as first:
        write(first)
    shutil.copyfile(path, copy)
    with held(f"sqlite:///{path}") as first, held(f"sqlite:///{copy}") as second:
        write(first)
        write(second)
        assert first.verify_audit() == second.verify_audit() == 2


def test_a_file_of_two_names_is_refused(tmp_path: Path) -> None:
    path, name = tmp_path / "one.db", tmp_path / "two.db"
    Database(f"sqlite:///{path}").close()
    os.link(path, name)
    for one in (path, name):
        with pytest.raises(StateError, match=r"has 2 names \(hard links\)"):
            Database(f"sqlite:///{one}", leased=True)
    name.unlink()
    with held(f"sqlite:///{path}"):
        pass


def test_a_backup_that_is_put_in_its_place_stops_the_holder(tmp_path: Path) -> None:
    url, older = f"sqlite:///{tmp_path / 'coordinator.db'}", tmp_path / "older.db"
    with held(url):
        pass
    shutil.copyfile(tmp_path / "coordinator.db", older)
    with held(url) as first:
        write(first)
        first._engine.dispose()
        for left in tmp_path.glob("coordinator.db*"):
            left.unlink()
        shutil.copyfile(older, tmp_path / "coordinator.db")
        with pytest.raises(LeaseLost, match="a backup was put in its place"):
            write(first)
        with pytest.raises(LeaseLost):
            first.look_after_lease()


NAMELESS = [b"", b"\xff", b"[]", b"{}", b'{"host":1,"pid":"x","since":1}', b'{"pid":1,"since":1e400}']


@pytest.mark.parametrize("about", NAMELESS)
def test_a_holder_that_cannot_be_named_holds_all_the_same(tmp_path: Path, about: bytes) -> None:
    with held(f"sqlite:///{tmp_path / 'coordinator.db'}"):
        (tmp_path / ".coordinator.db.lock").write_bytes(about)
        with pytest.raises(Held, match="is used by a coordinator; stop it"):
            Database(f"sqlite:///{tmp_path / 'coordinator.db'}", leased=True)


def test_what_the_holder_wrote_is_one_printable_line(tmp_path: Path) -> None:
    with held(f"sqlite:///{tmp_path / 'coordinator.db'}"):
        (tmp_path / ".coordinator.db.lock").write_bytes(b'{"host":"\\u001b[31mred","pid":7,"since":1}')
        with pytest.raises(Held) as refusal:
            Database(f"sqlite:///{tmp_path / 'coordinator.db'}", leased=True)
        assert " on  [31mred, process 7, since 1970-01-01 00:00:01 UTC;" in str(refusal.value)


def test_a_place_that_cannot_be_locked(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"nowhere/\.c\.db\.lock: No such file"):
        Database(f"sqlite:///{tmp_path}/nowhere/c.db", leased=True)


def test_a_database_in_memory_needs_none() -> None:
    with held("sqlite://") as first, held("sqlite://") as second:
        write(first)
        write(second)


def test_schemas_of_one_database_are_two(postgres: Path) -> None:  # noqa: F811
    url = f"postgresql+psycopg://confide@/postgres?host={postgres}"
    engine = create_engine(url)
    with engine.begin() as connection:
        for name in ("north", "south"):
            connection.execute(text(f"CREATE SCHEMA {name}"))
    engine.dispose()
    north, south = (f"{url}&options=-csearch_path%3D{name}" for name in ("north", "south"))
    with held(north) as first, held(south) as second:
        write(first)
        write(second)
        assert first.verify_audit() == second.verify_audit() == 1
        with pytest.raises(Held):
            Database(south, leased=True)


def test_a_server_that_is_away_is_waited_for(postgres: Path) -> None:  # noqa: F811
    """Away and back: the lease is tried again, whatever the error was, and no closed session is asked."""
    url = f"postgresql+psycopg://confide@/postgres?host={postgres}"
    with held(url) as first:
        break_lease(first)
        lease = first._lease
        assert lease is not None
        away = create_engine(f"postgresql+psycopg://confide@/postgres?host={postgres / 'nowhere'}")
        there, lease._engine = lease._engine, away  # type: ignore[attr-defined]
        for _ in range(2):
            with pytest.raises(RetryableError, match="is not reached"):
                first.look_after_lease()
        lease._engine = there  # type: ignore[attr-defined]
        assert first.look_after_lease()


def test_what_another_role_is_told_of_the_holder(postgres: Path) -> None:  # noqa: F811
    """Not since when. And one whose session has another name is said by its number."""
    url = f"postgresql+psycopg://confide@/postgres?host={postgres}"
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE ROLE stranger LOGIN"))
    engine.dispose()
    with held(url) as first:
        with pytest.raises(Held, match=rf"process {os.getpid()}; stop it"):
            Database(url.replace("confide@", "stranger@"), leased=True)
        first._lease._session.execute(text("SET application_name = 'other'"))  # type: ignore[union-attr]
        with pytest.raises(Held, match=r"by a coordinator, session \d+ of the server; stop it"):
            Database(url.replace("confide@", "stranger@"), leased=True)


def test_the_lock_s_file_and_the_database_are_their_owner_s_alone(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with held(f"sqlite:///{tmp_path / 'coordinator.db'}") as database:
            write(database)
            found = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert {".coordinator.db.lock", "coordinator.db", "coordinator.db-wal"} <= set(found)
    assert set(found.values()) == {0o600}
