"""AES-256-CTR as a stream of little-endian integers: signs of the rotation, randomness of rounding, masks.

Specification: the keystream of a 32-byte key is AES-256 in counter mode over zeros, the 16-byte counter block
starting at 0 and counted big-endian (NIST SP 800-38A, 6.5). Integer i of width 2 or 4 bytes is its bytes
[width * i, width * (i + 1)), little-endian.

Guarantee: pseudo-random to everyone without the key, as long as AES-256 is a pseudo-random permutation and each
key serves one stream of one vector. The nonce is zero, so a key must be derived for exactly one purpose (HKDF
with the slot's context); two vectors under one key reveal their difference.

>>> import numpy as np
>>> Keystream(bytes(32)).fill(np.empty(2, dtype="<u2")).tolist()
[38364, 30912]
"""

import functools
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from confide.errors import UpdateError

KEY_BYTES = 32
_PIECE = 1 << 18


@functools.lru_cache(maxsize=64)
def _zeros(count: int) -> bytes:
    return bytes(count)


def checked_key(key: bytes) -> bytes:
    """The key itself. Raises UpdateError for a wrong length."""
    if len(key) != KEY_BYTES:
        raise UpdateError(f"a keystream key has {len(key)} bytes; AES-256 takes {KEY_BYTES}, derived by HKDF")
    return key


class Keystream:
    """Reads one key's stream from its start, in order. `update_into` releases the interpreter lock."""

    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(algorithms.AES(checked_key(key)), modes.CTR(bytes(16))).encryptor()

    def fill(self, integers: NDArray[Any]) -> NDArray[Any]:
        """Overwrite a contiguous unsigned array by the next integers of the stream, and return it."""
        target = integers.reshape(-1).view("u1").data
        if len(target) <= _PIECE:
            self._cipher.update_into(_zeros(len(target)), target)
            return integers
        for start in range(0, len(target), _PIECE):
            piece = target[start : start + _PIECE]
            self._cipher.update_into(_zeros(len(piece)), piece)
        return integers
