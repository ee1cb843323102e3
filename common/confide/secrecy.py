"""What a process that holds keys, records or masks does first: nothing of it is left where others can read it.

Guarantee: files that any library makes from then on are readable by their owner only (umask 077), a crash writes no
memory to disk (RLIMIT_CORE), and on Linux other processes of the same user can neither attach to this one nor read its
memory (PR_SET_DUMPABLE). Against the machine's administrator, and against swapped memory, it promises nothing.
"""

import ctypes
import logging.handlers
import os
import resource
import sys
from pathlib import Path

_PR_SET_DUMPABLE = 4


def private_files() -> None:
    """What this process and its children write from now on is their owner's alone, a core dump included: there is none.

    For a command that touches a state folder and ends.
    """
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def private_process() -> None:
    """As `private_files`, and nobody attaches to this process. For one that holds secrets while it waits.

    Children inherit umask and limit, and say the rest themselves. Calling it again changes nothing.
    """
    private_files()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def private_file(path: Path) -> None:
    """Make an empty file of mode 0600, or take others' rights from the one that is there, before a library opens it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)


class PrivateLogFile(logging.handlers.RotatingFileHandler):
    """A log in a file of mode 0600, rotated at a size; the older ones are private too."""

    def __init__(self, path: Path, *, max_bytes: int, kept: int) -> None:
        """max_bytes: at which a new file is begun; kept: how many older ones stay. Raises OSError."""
        private_file(path)
        super().__init__(path, maxBytes=max_bytes, backupCount=kept, encoding="utf-8")

    def _open(self):  # type: ignore[no-untyped-def]  # as its base
        private_file(Path(self.baseFilename))
        return super()._open()
