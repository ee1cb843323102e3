"""The coordinator's way to virtual nodes: a confide_server.fleet.port.Link over the simulation's engine.

The messages are those of the real federation, byte for byte up to Flower's own numbers; they only never meet a
network. Every node counts as connected; one whose worker died counts as connected anew.
"""

import itertools
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from confide.codec.digest import DigestedFile
from confide.errors import TransportError
from confide.files import private_folder
from confide.proto import fleet_pb2
from confide.sealing.roles import WORK
from confide_client.agent.envelope import pack, unpack
from confide_server.fleet.flower import FleetReply, Presence
from flwr.app import Message, Metadata
from flwr.app.message import make_message

from confide_simulations.simulate.engine import Done, Engine

_COORDINATOR = 1
_TTL_S = 7 * 24 * 3600.0


class SimulatedLink:
    """All virtual nodes of one simulation, always there."""

    def __init__(self, engine: Engine, *, folder: Path, names: Sequence[str], spool: Path) -> None:
        """folder: the population's. spool: where payloads of replies are put down."""
        self._engine = engine
        self._folder = str(folder.resolve())
        self._numbers = {name: number for number, name in enumerate(sorted(names))}
        self._spool = private_folder(spool)
        for left_over in self._spool.iterdir():
            left_over.unlink()

    def presence(self) -> dict[str, Presence]:
        """By name."""
        return {name: Presence(True, self._engine.generation(number)) for name, number in self._numbers.items()}

    def open_session(self, previous_run_id: int | None, reply_limit_bytes: int) -> "SimulatedSession":
        """What an earlier process had under way is gone with it."""
        return SimulatedSession(self._engine, self._folder, self._numbers, self._spool, reply_limit_bytes)


class SimulatedSession:
    """A confide_server.fleet.port.Session."""

    alive = True

    def __init__(
        self, engine: Engine, folder: str, numbers: Mapping[str, int], spool: Path, reply_limit_bytes: int
    ) -> None:
        self.run_id = time.time_ns() % 2**62
        self._engine, self._folder, self._numbers, self._spool = engine, folder, numbers, spool
        self._reply_limit_bytes = reply_limit_bytes
        self._counter = itertools.count(1)
        self._last: tuple[bytes, Mapping[str, bytes], Message] | None = None

    def send(self, node: str, instruction: bytes, payload: Mapping[str, bytes]) -> str:
        """Queue the instruction at the node's worker; returns the job's id."""
        if node not in self._numbers:
            raise TransportError(f"{node} is not a node of this simulation")
        if self._last is None or self._last[0] != instruction or self._last[1] is not payload:
            self._last = (instruction, payload, self._message(instruction, payload))
        return self._engine.submit(self._folder, node, number=self._numbers[node], message=self._last[2])

    def _message(self, instruction: bytes, payload: Mapping[str, bytes]) -> Message:
        """One for all nodes that are asked the same: whom it is for stands in each one's Context."""
        trains = fleet_pb2.Instruction.FromString(instruction).step in WORK
        metadata = Metadata(
            run_id=self.run_id,
            message_id=str(next(self._counter)),
            src_node_id=_COORDINATOR,
            dst_node_id=0,
            reply_to_message_id="",
            group_id="",
            created_at=time.time(),
            ttl=_TTL_S,
            message_type="train.confide" if trains else "query.confide",
        )
        return make_message(metadata=metadata, content=pack(instruction, payload))

    def replies(self, message_ids: Collection[str], deadline_s: float) -> Iterator[FleetReply]:
        """Replies as they come. A node whose worker died is passed over: the courier asks it anew."""
        end = time.monotonic() + deadline_s
        waiting = list(message_ids)
        while waiting and (done := self._engine.wait(waiting, end - time.monotonic())) is not None:
            waiting.remove(done.job)
            if done.reply is not None or done.error:
                yield self._reply(done)

    def _reply(self, done: Done) -> FleetReply:
        if done.reply is None:
            return FleetReply(done.job, b"", {}, fault=done.error)
        try:
            body, payload = unpack(done.reply.content)
        except TransportError as error:
            return FleetReply(done.job, b"", {}, fault=str(error))
        if sum(map(len, payload.values())) > self._reply_limit_bytes:
            return FleetReply(done.job, b"", {}, fault=f"the reply is larger than {self._reply_limit_bytes} bytes")
        files: dict[str, DigestedFile] = {}
        for name, data in payload.items():
            files[name] = DigestedFile.write(self._spool / f"{done.job}-{len(files)}", [data])
        return FleetReply(done.job, body, files)

    def withdraw(self, message_ids: Collection[str]) -> None:
        """A late reply is dropped with its job."""
        self._engine.forget(list(message_ids))

    def end(self) -> None:
        """Nothing is left to be removed."""

    def leave(self) -> None:
        """Nothing is left to be removed."""
