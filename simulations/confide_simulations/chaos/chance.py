"""What is left to chance in one seed: a stream for each purpose, so that one more draw here moves nothing there.

>>> Chance(7).of("network").random() == Chance(7).of("network").random()
True
"""

import hashlib
import random


class Chance:
    """Of one seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._streams: dict[str, random.Random] = {}

    def of(self, purpose: str) -> random.Random:
        """The purpose's stream; it goes on where it was."""
        if purpose not in self._streams:
            self._streams[purpose] = random.Random(f"{self.seed}/{purpose}")
        return self._streams[purpose]


class Entropy:
    """Bytes for what asks the operating system for some: SHA-256 in counter mode over the seed. Not for secrets.

    >>> Entropy(1).token_bytes(4) == Entropy(1).token_bytes(4), len(Entropy(1).token_hex(3))
    (True, 6)
    """

    def __init__(self, seed: int) -> None:
        self._key = f"chaos/{seed}/".encode()
        self._count = 0

    def token_bytes(self, size: int | None = None) -> bytes:
        """As secrets.token_bytes."""
        wanted, made = 32 if size is None else size, b""
        while len(made) < wanted:
            made += hashlib.sha256(self._key + self._count.to_bytes(8, "big")).digest()
            self._count += 1
        return made[:wanted]

    def token_hex(self, size: int | None = None) -> str:
        """As secrets.token_hex."""
        return self.token_bytes(size).hex()

    def randbelow(self, bound: int) -> int:
        """As secrets.randbelow, with a bias below 2^-64."""
        return int.from_bytes(self.token_bytes((bound.bit_length() + 7) // 8 + 8), "big") % bound
