"""What is handed out once and kept as a hash only: links, session cookies, API tokens.

>>> handed, kept = new_secret()
>>> kept == digest(handed), len(kept)
(True, 32)
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable

SECRET_BYTES = 32
LINK_VALID_S = 900.0
"""How long a one-time link opens."""


def new_secret() -> tuple[str, bytes]:
    """(what is handed out, 256 random bits in text for addresses and cookies; what is kept)."""
    handed = secrets.token_urlsafe(SECRET_BYTES)
    return handed, digest(handed)


def digest(handed: str) -> bytes:
    """What is kept of it. No salt and no slow hash: nobody guesses 256 bits."""
    return hashlib.sha256(b"confide/v1/handed\0" + handed.encode("utf-8", "replace")).digest()


class OneTimeLink:
    """A link of this process: the first who opens it in time is let in, and nobody after that."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, valid_s: float = LINK_VALID_S) -> None:
        self.handed, kept = new_secret()
        self._kept: bytes | None = kept
        self._clock, self._until = clock, clock() + valid_s

    def open(self, handed: str) -> bool:
        """Whether this is it, for the first time and in time."""
        kept = self._kept
        if kept is None or self._clock() > self._until or not hmac.compare_digest(kept, digest(handed)):
            return False
        self._kept = None
        return True
