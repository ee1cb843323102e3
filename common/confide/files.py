"""Files that survive a crash and that only their owner reads.

>>> from pathlib import Path; import tempfile
>>> path = Path(tempfile.mkdtemp()) / "secret"
>>> write_atomic(path, b"x"); path.read_bytes(), oct(path.stat().st_mode & 0o777)
(b'x', '0o600')
"""

import contextlib
import ctypes
import functools
import hashlib
import mmap
import os
import tempfile
from pathlib import Path
from typing import BinaryIO

from confide.errors import RetryableError

_SYNC_FILE_RANGE_WRITE = 2


def private_folder(path: Path) -> Path:
    """Make `path` a folder of mode 0700 (parents included where missing) and return it."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.chmod(0o700)
    return path


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/confide, which may not exist: what can be made again, of this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "confide"


def fsync_folder(path: Path) -> None:
    """Make a new or renamed entry of the folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Make a file's bytes durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def start_writing(descriptor: int) -> None:
    """Have the kernel begin to write a file's bytes, so that fsync has less to wait for. A hint: nothing is promised.

    Files that are all begun before the first fsync share one commit of the file system (sync_file_range(2), Linux).
    """
    begin = getattr(_libc(), "sync_file_range", None)
    if begin is not None:
        begin(descriptor, ctypes.c_int64(0), ctypes.c_int64(0), ctypes.c_uint(_SYNC_FILE_RANGE_WRITE))


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def mapped(file: BinaryIO) -> memoryview:
    """All bytes of an open file as a view for reading: in memory is what is looked at, and the kernel takes it back.

    The view may outlive the open file. A file that is made shorter meanwhile ends the process: only for own files.
    """
    file.flush()
    if not os.fstat(file.fileno()).st_size:
        return memoryview(b"")  # nothing cannot be mapped
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace `path` by `data` durably: either the old or the new content survives a crash, never a mixture.

    Raises RetryableError when the disk is full or the folder is not writable; the old file is then untouched.
    """
    temporary = None
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_folder(path.parent)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()
        raise RetryableError(
            f"cannot write {path}: {error.strerror}. Free space or fix the folder's rights."
        ) from error


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes in lower-case hex, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
