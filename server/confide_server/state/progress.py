"""What nodes say they are doing: the newest word of each, for people to see. Nothing else depends on it.

    board = ProgressBoard(roster)
    board.follow(run_id, ("hospital-a", ...))       # a run that is driven now
    board.take("hospital-a", report)                # from the fleet port: kept, or dropped without a word
    number, reports = board.since(run_id, number)   # for those who watch

It stays in memory. A node may lie about itself here, and about nobody else: a report is signed by the identity key of
the node whose fleet key brought it. There is no text in it, and the numbers are bounded.
"""

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from confide.errors import ConfideError
from confide.identity.keys import verify
from confide.identity.roster import Roster
from confide.proto import fleet_pb2
from confide.transport.envelope import VERSION
from google.protobuf.message import DecodeError

FASTEST_S = 1.0
"""Reports of one node that come sooner after its last one are dropped unread."""
MAX_REPORT_BYTES = 512
MAX_STEPS = 1_000_000
"""As many as training.local_steps may be."""
MAX_SECONDS_LEFT = 30 * 24 * 3600
_PHASES = {
    value: name.removeprefix("PHASE_").lower()
    for name, value in fleet_pb2.Phase.items()
    if value != fleet_pb2.PHASE_UNSPECIFIED
}


@dataclass(frozen=True)
class _Heard:
    number: int
    """Of the board's changes."""
    of_node: int
    """The report's own, which only rises."""
    data: dict[str, Any]


class ProgressBoard:
    """Shared by the fleet port's threads, the run drivers and the control service."""

    def __init__(self, roster: Callable[[], Roster], clock: Callable[[], float] = time.monotonic) -> None:
        self._roster = roster
        self._clock = clock
        self._lock = threading.Lock()
        self._nodes: dict[str, frozenset[str]] = {}
        """Of each run that is followed."""
        self._heard: dict[tuple[str, str], _Heard] = {}
        """By run and node."""
        self._last: dict[str, float] = {}
        self._changes = 0

    def follow(self, run_id: str, nodes: Collection[str]) -> None:
        """From now on reports of these nodes on this run are taken."""
        with self._lock:
            self._nodes[run_id] = frozenset(nodes)

    def leave(self, run_id: str) -> None:
        """The run has ended, or rests."""
        with self._lock:
            self._nodes.pop(run_id, None)
            self._heard = {key: heard for key, heard in self._heard.items() if key[0] != run_id}

    def forget(self, run_id: str, node: str) -> None:
        """The node's work of the moment is done or was given up: what it said last is old."""
        with self._lock:
            self._heard.pop((run_id, node), None)

    def take(self, node: str, report: fleet_pb2.ProgressReport) -> None:
        """Keep what this node signed, if it is new, well-formed and about a run that is followed; else drop it."""
        with self._lock:
            now, known = self._clock(), any(node in nodes for nodes in self._nodes.values())
            if not known or now - self._last.get(node, -FASTEST_S) < FASTEST_S:
                return
            self._last[node] = now
        try:
            said = self._verified(node, report)
        except (ConfideError, DecodeError):
            return
        with self._lock:
            before = self._heard.get((said.run_id, node))
            if node not in self._nodes.get(said.run_id, ()) or (before is not None and said.number <= before.of_node):
                return
            self._changes += 1
            self._heard[said.run_id, node] = _Heard(self._changes, said.number, _data(node, said))

    def working(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """(run id, newest report) of each node that works, by name."""
        with self._lock:
            newest = sorted(self._heard.items(), key=lambda item: item[1].number)
            return {node: (run_id, dict(heard.data)) for (run_id, node), heard in newest}

    def _verified(self, node: str, report: fleet_pb2.ProgressReport) -> fleet_pb2.Progress:
        """Raises ConfideError or DecodeError."""
        if len(report.progress) > MAX_REPORT_BYTES:
            raise DecodeError(f"{len(report.progress)} bytes")
        key = bytes.fromhex(self._roster().member(node).identity_key)
        verify(key, "progress", report.progress, report.signature)
        said = fleet_pb2.Progress.FromString(report.progress)
        if said.version != VERSION or said.node != node or said.phase not in _PHASES or said.step > said.steps:
            raise DecodeError("not a report of this version and node")
        return said

    def since(self, run_id: str, number: int) -> tuple[int, list[dict[str, Any]]]:
        """(number of the newest change, what was heard of this run after change `number`), oldest first."""
        with self._lock:
            if run_id not in self._nodes:
                return number, []
            ours = [one for (run, _), one in self._heard.items() if run == run_id and one.number > number]
            return self._changes, [dict(one.data) for one in sorted(ours, key=lambda one: one.number)]

    def changes(self, number: int) -> tuple[int, list[tuple[str, dict[str, Any]]]]:
        """As `since`, of all runs: (run id, report)."""
        with self._lock:
            newer = [(run, one) for (run, _), one in self._heard.items() if one.number > number]
            return self._changes, [(run, dict(one.data)) for run, one in sorted(newer, key=lambda it: it[1].number)]


def _data(node: str, said: fleet_pb2.Progress) -> dict[str, Any]:
    return {
        "node": node,
        "phase": _PHASES[said.phase],
        "step": min(said.step, MAX_STEPS),
        "steps": min(said.steps, MAX_STEPS),
        "seconds_left": min(said.seconds_left, MAX_SECONDS_LEFT),
    }
