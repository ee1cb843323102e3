"""What carries instructions to nodes and replies back: Flower's fleet port, or a simulation in this machine's memory.

The run driver and all below it know these two roles only. `confide_server.fleet.flower` fills them over the network,
`confide_simulations.simulate.link` with virtual nodes.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Protocol

from confide_server.fleet.flower import FleetReply, Presence, Standing

__all__ = ["FleetReply", "Link", "Presence", "Session", "Standing"]


class Session(Protocol):
    """One live connection to all nodes, for one run."""

    @property
    def run_id(self) -> int:
        """Flower's number of it."""

    @property
    def alive(self) -> bool:
        """False when it lapsed: the driver then opens another one."""

    def send(self, node: str, instruction: bytes, payload: Mapping[str, bytes]) -> str:
        """Send one instruction; returns its message id. Raises TransportError when the node is not connected."""

    def replies(self, message_ids: Collection[str], deadline_s: float) -> Iterator[FleetReply]:
        """Replies as they arrive, one at a time, until all are there or the deadline passed."""

    def withdraw(self, message_ids: Collection[str]) -> None:
        """Nothing is expected for these any more."""

    def end(self) -> None:
        """The run has ended."""

    def leave(self) -> None:
        """Leave it as it is, to be resumed."""


class Link(Protocol):
    """How the nodes of the roster stand, and the way to them."""

    def presence(self) -> dict[str, Presence]:
        """By name."""

    def open_session(self, previous_run_id: int | None, reply_limit_bytes: int) -> Session:
        """Go on with the session of this number where it still lives, else begin one.

        reply_limit_bytes: what a node's one reply may hold at most.
        """
