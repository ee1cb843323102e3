"""What a process that holds keys, records or masks does first: nothing of it is left where others can read it.

Guarantee: files that any library makes from then on are readable by their owner only (umask 077), a crash writes no
memory to disk (RLIMIT_CORE), and on Linux other processes of the same user can neither attach to this one nor read its
memory (PR_SET_DUMPABLE). Against the machine's administrator, and against swapped memory, it promises nothing.
"""

import contextlib
import ctypes
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


def close_to_others(folder: Path) -> None:
    """Take everybody else's rights from everything below a folder: of files that a library made with modes of its own.

    Links are not followed, and what disappears meanwhile is no error.
    """
    for where, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(where, name)
            with contextlib.suppress(FileNotFoundError):
                mode = path.lstat().st_mode
                if mode & 0o077 and not path.is_symlink():
                    path.chmod(mode & 0o700)


def private_file(path: Path) -> None:
    """Make an empty file of mode 0600, or take others' rights from the one that is there, before a library opens it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)
