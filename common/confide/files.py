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
import stat
import tempfile
from pathlib import Path
from typing import BinaryIO

from confide.errors import RetryableError

_SYNC_FILE_RANGE_WRITE = 2
_PRIVATE_FOLDER = stat.S_IFDIR | 0o700


def private_folder(path: Path) -> Path:
    """Make `path` a folder of mode 0700 (parents included where missing) and return it."""
    with contextlib.suppress(OSError):
        if os.stat(path).st_mode == _PRIVATE_FOLDER:
            return path
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.chmod(0o700)
    return path


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/confide, which may not exist: what can be made again, of this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "confide"


def fsync_folder(path: Path | str) -> None:
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
    temporary = ""
    folder, name = os.path.split(path)
    try:
        descriptor, temporary = tempfile.mkstemp(dir=folder or ".", prefix=f".{name}.")
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
        fsync_folder(folder or ".")
    except OSError as error:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise RetryableError(
            f"cannot write {path}: {error.strerror}. Free space or fix the folder's rights."
        ) from error


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes in lower-case hex, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
