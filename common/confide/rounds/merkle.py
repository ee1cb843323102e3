"""Merkle trees of RFC 9162, section 2.1, which are those of RFC 6962: one hash for many entries, and short proofs.

Leaves and inner nodes are hashed with different prefixes, so that no inner node passes for an entry.

>>> entries = [b"a", b"b", b"c"]
>>> leaves = [leaf_hash(entry) for entry in entries]
>>> path = inclusion_path(leaves, 2)
>>> root_of_path(leaf_hash(b"c"), 2, 3, path) == root(leaves)
True
"""

import hashlib
from collections.abc import Sequence

from confide.errors import FailureName, ProtocolFailure

HASH_BYTES = 32
MOST_LEAVES = 1 << 32
_LEAF, _NODE = b"\x00", b"\x01"


def leaf_hash(entry: bytes) -> bytes:
    """SHA-256 of an entry of the tree, 32 bytes."""
    return hashlib.sha256(_LEAF + entry).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(_NODE + left + right).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """MTH of section 2.1.1 over leaf hashes; of none it is the hash of nothing. Time and memory are linear."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    level = list(leaves)
    while len(level) > 1:
        odd = [level[-1]] if len(level) % 2 else []
        level = [_node(*level[i : i + 2]) for i in range(0, len(level) - 1, 2)] + odd
    return level[0]


def inclusion_path(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """PATH of section 2.1.3.1: the hashes beside the way from leaf `index`, 0-based, up to the root."""
    path, level = [], list(leaves)
    while len(level) > 1:
        if (index ^ 1) < len(level):
            path.append(level[index ^ 1])
        odd = [level[-1]] if len(level) % 2 else []
        level = [_node(*level[i : i + 2]) for i in range(0, len(level) - 1, 2)] + odd
        index //= 2
    return path


def root_of_path(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """The root that a path leads to, section 2.1.3.2. Raises MALFORMED for a path that no tree of this size has.

    index: of the leaf, 0-based; size: number of leaves.

    Guarantee: where the result is the root of a tree, the leaf with this hash stands at this index of it, up to
    collisions of SHA-256.
    """
    if not 0 <= index < size <= MOST_LEAVES or any(len(one) != HASH_BYTES for one in path):
        raise _malformed(index, size)
    at, last, found = index, size - 1, leaf
    for sibling in path:
        if last == 0:
            raise _malformed(index, size)
        if at % 2 or at == last:
            found = _node(sibling, found)
            while at % 2 == 0 and at:
                at, last = at // 2, last // 2
        else:
            found = _node(found, sibling)
        at, last = at // 2, last // 2
    if last:
        raise _malformed(index, size)
    return found


def _malformed(index: int, size: int) -> ProtocolFailure:
    return ProtocolFailure(FailureName.MALFORMED, f"no proof for leaf {index} of a tree with {size} leaves")
