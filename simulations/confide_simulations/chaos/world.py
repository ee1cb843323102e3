"""One seed: a whole federation in this thread, what goes wrong in it, and what has to hold all the same.

The product's own driver, rounds, collector, run journal, node runtimes and members run over a simulated network, clock
and disk, with one schedule that follows from the seed. The same seed gives the same bytes, in every process that runs
with PYTHONHASHSEED=0.
"""

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from confide.codec.tensors import model_digest
from confide.errors import StateError
from confide.identity.submission import sign_submission
from confide.proto import fleet_pb2, sealing_pb2
from confide_client.runs.run import Node
from confide_server.state.events import Happening, RoundCommitted, data_of
from confide_server.state.runs.service import Submission

from confide_simulations.chaos import invariants
from confide_simulations.chaos.boundary import Boundaries, Killed
from confide_simulations.chaos.chance import Chance, Entropy
from confide_simulations.chaos.consortium import ADMINISTRATOR, BEGAN, COORDINATOR, Ground, consortium_of
from confide_simulations.chaos.coordinator import SimulatedCoordinator
from confide_simulations.chaos.disk import Disk
from confide_simulations.chaos.machine import simulated
from confide_simulations.chaos.mishaps import Mishaps
from confide_simulations.chaos.network import SimulatedLink, Weather
from confide_simulations.chaos.node import SimulatedNode
from confide_simulations.chaos.scenario import Fault, Scenario, draw
from confide_simulations.chaos.timeline import Timeline, TimeOver
from confide_simulations.chaos.training import PARAMETERS
from confide_simulations.chaos.witness import Violation, Witness

LONGEST_S = 4 * 3600.0
"""Virtual time that a seed may take: far above all deadlines, attempts and faults together."""
MOST_EVENTS = 50_000


@dataclass(frozen=True)
class Outcome:
    """Of one seed. ends: how its runs ended. trace: the SHA-256 of everything that happened, in order."""

    seed: int
    ends: tuple[str, ...]
    faults: Mapping[str, int]
    kills: Mapping[str, int]
    violations: tuple[Violation, ...]
    virtual_s: float
    trace: str
    lines: tuple[str, ...] = ()


class World:
    """A seed as it runs."""

    def __init__(self, seed: int, ground: Ground, folder: Path, scenario: Scenario | None = None) -> None:
        """folder: empty; removed by whoever made it."""
        self.seed, self.folder = seed, folder
        self.scenario = scenario or draw(seed, ground.base_sha256)
        self.chance = Chance(seed)
        self.consortium = consortium_of(self.scenario.nodes, self.scenario.groups)
        self.faults: Counter[str] = Counter()
        self.kills: Counter[str] = Counter()
        self.ends: list[str] = []
        self.lines: list[str] = []
        self._ground = ground
        self._running = ""
        self.clocks: dict[str, float] = {}
        """By process, how far its clock is off."""
        self.full: set[str] = set()
        """Processes whose disk has no space left."""
        self.witness = Witness(self.scenario.specification.sealed, dict(self.consortium.groups))
        self.timeline = Timeline(end=LONGEST_S, most_events=MOST_EVENTS, around=lambda: self.as_process(""))
        self.boundaries = Boundaries(lambda: self._running, self._dies)
        self.mishaps = Mishaps(self)
        fragile = {doomed.process for doomed in self.scenario.dooms if doomed.power}
        self.disk = Disk(folder, self.boundaries.reached, lambda: self._running in self.full, fragile)

    # --- whose code runs, and what time it has

    @contextlib.contextmanager
    def as_process(self, name: str) -> Iterator[None]:
        """Within the block this process's code runs; "": the simulation's own."""
        before, self._running = self._running, name
        try:
            yield
        finally:
            self._running = before

    def unix(self) -> float:
        """By the clock of whoever's code runs."""
        return BEGAN + 60.0 + self.timeline.now + self.clocks.get(self._running, 0.0)

    def say(self, what: str) -> None:
        """A line of the trace. Where the seed's folder lies is nothing of the seed's."""
        self.lines.append(f"{self.timeline.now:10.3f}  {what.replace(str(self.folder), '.')}")

    def count(self, fault: Fault) -> None:
        """It happened."""
        self.faults[fault] += 1

    # --- the run of it

    def run(self) -> Outcome:
        """To the end."""
        entropy = Entropy(self.seed)
        with (
            _quiet("confide_server"),
            _quiet("confide_client"),
            simulated(self.disk, self.boundaries, entropy, self.unix, lambda: self.timeline.now),
            self.witness.watching_masks(lambda: self._running),
        ):
            self._build()
            try:
                self._live()
            except TimeOver:
                self.witness.violated("nothing hangs", f"{self.timeline.now:.0f} s, {self.timeline.happened} events")
                self.coordinator.die()
            self._judge()
            self._end()
        trace = sha256("\n".join(self.lines).encode()).hexdigest()
        return Outcome(
            seed=self.seed,
            ends=tuple(self.ends),
            faults=dict(self.faults),
            kills=dict(self.kills),
            violations=tuple(self.witness.violations),
            virtual_s=self.timeline.now,
            trace=trace,
            lines=tuple(self.lines),
        )

    def _build(self) -> None:
        self.nodes = {name: self._node(name) for name in self.consortium.names}
        weather = Weather(
            self.chance.of("network"),
            slow_s=self.scenario.slow_s,
            repeats=self.scenario.repeats,
            loses=self.scenario.loses,
            counted=self.count,
        )
        place = self.folder / COORDINATOR
        self.coordinator = SimulatedCoordinator(
            place,
            self.consortium,
            self._ground,
            timeline=self.timeline,
            boundaries=self.boundaries,
            clock=self.unix,
            full=lambda: self._running in self.full,
            link=lambda: SimulatedLink(self.timeline, self.boundaries, self.nodes, weather, place / "spool"),
            on_event=self._happened,
            on_trouble=lambda run_id, trouble: self.say(f"{COORDINATOR}: {trouble}") if trouble else None,
        )
        self.run_ids = [self._submit() for _ in range(self.scenario.runs)]
        for name in (COORDINATOR, *self.nodes):
            self.disk.settle(self.folder / name)
        self.mishaps.plan(self.scenario)

    def _node(self, name: str) -> SimulatedNode:
        folder = self.folder / name
        self._ground.equip(folder, self.consortium, name, self.scenario.specification)

        def make() -> Node:
            return self._ground.node(folder, self.consortium, name, self.unix)

        return SimulatedNode(
            name,
            folder,
            make=make,
            timeline=self.timeline,
            boundaries=self.boundaries,
            as_process=self.as_process,
            left=self._left,
            on_end=self.witness.forget_answers,
            on_death=self._node_died,
            on_error=self._gave_up,
            random=self.chance.of(f"work/{name}"),
        )

    def _submit(self) -> str:
        model = np.zeros(PARAMETERS, "<f4").tobytes()
        document = self.scenario.specification.canonical_bytes()
        signed = sign_submission(
            self.consortium.keys[ADMINISTRATOR], ADMINISTRATOR, document, model_digest(model), now=self.unix()
        )
        return self.coordinator.submit(Submission(signed=signed, initial_model=model, schema=b""))

    def _live(self) -> None:
        for node in self.nodes.values():
            node.start()
        while not self.coordinator.done:
            try:
                with self.as_process(COORDINATOR):
                    self.coordinator.drive()
            except Killed:
                self.coordinator.die()
                self.mishaps.coordinator_died()
        self.timeline.sleep(60.0)  # what is still under way arrives

    def _judge(self) -> None:
        """Everybody is down, or goes on no more: what has to hold."""
        specification, book = self.scenario.specification, self.coordinator.book()
        for run_id in self.run_ids:
            self.ends.append(book.events(run_id, 0, 0.0)[-1].kind)
            try:
                invariants.check_run(book, self.coordinator.database, run_id, specification, self.witness)
            except StateError as error:
                self.witness.violated("committed rounds", f"{type(error).__name__}: {error}")
        invariants.check_lists(self.witness)
        invariants.check_masks(self.mishaps.restored, self.witness)
        folders = {name: node.folder for name, node in self.nodes.items()}
        if invariants.check_journals(folders.values(), self.witness):
            private = specification.privacy.unit != "none"
            invariants.check_ledgers(folders, self.mishaps.restored, private=private, seen=self.witness)

    def _end(self) -> None:
        for node in self.nodes.values():
            if node.up:
                node.die()
        self.coordinator.die()

    # --- what is seen

    def _happened(self, run_id: str, event: Happening) -> None:
        self.say(f"{run_id[:8]} {event.kind} {data_of(event)}")
        if isinstance(event, RoundCommitted):
            self.witness.round_committed(run_id, event.round, event.model_sha256)

    def rounds_restored(self) -> None:
        """The coordinator's database is an older one: the rounds that it lacks are lost, as docs/deployment.md says."""
        book, kept = self.coordinator.book(), dict[tuple[str, int], str]()
        for run_id in self.run_ids:
            chain = book.checkpoint(run_id, None)[0]["chain"]
            kept |= {(run_id, number): sha256 for number, sha256 in enumerate(chain)}
        self.witness.forget_rounds(kept)

    def _node_died(self, name: str) -> None:
        self.witness.node_died(name)
        self.mishaps.node_died(name)

    def _dies(self, process: str, boundary: str) -> None:
        self.kills[boundary] += 1
        self.mishaps.dies(process, boundary)

    def _gave_up(self, name: str, error: Exception) -> None:
        self.say(f"{name} ends with {type(error).__name__}: {error}")
        if name not in self.full:
            self.witness.violated("named failures", f"{name} ended with {type(error).__name__}: {error}")

    def _left(self, name: str, asked: bytes, answered: bytes, payload: Mapping[str, bytes]) -> None:
        step = fleet_pb2.Step.Name(fleet_pb2.Instruction.FromString(asked).step)
        self.say(f"{name} answers {step}: {sha256(answered).hexdigest()[:16]}")
        private = self.scenario.specification.privacy.unit != "none"
        self.witness.left(name, self.folder / name, private, asked, answered, payload.get("upload"))
        if payload and name in self.mishaps.restored and self.scenario.specification.sealed:
            cohort = sealing_pb2.SealedOpen.FromString(fleet_pb2.Instruction.FromString(asked).body).cohort
            invariants.check_restored(self.folder, name, cohort, self.witness)


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """What fails here is meant to fail; the trace tells it."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
