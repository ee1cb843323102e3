"""What a disk still holds after a loss of power: real files, and what of them was made durable.

A file's bytes are durable up to the length that it had at its last fsync; a name in a folder, as it was at the folder's
last fsync. `lose_power` takes of everything else a part at random: a name is the old one or the new one, whichever file
it stands for; of bytes that were appended since, some are there, cut anywhere, or are zeros. New folders are there (a
journaling file system writes them with the first file in them that is synced). The
database is elsewhere: its files are SQLite's own business.

It needs Linux: /proc/self/fd, and links.
"""

import errno
import functools
import os
import re
import shutil
import stat
import weakref
from collections.abc import Callable, Collection
from pathlib import Path
from random import Random

from confide.journal import Journal

_OURS = re.compile(r"^\.?(.+?)(\.[A-Za-z0-9_]{8}|\.\d+\.part)?$")
_KINDS = (
    (re.compile(r"^\d+\.reply$"), "reply"),
    (re.compile(r"^\d+\.json$"), "reply note"),
    (re.compile(r"^upload-?\d*$"), "upload"),
    (re.compile(r"^model-[0-9a-f]+$"), "model"),
    (re.compile(r"^\d+-[a-z-]+$"), "dealings"),
    (re.compile(r"^[0-9a-f]{64}\."), "checkpoint"),
)


def kind_of(path: str) -> str:
    """What sort of file this is, for the name of a boundary.

    >>> kind_of("replies/.17.reply.x3k_a9Qz"), kind_of("uploads/3/hospital-a"), kind_of("run.json")
    ('reply', 'kept upload', 'run.json')
    """
    folder, _, name = path.rpartition("/")
    if folder.rpartition("/")[0].endswith("uploads"):
        return "kept upload"
    return _kind(name)


@functools.lru_cache(maxsize=4096)
def _kind(name: str) -> str:
    match = _OURS.match(name) if name.startswith(".") else None
    whole = name if match is None else match.group(1)
    return next((kind for pattern, kind in _KINDS if pattern.match(whole)), whole)


class Disk:
    """Of all processes of one seed, below one folder."""

    def __init__(
        self, root: Path, reached: Callable[[str], None], full: Callable[[], bool], remembered: Collection[str] = ()
    ) -> None:
        """reached: told each boundary. full: whether the disk of the process that runs has no space left.

        remembered: folders below the root that may lose power; what is durable in the others is never asked for.
        """
        self._prefix, self._reached, self._full = f"{root}/", reached, full
        self._remembered = tuple(f"{root}/{name}/" for name in remembered)
        self._kept = root / ".durable"
        self._kept.mkdir()
        self._held: set[int] = set()
        self._entries: dict[str, dict[str, int]] = {}
        """Of each folder that was synced: the names and the files that they stood for."""
        self._sizes: dict[int, int] = {}
        """Of each file that was synced, by its number: how much of it."""

    # --- what the product asks of it

    def fsync(self, descriptor: int) -> None:
        """In place of os.fsync: what it covers is durable when it returns."""
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if not name.startswith(self._prefix):
            return
        found = os.fstat(descriptor)
        folder = stat.S_ISDIR(found.st_mode)
        what = "folder" if folder else kind_of(name)
        self._reached(f"{what} written")
        if self._full():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._remembers(name):
            if folder:
                self._entries[name] = self._names(name)
            else:
                self._sizes[found.st_ino] = found.st_size
        self._reached(f"{what} synced")

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        """In place of os.write, which a full disk cuts short."""
        if self._full() and len(data) > 1:
            _write(descriptor, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return _write(descriptor, data)

    def _remembers(self, path: str) -> bool:
        return f"{path}/".startswith(self._remembered)

    def _names(self, folder: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for entry in os.scandir(folder):
            if entry.is_file(follow_symlinks=False):
                found[entry.name] = entry.inode()
                self._keep(entry)
        return found

    def _keep(self, entry: "os.DirEntry[str]") -> None:
        # A second name, so that the bytes outlive an unlink that power may take back.
        number = entry.inode()
        if number not in self._held:
            os.link(entry.path, f"{self._kept}/{number}")
            self._held.add(number)

    # --- what happens to it

    def settle(self, folder: Path) -> None:
        """Everything below the folder is durable: it was there before."""
        for place, _, _ in os.walk(folder) if self._remembers(str(folder)) else ():
            self._entries[place] = self._names(place)
            for entry in os.scandir(place):
                self._sizes[entry.inode()] = entry.stat(follow_symlinks=False).st_size

    def lose_power(self, folder: Path, random: Random) -> None:
        """Of a process that has died, and its machine with it. Its files below `folder` are what is left of them."""
        if not self._remembers(str(folder)):
            raise ValueError(f"{folder} was not to lose power: what is durable in it is not known")
        for place, _, _ in sorted(os.walk(folder)):
            self._lose_names(place, random)
            for name, number in sorted(self._names(place).items()):
                self._lose_bytes(Path(place) / name, self._sizes.get(number, 0), random)
        self.settle(folder)

    def _lose_names(self, folder: str, random: Random) -> None:
        durable, present = self._entries.get(folder, {}), self._names(folder)
        for name in sorted(set(durable) | set(present)):
            if durable.get(name) == present.get(name) or random.random() < 0.5:
                continue
            Path(folder, name).unlink(missing_ok=True)
            if name in durable:
                os.link(f"{self._kept}/{durable[name]}", Path(folder, name))

    @staticmethod
    def _lose_bytes(path: Path, synced: int, random: Random) -> None:
        size = path.stat().st_size
        if size <= synced:
            return
        kept = synced + random.choice((0, size - synced, random.randrange(size - synced)))
        os.truncate(path, kept)
        if kept < size and random.random() < 0.25:
            os.truncate(path, min(size, kept + random.randrange(1, 64)))

    def copy(self, folder: Path, to: Path) -> None:
        """A backup of a process's folder."""
        shutil.rmtree(to, ignore_errors=True)
        shutil.copytree(folder, to)

    def restore(self, backup: Path, folder: Path) -> None:
        """In place of what is there."""
        self.copy(backup, folder)
        self.settle(folder)


_journals: "weakref.WeakSet[Journal]" = weakref.WeakSet()
"""Whatever holds a file open and locked for as long as its process lives."""


def noting_journals(opened: Callable[[Journal, Path], None]) -> Callable[[Journal, Path], None]:
    """In place of Journal.__init__, `opened`: so that `close_files` knows of them."""

    def open_(self: Journal, path: Path) -> None:
        _journals.add(self)
        opened(self, path)

    return open_


def noting_closed(closed: Callable[[Journal], None]) -> Callable[[Journal], None]:
    """In place of Journal.close, `closed`."""

    def close(self: Journal) -> None:
        _journals.discard(self)
        closed(self)

    return close


def close_files(folder: Path) -> None:
    """A process is gone: the kernel closes what it had open below its folder, and its locks go with them."""
    inside = f"{folder}/"
    for journal in list(_journals):
        if str(journal.path).startswith(inside) and hasattr(journal, "_release"):
            journal.close()


_write = os.write
