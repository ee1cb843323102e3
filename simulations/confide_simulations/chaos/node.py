"""One node's process: the product's own runtime, which answers one instruction after the other, dies and comes back."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from random import Random

from confide.proto import fleet_pb2
from confide_client.agent.envelope import pack, unpack
from confide_client.agent.runtime import NodeRuntime
from confide_client.runs.run import Node

from confide_simulations.chaos.boundary import Boundaries, Killed
from confide_simulations.chaos.disk import close_files
from confide_simulations.chaos.network import Answered
from confide_simulations.chaos.timeline import Timeline

TRAINING_S = (0.2, 4.0)
"""How long a node works on a slot, in virtual time."""


class SimulatedNode:
    """A station of the network."""

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        make: Callable[[], Node],
        timeline: Timeline,
        boundaries: Boundaries,
        as_process: Callable[[str], AbstractContextManager[None]],
        left: Callable[[str, bytes, bytes, Mapping[str, bytes]], None],
        on_end: Callable[[str], None],
        on_death: Callable[[str], None],
        on_error: Callable[[str, Exception], None],
        random: Random,
    ) -> None:
        """left: told (name, instruction, reply, payload) of each answer that leaves. on_end: a slot has ended for it.

        on_death: the process is gone.
        """
        self.name, self.folder = name, folder
        self.up, self.starts = False, 0
        self.cut_off_since: float | None = None
        self._make, self._timeline, self._boundaries = make, timeline, boundaries
        self._as_process, self._left, self._on_end = as_process, left, on_end
        self._on_death, self._on_error = on_death, on_error
        self._random = random
        self._runtime: NodeRuntime | None = None
        self._busy_until = 0.0

    def start(self) -> None:
        """The process begins."""
        self._boundaries.born(self.name)
        self.starts += 1
        try:
            with self._as_process(self.name):
                self._runtime = NodeRuntime(self._make())
        except Killed:
            self.die()
            return
        self.up, self._busy_until = True, self._timeline.now

    def die(self) -> None:
        """The process is gone without a word; its files stay, its locks go."""
        self.up, self._runtime = False, None
        close_files(self.folder)
        self._on_death(self.name)

    def kill(self, boundary: str) -> None:
        """From outside, between two instructions."""
        if self.up:
            try:
                with self._as_process(self.name):
                    self._boundaries.kill(self.name, boundary)
            except Killed:
                self.die()

    def take(self, instruction: bytes, payload: Mapping[str, bytes], answered: Answered) -> None:
        """An instruction came: it is answered when those before it are."""
        start = self.starts
        trains = fleet_pb2.Instruction.FromString(instruction).step == fleet_pb2.TRAIN
        takes_s = self._random.uniform(*TRAINING_S) if trains else 0.01
        self._busy_until = max(self._busy_until, self._timeline.now) + takes_s
        self._timeline.after(
            self._busy_until - self._timeline.now, lambda: self._work(start, instruction, payload, answered)
        )

    def _work(self, start: int, instruction: bytes, payload: Mapping[str, bytes], answered: Answered) -> None:
        if not self.up or self.starts != start or self._runtime is None:
            return
        step = fleet_pb2.Step.Name(fleet_pb2.Instruction.FromString(instruction).step)
        if step == "END":
            self._on_end(self.name)
        try:
            with self._as_process(self.name):
                body, upload = unpack(self._runtime.answer(pack(instruction, payload)))
                self._boundaries.reached(f"reply {step}")
                self._left(self.name, instruction, body, upload)
                answered(body, upload)
                self._boundaries.reached(f"replied {step}")
        except Killed:
            self.die()
        except Exception as error:  # the agent's process ends with it, and its service manager starts it again
            self._on_error(self.name, error)
            self.die()
