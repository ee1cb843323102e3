"""Uploads that a coordinator holds on disk until their slot has ended. Memory does not grow with their number."""

import contextlib
import os
import shutil
from pathlib import Path

from confide.errors import StateError, UpdateError
from confide.files import fsync_folder, private_folder, sha256_file


class UploadStore:
    """Files folder/<slot>/<node>."""

    def __init__(self, folder: Path) -> None:
        self._folder = private_folder(folder)

    def path(self, slot: int, node: str) -> Path:
        """Where this upload lies, whether or not it is there."""
        return self._folder / str(slot) / node

    def keep(self, slot: int, node: str, payload: Path, sha256: bytes, size: int) -> Path:
        """Copy an upload in, durably, after checking its size and hash. Raises UpdateError or StateError."""
        actual = payload.stat().st_size
        if actual != size:
            raise UpdateError(f"the upload of {node} has {actual} bytes; this run's layout takes {size}")
        target = self.path(slot, node)
        temporary = target.with_name(f".{node}")
        try:
            private_folder(target.parent)
            shutil.copyfile(payload, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            if sha256_file(temporary) != sha256.hex():
                temporary.unlink()
                raise UpdateError(f"the upload of {node} does not have the stated hash {sha256.hex()[:16]}")
            temporary.replace(target)
            fsync_folder(target.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise StateError(f"cannot keep the upload of {node}: {error.strerror}. Free space on the disk.") from error
        return target

    def erase(self, slot: int) -> None:
        """Forget a slot's uploads."""
        shutil.rmtree(self._folder / str(slot), ignore_errors=True)
