"""Uploads that a coordinator holds on disk until their slot has ended. Memory does not grow with their number."""

import contextlib
import os
import shutil
from pathlib import Path

from confide.codec.digest import upload_file_digest, upload_hash
from confide.errors import StateError, UpdateError
from confide.files import fsync_folder, private_folder

_PIECE = 1 << 18


class UploadStore:
    """Files folder/<slot>/<node>.

    Guarantee: a file that `keep` made has the size and digest that were stated: the bytes that are hashed are those
    that are written. After a restart `intact` says whether it still has.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = private_folder(folder)

    def path(self, slot: int, node: str) -> Path:
        """Where this upload lies, whether or not it is there."""
        return self._folder / str(slot) / node

    def keep(self, slot: int, node: str, payload: Path, digest: bytes, size: int) -> Path:
        """Copy an upload in and check its size and digest; its bytes are durable, its name after `settle`.

        Raises UpdateError or StateError; nothing is kept then.
        """
        actual = payload.stat().st_size
        if actual != size:
            raise UpdateError(f"the upload of {node} has {actual} bytes; this run's layout takes {size}")
        target = self.path(slot, node)
        temporary = target.with_name(f".{node}")
        try:
            private_folder(target.parent)
            if _copy(payload, temporary) != digest:
                temporary.unlink()
                raise UpdateError(f"the upload of {node} does not have the stated hash {digest.hex()[:16]}")
            temporary.replace(target)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise StateError(f"cannot keep the upload of {node}: {error.strerror}. Free space on the disk.") from error
        return target

    def settle(self, slot: int) -> None:
        """Make the names of all uploads of a slot durable."""
        try:
            fsync_folder(private_folder(self._folder / str(slot)))
        except OSError as error:
            raise StateError(f"cannot keep the uploads of slot {slot}: {error.strerror}") from error

    def intact(self, slot: int, node: str, digest: bytes) -> bool:
        """Whether an upload that an earlier process kept is there with its digest."""
        try:
            return upload_file_digest(self.path(slot, node)) == digest
        except OSError:
            return False

    def erase(self, slot: int) -> None:
        """Forget a slot's uploads."""
        shutil.rmtree(self._folder / str(slot), ignore_errors=True)


def _copy(source: Path, target: Path) -> bytes:
    """Copy and fsync a file; the digest of what was written."""
    made, piece = upload_hash(), memoryview(bytearray(_PIECE))
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with source.open("rb", buffering=0) as file, os.fdopen(descriptor, "wb", buffering=0) as out:
        while count := file.readinto(piece):
            made.update(piece[:count])
            written = 0
            while written < count:
                written += out.write(piece[written:count])
        os.fsync(out.fileno())
    return made.digest()
