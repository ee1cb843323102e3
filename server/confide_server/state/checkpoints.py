"""Checkpoints: files named by the SHA-256 of what they hold, durable when `put` returns, on any fsspec file system.

>>> import tempfile; store = CheckpointStore(tempfile.mkdtemp())
>>> name = store.put(b"weights", "bin"); store.get(name)
b'weights'
"""

import hashlib
import os
import threading
from pathlib import Path

import fsspec
from confide.errors import RetryableError, StateError
from confide.files import fsync_folder


class CheckpointStore:
    """A folder, given by path or URL (for example s3://bucket/confide, with the fsspec package for it installed)."""

    def __init__(self, url: str) -> None:
        """Create the folder where it is missing. Raises StateError when that is not possible."""
        self.url = url
        self._one = threading.Lock()
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
            self._local = "file" in (self._files.protocol if isinstance(self._files.protocol, tuple) else ())
            self._files.makedirs(self._root, exist_ok=True)
        except (OSError, ValueError, ImportError) as error:
            raise StateError(f"the checkpoint folder {url} cannot be used: {error}") from error

    def put(self, data: bytes | memoryview, kind: str) -> str:
        """Store the bytes and return their name, SHA-256 in hex and `kind`; nothing happens when they are there.

        Raises RetryableError when the disk is full: nothing is left behind then.
        """
        name = f"{hashlib.sha256(data).hexdigest()}.{kind}"
        path = f"{self._root}/{name}"
        # Two processes may store the same bytes at once; a process's threads take turns.
        temporary = f"{self._root}/.{name}.{os.getpid()}.part"
        with self._one:
            self._put(data, path, temporary)
        return name

    def _put(self, data: bytes | memoryview, path: str, temporary: str) -> None:
        try:
            if self._files.exists(path) and self._files.size(path) == len(data):
                return
            with self._files.open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                if self._local:
                    os.fsync(file.fileno())
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

    def get(self, name: str) -> bytes:
        """The bytes of this name. Raises StateError when they are missing or do not hash to it."""
        try:
            data: bytes = self._files.cat_file(f"{self._root}/{name}")
        except OSError as error:
            raise StateError(
                f"the checkpoint {self.url}/{name} cannot be read: {error}. Restore it from a backup."
            ) from error
        if hashlib.sha256(data).hexdigest() != name.partition(".")[0]:
            raise StateError(f"the checkpoint {self.url}/{name} is damaged: it does not hash to its name")
        return data
