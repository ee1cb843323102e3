"""Where the order of records, dropout and masked positions come from: a secret of this node, or a public seed.

Two updates of one node on nearly the same model are nearly the same when their training takes the same records in the
same order. Whoever subtracts two sums would then be left with almost exactly what one of them lacks. So the draws of a
run come from a key that never leaves the node, and no two slots share one. A run that says `reproducible` draws from
its seed instead, which everybody knows: for simulations, and where a policy allows it.
"""

import secrets
from pathlib import Path

from confide import canonical
from confide.errors import StateError
from confide.files import private_folder, write_atomic
from confide.models import seeds
from confide.proto import fleet_pb2
from confide.runs.specification import Specification

KEY_NAME = "draws.key"
_KEY_BYTES = 32


class Draws:
    """Seeds of one node in one run."""

    def __init__(self, specification: Specification, node: str, key: bytes = b"") -> None:
        """key: this node's secret; empty: the draws follow from the specification's seed and the node's name."""
        self._seed, self._node, self._key = specification.seed, node, key

    @classmethod
    def of(cls, specification: Specification, node: str, folder: Path) -> "Draws":
        """As the specification says; the key lies in `folder`, the run's own at this node, and goes with it.

        Raises StateError when it is damaged.
        """
        if specification.reproducible:
            return cls(specification, node)
        path = private_folder(folder) / KEY_NAME
        if not path.exists():
            write_atomic(path, secrets.token_bytes(_KEY_BYTES))
        key = path.read_bytes()
        if len(key) != _KEY_BYTES:
            raise StateError(f"{path} has {len(key)} bytes instead of {_KEY_BYTES}; remove it")
        return cls(specification, node, key)

    def order(self, number: int, slot: fleet_pb2.SlotOpen) -> int:
        """A 63-bit seed of pass `number` over the shard; a retried round has another."""
        return self._derive("shuffle", self._node, number, slot.attempt)

    def local(self, slot: fleet_pb2.SlotOpen) -> int:
        """A 63-bit seed of everything else that is drawn in a slot."""
        secret = (slot.slot,) if self._key else ()
        return self._derive("local", self._node, slot.round, slot.attempt, *secret)

    def _derive(self, *names: str | int) -> int:
        if not self._key:
            return seeds.derive(self._seed, *names)
        fields = (str(name).encode() for name in names)
        return int.from_bytes(canonical.hash_fields("confide/v1/draws", self._key, *fields)[:8], "big") >> 1
