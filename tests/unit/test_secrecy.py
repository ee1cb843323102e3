"""Nothing of keys, records and masks is left where others can read it."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from confide.secrecy import private_file
from confide_client.data.datasets import DataSets
from confide_server.state.database import Database, append_audit

from tests.open_files import open_to_others


@pytest.fixture(autouse=True)
def _open_umask() -> Iterator[None]:
    """The umask of most systems, under which libraries make files that everybody reads."""
    before = os.umask(0o022)
    yield
    os.umask(before)


PROBE = """
import ctypes, json, os, resource, sys
from confide.secrecy import private_process
if sys.argv[1] == "private":
    private_process()
    private_process()
path = sys.argv[2]
open(path, "w").close()
dumpable = ctypes.CDLL(None).prctl(3) if sys.platform == "linux" else 0
print(json.dumps([os.stat(path).st_mode & 0o777, resource.getrlimit(resource.RLIMIT_CORE)[0], dumpable]))
"""


def probe(how: str, path: Path) -> list[int]:
    done = subprocess.run([sys.executable, "-c", PROBE, how, str(path)], capture_output=True, text=True, check=True)
    found: list[int] = json.loads(done.stdout)
    return found


def test_a_private_process(tmp_path: Path) -> None:
    assert probe("private", tmp_path / "a") == [0o600, 0, 0]
    mode, _, dumpable = probe("open", tmp_path / "b")
    assert mode == 0o644 and dumpable == (1 if sys.platform == "linux" else 0)


@pytest.mark.parametrize("group", ["node", "data", "audit", "ledger", "server", "consortium"])
def test_commands_that_touch_a_state_folder_are_private(group: str) -> None:
    from importlib.metadata import entry_points

    from confide.secrecy import private_files

    (entry,) = entry_points(group="confide.commands", name=group)
    assert entry.load().info.callback is private_files


def test_what_is_kept_of_the_records(tmp_path: Path) -> None:
    source, state = tmp_path / "records.jsonl", tmp_path / "state"
    source.write_text("".join(json.dumps({"prompt": f"q{i}", "completion": f"a{i}"}) + "\n" for i in range(8)))
    state.mkdir(mode=0o700)
    DataSets(state).add("notes", source)
    assert len(DataSets(state).load("notes").train)
    assert open_to_others(state) == []


def test_the_coordinators_database_and_its_log(tmp_path: Path) -> None:
    folder = tmp_path / "coordinator"
    folder.mkdir(mode=0o700)
    database = Database(f"sqlite:///{folder / 'coordinator.db'}")
    with database.transaction() as session:
        append_audit(session, {"event": "example"})
        assert {path.name for path in folder.iterdir()} == {f"coordinator.db{end}" for end in ("", "-wal", "-shm")}
        assert open_to_others(folder) == []
    database.close()


def test_a_file_that_is_there_keeps_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("kept")
    private_file(path)
    assert path.read_text() == "kept" and stat.S_IMODE(path.stat().st_mode) == 0o600
