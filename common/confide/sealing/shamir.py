"""Shamir's secret sharing of 32-byte secrets over the prime field of p = 2^256 + 297 (Shamir 1979).

>>> shares = split(bytes(31) + b"k", threshold=2, members=3)
>>> reconstruct({1: shares[0], 3: shares[2]}, threshold=2)[-1:]
b'k'
"""

import secrets
from collections.abc import Mapping

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


def reconstruct(shares: Mapping[int, bytes], *, threshold: int) -> bytes:
    """The secret from shares by member number (1-based), of which the lowest `threshold` are used.

    Raises QUORUM_SHORT when there are fewer, BAD_DEALING when what they make is not 32 bytes long.
    """
    if len(shares) < threshold:
        raise ProtocolFailure(FailureName.QUORUM_SHORT, f"{len(shares)} shares of a secret; {threshold} are needed")
    points = {x: check_share(shares[x]) for x in sorted(shares)[:threshold]}
    total = sum(value * weight for value, weight in zip(points.values(), _weights(tuple(points)), strict=True)) % PRIME
    if total >= 1 << (8 * SECRET_BYTES):
        raise ProtocolFailure(FailureName.BAD_DEALING, "the shares do not reconstruct a 32-byte secret")
    return total.to_bytes(SECRET_BYTES, "big")


def _weights(points: tuple[int, ...]) -> list[int]:
    """Lagrange coefficients at 0."""
    weights = []
    for x in points:
        numerator = denominator = 1
        for other in points:
            if other != x:
                numerator = numerator * other % PRIME
                denominator = denominator * (other - x) % PRIME
        weights.append(numerator * pow(denominator, -1, PRIME) % PRIME)
    return weights
