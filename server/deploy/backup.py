"""Copy a coordinator's folder, while it runs or not, so that the copy goes on with its runs elsewhere.

The order makes the copy consistent. The database comes first, by SQLite's own backup: all that it names was durable
before it. Checkpoints come after it: they are named by their SHA-256, never change, and are checked on the way. Left
out is what is made anew: connections and messages in flight, answers to the open slot, locks, caches.

The copy holds private keys: it is 0700 with files 0600, and belongs where keys are kept. Two coordinators must never
run on copies of one folder.

    python backup.py /state/coordinator /backup/2026-11-26
    python backup.py --check /backup/2026-11-26

Restoring is moving: put the copy where the folder was, with the same owner, and start the coordinator.
"""

import argparse
import hashlib
import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

DATABASE = "coordinator.db"
CHECKPOINTS = "checkpoints"
LIST = "backup.json"
MADE_ANEW = {"fleet", "runs", "cache", "addresses.json", "driver.json", LIST, f"{DATABASE}-wal", f"{DATABASE}-shm"}
CHUNK = 1 << 20


class BackupError(Exception):
    """What keeps the copy from being whole."""


def settings_of(folder: Path) -> dict[str, object]:
    """server.json. Raises BackupError where the folder is none of a coordinator."""
    try:
        found = json.loads((folder / "server.json").read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BackupError(f"{folder} is no coordinator's folder: {error}") from error
    if not isinstance(found, dict):
        raise BackupError(f"{folder / 'server.json'} is no JSON object; restore it first")
    return found


def copy_database(source: Path, target: Path) -> None:
    """A consistent copy while others write. Raises BackupError."""
    if not source.exists():
        raise BackupError(f"{source} is missing; has the coordinator been started once?")
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        read_only = sqlite3.connect(f"{source.resolve().as_uri()}?mode=ro", uri=True)
        with closing(read_only) as live, closing(sqlite3.connect(target)) as copy:
            live.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")
            (verdict,) = copy.execute("PRAGMA integrity_check").fetchone()
    except sqlite3.Error as error:
        raise BackupError(f"{source} cannot be copied: {error}") from error
    if verdict != "ok":
        raise BackupError(f"{source} is damaged: {verdict}; keep the last backup")


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_file(source: Path, target: Path) -> None:
    """One file, 0600 in folders of 0700, durable. A journal that grows meanwhile is copied as far as it was."""
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with source.open("rb") as read, os.fdopen(descriptor, "wb") as write:
        shutil.copyfileobj(read, write, CHUNK)
        write.flush()
        os.fsync(write.fileno())


def to_copy(folder: Path, *, checkpoints: bool) -> Iterator[Path]:
    """Relative paths of what is copied after the database, without half-written files, whose names begin with a dot."""
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        top = relative.parts[0]
        if top in MADE_ANEW or top == DATABASE or (top == CHECKPOINTS and not checkpoints):
            continue
        if path.is_file() and not path.is_symlink() and not path.name.startswith("."):
            yield relative


def back_up(folder: Path, target: Path, *, database_is_saved: bool = False) -> int:
    """Copy and write the list of digests; how many files. Raises BackupError, and then leaves the part that it made."""
    settings = settings_of(folder)
    if target.exists():
        raise BackupError(f"{target} is there already; a backup is never written over another: give a new folder")
    if settings.get("database") and not database_is_saved:
        raise BackupError(
            "the database is not in the folder: dump it first (pg_dump), then run this again with --database-is-saved"
        )
    target.mkdir(parents=True, mode=0o700)
    if not settings.get("database"):
        copy_database(folder / DATABASE, target / DATABASE)
    for relative in to_copy(folder, checkpoints=not settings.get("checkpoints")):
        copy_file(folder / relative, target / relative)
    digests = {str(path.relative_to(target)): digest_of(path) for path in sorted(target.rglob("*")) if path.is_file()}
    check_names(digests)
    copied = json.dumps({"version": 1, "files": digests}, indent=1, sort_keys=True).encode()
    (target / LIST).write_bytes(copied)
    (target / LIST).chmod(0o600)
    return len(digests)


def check_names(digests: dict[str, str]) -> None:
    """A checkpoint is named by its digest. Raises BackupError for one that is not what its name says."""
    for name, digest in digests.items():
        path = Path(name)
        if path.parts[0] == CHECKPOINTS and path.name.split(".")[0] != digest:
            raise BackupError(f"{name} is damaged: its SHA-256 is {digest}; the coordinator's disk needs attention")


def listed(target: Path) -> dict[str, str]:
    """The list of a backup: relative path to SHA-256. Raises BackupError."""
    try:
        document = json.loads((target / LIST).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BackupError(f"{target} is no whole backup: {LIST} cannot be read: {error}") from error
    if not isinstance(document, dict) or set(document) != {"version", "files"} or document["version"] != 1:
        raise BackupError(f"{target / LIST} is no list of version 1, which is what this program writes and reads")
    files = document["files"]
    if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
        raise BackupError(f"{target / LIST} does not give a digest for each file; take another backup")
    return files


def check(target: Path) -> int:
    """Compare a backup with its list; how many files. Raises BackupError naming the first that differs."""
    there = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file() and not path.is_symlink()}
    digests = listed(target)
    for name, digest in digests.items():
        if name not in there:
            raise BackupError(f"{name!r} of {target / LIST} is not in the backup; take another one")
        if digest_of(target / name) != digest:
            raise BackupError(f"{target / name} is not what was copied; take another backup")
    return len(digests)


def main() -> None:
    """Copy or check, and say what was done."""
    parser = argparse.ArgumentParser(description="Back up a coordinator's folder, or check a backup.")
    parser.add_argument("folder", type=Path, help="the coordinator's folder; with --check the backup")
    parser.add_argument("target", type=Path, nargs="?", help="new folder for the copy")
    parser.add_argument("--check", action="store_true", help="compare a backup with its list")
    parser.add_argument("--database-is-saved", action="store_true", help="PostgreSQL was dumped before")
    arguments = parser.parse_args()
    os.umask(0o077)
    try:
        if arguments.check:
            print(f"{arguments.folder}: {check(arguments.folder)} files as they were copied")
        elif arguments.target is None:
            raise BackupError("where to? give a new folder for the copy")
        else:
            number = back_up(arguments.folder, arguments.target, database_is_saved=arguments.database_is_saved)
            print(f"{arguments.target}: {number} files; keep it where you keep keys")
    except (BackupError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
