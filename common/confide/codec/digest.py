"""The digest of an upload: what nodes sign over and the coordinator checks. BLAKE3, 32 bytes, one thread.

Payloads of the transport are hashed by it as they come, so that an upload is hashed once and not read for it. What is
short is hashed by SHA-256; BLAKE3 takes a quarter of its time where there are vector units (docs/benchmarks.md). This
module is the only place that names the algorithm.

Guarantee: no two uploads with one digest, against 2^128 evaluations, as for SHA-256 (O'Connor, Aumasson, Neves and
Wilcox-O'Hearn 2020, section 5: a sound tree of a 256-bit compression function, that of BLAKE2s with 7 of 10 rounds).

>>> upload_digest(b"abc").hex()[:16]
'6437b3ac38465133'
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from blake3 import blake3

DIGEST_BYTES = 32
_PIECE = 1 << 18


@dataclass(frozen=True)
class DigestedFile:
    """A file with the digest of its bytes, which were hashed before they were written: nobody reads them for it."""

    path: Path
    digest: bytes

    @classmethod
    def write(cls, path: Path, pieces: Iterable[bytes]) -> Self:
        """Write a new file (0600, not fsynced). Raises OSError; what was written by then stays."""
        made = upload_hash()
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            for piece in pieces:
                made.update(piece)
                file.write(piece)
        return cls(path, made.digest())

    @classmethod
    def read(cls, path: Path) -> Self:
        """A file that is there."""
        return cls(path, upload_file_digest(path))


def upload_hash() -> blake3:
    """A hash to `update` by an upload's bytes in order; `digest()` gives DIGEST_BYTES."""
    return blake3()


def upload_digest(data: bytes | bytearray | memoryview) -> bytes:
    """The digest of an upload in memory."""
    return blake3(data).digest()


def upload_file_digest(path: Path) -> bytes:
    """The digest of an upload's file, read in pieces."""
    made, piece = upload_hash(), bytearray(_PIECE)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(piece):
            made.update(memoryview(piece)[:count])
    return made.digest()
