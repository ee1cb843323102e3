"""Uploads that a coordinator holds on disk until their slot has ended. Memory does not grow with their number."""

import contextlib
import errno
import os
import shutil
from pathlib import Path

from confide.codec.digest import DigestedFile, upload_file_digest
from confide.errors import RetryableError, UpdateError
from confide.files import fsync_file, fsync_folder, private_folder, start_writing

_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}
"""Where the upload came on another file system, or on one without links."""


class UploadStore:
    """Files folder/<slot>/<node>.

    Guarantee: a file that `keep` made has the size and digest that were stated, as long as nobody writes into the
    file that came since it was hashed: it is the same one, under a second name. After a restart `intact` says whether
    it still has.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = private_folder(folder)
        self._unsettled: list[Path] = []

    def path(self, slot: int, node: str) -> Path:
        """Where this upload lies, whether or not it is there."""
        return self._folder.joinpath(str(slot), node)

    def keep(self, slot: int, node: str, payload: DigestedFile, digest: bytes, size: int) -> Path:
        """Take an upload in and check its size and digest. It survives this process now, a power cut after `settle`.

        payload: may be removed afterwards, but not written to. Raises UpdateError or RetryableError; nothing is kept.
        """
        if payload.digest != digest:
            raise UpdateError(f"the upload of {node} does not have the stated hash {digest.hex()[:16]}")
        target = self.path(slot, node)
        try:
            descriptor = os.open(payload.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                actual = os.fstat(descriptor).st_size
                if actual != size:
                    raise UpdateError(f"the upload of {node} has {actual} bytes; this run's layout takes {size}")
                start_writing(descriptor)
                os.fchmod(descriptor, 0o600)
            finally:
                os.close(descriptor)
            _second_name(payload.path, target)
        except OSError as error:
            raise RetryableError(
                f"cannot keep the upload of {node}: {error.strerror}. Free space on the disk."
            ) from error
        self._unsettled.append(target)
        return target

    def settle(self, slot: int) -> None:
        """Make all uploads of a slot that were kept or found intact, and their names, durable."""
        try:
            while self._unsettled:
                fsync_file(self._unsettled[-1])
                self._unsettled.pop()
            fsync_folder(private_folder(self._folder / str(slot)))
        except OSError as error:
            raise RetryableError(f"cannot keep the uploads of slot {slot}: {error.strerror}") from error

    def intact(self, slot: int, node: str, digest: bytes) -> bool:
        """Whether an upload that an earlier process kept is there with its digest."""
        path = self.path(slot, node)
        try:
            found = upload_file_digest(path) == digest
        except OSError:
            return False
        if found:
            self._unsettled.append(path)
        return found

    def erase(self, slot: int) -> None:
        """Forget a slot's uploads."""
        self._unsettled.clear()
        shutil.rmtree(self._folder / str(slot), ignore_errors=True)


def _second_name(source: Path, target: Path) -> None:
    """Link a file, which copies nothing; copy it where it cannot be linked. `target` is whole or not there."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        os.mkdir(target.parent, 0o700)
        _second_name(source, target)
    except FileExistsError:
        os.unlink(target)
        _second_name(source, target)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(mode=0o700, exist_ok=True)
    temporary = target.with_name(f".{target.name}")
    try:
        shutil.copyfile(source, temporary)
        temporary.chmod(0o600)
        temporary.replace(target)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
