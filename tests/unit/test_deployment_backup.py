"""What server/deploy/backup.py copies, refuses and checks. tests/integration/test_backup.py restores with it."""

import hashlib
import json
import sqlite3
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.deployed_files import SERVER, modes, program


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a coordinator's folder holds, as far as a backup looks at it."""
    folder = tmp_path / "coordinator"
    for name in ("checkpoints", "runs/r", "fleet", "enrolment"):
        (folder / name).mkdir(parents=True)
    (folder / "server.json").write_text('{"bind":"0.0.0.0"}')
    with sqlite3.connect(folder / "coordinator.db") as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE runs (id TEXT)")
    connection.close()
    data = b"weights"
    (folder / "checkpoints" / f"{hashlib.sha256(data).hexdigest()}.bin").write_bytes(data)
    (folder / "checkpoints" / ".half.bin.1.part").write_bytes(b"w")
    for name in (
        "identity.key",
        "receipts.log",
        "runs/r/upload",
        "fleet/fleet.db",
        "addresses.json",
        "enrolment/a.json",
    ):
        (folder / name).write_text(name)
    return folder


def test_a_backup_holds_what_cannot_be_made_anew(folder: Path, tmp_path: Path) -> None:
    backup = program(SERVER / "backup.py")
    target = tmp_path / "backup"
    number = backup.back_up(folder, target)
    copied = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    (checkpoint,) = [name for name in copied if name.startswith("checkpoints/")]
    expected = {"server.json", "identity.key", "receipts.log", "coordinator.db", "enrolment/a.json", "backup.json"}
    assert copied == {*expected, checkpoint}
    assert number == backup.check(target) == len(copied) - 1
    assert modes(target) == {"0o600"} and stat.S_IMODE(target.stat().st_mode) == 0o700
    with pytest.raises(backup.BackupError, match="never written over another"):
        backup.back_up(folder, target)
    (target / "receipts.log").write_text("it was restored, and went on")
    assert backup.back_up(target, tmp_path / "next") == backup.check(tmp_path / "next") == number


def test_a_backup_that_is_not_whole_is_refused(folder: Path, tmp_path: Path) -> None:
    backup = program(SERVER / "backup.py")
    with pytest.raises(backup.BackupError, match="no coordinator's folder"):
        backup.back_up(tmp_path, tmp_path / "x")
    target = tmp_path / "backup"
    backup.back_up(folder, target)
    (target / "identity.key").write_text("another")
    with pytest.raises(backup.BackupError, match="not what was copied"):
        backup.check(target)
    (target / "identity.key").unlink()
    with pytest.raises(backup.BackupError, match="is not in the backup"):
        backup.check(target)
    for damage in (
        "{",
        "[]",
        '{"version": 1}',
        '{"version": 2, "files": {}}',
        '{"version": 1, "files": {"../x": "0"}}',
    ):
        (target / "backup.json").write_text(damage)
        with pytest.raises(backup.BackupError, match="backup"):
            backup.check(target)
    (next((folder / "checkpoints").glob("[0-9a-f]*"))).write_bytes(b"other")
    with pytest.raises(backup.BackupError, match="is damaged: its SHA-256"):
        backup.back_up(folder, tmp_path / "second")
    (folder / "coordinator.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(backup.BackupError, match="cannot be copied"):
        backup.back_up(folder, tmp_path / "third")


def test_a_database_elsewhere_is_dumped_first(folder: Path, tmp_path: Path) -> None:
    backup = program(SERVER / "backup.py")
    (folder / "server.json").write_text('{"database":"postgresql+psycopg://db/confide","checkpoints":"s3://bucket"}')
    with pytest.raises(backup.BackupError, match="pg_dump"):
        backup.back_up(folder, tmp_path / "backup")
    backup.back_up(folder, tmp_path / "backup", database_is_saved=True)
    assert not (tmp_path / "backup" / "coordinator.db").exists() and not (tmp_path / "backup" / "checkpoints").exists()


_NAMES = st.text(max_size=12) | st.sampled_from(
    ["identity.key", "../identity.key", "/etc/passwd", ".", "a" * 300, "\0"]
)
_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | _NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3),
    max_leaves=8,
)
_LISTS = st.binary(max_size=40) | st.one_of(
    _ANYTHING, st.fixed_dictionaries({"version": st.just(1) | _ANYTHING, "files": st.dictionaries(_NAMES, _ANYTHING)})
).map(lambda document: json.dumps(document).encode())


@given(data=_LISTS)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_list_is_judged_and_none_breaks_the_check(data: bytes) -> None:
    backup = program(SERVER / "backup.py")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder)
        (target / "identity.key").write_bytes(b"key")
        (target / "backup.json").write_bytes(data)
        try:
            number = backup.check(target)
        except backup.BackupError:
            return
        assert number == 0 and json.loads(data) == {"version": 1, "files": {}}
