"""One node of a small consortium in this process, with its runtime and a small trainer of the test's own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from confide import journal
from confide.codec.tensors import TensorSchema
from confide.journal import Journal
from confide.models.store import ModelStore
from confide.proto import fleet_pb2
from confide.runs.contribution import Contribution
from confide.runs.metrics import Metric
from confide.runs.specification import Specification
from confide_client.agent.envelope import pack, unpack
from confide_client.agent.runtime import NodeRuntime
from confide_client.audit.log import Audit
from confide_client.data.datasets import LocalData
from confide_client.runs import approvals
from confide_client.runs.offers import load_offer
from confide_client.runs.records import Record
from confide_client.runs.run import Node
from numpy.typing import NDArray

from tests.node_worlds import Instructions, World, faq, opened
from tests.training_specs import specification

SIZE = 6
MODEL = np.arange(SIZE, dtype="<f4").tobytes()


@dataclass
class ShardTrainer:
    """Adds the number of training records to every scalar; a test can make it fail."""

    trained: list[int] = field(default_factory=list)
    fail: Callable[[], None] = lambda: None
    schema: TensorSchema = field(default_factory=lambda: TensorSchema.of({"w": torch.zeros(SIZE)}))
    scale: float = 1.0
    metrics: dict[Metric, float] = field(default_factory=lambda: {Metric.TRAIN_LOSS: 0.5})

    def contribute(self, model: NDArray[np.float32], data: LocalData, slot: fleet_pb2.SlotOpen) -> Contribution:
        self.fail()
        self.trained.append(slot.slot)
        update = np.full(SIZE, self.scale * len(data.train), dtype=np.float32)
        return Contribution(update, 1.0, self.metrics)


@dataclass
class Bench:
    """One node of a world, its runtime, and a way to ask it."""

    world: World
    spec: Specification
    trainer: ShardTrainer
    runtime: NodeRuntime
    node: Node
    run: Instructions = field(default_factory=Instructions)
    offers: dict[tuple[str, str], fleet_pb2.Offer] = field(default_factory=dict)

    def ask(
        self, instruction: bytes, payload: dict[str, bytes] | None = None
    ) -> tuple[fleet_pb2.Reply, dict[str, bytes]]:
        body, files = unpack(self.runtime.answer(pack(instruction, payload)))
        return opened(body, self.node.member), files

    def failure(self, instruction: bytes, payload: dict[str, bytes] | None = None) -> fleet_pb2.Failure:
        reply, files = self.ask(instruction, payload)
        assert reply.WhichOneof("outcome") == "failure", "an answer came where a failure was expected"
        assert not files, "a failure must carry no payload"
        return reply.failure

    def signed(self, spec: Specification | None = None, model: bytes = MODEL, **changes: Any) -> fleet_pb2.Offer:
        """A freshly signed offer of the run at hand. changes: of World.offer."""
        return self.world.offer(spec or self.spec, model, self.run.run_id, **changes)

    def offer(self, offer: fleet_pb2.Offer | None = None) -> fleet_pb2.OfferAnswer:
        """Offer the run; the same signed submission each time, unless one is given."""
        if offer is None:
            offer = self.offers.setdefault((self.run.run_id, self.spec.digest), self.signed())
        reply, _ = self.ask(self.run.make(fleet_pb2.OFFER, offer.SerializeToString()))
        return fleet_pb2.OfferAnswer.FromString(reply.body)

    def settled_offer(self, offer: fleet_pb2.Offer | None = None) -> fleet_pb2.OfferAnswer:
        """The same as a coordinator does it: again, for as long as the node measures."""
        while (answer := self.offer(offer)).preparing:
            pass
        return answer

    def end(self, failure: str = "", stopped_by: str = "") -> fleet_pb2.Reply:
        """The coordinator says that the run has ended."""
        end = self.world.end(self.run.run_id, failure, stopped_by)
        return self.ask(self.run.make(fleet_pb2.END, end.SerializeToString()))[0]

    def train(self, **changes: Any) -> tuple[fleet_pb2.Reply, dict[str, bytes]]:
        return self.ask(*self.run.slot(MODEL, **changes))

    def again(self) -> "Bench":
        """The same node after its process was killed and started again."""
        self.node.close()
        return Bench(self.world, self.spec, self.trainer, NodeRuntime(self.node), self.node, self.run, self.offers)

    def decide(self, decision: str, reason: str = "") -> None:
        """A person at the node says so of the run that was offered."""
        folder = self.node.state.run(self.run.run_id)
        approvals.decide(folder, load_offer(folder, self.node.member).sha256, decision, reason)

    def record(self) -> Record:
        """What the node's folder says of the run."""
        record = Record.load(self.node.state.run(self.run.run_id))
        assert record is not None
        return record

    def policy(self, old: str, new: str) -> None:
        path = self.node.state.policy
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def events(self) -> list[dict[str, Any]]:
        return journal.read(self.node.state.audit)[0]


def make_store(folder: Path) -> tuple[Path, str]:
    """A model store with one model that nothing loads: (folder, hash)."""
    (folder / "tiny").mkdir()
    (folder / "tiny" / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tiny" / "model.safetensors").write_bytes(bytes([2] + [0] * 7) + b"{}")
    return folder / "store", ModelStore(folder / "store").add(str(folder / "tiny"), "tiny")


@contextmanager
def open_bench(
    folder: Path, store: tuple[Path, str], records: int = 8, clip_norm: float | None = None, **sections: Any
) -> Iterator[Bench]:
    """A node-a with `records` records, a quarter of them for evaluation."""
    world = World.make(folder, ("node-a", "node-b"))
    state = world.equip("node-a", store[1], store[0], faq(folder / "secret-name.jsonl", records))
    trainer = ShardTrainer(metrics={} if sections.get("privacy") else {Metric.TRAIN_LOSS: 0.5})
    node = Node(
        state=state,
        member=world.members["node-a"],
        audit=Audit(Journal(state.audit)),
        make_trainer=lambda *_, **__: trainer,
        schema=lambda *_: TensorSchema.unnamed(SIZE),
        tries=lambda *_: None,
    )
    federation = {"data": "faq", "min_cohort": 2, "clip_norm": clip_norm}
    spec = specification(model={"sha256": store[1]}, federation=federation, **sections)
    bench = Bench(world, spec, trainer, NodeRuntime(node), node)
    try:
        yield bench
    finally:
        bench.runtime.close()
        node.audit.close()


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A store that the tests of a file share."""
    return make_store(tmp_path_factory.mktemp("bench-models"))


@pytest.fixture
def bench(tmp_path: Path, store: tuple[Path, str]) -> Iterator[Bench]:
    """A node of a run without privacy, as most tests ask for it; others open their own."""
    with open_bench(tmp_path, store) as opened_bench:
        yield opened_bench


def allow(bench: Bench, unit: str = "record") -> None:
    """Let the node's policy take a private run of this unit, with a budget of 4."""
    delta, key = bench.spec.privacy.delta, bench.spec.privacy.user_key
    bench.policy('privacy_units = ["none"]', f'privacy_units = ["{unit}"]')
    with bench.node.state.policy.open("a") as file:
        file.write(f"[budgets.faq]\nepsilon = 4.0\ndelta = {delta}\n" + (f'user_key = "{key}"\n' if key else ""))


def kinds(bench: Bench) -> list[str]:
    """Of the lines of the node's ledger, in order."""
    return [body["kind"] for body in bench.node.spending.ledger._journal]
