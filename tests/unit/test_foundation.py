"""Canonical bytes, journals, atomic files: what everything else trusts."""

import contextlib
import errno
import subprocess
import sys
from pathlib import Path

import pytest
from confide import canonical, journal
from confide.errors import RetryableError, StateError
from confide.files import write_atomic
from hypothesis import given
from hypothesis import strategies as st

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_canonical_bytes_do_not_depend_on_order(document: dict) -> None:
    shuffled = dict(reversed(list(document.items())))
    try:
        data = canonical.encode(document)
    except UnicodeEncodeError:  # a lone surrogate has no UTF-8 form: refused, not guessed
        return
    assert canonical.encode(shuffled) == data


def test_canonical_refuses_what_is_not_json() -> None:
    with pytest.raises(ValueError):
        canonical.encode({"x": float("nan")})


def test_field_boundaries_change_the_hash() -> None:
    assert canonical.hash_fields("d", b"ab", b"c") != canonical.hash_fields("d", b"a", b"bc")
    assert canonical.hash_fields("d", b"a") != canonical.hash_fields("da")


def _three(path: Path) -> None:
    log = journal.Journal(path)
    for number in range(3):
        log.append({"n": number})
    log.close()


@pytest.mark.parametrize("damage", ["edit", "swap", "remove_first", "remove_middle"])
def test_a_tampered_journal_is_detected(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "log"
    _three(path)
    lines = path.read_bytes().splitlines(keepends=True)
    changed = {
        "edit": [lines[0], lines[1].replace(b'"n":1', b'"n":7'), lines[2]],
        "swap": [lines[1], lines[0], lines[2]],
        "remove_first": lines[1:],
        "remove_middle": [lines[0], lines[2]],
    }[damage]
    path.write_bytes(b"".join(changed))
    with pytest.raises(StateError, match=r"line \d"):
        journal.Journal(path)


def test_a_line_cut_by_a_crash_is_dropped_and_the_journal_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log"
    _three(path)
    path.write_bytes(path.read_bytes()[:-5])
    log = journal.Journal(path)
    assert [entry["n"] for entry in log] == [0, 1]
    log.append({"n": 9})
    log.close()
    assert [entry["n"] for entry in journal.read(path)[0]] == [0, 1, 9]


def test_a_journal_has_one_owner(tmp_path: Path) -> None:
    first = journal.Journal(tmp_path / "log")
    with pytest.raises(StateError, match="in use"):
        journal.Journal(tmp_path / "log")
    first.close()


def test_an_empty_journal_is_made_durable_by_whoever_opens_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    real = journal.fsync_folder

    def fails(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as inner:
        inner.setattr(journal, "fsync_folder", fails)
        with pytest.raises(RetryableError, match=r"cannot make .*Free space"):
            journal.Journal(tmp_path / "log")
    monkeypatch.setattr(journal, "fsync_folder", lambda folder: (synced.append(folder), real(folder))[1])
    log = journal.Journal(tmp_path / "log")
    assert synced == [tmp_path], "its maker did not get as far"
    log.append({"entry": 1})
    log.close()
    journal.Journal(tmp_path / "log").close()
    assert synced == [tmp_path]


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_a_journal_or_a_named_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("journal") / "log"
    path.write_bytes(data)
    with contextlib.suppress(StateError):
        journal.read(path)


def test_write_atomic_is_private_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    code = (
        "import resource, signal, sys; from pathlib import Path; from confide.files import write_atomic\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"write_atomic(Path({str(path)!r}), b'x' * 100000)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode != 0
    assert "RetryableError: cannot write" in done.stderr
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_journal_that_nobody_closes_is_released_with_its_owner(tmp_path: Path) -> None:
    journal.Journal(tmp_path / "journal").append({"entry": 1})
    again = journal.Journal(tmp_path / "journal")
    assert len(again) == 1
    again.close()
    again.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        again.append({"entry": 2})
