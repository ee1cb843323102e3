"""Checkpoints: files named by the SHA-256 of what they hold, durable when `put` returns, on any fsspec file system.

On a disk a file is written beside its name and renamed; on S3 it is there, whole, when its upload was completed. Bytes
are hashed, written and read a mebibyte at a time: what the store itself needs of memory does not grow with a model.

>>> import tempfile; store = CheckpointStore(tempfile.mkdtemp())
>>> name = store.put(b"weights", "bin"); store.get(name)
b'weights'
"""

import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
from confide.errors import RetryableError, StateError
from confide.files import fsync_folder, mapped

_WHOLE_AT_ONCE = frozenset({"s3", "s3a", "memory"})
"""Where a file is seen by its name only when it is complete, and renaming means copying."""
_STEP_BYTES = 1 << 20
_PART_BYTES = 16 << 20
"""Of an S3 upload, and what is read ahead there: 10,000 parts make a file."""


@dataclass(frozen=True)
class Stored:
    """A file that is there, also one that was begun and never finished."""

    name: str
    bytes: int


class CheckpointStore:
    """A folder, given by path or URL (for example s3://bucket/confide, with the fsspec package for it installed)."""

    def __init__(self, url: str) -> None:
        """Create the folder where it is missing. Raises StateError when that is not possible."""
        self.url = url
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
            kinds = self._files.protocol
            self._kinds = frozenset(kinds if isinstance(kinds, tuple) else (kinds,))
            self._local = "file" in self._kinds
            self._files.makedirs(self._root, exist_ok=True)
        except (OSError, ValueError, ImportError) as error:
            raise StateError(f"the checkpoint folder {url} cannot be used: {error}") from error

    def put(self, data: bytes | memoryview, kind: str) -> str:
        """Store the bytes and return their name, SHA-256 in hex and `kind`; nothing happens when they are there.

        data: also a view on a file (confide.files.mapped), of which no more than a mebibyte is looked at at once.
        Raises RetryableError when the disk is full: nothing is left behind then.
        """
        view = memoryview(data)
        data = view.cast("B") if view.nbytes else memoryview(b"")
        digest = hashlib.sha256()
        for piece in _pieces(data):
            digest.update(piece)
        name = f"{digest.hexdigest()}.{kind}"
        path = f"{self._root}/{name}"
        # The same bytes may be stored by several at once, threads and processes: each has a file of its own until then.
        whole_at_once = bool(self._kinds & _WHOLE_AT_ONCE)
        own = f".{name}.{os.getpid()}.{secrets.token_hex(4)}.part"
        self._put(data, path, path if whole_at_once else f"{self._root}/{own}")
        return name

    def _put(self, data: memoryview, path: str, temporary: str) -> None:
        try:
            if self._files.exists(path) and self._files.size(path) == len(data):
                return
            with self._files.open(temporary, "wb", block_size=_PART_BYTES) as file:
                for piece in _pieces(data):
                    file.write(piece)
                file.flush()
                if self._local:
                    os.fsync(file.fileno())
            if temporary != path:
                self._files.mv(temporary, path)
            if self._local:
                fsync_folder(Path(self._root))
        except OSError as error:
            self._discard(temporary)
            raise RetryableError(
                f"cannot write the checkpoint {path} of {len(data)} bytes: {error.strerror or error}. "
                "Free space there; the round is not lost and goes on by itself."
            ) from error

    def _discard(self, temporary: str) -> None:
        try:
            self._files.rm(temporary)
        except OSError:
            return

    def remove(self, name: str) -> None:
        """Forget the bytes of this name; nothing happens when they are gone already."""
        self._discard(f"{self._root}/{name}")

    def stored(self) -> list[Stored]:
        """Everything that is there, by name. Raises StateError when that cannot be read."""
        try:
            self._files.invalidate_cache()
            found = self._files.ls(self._root, detail=True)
        except FileNotFoundError:
            return []  # on S3 a folder is there with its first file
        except OSError as error:
            raise StateError(f"the checkpoint folder {self.url} cannot be listed: {error}") from error
        files = [Stored(one["name"].rsplit("/", 1)[-1], one["size"] or 0) for one in found if one["type"] == "file"]
        return sorted(files, key=lambda file: file.name)

    def size(self, name: str) -> int:
        """Bytes of this name. Raises StateError when it is missing."""
        try:
            return int(self._files.size(f"{self._root}/{name}"))
        except OSError as error:
            raise self._unread(name, error) from error

    def chunks(self, name: str, chunk_bytes: int) -> Iterator[bytes]:
        """The bytes of this name, so many at a time. Raises StateError when they are missing, or at the end when they
        do not hash to it: who sends them on breaks off there."""
        digest = hashlib.sha256()
        try:
            with self._files.open(f"{self._root}/{name}", "rb", block_size=_PART_BYTES) as file:
                while chunk := file.read(chunk_bytes):
                    digest.update(chunk)
                    yield chunk
        except OSError as error:
            raise self._unread(name, error) from error
        self._check(name, digest.hexdigest())

    def view(self, name: str) -> memoryview:
        """The bytes of this name, once they hash to it, as a view on a file: in memory is what is looked at.

        What does not lie on this machine is brought into a temporary file. Raises StateError as `chunks` does.
        """
        if self._local:
            for _ in self.chunks(name, _STEP_BYTES):
                pass
            with Path(self._root, name).open("rb") as file:
                return mapped(file)
        with tempfile.TemporaryFile() as copy:
            for chunk in self.chunks(name, _STEP_BYTES):
                copy.write(chunk)
            return mapped(copy)

    def get(self, name: str) -> bytes:
        """The bytes of this name, all in memory. Raises StateError when they are missing or do not hash to it."""
        try:
            data: bytes = self._files.cat_file(f"{self._root}/{name}")
        except OSError as error:
            raise self._unread(name, error) from error
        self._check(name, hashlib.sha256(data).hexdigest())
        return data

    def _unread(self, name: str, error: OSError) -> StateError:
        return StateError(f"the checkpoint {self.url}/{name} cannot be read: {error}. Restore it from a backup.")

    def _check(self, name: str, digest: str) -> None:
        if digest != name.partition(".")[0]:
            raise StateError(f"the checkpoint {self.url}/{name} is damaged: it does not hash to its name")


def _pieces(data: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(data), _STEP_BYTES):
        yield data[start : start + _STEP_BYTES]
