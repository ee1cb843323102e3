"""Shamir's secret sharing of 32-byte secrets over the prime field of p = 2^256 + 297 (Shamir 1979).

>>> shares = split(bytes(31) + b"k", threshold=2, members=3)
>>> reconstruct({1: shares[0], 3: shares[2]}, threshold=2)[-1:]
b'k'
"""

import functools
import secrets
from collections.abc import Iterable, Mapping
from math import prod

from confide.errors import FailureName, ProtocolFailure

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33


def split(secret: bytes, *, threshold: int, members: int) -> list[bytes]:
    """Shares of member 1, ..., members: values of a random polynomial of degree threshold - 1, 33 bytes big-endian.

    Guarantee: fewer than `threshold` shares are independent of the secret, whoever holds them.
    """
    coefficients = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return [evaluate(coefficients, x).to_bytes(SHARE_BYTES, "big") for x in range(1, members + 1)]


def evaluate(coefficients: list[int], x: int) -> int:
    """The polynomial's value at x modulo p, lowest coefficient first (Horner)."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % PRIME
    return value


def check_share(share: bytes) -> int:
    """The share as a field element. Raises BAD_SHARE for anything that is none."""
    value = int.from_bytes(share, "big")
    if len(share) != SHARE_BYTES or value >= PRIME:
        raise ProtocolFailure(FailureName.BAD_SHARE, f"a share of {len(share)} bytes is no element of the field")
    return value


class Interpolation:
    """What one set of holders needs to open shares, computed once for all the secrets that they hold shares of.

    Shares are field elements by the holder's number (`check_share`).
    """

    def __init__(self, holders: Iterable[int], *, threshold: int) -> None:
        """holders: member numbers (1-based), distinct. Raises QUORUM_SHORT when they are fewer than `threshold`."""
        self._holders = tuple(sorted(holders))
        if len(self._holders) < threshold:
            raise ProtocolFailure(
                FailureName.QUORUM_SHORT, f"{len(self._holders)} shares of a secret; {threshold} are needed"
            )
        self._used = self._holders[:threshold]
        self._at_zero = _at_zero(self._used)
        # The products of these with any polynomial of degree below `threshold` sum to zero (Cascudo and David 2017,
        # SCRAPE, Lemma 1: the dual code). Drawn here, after the shares were given.
        free = [secrets.randbelow(PRIME) for _ in range(len(self._holders) - threshold)]
        self._dual = [
            weight * evaluate(free, x) % PRIME
            for x, weight in zip(self._holders, _inverse_products(self._holders), strict=True)
        ]

    def secret(self, shares: Mapping[int, int]) -> bytes:
        """The secret, from the `threshold` lowest holders. Raises BAD_DEALING when it is not 32 bytes long."""
        total = sum(shares[x] * weight for x, weight in zip(self._used, self._at_zero, strict=True)) % PRIME
        if total >= 1 << (8 * SECRET_BYTES):
            raise ProtocolFailure(FailureName.BAD_DEALING, "the shares do not reconstruct a 32-byte secret")
        return total.to_bytes(SECRET_BYTES, "big")

    def consistent(self, shares: Mapping[int, int]) -> bool:
        """Whether all holders' shares lie on one polynomial of degree below the threshold.

        Guarantee: shares that do not, chosen before this object was made, pass with probability 1/p only.
        """
        return sum(shares[x] * weight for x, weight in zip(self._holders, self._dual, strict=True)) % PRIME == 0


def reconstruct(shares: Mapping[int, bytes], *, threshold: int) -> bytes:
    """The secret from shares by member number (1-based), of which the lowest `threshold` are used.

    Raises QUORUM_SHORT when there are fewer, BAD_DEALING when what they make is not 32 bytes long.
    """
    values = {holder: check_share(share) for holder, share in shares.items()}
    return Interpolation(values, threshold=threshold).secret(values)


# The same members reveal in slot after slot; inverses are most of what opening their shares costs.
@functools.lru_cache(maxsize=8)
def _at_zero(points: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange coefficients at 0: product over others of other / (other - x)."""
    sign = -1 if len(points) % 2 == 0 else 1
    everything = sign * prod(points) % PRIME
    return tuple(
        everything * pow(x, -1, PRIME) * weight % PRIME
        for x, weight in zip(points, _inverse_products(points), strict=True)
    )


@functools.lru_cache(maxsize=8)
def _inverse_products(points: tuple[int, ...]) -> tuple[int, ...]:
    """1 / product over others of (x - other)."""
    return tuple(pow(prod(x - other for other in points if other != x), -1, PRIME) for x in points)
