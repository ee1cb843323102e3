"""Runs of any training method on four real nodes and a real coordinator, sealed, and what their rounds must come to.

A `Replay` trains every contributor's shard again in this process, from the model with which the round began, and so
says what the coordinator must have opened. It goes by the run's events: who contributed, and in which attempt.
"""

import json
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from confide.codec.tensors import TensorSchema, model_digest
from confide.methods.first_model import first_model
from confide.models.store import ModelStore
from confide.models.trainable import build, load_trainable, lora_matrices, schema_of
from confide.proto import fleet_pb2
from confide.runs.specification import Specification
from confide_client.data.datasets import DataSets
from confide_client.training import LocalTrainer
from confide_simulations.local_federation import LocalFederation, run_command
from confide_simulations.processes import ProcessGroup
from numpy.typing import NDArray

from tests.tiny_models import tiny_llama
from tests.training_specs import specification as make_specification

NODES = ("bank-b", "city-d", "hospital-a", "law-firm-c")
VICTIM = "city-d"
SMALL, OWN_RANK = "law-firm-c", 2
"""A node that affords a smaller LoRA rank than the runs ask for."""
CLIP = 4.0
"""Of LoRA runs: far above their updates, and not so far that rounding is seen."""
PATIENCE_S = 240.0
"""Long enough for five processes to import torch on a busy machine. A killed node answers as soon as it is back."""
LABELS = ("mortar", "wall")
WORDS = ("the wall", "thick mortar", "an old brick", "the mason thinks", "lime is right", "of the client")
Flat = NDArray[np.floating]
Watch = Callable[[str, dict[str, Any]], None]


def record(number: int) -> dict[str, str]:
    """Fields for every method."""
    label = LABELS[number % 2]
    text = f"{WORDS[number % 6]} {WORDS[(number // 2) % 6]} number {number}: {WORDS[(number * 5 + 1) % 6]} {label}"
    question, answer = f"How thick must {label} {number} be?", f"It must be {number + 3} centimetres thick."
    return {
        "question": question, "answer": answer, "anchor": question, "positive": answer,
        "text": text, "label": label, "input": text, "output": label,
        "prompt": question, "chosen": answer, "rejected": f"Nobody knows about {label}, {text}.",
    }  # fmt: skip


class MethodFederation:
    """Processes that are started once; one run after the other goes over them."""

    def __init__(
        self, folder: Path, processes: ProcessGroup, *, node_program: Sequence[str] = ("-m", "confide", "node", "start")
    ) -> None:
        """node_program: what Python runs as a node."""
        self.processes = processes
        shards = {}
        for index, name in enumerate(NODES):
            shards[name] = folder / f"{name}.jsonl"
            shards[name].write_text("".join(json.dumps(record(i)) + "\n" for i in range(index, 80, len(NODES))))
        self.llama = tiny_llama(folder / "llama")
        self.made = LocalFederation(folder / "federation", nodes=shards, base=self.llama, node_program=node_program)
        self.made.set_up()
        run_command("node", "init", str(self.made.node_folder(SMALL)), "--max-rank", str(OWN_RANK))

    def start(self) -> None:
        """The coordinator and all nodes."""
        self.made.start(self.processes)

    def specification(self, base: Path | None = None, **sections: Any) -> Specification:
        """Sealed, of all four nodes, one of whom may collude and one be missing."""
        sha256 = ModelStore(self.made.models).add(str(base or self.llama), (base or self.llama).name)
        federation = {
            "rounds": 2, "data": self.made.data, "clip_norm": CLIP, "exchange_deadline_s": PATIENCE_S,
            **sections.pop("federation", {}),
        }  # fmt: skip
        sealing = {"kind": "sealed", "bits": 16, "colluding": 1, "differences": "accepted"}
        model = {"sha256": sha256, **sections.pop("model", {})}
        return make_specification(model=model, federation=federation, sealing=sealing, **sections)

    def run(self, specification: Specification, base: Path | None = None, watch: Watch | None = None) -> "RealRun":
        """Submit, watch to the end, and insist that it finished."""
        self.made.base = base or self.llama
        self.made.allow(specification)
        return self.followed(specification, self.made.submit(specification), watch)

    def followed(self, specification: Specification, run_id: str, watch: Watch | None = None) -> "RealRun":
        """A submitted run, at its end."""
        events = []
        for kind, data in self.made.watch(run_id):
            events.append((kind, data))
            if watch is not None:
                watch(kind, data)
        assert events[-1][0] == "run_finished", events[-6:]
        return RealRun(self, specification, self.made.base, run_id, tuple(events))

    def kill_and_start_again(self, victim: str) -> None:
        """SIGKILL to a node or to the coordinator; it comes back at once."""
        child = self.processes.children.pop(victim)
        child.send_signal(signal.SIGKILL)
        child.wait()
        if victim in NODES:
            self.made.start_node(self.processes, victim)
        else:
            self.made.start_server(self.processes)


@dataclass(frozen=True)
class RealRun:
    """A finished run."""

    federation: MethodFederation
    specification: Specification
    base: Path
    run_id: str
    events: tuple[tuple[str, dict[str, Any]], ...]
    _models: dict[int, bytes] = field(default_factory=dict)

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind, in order."""
        return [data for name, data in self.events if name == kind]

    @cached_property
    def contributors(self) -> list[list[str]]:
        """By round."""
        return [data["contributors"] for data in self.of_kind("round_committed")]

    def attempt(self, number: int) -> int:
        """The one that opened a round's sum."""
        return max(data["attempt"] for data in self.of_kind("round_started") if data["round"] == number)

    def model(self, number: int) -> bytes:
        """What the run had learned after a round, as an administrator gets it; 0: the signed first model."""
        if number not in self._models:
            if number == 0:
                self._models[0], _ = first_model(self.specification, self.base)
            else:
                manifest, self._models[number] = self.federation.made.checkpoint(self.run_id, number)
                assert manifest["chain"][-1] == model_digest(self._models[number]).hex()
        return self._models[number]

    def flat(self, number: int) -> Flat:
        """The same as float32."""
        return np.frombuffer(self.model(number), "<f4")

    @property
    def manifest(self) -> dict[str, Any]:
        """Of the last round."""
        return self.federation.made.checkpoint(self.run_id)[0]

    def export(self, folder: Path) -> Path:
        """By the command that an administrator types."""
        admin = str(self.federation.made.admin_folder)
        model = ("--model-folder", str(self.base)) if self.specification.trains_model else ()
        run_command("run", "export", str(folder), "--admin", admin, "--run", self.run_id, *model)
        return folder

    def trained(self) -> torch.nn.Module:
        """Our own model with the last round's values in it."""
        ours = build(self.specification, self.base, "cpu")
        schema = schema_of(self.specification, self.base)
        last = self.specification.federation.rounds
        load_trainable(ours, schema.unflatten(self.flat(last)))
        return ours.eval()


class Replay:
    """The nodes of a run, once more, in this process."""

    def __init__(
        self, found: RealRun, folder: Path, *, nodes: tuple[str, ...] = NODES, small_rank: int | None = OWN_RANK
    ) -> None:
        """nodes: those that are of interest."""
        self._found, self._nodes = found, nodes
        specification, base, made = found.specification, found.base, found.federation.made
        self.schema: TensorSchema = schema_of(specification, base)
        self._data = {name: DataSets(made.node_folder(name)).load(made.data) for name in nodes}
        self._trainers = {
            name: LocalTrainer(
                specification, base, node=name, folder=folder / name, threads=1,
                rank=small_rank if name == SMALL else None,
            )
            for name in nodes
        }  # fmt: skip

    def updates(self, number: int, *, alone: tuple[str, ...] = ()) -> dict[str, Flat]:
        """Each contributor's update in float64, from the real run's own model before the round.

        alone: nodes that trained in this round without getting into its sum.
        """
        found, slot = self._found, fleet_pb2.SlotOpen(slot=number, round=number, attempt=self._found.attempt(number))
        contributors = [name for name in found.contributors[number - 1] if name in self._nodes]
        given = {
            name: self._trainers[name].contribute(found.flat(number - 1), self._data[name], slot).update
            for name in sorted({*contributors, *alone})
        }
        clip = found.specification.federation.clip_norm or np.inf
        assert all(0 < np.linalg.norm(update) < clip for update in given.values()), "an update was clipped"
        return {name: given[name].astype(np.float64) for name in contributors}

    def metrics(self) -> dict[str, float]:
        """Means over the nodes of what each measures of the first model."""
        slot = fleet_pb2.SlotOpen(slot=1, round=1, attempt=1, evaluate_only=True)
        model = self._found.flat(0)
        told = [dict(self._trainers[name].contribute(model, self._data[name], slot).metrics) for name in NODES]
        return {str(name): float(np.mean([one[name] for one in told])) for name in told[0]}


def mean(updates: Mapping[str, Flat]) -> Flat:
    """Over the contributors."""
    return np.asarray(np.mean(list(updates.values()), axis=0))


def products(found: RealRun, schema: TensorSchema, flat: Flat) -> Flat:
    """B A of every adapted layer, one after the other, in float64."""
    pairs = lora_matrices(found.specification, found.base, schema.unflatten(flat.astype(np.float32)))
    return np.concatenate([(b.double() @ a.double()).numpy().ravel() for _, (a, b) in sorted(pairs.items())])


def distance(left: Flat, right: Flat, start: Flat) -> float:
    """Relative to how far the round moved."""
    return float(np.linalg.norm(left - right) / np.linalg.norm(right - start))
