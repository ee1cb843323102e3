"""A secret in a file that only this process's user may read."""

import os
import stat
from pathlib import Path

from confide.errors import StateError

MOST_BYTES = 1024


def read_secret(path: Path, what: str, *, least_bytes: int = 1) -> bytes:
    """The file's bytes without the white space around them, read anew each time. Raises StateError, never with them."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StateError(f"cannot read {what} in {path}: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode) or stat.S_IMODE(mode) & 0o077:
            raise StateError(f"{path} holds {what} and has mode {stat.S_IMODE(mode):o}; `chmod 600` it")
        secret = file.read(MOST_BYTES + 1).strip()
    if not least_bytes <= len(secret) <= MOST_BYTES:
        raise StateError(f"{what} in {path} has {len(secret)} bytes; {least_bytes} to {MOST_BYTES} are needed")
    return secret
