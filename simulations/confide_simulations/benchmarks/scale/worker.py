"""One size of `confide bench scale`, in this process: an epoch, its first slot and a later one, each phase timed.

    python -m confide_simulations.benchmarks.scale.worker NODES PARAMETERS GROUP

The members' CPU time is taken apart from the coordinator's, which is all the rest. Peak memory is of the whole process:
collector, all members and what travels between them.
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from confide.codec.digest import DigestedFile
from confide.codec.tensors import TensorSchema, model_digest
from confide.identity.keys import SigningKey
from confide.proto import fleet_pb2
from confide.rounds.outer_step import OuterStep
from confide.runs.contribution import Contribution
from confide.runs.sections import Outer
from confide.runs.specification import EXAMPLE, parse_toml
from confide.sealing.factory import make_collector
from confide.sealing.member.context import NodeRules
from confide.sealing.member.member import SealedMember
from confide.sealing.roles import Answer, Exchange, Opened, SlotPlan

from confide_simulations.benchmarks.scale.command import PHASES
from confide_simulations.benchmarks.sealing.protocol import NOW, RUN, sealing_roster
from confide_simulations.simulate.population import grouped

_STEPS = {
    fleet_pb2.ADVERTISE: "advertise",
    fleet_pb2.SHARE: "share",
    fleet_pb2.TRAIN: "upload",
    fleet_pb2.CONFIRM: "confirm",
    fleet_pb2.REVEAL: "reveal",
}
_SLOTS = 4
_NORM = 0.9


class ScaleRun:
    """All organizations of one size."""

    def __init__(self, nodes: int, parameters: int, group: int, folder: Path) -> None:
        text = EXAMPLE.replace("clip_norm = 12.0", "clip_norm = 1.0")
        self._specification = parse_toml(f"{text}\n[sealing]\nslots_per_epoch = {_SLOTS}\n")
        names = [f"organization-{number:04d}" for number in range(nodes)]
        keys = {name: SigningKey.generate() for name in names}
        roster = sealing_roster(keys, grouped(names, -(-nodes // group)))
        self._names, self._size = tuple(names), parameters
        self._model = np.zeros(parameters, dtype="<f4")
        schema = TensorSchema.unnamed(parameters)
        self._collector = make_collector(self._specification, roster, folder / "coordinator", RUN, schema)
        self._members = {
            name: SealedMember(
                specification=self._specification,
                roster=roster,
                node=name,
                identity_key=keys[name],
                folder=folder / name,
                run_id=RUN,
                schema=schema,
                initial_model_sha256=model_digest(self._model.tobytes()),
                rules=NodeRules(waive_colluding=True),
                clock=lambda: NOW + 10.0,
            )
            for name in names
        }
        self.groups = len(roster.groups)
        self._parent = b""
        self.start()

    def start(self) -> None:
        """Count anew."""
        self.nodes_s, self.coordinator_s = dict.fromkeys(PHASES, 0.0), dict.fromkeys(PHASES, 0.0)
        self.message_bytes = 0

    def epoch(self) -> None:
        """All groups' epochs."""
        self._timed("advertise", lambda: self._collector.begin_epoch(self._names))
        self._drive()

    def slot(self, number: int) -> None:
        """A slot, the outer step and the end. Checks that everybody is in the sum, and the sum."""
        digest = model_digest(self._model.tobytes())
        plan = SlotPlan(slot=number, round=number, attempt=1, model_sha256=digest, parent_model_sha256=self._parent)
        self._timed("upload", lambda: self._collector.open_slot(plan))
        self._drive()
        opened = self._collector.outcome
        if not isinstance(opened, Opened) or opened.contributors != self._names:
            raise AssertionError(f"the slot did not open with everybody: {opened}")
        mean = opened.update_sum / opened.weight_sum
        expected = np.mean([_update(name, self._size) for name in self._names], axis=0, dtype=np.float64)
        if np.linalg.norm(mean - expected) > 1e-3 * _NORM:
            raise AssertionError("the opened mean is not the mean of the updates")
        step, self._parent = OuterStep(Outer(), b""), digest
        self._timed("outer_step", lambda: self._take(step, opened))
        end = self._collector.end_message
        ended: list[fleet_pb2.End] = []
        self._timed("end", lambda: ended.append(end(model_digest(self._model.tobytes()))))
        for member in self._members.values():
            began = time.process_time()
            member.slot_ended(ended[0])
            self.nodes_s["end"] += time.process_time() - began

    def _take(self, step: OuterStep, opened: Opened) -> None:
        self._model = step.apply(self._model, opened.update_sum, opened.weight_sum).astype("<f4")

    def _timed(self, phase: str, work: Any) -> Any:
        began = time.process_time()
        result = work()
        self.coordinator_s[phase] += time.process_time() - began
        return result

    def _drive(self) -> None:
        while True:
            began = time.process_time()
            exchange = self._collector.exchange()
            asked = time.process_time() - began
            if exchange is None:
                return
            phase = _STEPS[exchange.step]
            self.coordinator_s[phase] += asked
            for name, body in exchange.bodies.items():
                self._ask(phase, exchange, name, body)
            # What is decided once all have answered: of the last exchange that is opening the sum.
            closing = "open" if exchange.step == fleet_pb2.REVEAL else phase
            self._timed(closing, self._collector.close_exchange)

    def _ask(self, phase: str, exchange: Exchange, name: str, body: bytes) -> None:
        began = time.process_time()
        answer = self._members[name].handle(
            exchange.step, body, lambda _: Contribution(_update(name, self._size)), self._model.tobytes()
        )
        self.nodes_s[phase] += time.process_time() - began
        self.message_bytes += len(body) + len(answer.body)
        if answer.payload is not None:
            self.message_bytes += answer.payload.stat().st_size
        self._timed(phase, lambda: self._receive(name, answer))

    def _receive(self, name: str, answer: Answer) -> None:
        payload = None if answer.payload is None else DigestedFile.read(answer.payload)
        self._collector.receive(name, answer.body, payload)

    def figures(self, nodes: int) -> dict[str, Any]:
        """Since `start`."""
        return {
            "phases_s": {phase: round(value, 4) for phase, value in self.coordinator_s.items()},
            "nodes_s": {phase: round(value, 4) for phase, value in self.nodes_s.items()},
            "coordinator_s": round(sum(self.coordinator_s.values()), 4),
            "one_node_s": round(sum(self.nodes_s.values()) / nodes, 5),
            "message_mib": round(self.message_bytes / 2**20, 3),
        }


def _update(name: str, size: int) -> Any:
    vector = np.random.default_rng(int(name[-4:])).standard_normal(size, dtype=np.float32)
    return vector * np.float32(_NORM / np.linalg.norm(vector))


def measure(nodes: int, parameters: int, group: int) -> dict[str, Any]:
    """An epoch with its first slot, then a later slot of the same epoch."""
    with tempfile.TemporaryDirectory(prefix="confide-scale-") as folder:
        warm = ScaleRun(3, parameters, group, Path(folder) / "warm")  # compiles
        warm.epoch()
        warm.slot(1)
        run = ScaleRun(nodes, parameters, group, Path(folder) / "measured")
        began = time.monotonic()
        run.epoch()
        run.slot(1)
        first = run.figures(nodes) | {"wall_s": round(time.monotonic() - began, 2)}
        run.start()
        run.slot(2)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        found = {"nodes": nodes, "groups": run.groups, **first, "later_slot": run.figures(nodes)}
        return found | {"peak_mib": round(peak, 1)}


if __name__ == "__main__":
    # Every member holds its seal log open.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print(json.dumps(measure(*map(int, sys.argv[1:4]))))
