"""The roster's nodes as Flower knows them: by key, number and name, and when each was last here.

Everything is in memory. After a restart nobody has been heard yet; who had connected before is told by Flower's state.
"""

import math
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec


@dataclass(frozen=True)
class Node:
    """A node of the roster as Flower knows it."""

    name: str
    node_id: int
    public_key: bytes
    """PEM, as Flower's headers carry it."""
    key: ec.EllipticCurvePublicKey


class KnownNodes:
    """Shared by the port's layers (event loop and threads) and the run driver (a thread)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._nodes: dict[bytes, Node] = {}
        self._ids: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._activations: dict[int, int] = {}
        self._said_goodbye: set[int] = set()
        self._connected_once: set[int] = set()
        self._alive_until: dict[int, float] = {}
        """Until when further heartbeats of a node need not be noted in the database."""
        self._heard: dict[int, float] = {}

    # --- who they are

    def replace(self, nodes: Iterable[Node]) -> None:
        """These are the roster's nodes from now on, and no others."""
        with self._lock:
            self._nodes = {node.public_key: node for node in nodes}
            self._ids = {node.name: node.node_id for node in self._nodes.values()}
            self._names = {node.node_id: node.name for node in self._nodes.values()}

    def all(self) -> tuple[Node, ...]:
        """All known nodes."""
        return tuple(self._nodes.values())

    def of_key(self, public_key: bytes) -> Node | None:
        """The node with this key, as PEM bytes; None when the roster does not have it."""
        return self._nodes.get(public_key)

    def id_of(self, name: str) -> int | None:
        """The known node of this name."""
        return self._ids.get(name)

    def name_of(self, node_id: int) -> str | None:
        """The known node of this number."""
        return self._names.get(node_id)

    # --- when they were here

    def activated(self, node_id: int) -> None:
        """The node began a new connection: what it had pulled before is lost."""
        with self._lock:
            self._activations[node_id] = self._activations.get(node_id, 0) + 1
            self._said_goodbye.discard(node_id)
            self._connected_once.add(node_id)
            self._alive_until.pop(node_id, None)
            self.heard(node_id)

    def activations(self, node_id: int) -> int:
        """How often the node connected since this process started."""
        return self._activations.get(node_id, 0)

    def connected_before(self, node_ids: Iterable[int]) -> None:
        """These connected to an earlier process."""
        self._connected_once.update(node_ids)

    def has_connected(self, node_id: int) -> bool:
        """Whether it ever connected, to this process or an earlier one."""
        return node_id in self._connected_once

    def said_goodbye(self, node_id: int) -> None:
        """A node left by itself: its operator stopped it."""
        with self._lock:
            self._said_goodbye.add(node_id)
            self._alive_until.pop(node_id, None)

    def has_left(self, node_id: int) -> bool:
        """Whether the node said goodbye to this process, and has not come back."""
        return node_id in self._said_goodbye

    def heard(self, node_id: int) -> None:
        """The node asked for something on its connection."""
        self._heard[node_id] = time.monotonic()

    def silent_s(self, node_id: int) -> float:
        """For how long it has not; infinite for one that this process never heard."""
        return time.monotonic() - self._heard.get(node_id, -math.inf)

    def alive(self, node_id: int, lasts_s: float) -> None:
        """A heartbeat of it is noted in the database; those of the next `lasts_s` seconds need not be."""
        self._alive_until[node_id] = time.monotonic() + lasts_s

    def is_alive(self, node_id: int) -> bool:
        """Whether its last heartbeat is noted in the database, and not long ago."""
        return time.monotonic() < self._alive_until.get(node_id, 0.0)
