"""Several rounds of real training through the real members, collector and outer step: is the aggregate's product the
mean of the nodes' products, before quantisation and, as far as rounding allows, after it?"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confide.codec.digest import DigestedFile
from confide.codec.tensors import model_digest
from confide.identity.keys import SigningKey
from confide.models.sent_coordinates import SentCoordinates
from confide.models.trainable import initial_state
from confide.proto import fleet_pb2
from confide.rounds.outer_step import next_model
from confide.runs.contribution import Contribution
from confide.runs.specification import Specification
from confide.sealing.factory import make_collector, make_member
from confide.sealing.member.context import NodeRules
from confide.sealing.roles import Collector, Member, Opened, SlotPlan
from confide_client.training import LocalTrainer
from confide_simulations.benchmarks.aggregation.error import product_error
from numpy.typing import NDArray

from tests.sealing_rosters import ISSUED_AT, make_roster
from tests.tiny_models import TEXT, tiny_llama
from tests.training_specs import specification

NAMES = ("hospital-a", "hospital-b", "hospital-c", "hospital-d")
RANKS = {"hospital-b": 2, "hospital-d": 3}
ROUNDS = 3
Flat = NDArray[np.float32]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


class Shard:
    """Some words of a text, others for each node."""

    def __init__(self, number: int) -> None:
        words = TEXT.split()[number * 6 :]
        self.train = [{"question": word, "answer": " ".join(words[i : i + 5])} for i, word in enumerate(words[:8])]
        self.evaluation: list[dict[str, Any]] = []
        self.digest = ""


class Rounds:
    """Four nodes, two of them of smaller rank, and a coordinator, in one process."""

    def __init__(self, spec: Specification, base: Path, folder: Path) -> None:
        self.spec, self.base, self.folder = spec, base, folder
        keys = {name: SigningKey.generate() for name in NAMES}
        self.trainers = {
            name: LocalTrainer(spec, base, node=name, folder=folder / name, threads=1, rank=RANKS.get(name))
            for name in NAMES
        }
        self.schema = self.trainers[NAMES[0]].schema
        self.coordinates = SentCoordinates(spec, self.schema)
        self.data = self.schema.encode(initial_state(spec, base))
        self.parent, self.outer_state, roster = b"", b"", make_roster(keys)
        self.collector: Collector = make_collector(spec, roster, folder / "c", "ab" * 16, self.schema)
        self.members: dict[str, Member] = {
            name: make_member(
                spec, roster, name, keys[name], folder / name / "member", "ab" * 16, self.schema,
                initial_model_sha256=model_digest(self.data), rules=NodeRules(), clock=lambda: ISSUED_AT + 10.0,
            )
            for name in NAMES
        }  # fmt: skip
        self.updates: dict[str, Flat] = {}

    def drive(self) -> None:
        while (exchange := self.collector.exchange()) is not None:
            for node, body in exchange.bodies.items():
                answer = self.members[node].handle(exchange.step, body, self.trains(node), self.data)
                self.collector.receive(node, answer.body, answer.payload and DigestedFile.read(answer.payload))
            self.collector.close_exchange()

    def trains(self, node: str) -> Any:
        def train(slot: fleet_pb2.SlotOpen) -> Contribution:
            made = self.trainers[node].contribute(np.frombuffer(self.data, dtype="<f4"), Shard(NAMES.index(node)), slot)
            self.updates[node] = made.update
            return made

        return train

    def round(self, number: int) -> tuple[float, Opened]:
        """(relative error of the aggregate's products, what was opened)."""
        if self.collector.epoch_needed(NAMES):
            self.collector.begin_epoch(NAMES)
            self.drive()
        digest = model_digest(self.data)
        self.collector.open_slot(SlotPlan(number, number, 1, digest, self.parent))
        self.drive()
        opened = self.collector.outcome
        assert isinstance(opened, Opened) and opened.contributors == NAMES
        before = np.frombuffer(self.data, dtype="<f4").astype(np.float64)
        self.data, self.outer_state = next_model(
            self.spec, self.coordinates, self.data, self.outer_state, opened, number
        )
        self.parent = digest
        end = self.collector.end_message(model_digest(self.data))
        for member in self.members.values():
            member.slot_ended(end)
        trained = [before + self.updates[name] for name in NAMES]
        ours = np.frombuffer(self.data, dtype="<f4").astype(np.float64)
        return product_error(self.spec, self.base, self.schema, ours, trained), opened


def run(spec: Specification, base: Path, folder: Path) -> list[float]:
    federation = Rounds(spec, base, folder)
    errors = []
    for number in range(1, ROUNDS + 1):
        error, opened = federation.round(number)
        errors.append(error)
        assert opened.update_sum.shape == (federation.coordinates.count(number),)
        assert max(np.linalg.norm(update) for update in federation.updates.values()) < 2.0, "the clip took a part"
    federation.collector.close()
    return errors


def scheme_of(scheme: str, kind: str) -> Specification:
    return specification(
        adapter={"aggregation": scheme},
        training={"learning_rate": 2e-2, "local_steps": 3},
        federation={"rounds": ROUNDS, "clip_norm": 2.0},
        sealing={"kind": kind},
    )


@pytest.mark.parametrize("scheme", ["ffa", "rolora", "fedsvd", "fedsb"])
def test_the_aggregate_is_the_mean_of_the_products(llama: Path, tmp_path: Path, scheme: str) -> None:
    """Mixed ranks included: two of the four nodes train a smaller one."""
    errors = run(scheme_of(scheme, "none"), llama, tmp_path)
    assert max(errors) < 1e-5, errors


def test_plain_averaging_is_off_by_more_than_a_hundredth(llama: Path, tmp_path: Path) -> None:
    assert max(run(scheme_of("average", "none"), llama, tmp_path)) > 1e-2


@pytest.mark.parametrize("scheme", ["rolora", "fedsvd"])
def test_sealed_the_same_but_for_rounding(llama: Path, tmp_path: Path, scheme: str) -> None:
    """Sixteen bits of norm 2 over a few thousand coordinates; the members' model chain admits every round."""
    errors = run(scheme_of(scheme, "sealed"), llama, tmp_path)
    assert max(errors) < 5e-3, errors
    assert min(errors) > 1e-7, "nothing was rounded: was it sealed?"
