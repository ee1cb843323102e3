"""The network between one coordinator and its nodes: a confide_server.fleet.port.Link that delays, repeats and loses.

What a real fleet port promises holds here too: an answer belongs to its question, one that was withdrawn is dropped,
a node that connected anew is counted as such. Nothing else does: instructions and answers overtake each other, come
twice, come late, and wait out a partition.
"""

import functools
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Protocol

from confide.codec.digest import DigestedFile
from confide.errors import TransportError
from confide.files import private_folder
from confide.proto import fleet_pb2
from confide_server.fleet.port import FleetReply, Presence

from confide_simulations.chaos.boundary import Boundaries
from confide_simulations.chaos.scenario import Fault
from confide_simulations.chaos.timeline import Timeline

RECONNECT_S = 5.0
"""A node finds a coordinator that was away within this time."""
LAPSE_S = 20.0
"""A node whose heartbeats stay away so long counts as offline."""
_RETRY_S = 1.0


class Station(Protocol):
    """A node, as the network knows it."""

    up: bool
    starts: int
    cut_off_since: float | None

    def take(self, instruction: bytes, payload: Mapping[str, bytes], answered: "Answered") -> None:
        """An instruction came."""


Answered = Callable[[bytes, Mapping[str, bytes]], None]


@dataclass
class Weather:
    """How bad the network is, and what it did."""

    random: Random
    slow_s: float = 0.05
    """Mean delay of a message."""
    repeats: float = 0.0
    """Share of instructions that come twice, the second time late."""
    loses: float = 0.0
    """Share of answers that never come."""
    counted: Callable[[Fault], None] = field(default=lambda what: None)

    def delay_s(self) -> float:
        """Of one message: most are fast, some overtake others by far."""
        return self.random.expovariate(1.0 / self.slow_s)


class SimulatedLink:
    """As one coordinator process knows it; begins with nobody connected."""

    def __init__(
        self,
        timeline: Timeline,
        boundaries: Boundaries,
        stations: Mapping[str, Station],
        weather: Weather,
        spool: Path,
    ) -> None:
        self.timeline, self.boundaries, self.stations, self.weather = timeline, boundaries, stations, weather
        self.spool = private_folder(spool)
        for left in self.spool.iterdir():
            left.unlink()
        self.closed = False
        self._sessions = itertools.count(1)
        self._seen: dict[str, tuple[int, int]] = {}
        """By node: which of its starts connected, and the how manieth connection that is."""
        for name in stations:
            self.look_for(name)

    def look_for(self, name: str) -> None:
        """The node started, or lost its connection: it connects anew soon, once it is up and not cut off."""
        self.timeline.after(self.weather.random.uniform(0.0, RECONNECT_S), lambda: self._connect(name))

    def _connect(self, name: str) -> None:
        station = self.stations[name]
        if self.closed or not station.up:
            return
        if station.cut_off_since is not None:
            self.timeline.after(_RETRY_S, lambda: self._connect(name))
            return
        self._seen[name] = (station.starts, self._seen.get(name, (0, 0))[1] + 1)

    def presence(self) -> dict[str, Presence]:
        """By name."""
        return {name: Presence(self._online(name), self._seen.get(name, (0, 0))[1]) for name in sorted(self.stations)}

    def _online(self, name: str) -> bool:
        station = self.stations[name]
        if name not in self._seen or (station.up and self._seen[name][0] != station.starts):
            return False
        since = station.cut_off_since
        return station.up and (since is None or self.timeline.now - since < LAPSE_S)

    def open_session(self, previous_run_id: int | None, reply_limit_bytes: int) -> "SimulatedSession":
        """A new one: what the last process had under way is gone."""
        return SimulatedSession(self, next(self._sessions))


class SimulatedSession:
    """A confide_server.fleet.port.Session."""

    def __init__(self, link: SimulatedLink, run_id: int) -> None:
        self.run_id = run_id
        self.alive = True
        self._link = link
        self._numbers = itertools.count(1)
        self._open: dict[str, str] = {}
        """The node of each question that is out."""
        self._arrived: dict[str, FleetReply] = {}

    def send(self, node: str, instruction: bytes, payload: Mapping[str, bytes]) -> str:
        """It is on its way when this returns. Raises TransportError when the node is not connected."""
        link, step = self._link, fleet_pb2.Step.Name(fleet_pb2.Instruction.FromString(instruction).step)
        link.boundaries.reached(f"send {step}")
        if not link.presence()[node].online:
            raise TransportError(f"{node} is not connected")
        message_id = f"{self.run_id}-{next(self._numbers)}"
        self._open[message_id] = node
        copies = 1
        if link.weather.random.random() < link.weather.repeats:
            copies = 2
            link.weather.counted(Fault.REPEATED)
        for copy in range(copies):
            delay_s = link.weather.delay_s() + copy * link.weather.random.uniform(0.0, 10.0)
            deliver = functools.partial(self._deliver, message_id, node, instruction, payload, copy > 0)
            link.timeline.after(delay_s, deliver)
        link.boundaries.reached(f"sent {step}")
        return message_id

    def _deliver(
        self, message_id: str, node: str, instruction: bytes, payload: Mapping[str, bytes], again: bool
    ) -> None:
        link, station = self._link, self._link.stations[node]
        if message_id not in self._open and not again and link.weather.random.random() < 0.5:
            return  # withdrawn before it was pulled
        if not station.up or station.cut_off_since is not None:
            if message_id in self._open and not link.closed:
                link.timeline.after(
                    _RETRY_S, lambda: self._deliver(message_id, node, instruction, payload, again)
                )  # fmt: skip
            return
        if message_id not in self._open:
            link.weather.counted(Fault.LATE)
        station.take(instruction, payload, lambda body, upload: self._answer(message_id, node, body, upload))

    def _answer(self, message_id: str, node: str, body: bytes, payload: Mapping[str, bytes]) -> None:
        weather = self._link.weather
        if weather.random.random() < weather.loses:
            weather.counted(Fault.LOST)
            return
        self._link.timeline.after(weather.delay_s(), lambda: self._arrive(message_id, node, body, payload))

    def _arrive(self, message_id: str, node: str, body: bytes, payload: Mapping[str, bytes]) -> None:
        if self._link.closed or message_id not in self._open or message_id in self._arrived:
            return
        if self._link.stations[node].cut_off_since is not None:
            self._link.timeline.after(_RETRY_S, lambda: self._arrive(message_id, node, body, payload))
            return
        files = {
            name: DigestedFile.write(self._link.spool / f"{message_id}-{name}", [data])
            for name, data in payload.items()
        }
        self._arrived[message_id] = FleetReply(message_id, body, files)

    def replies(self, message_ids: Collection[str], deadline_s: float) -> Iterator[FleetReply]:
        """As they arrive; meanwhile everything else happens."""
        end, waiting = self._link.timeline.now + deadline_s, set(message_ids)
        while waiting:
            found = next((one for one in self._arrived if one in waiting), None)
            if found is not None:
                waiting.discard(found)
                self._open.pop(found, None)
                yield self._arrived.pop(found)
            elif not self._link.timeline.step(end):
                return

    def withdraw(self, message_ids: Collection[str]) -> None:
        """A late answer is dropped."""
        for message_id in message_ids:
            self._open.pop(message_id, None)
            late = self._arrived.pop(message_id, None)
            for file in late.payload.values() if late is not None else ():
                file.path.unlink(missing_ok=True)

    def end(self) -> None:
        """Nothing is left to be removed."""

    def leave(self) -> None:
        """Nothing is left to be removed."""
