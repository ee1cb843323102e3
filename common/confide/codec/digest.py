"""The digest of an upload: what nodes sign over and the coordinator checks. BLAKE3, 32 bytes, one thread.

Everything else is hashed by SHA-256; uploads are long, and BLAKE3 takes a quarter of its time where there are vector
units (docs/benchmarks.md). This module is the only place that names the algorithm.

Guarantee: no two uploads with one digest, against 2^128 evaluations, as for SHA-256 (O'Connor, Aumasson, Neves and
Wilcox-O'Hearn 2020, section 5: a sound tree of a 256-bit compression function, that of BLAKE2s with 7 of 10 rounds).

>>> upload_digest(b"abc").hex()[:16]
'6437b3ac38465133'
"""

from collections.abc import Callable
from pathlib import Path

from blake3 import blake3

DIGEST_BYTES = 32
_PIECE = 1 << 18


def upload_hash() -> blake3:
    """A hash to `update` by an upload's bytes in order; `digest()` gives DIGEST_BYTES."""
    return blake3()


def upload_digest(data: bytes | memoryview) -> bytes:
    """The digest of an upload in memory."""
    return blake3(data).digest()


def upload_file_digest(path: Path, *, then: Callable[[int], None] | None = None) -> bytes:
    """The digest of an upload's file, read in pieces. then: what is done with its open descriptor at last."""
    made, piece = upload_hash(), bytearray(_PIECE)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(piece):
            made.update(memoryview(piece)[:count])
        if then is not None:
            then(file.fileno())
    return made.digest()
