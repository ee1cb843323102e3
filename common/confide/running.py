"""One process at a time, and whether the one that was there still runs.

>>> runs(mark())
True
>>> runs({**mark(), "started": "0 long ago"}), runs({})  # a later process of the same number is another one
(False, False)
"""

import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from confide.errors import StateError


class Held(StateError):
    """Another process holds it."""


def hold(path: Path, refusal: str) -> int:
    """A descriptor of the file, made where there is none (mode 0600), that this process alone holds until it is closed.

    Raises Held, with the words of `refusal`, while another process has it, and StateError where files cannot be locked.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise Held(refusal) from error
    except OSError as error:
        os.close(descriptor)
        raise StateError(f"{path} cannot be locked: {error.strerror}; keep it on a disk whose files can be") from error
    return descriptor


def mark() -> dict[str, Any]:
    """This process, to be told apart from every other one, also after a restart of the machine: {"pid", "started"}."""
    return {"pid": os.getpid(), "started": _started(os.getpid())}


def runs(marked: Mapping[str, Any]) -> bool:
    """Whether the process that wrote this `mark` runs; one without "started", of an earlier release, goes by number."""
    pid = marked.get("pid")
    if not isinstance(pid, int) or pid < 1:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's
    return marked.get("started", "") in {"", _started(pid)}


def _started(pid: int) -> str:
    """When the kernel started it: clock ticks since the boot, and which boot. Empty where there is no /proc."""
    try:
        # Field 22 of proc(5); the second, in brackets, may hold anything.
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        return f"{ticks} {Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
    except (OSError, IndexError):
        return ""
