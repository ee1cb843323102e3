"""The databases that a coordinator runs on, for conformance tests: each test that takes `database_url` runs on all.

PostgreSQL is Debian's (`apt-get install postgresql`): the tests start a server of their own in a temporary folder, on a
socket there, as an unprivileged user. Without its programs those tests are skipped, and say so.
"""

import contextlib
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

KINDS = ("sqlite", "postgresql")
PROGRAMS = ("initdb", "pg_ctl", "createdb")


def postgres_programs() -> Path | None:
    """The folder of PostgreSQL's programs, the newest release's; None without."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    found = shutil.which("initdb")
    folders = [*reversed(debian), *([Path(found).parent] if found else [])]
    return next((folder for folder in folders if all((folder / name).exists() for name in PROGRAMS)), None)


def _unprivileged() -> dict[str, int]:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = names.get("postgres") or names["nobody"]
    return {"user": entry.pw_uid, "group": entry.pw_gid}


@contextlib.contextmanager
def postgres_server(programs: Path | None = None) -> Iterator[Path]:
    """A server of its own; gives the folder of its socket. Durable writes are off: nothing here outlives the tests.

    programs: the folder of initdb and pg_ctl; Debian's where it is None.
    """
    programs, who = programs or postgres_programs(), _unprivileged()
    assert programs is not None
    # Not below pytest's folders: a socket's path has at most 107 bytes, and those are closed to other users.
    folder = Path(tempfile.mkdtemp(prefix="confide-pg-"))
    if who:
        os.chown(folder, who["user"], who["group"])
    data = folder / "data"
    options = f"-F -c listen_addresses='' -k {folder} -c max_connections=64"

    def program(name: str, *arguments: str) -> None:
        command = [programs / name, "-D", data, *arguments]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, **who)  # type: ignore[call-overload]

    try:
        program("initdb", "-U", "confide", "-A", "trust", "-N", "-E", "UTF8", "--locale=C")
        program("pg_ctl", "-w", "-t", "120", "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield folder
        finally:
            program("pg_ctl", "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Path]:
    """The session's server."""
    if postgres_programs() is None:
        pytest.skip("PostgreSQL's programs are not on this machine: apt-get install postgresql")
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("PostgreSQL's driver is not installed: pip install 'confide[postgres]'")
    with postgres_server() as folder:
        yield folder


@pytest.fixture(params=KINDS)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'conformance.db'}"
    folder, programs = request.getfixturevalue("postgres"), postgres_programs()
    name = f"test_{abs(hash(request.node.nodeid)):x}"
    assert programs is not None
    subprocess.run([programs / "createdb", "-h", folder, "-U", "confide", name], check=True)
    return f"postgresql+psycopg://confide@/{name}?host={folder}"
