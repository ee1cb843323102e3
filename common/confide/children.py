"""Child processes that do not outlive their parent, even when it is killed.

>>> import subprocess, sys
>>> subprocess.run(bound([sys.executable, "-c", "print('alive')"]), capture_output=True, text=True).stdout
'alive\\n'
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

# Runs before the program, in its process: be killed should the parent die in a way that runs no clean-up, and end at
# once if it died already. A launcher, and no preexec_fn: Python code between fork and exec can wait for ever for a lock
# that another thread of the parent held.
_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""


def bound(command: Sequence[str]) -> list[str]:
    """The command, made to die with this process where the kernel can do that (Linux: PR_SET_PDEATHSIG).

    The kernel counts the thread that starts the child as its parent: start it from one that lives as long as is wanted,
    or by `start`.
    """
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """subprocess.Popen of a command that ends with this process, and not with the thread that asks for it.

    Raises what Popen raises.
    """

    def started() -> subprocess.Popen[bytes]:
        return subprocess.Popen(bound(command), **options)

    return _starter().submit(started).result()


@cache
def _starter() -> ThreadPoolExecutor:
    """One thread, which is there until the process ends."""
    return ThreadPoolExecutor(1, thread_name_prefix="starter")
