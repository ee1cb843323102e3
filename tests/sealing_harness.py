"""Sealed federations in one process, without Flower: the real members and the real collector, message by message.

`Federation.slot()` runs a whole slot; hooks let a test drop nodes at a step, or alter what a lying coordinator or node
says. `kill` and `restart_*` stand for the end of a process: memory goes, the folders stay.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from confide.codec.digest import DigestedFile
from confide.codec.tensors import TensorSchema, model_digest
from confide.errors import ConfideError
from confide.identity.keys import SigningKey
from confide.identity.roster import Roster
from confide.models.sent_coordinates import SentCoordinates
from confide.proto import fleet_pb2
from confide.rounds.outer_step import next_model
from confide.runs.contribution import Contribution
from confide.runs.metrics import Metric
from confide.runs.specification import EXAMPLE, Specification, parse_toml
from confide.sealing.collector.collector import SealedCollector
from confide.sealing.collector.grouped import GroupedCollector
from confide.sealing.member.context import NodeRules
from confide.sealing.member.member import SealedMember
from confide.sealing.member.revealed import Revealed
from confide.sealing.roles import Abandoned, Opened, SlotPlan
from numpy.typing import NDArray

from tests.sealing_rosters import ISSUED_AT, make_roster

RUN = "ab" * 16
Step = fleet_pb2.Step
STEPS: tuple[Step, ...] = (
    fleet_pb2.ADVERTISE,
    fleet_pb2.SHARE,
    fleet_pb2.TRAIN,
    fleet_pb2.CONFIRM,
    fleet_pb2.REVEAL,
)


def names(count: int) -> tuple[str, ...]:
    """hospital-00, hospital-01, ..."""
    return tuple(f"hospital-{number:02d}" for number in range(count))


def specify(
    sealing: str = "", federation: str = "", *, clip: float = 1.0, slots: int = 4, differences: str = "accepted"
) -> Specification:
    """The example specification with some settings changed.

    differences: accepted, so that a test can let members be missing; those of differences of sums refuse them.
    """
    text = EXAMPLE.replace("rounds = 3", "rounds = 100").replace(
        "clip_norm = 12.0", f"clip_norm = {clip}\n{federation}"
    )
    return parse_toml(text + f'\n[sealing]\nslots_per_epoch = {slots}\ndifferences = "{differences}"\n{sealing}\n')


def set_context(member: SealedMember, **values: object) -> None:
    """As if the node had begun with these; nothing but a test changes a context."""
    for name, value in values.items():
        object.__setattr__(member.context, name, value)


@dataclass
class Federation:
    """n members and a collector over one folder.

    alter: (step, node, body) -> body, what the coordinator's lie makes of a question.
    answer: (step, node, body) -> body, what a node's lie makes of its answer.
    groups: each node's group in the roster; with none there is one collector, else one for each group.
    """

    folder: Path
    count: int
    specification: Specification = field(default_factory=specify)
    size: int = 300
    schema: TensorSchema | None = None
    """Of the update; default `size` scalars without names."""
    model: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, dtype="<f4"))
    """The first model; default zeros."""
    rules: NodeRules = field(default_factory=lambda: NodeRules(waive_colluding=True, accept_differences=True))
    now: float = ISSUED_AT + 10.0
    alter: Callable[[Step, str, bytes], bytes] = lambda step, node, body: body
    answer: Callable[[Step, str, bytes], bytes] = lambda step, node, body: body
    groups: Mapping[str, str] = field(default_factory=dict)
    blocks: Mapping[str, str] = field(default_factory=dict)
    run: str = RUN
    keys: dict[str, SigningKey] = field(default_factory=dict)
    """Of the nodes, when those of another run take part again."""
    memories: dict[str, Revealed] = field(default_factory=dict)
    """What nodes have revealed for in other runs; whoever has none begins with this run."""

    def __post_init__(self) -> None:
        self.keys = self.keys or {name: SigningKey.generate() for name in names(self.count)}
        self.roster: Roster = make_roster(self.keys, groups=self.groups, blocks=self.blocks)
        self.schema = self.schema or TensorSchema.unnamed(self.size)
        self.size = self.schema.size
        self.coordinates = SentCoordinates(self.specification, self.schema)
        if not len(self.model):
            self.model = np.zeros(self.size, dtype="<f4")
        self.parent, self.outer_state = b"", b""
        self.slot_number = 0
        self.members: dict[str, SealedMember] = {}
        self.failures: dict[tuple[str, str], ConfideError] = {}
        self.seen: list[tuple[Step, str, bytes, bytes]] = []
        self.payloads: dict[str, bytes] = {}
        self.first = self.model.tobytes()
        self.initial_sha256 = model_digest(self.first)
        for name in self.keys:
            self.start_member(name)
        self.start_collector()

    # ------------------------------------------------------------ processes

    def start_member(self, name: str) -> SealedMember:
        """A node's process begins."""
        self.members[name] = SealedMember(
            specification=self.specification,
            roster=self.roster,
            node=name,
            identity_key=self.keys[name],
            folder=self.folder / name,
            run_id=self.run,
            schema=self.coordinates.schema,
            initial_model_sha256=self.initial_sha256,
            rules=self.rules,
            memory=self.memories[name].on("records") if name in self.memories else None,
            clock=lambda: self.now,
        )
        return self.members[name]

    def start_collector(self) -> None:
        """The coordinator's process begins."""
        kind = GroupedCollector if self.groups else SealedCollector
        self.collector = kind(
            specification=self.specification,
            roster=self.roster,
            folder=self.folder / "coordinator",
            run_id=self.run,
            schema=self.coordinates.schema,
        )

    def kill(self, name: str) -> None:
        """A node's process ends without a word; its locks on its journals go with it."""
        member = self.members.pop(name)
        member.context.log.journal.close()
        member.context.heights.close()
        if name not in self.memories:
            member.context.memory.revealed.close()

    def restart_member(self, name: str) -> SealedMember:
        """Killed, and started again on the same folder."""
        if name in self.members:
            self.kill(name)
        return self.start_member(name)

    def restart_collector(self) -> None:
        """Killed, and started again on the same folder."""
        self.collector.close()
        self.start_collector()

    # ------------------------------------------------------------ messages

    def contribution(self, name: str, plan: fleet_pb2.SlotOpen) -> Contribution:
        """What a node trains: reproducible by name and slot."""
        number = int(name[-2:])
        if plan.evaluate_only:
            return Contribution(np.zeros(0, np.float32), metrics={Metric.EVAL_ACCURACY: 0.5})
        update = np.zeros(self.size, np.float32)
        self.coordinates.scatter(self.coordinates.gather(self.update(name, plan.slot), plan.round), plan.round, update)
        return Contribution(update, metrics={Metric.TRAIN_LOSS: 1.0 + number})

    def update(self, name: str, slot: int) -> NDArray[np.float32]:
        """The update of one node in one slot, of norm 0.9."""
        vector = np.random.default_rng([int(name[-2:]), slot]).normal(size=self.size)
        return (0.9 * vector / np.linalg.norm(vector)).astype(np.float32)

    def plan(self, **changes: object) -> SlotPlan:
        """The next slot's plan."""
        self.slot_number += 1
        fields: dict[str, object] = {
            "slot": self.slot_number,
            "round": self.slot_number,
            "attempt": 1,
            "model_sha256": model_digest(self.model.tobytes()),
            "parent_model_sha256": self.parent,
        }
        return SlotPlan(**(fields | changes))  # type: ignore[arg-type]

    def ask(self, step: Step, node: str, body: bytes) -> tuple[bytes, DigestedFile | None]:
        """One question to one node; raises what the node raises."""
        model = self.first if step == fleet_pb2.ANCHOR else self.model.tobytes()
        made = self.members[node].handle(
            step, self.alter(step, node, body), lambda plan: self.contribution(node, plan), model
        )
        body = self.answer(step, node, made.body)
        if made.payload is not None:
            self.payloads[node] = made.payload.read_bytes()
        return body, None if made.payload is None else DigestedFile.read(made.payload)

    def drive(self, silent: Mapping[Step, Collection[str]] | None = None) -> Opened | Abandoned | None:
        """Ask and answer until the collector has nothing more to ask. `silent` names who fails to answer a step."""
        while (exchange := self.collector.exchange()) is not None:
            for node, body in exchange.bodies.items():
                if node not in self.members or node in (silent or {}).get(exchange.step, ()):
                    self.collector.lost(node, "TransportError", "no answer before the deadline")
                    continue
                try:
                    reply, payload = self.ask(exchange.step, node, body)
                except ConfideError as error:
                    self.failures[node, Step.Name(exchange.step)] = error
                    self.collector.lost(node, error.code, str(error))
                    continue
                self.seen.append((exchange.step, node, body, reply))
                try:
                    self.collector.receive(node, reply, payload)
                except ConfideError as error:
                    self.failures[node, Step.Name(exchange.step)] = error
            self.collector.close_exchange()
        return self.collector.outcome

    def epoch(
        self, present: Collection[str] | None = None, silent: Mapping[Step, Collection[str]] | None = None
    ) -> None:
        """A new epoch, if the collector wants one."""
        here = tuple(sorted(self.members if present is None else present))
        if self.collector.epoch_needed(here):
            self.collector.begin_epoch(here)
            self.drive(silent)

    def slot(
        self,
        silent: Mapping[Step, Collection[str]] | None = None,
        present: Collection[str] | None = None,
        **changes: object,
    ) -> Opened | Abandoned:
        """Epoch where needed, one slot, its end."""
        self.epoch(present, silent)
        self.collector.open_slot(self.plan(**changes))
        outcome = self.drive(silent)
        assert outcome is not None
        self.end(outcome)
        return outcome

    def end(self, outcome: Opened | Abandoned) -> None:
        """Take the outer step, as the coordinator does, and tell everyone."""
        plan = self.collector.resumable
        if isinstance(outcome, Opened) and len(outcome.update_sum) and plan is not None:
            self.parent, data = model_digest(self.model.tobytes()), self.model.tobytes()
            data, self.outer_state = next_model(
                self.specification, self.coordinates, data, self.outer_state, outcome, plan.round
            )
            self.model = np.frombuffer(data, dtype=self.model.dtype)
        message = self.collector.end_message(model_digest(self.model.tobytes()))
        for member in self.members.values():
            member.slot_ended(message)

    def expected_sum(self, contributors: Collection[str], slot: int) -> NDArray[np.float64]:
        """The plain sum of the same updates."""
        return np.sum([self.update(name, slot).astype(np.float64) for name in contributors], axis=0)


def sha256(data: bytes) -> bytes:
    """Shorthand."""
    return hashlib.sha256(data).digest()
