"""A coordinator that lets a node's work fail after training: nothing of what was not charged may be in a later update.

Optimizer state and fragments stay on the node between rounds. Work whose draw was never spent leaves them too, and its
draw serves the next slot: whoever went on from them would release the steps of two slots for the price of one.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from confide.codec.tensors import model_digest
from confide.journal import Journal
from confide.models.store import ModelStore
from confide.models.trainable import initial_state, schema_of
from confide.privacy.charging import LedgerCosts
from confide_client.agent.runtime import NodeRuntime
from confide_client.audit.log import Audit
from confide_client.runs.loading import trainers_of
from confide_client.runs.run import Node
from confide_client.training import LocalTrainer

from tests.node_bench import Bench, ShardTrainer, allow, kinds
from tests.node_worlds import World, faq
from tests.tiny_models import tiny_llama
from tests.training_specs import specification

PRIVACY = {"unit": "record", "epsilon": 3.0, "delta": 1e-5, "clip": 1.0}


class Carrying:
    """One node that keeps optimizer state and fragments; which of their files each training found."""

    def __init__(self, bench: Bench, model: bytes) -> None:
        self.bench, self._model = bench, model
        self.found: list[list[str]] = []

    def files(self) -> list[str]:
        folder = self.bench.node.state.run(self.bench.run.run_id) / "training"
        return sorted(path.name for path in (*folder.glob("optimizer-*"), *folder.glob("values-*")))

    def train(self, *, slot: int, round: int, attempt: int = 1) -> bool:
        """Whether an upload left."""
        message, payload = self.bench.run.slot(
            self._model, model_sha256=model_digest(self._model), slot=slot, round=round, attempt=attempt,
            parent_model_sha256=model_digest(self._model) if round > 1 else b"",
        )  # fmt: skip
        return "upload" in self.bench.ask(message, payload)[1]


@pytest.fixture
def carrying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Carrying]:
    world = World.make(tmp_path / "world", ("node-a", "node-b"))
    (tmp_path / "llama").mkdir()
    base = tiny_llama(tmp_path / "llama")
    sha256 = ModelStore(tmp_path / "store").add(str(base), "tiny")
    state = world.equip("node-a", sha256, tmp_path / "store", faq(tmp_path / "faq.jsonl", 40))
    state.save_settings(state.settings.model_copy(update={"threads": 1}))
    spec = specification(
        model={"sha256": sha256}, training={"local_steps": 1, "keep_optimizer_state": True}, privacy=PRIVACY,
        federation={"data": "faq", "min_cohort": 2, "rounds": 3, "fragments": 2},
    )  # fmt: skip
    node = Node(
        state=state, member=world.members["node-a"], audit=Audit(Journal(state.audit)), make_trainer=trainers_of(state)
    )
    bench = Bench(world, spec, ShardTrainer(), NodeRuntime(node), node)
    allow(bench)
    model = schema_of(spec, base).encode(initial_state(spec, base))
    made, contribute = Carrying(bench, model), LocalTrainer.contribute

    def noting(self: LocalTrainer, *given: object) -> object:
        made.found.append(made.files())
        return contribute(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalTrainer, "contribute", noting)
    try:
        assert bench.settled_offer(bench.signed(model=model)).accepted
        yield made
    finally:
        bench.runtime.close()
        node.audit.close()


def lose(monkeypatch: pytest.MonkeyPatch) -> None:
    """What trains now is never charged, and nothing of it leaves."""

    def fail(*_: object, **__: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(LedgerCosts, "spend", fail)


FIRST = ["optimizer-000001.safetensors", "values-000001.f32"]
SECOND = ["optimizer-000002.safetensors", "values-000002.f32"]


@pytest.mark.parametrize("restarted", [False, True])
def test_a_later_round_does_not_go_on_from_work_that_was_never_charged(
    carrying: Carrying, monkeypatch: pytest.MonkeyPatch, restarted: bool
) -> None:
    assert carrying.train(slot=1, round=1)
    with monkeypatch.context() as patch:
        lose(patch)
        assert not carrying.train(slot=2, round=2)
    assert carrying.files() == [*FIRST[:1], *SECOND[:1], *FIRST[1:], *SECOND[1:]], "the work did leave its state here"
    if restarted:
        carrying.bench.runtime.close()
        carrying.bench = carrying.bench.again()
    assert carrying.train(slot=3, round=3)
    assert carrying.found == [[], FIRST, FIRST]
    assert kinds(carrying.bench) == ["approved", "reserved", "spent", "reserved", "moved", "spent"]


def test_what_was_charged_is_gone_on_from_also_after_work_that_was_repeated(
    carrying: Carrying, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert carrying.train(slot=1, round=1)
    with monkeypatch.context() as patch:
        lose(patch)
        assert not carrying.train(slot=2, round=2)
    assert carrying.train(slot=3, round=2, attempt=2)
    assert carrying.train(slot=4, round=3)
    assert carrying.found[2] == FIRST and SECOND[0] in carrying.found[3] and SECOND[1] in carrying.found[3]
