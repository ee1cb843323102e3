"""Nodes with the real sealing code and a coordinator that lies about who is summed: what it takes from two sums.

The members, their seal logs and node-wide memories are the product's own (confide.sealing). The coordinator is the
product's too, with the one difference that it cares for no block: it puts into epochs and lists whom it likes. Local
training is a small classifier on data made up for each node; which records a step takes, and dropout, come from the
product's own draws.

    world = World(folder, nodes=4)
    first = world.sum(world.run("a"), round=1)
    second = world.sum(world.run("b"), round=1, without={"hospital-03"})     # Refused: BLOCK_SPLIT
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from confide.codec.digest import DigestedFile
from confide.codec.tensors import TensorSchema, model_digest
from confide.errors import ProtocolFailure
from confide.identity.keys import SigningKey
from confide.identity.roster import Roster
from confide.proto import fleet_pb2
from confide.runs.contribution import Contribution
from confide.runs.metrics import Metric
from confide.runs.specification import EXAMPLE, Specification, parse_toml
from confide.sealing.collector.collector import SealedCollector
from confide.sealing.member.context import NodeRules
from confide.sealing.member.member import SealedMember
from confide.sealing.member.revealed import Memory, Revealed
from confide.sealing.roles import Abandoned, Opened, SlotPlan
from numpy.typing import NDArray

from confide_simulations.benchmarks.differences.training import Counter, Learner
from confide_simulations.benchmarks.sealing.protocol import NOW, sealing_roster

Vector = NDArray[np.float32]


class Refused(Exception):
    """The nodes did not let the sum be made; `names` says with which failures."""

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__(", ".join(sorted(names)))
        self.names = names


class Liar(SealedCollector):
    """A coordinator that sums whom it likes, whatever the blocks and whatever was asked before."""

    def __init__(self, **made_of: Any) -> None:
        super().__init__(**made_of)
        self._cohort.guarded = False


@dataclass
class Run:
    """One run of the world: members of all nodes, one lying coordinator."""

    specification: Specification
    members: dict[str, SealedMember]
    collector: Liar
    slot: int = 0


@dataclass(frozen=True)
class Sum:
    """What a coordinator holds of one opened slot."""

    update: Vector
    metric: float
    names: tuple[str, ...]
    slot: int


def specify(
    *, differences: str, reproducible: bool = False, named: Iterable[str] = (), extra: str = ""
) -> Specification:
    """Of a run over all nodes, or over those that are named."""
    cohort = "".join(f'"{name}", ' for name in named)
    text = f"reproducible = {str(reproducible).lower()}\n" + EXAMPLE.replace("rounds = 3", "rounds = 50")
    text = text.replace("clip_norm = 12.0", "clip_norm = 4.0" + (f"\nnodes = [{cohort}]" if cohort else ""))
    return parse_toml(f'{text}\n[sealing]\nslots_per_epoch = 4\ndifferences = "{differences}"\n{extra}\n')


@dataclass
class World:
    """Organizations with their keys, rosters and memories, over all runs; and what the coordinator asks of them."""

    folder: Path
    nodes: int = 4
    differences: str = "refused"
    reproducible: bool = False
    blocks: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    group: str = ""
    """Whose sums are made."""
    steps: int = 8
    """Local steps of a round."""

    def __post_init__(self) -> None:
        self.names = tuple(f"hospital-{number:02d}" for number in range(self.nodes))
        self.keys = {name: SigningKey.generate() for name in self.names}
        self.roster = self.roster_of(self.names)
        self.memories: dict[str, Revealed] = {}
        self.learner: Learner | Counter = Learner(self.names, steps=self.steps)
        self.model = self.learner.first
        self.parent = b""
        self.truth: dict[str, tuple[Vector, float]] = {}
        """By name, what a node contributed last, for comparison. No coordinator knows it."""

    def count_tokens(self, specification: Specification) -> None:
        """The nodes count for a tokenizer from now on, instead of training."""
        self.learner = Counter(specification, self.names)
        self.model = self.learner.first

    def roster_of(self, names: Collection[str], version: int = 1, blocks: Mapping[str, str] | None = None) -> Roster:
        """A roster of these nodes, as the root would sign it."""
        keys = {name: self.keys.setdefault(name, SigningKey.generate()) for name in names}
        return sealing_roster(keys, self.groups, blocks=self.blocks if blocks is None else blocks, version=version)

    def run(self, run_id: str, *, specification: Specification | None = None, roster: Roster | None = None) -> Run:
        """A run that every node of the roster accepted; the model it begins with is the world's."""
        chosen = specification or specify(differences=self.differences, reproducible=self.reproducible)
        roster = roster or self.roster
        identity = (run_id * 32)[:32]
        folder = self.folder / f"{run_id}-{len(list(self.folder.glob('*')))}"
        folder.mkdir(parents=True)
        schema = TensorSchema.unnamed(self.learner.size)
        members = {
            member.name: SealedMember(
                specification=chosen, roster=roster, node=member.name, identity_key=self.keys[member.name],
                folder=folder / member.name, run_id=identity, schema=schema,
                initial_model_sha256=model_digest(self.model),
                rules=NodeRules(accept_differences=True), memory=self._memory(member.name), clock=lambda: NOW + 10.0,
            )
            for member in roster.members
        }  # fmt: skip
        collector = Liar(
            specification=chosen, roster=roster, folder=folder / "coordinator", run_id=identity, schema=schema,
            group=self.group,
        )  # fmt: skip
        return Run(chosen, members, collector)

    def _memory(self, name: str) -> Memory:
        if name not in self.memories:
            self.memories[name] = Revealed(self.folder / f"revealed-{name}.jsonl")
        return self.memories[name].on("records")

    def sum(
        self,
        run: Run,
        *,
        round: int,
        attempt: int = 1,
        present: Collection[str] | None = None,
        without: Collection[str] = (),
        lost_reveals: Collection[str] = (),
        evaluate_only: bool = False,
    ) -> Sum:
        """One slot on the world's model. present: who is in the epoch; without: whose upload the coordinator hides.

        Raises Refused when it opens nothing.
        """
        run.slot += 1
        plan = SlotPlan(
            slot=run.slot, round=round, attempt=attempt, model_sha256=model_digest(self.model),
            parent_model_sha256=self.parent, evaluate_only=evaluate_only,
        )  # fmt: skip
        here = tuple(sorted(self._group(run) if present is None else present))
        failures: set[str] = set()
        run.collector._attendance.excluded.clear()
        run.collector._attendance.renew = True  # a liar makes epochs as it likes
        run.collector.begin_epoch(here)
        self._drive(run, failures, without=(), lost_reveals=())
        run.collector.open_slot(plan)
        outcome = self._drive(run, failures, without=without, lost_reveals=lost_reveals)
        end = run.collector.end_message(plan.model_sha256)
        for member in run.members.values():
            member.slot_ended(end)
        if not isinstance(outcome, Opened):
            raise Refused(frozenset(failures or {outcome.code if outcome else "nothing"}))
        value, _ = outcome.metrics.get(Metric.EVAL_LOSS, (0.0, 0))
        return Sum(np.asarray(outcome.update_sum, np.float32), value, outcome.contributors, plan.slot)

    def _group(self, run: Run) -> list[str]:
        return [name for name in run.members if self.groups.get(name, "") == self.group]

    def _drive(
        self, run: Run, failures: set[str], *, without: Collection[str], lost_reveals: Collection[str]
    ) -> Opened | Abandoned | None:
        while (exchange := run.collector.exchange()) is not None:
            for name, body in exchange.bodies.items():
                hidden = exchange.step == fleet_pb2.TRAIN and name in without
                try:
                    answer = run.members[name].handle(exchange.step, body, partial(self._train, run, name), self.model)
                except ProtocolFailure as error:
                    failures.add(error.code)
                    run.collector.lost(name, "TransportError", "refused")
                    continue
                if hidden or (exchange.step == fleet_pb2.REVEAL and name in lost_reveals):
                    run.collector.lost(name, "TransportError", "hidden by the liar")
                    continue
                payload = None if answer.payload is None else DigestedFile.read(answer.payload)
                run.collector.receive(name, answer.body, payload)
            run.collector.close_exchange()
        return run.collector.outcome

    def _train(self, run: Run, name: str, slot: fleet_pb2.SlotOpen) -> Contribution:
        metric = self.learner.loss(self.model, name)
        if slot.evaluate_only:
            self.truth[name] = np.zeros(0, np.float32), metric
            return Contribution(np.zeros(0, np.float32), metrics={Metric.EVAL_LOSS: metric})
        update = self.learner.train(run.specification, self.model, name, slot, run.members[name].context.folder)
        self.truth[name] = update, metric
        return Contribution(update, metrics={Metric.EVAL_LOSS: metric} if run.specification.trains_model else {})

    def step_by(self, change: Vector) -> None:
        """The next model, as the coordinator claims it."""
        self.parent = model_digest(self.model)
        self.model = (np.frombuffer(self.model, "<f4") + change).astype("<f4").tobytes()

    def close(self) -> None:
        """Release the memories."""
        for memory in self.memories.values():
            memory.close()


def cosine(one: Vector, other: Vector) -> float:
    """Between two vectors; 0 where one of them is zero."""
    norms = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(np.dot(one, other)) / norms if norms else 0.0
