"""Nodes and the way to them in this process's memory: real messages, signatures and protocol, no network, no waiting.

Each node answers one instruction after the other in a thread of its own, as a real one does.
"""

import queue
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from confide.codec.digest import DigestedFile
from confide.errors import TransportError
from confide.proto import fleet_pb2
from confide_server.fleet.port import FleetReply, Presence

from tests.fleet_node import FleetNode, Trainer, invented_update


class QuietNode(FleetNode):
    """A FleetNode that is handed its instructions, for several runs, one at a time."""

    def __init__(self, folder: Path, trainer: Trainer = invented_update, size: int = 0) -> None:
        super().__init__(folder, 0, trainer, size)
        self.online = True
        self.activations = 1
        self.training = ""
        """The run that it trains for just now."""
        self.answers: dict[str, str] = {}
        """How it answers the offer of a run, where it is not `answer_offers`."""
        self.trained: list[tuple[str, int]] = []
        """(run, round) in order."""
        self.on_train: Callable[[str, int], None] = lambda run_id, round: None
        self._members: dict[str, tuple[object, str]] = {}
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        threading.Thread(target=self._work, daemon=True).start()

    def connect(self):  # type: ignore[no-untyped-def]
        """Over nothing."""
        return None

    def stop(self) -> None:
        self._jobs.put(None)

    def give(self, job: Callable[[], None]) -> None:
        self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _handle(self, instruction: fleet_pb2.Instruction, model: bytes) -> tuple[bytes, dict[str, bytes]]:
        run_id = instruction.run_id
        self._member, self._run_id = self._members.get(run_id, (None, ""))  # type: ignore[assignment]
        if instruction.step == fleet_pb2.TRAIN:
            assert not self.training, f"{self.name} trains for {self.training} already"
            self.training = run_id
            round = fleet_pb2.SlotOpen.FromString(instruction.body).round
            self.trained.append((run_id, round))
            self.on_train(run_id, round)
        common, self.answer_offers = self.answer_offers, self.answers.get(run_id, self.answer_offers)
        try:
            return super()._handle(instruction, model)
        finally:
            self.answer_offers = common
            self.training = ""
            if self._member is not None:
                self._members[run_id] = (self._member, self._run_id)


class FakeLink:
    """A confide_server.fleet.port.Link."""

    def __init__(self, nodes: Mapping[str, QuietNode], spool: Path) -> None:
        spool.mkdir()
        self.nodes = dict(nodes)
        self.spool = spool
        self.sessions = 0

    def presence(self) -> dict[str, Presence]:
        return {name: Presence(node.online, node.activations) for name, node in self.nodes.items()}

    def open_session(self, previous_run_id: int | None, reply_limit_bytes: int) -> "FakeSession":
        self.sessions += 1
        return FakeSession(self, self.sessions)


class FakeSession:
    """A confide_server.fleet.port.Session."""

    alive = True

    def __init__(self, link: FakeLink, run_id: int) -> None:
        self.run_id = run_id
        self._link = link
        self._changed = threading.Condition()
        self._open: set[str] = set()
        self._answers: dict[str, FleetReply] = {}
        self._sent = 0

    def send(self, node: str, instruction: bytes, payload: Mapping[str, bytes]) -> str:
        target = self._link.nodes.get(node)
        if target is None or not target.online:
            raise TransportError(f"{node} is not connected")
        self._sent += 1
        message_id = f"{self.run_id}-{self._sent}"
        with self._changed:
            self._open.add(message_id)
        target.give(lambda: self._answer(target, message_id, instruction, payload))
        return message_id

    def _answer(self, node: QuietNode, message_id: str, instruction: bytes, payload: Mapping[str, bytes]) -> None:
        if message_id not in self._open:
            return
        body, upload = node.answer(instruction, payload)
        files = {
            name: DigestedFile.write(self._link.spool / f"{message_id}-{name}", [data]) for name, data in upload.items()
        }
        with self._changed:
            if message_id in self._open:
                self._answers[message_id] = FleetReply(message_id, body, files)
                self._changed.notify_all()

    def replies(self, message_ids: Collection[str], deadline_s: float) -> Iterator[FleetReply]:
        end, waiting = time.monotonic() + deadline_s, set(message_ids)
        while waiting:
            with self._changed:
                self._changed.wait_for(lambda: waiting & set(self._answers), max(0.0, end - time.monotonic()))
                found = sorted(waiting & set(self._answers))
            if not found:
                return
            waiting.discard(found[0])
            self.withdraw_one(found[0], reply := self._answers.pop(found[0]))
            yield reply

    def withdraw_one(self, message_id: str, reply: FleetReply) -> None:
        with self._changed:
            self._open.discard(message_id)

    def withdraw(self, message_ids: Collection[str]) -> None:
        with self._changed:
            self._open -= set(message_ids)

    def end(self) -> None: ...

    def leave(self) -> None: ...
