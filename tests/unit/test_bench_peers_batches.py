"""The same job at the peers: every arm's nodes keep the same records apart and take the same batches in one order.

In this process: Flower's app and its SecAgg+ client are called as Flower calls them, NVFLARE's client over a stand-in
of its API, Confide's nodes through the runtime that answers a coordinator, in state folders that its arm set up.
"""

import hashlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from confide.codec.tensors import model_digest
from confide.identity.member import load_member
from confide.identity.submission import sign_submission
from confide.journal import Journal
from confide.methods.sft import SupervisedFineTuning
from confide.models import seeds
from confide.models.architecture import load_tokenizer
from confide.proto import fleet_pb2
from confide.runs.specification import parse_canonical
from confide_client.agent.envelope import pack, unpack
from confide_client.agent.runtime import NodeRuntime
from confide_client.audit.log import Audit
from confide_client.runs.loading import trainers_of
from confide_client.runs.run import Node
from confide_client.state import StateFolder
from confide_simulations.benchmarks.peers import command, confide_arm
from confide_simulations.benchmarks.peers.task import FOLDER, Task, Vector
from confide_simulations.local_federation import LocalFederation
from confide_simulations.simulate.population import split_seed
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, Metadata, RecordDict
from flwr.app.message import make_message

from tests.node_worlds import Instructions, opened
from tests.tiny_models import tiny_llama

ROUNDS, STEPS, BATCH, APART = 3, 2, 8, 0.1
Train = Callable[[str, Vector, int], Vector]


class Spy:
    """Which walls (the records' numbers) each training step and each evaluation took."""

    def __init__(self, patch: pytest.MonkeyPatch, base: Path) -> None:
        self.trained: list[list[int]] = []
        self.evaluated: set[int] = set()
        tokenizer, original = load_tokenizer(base), SupervisedFineTuning.collate

        def collate(method: Any, examples: Any, seed: int) -> Any:
            walls = [int(re.findall(r"wall (\d+)", tokenizer.decode(each.ids))[0]) for each in examples]
            if seed == 0:  # as only evaluation asks
                self.evaluated.update(walls)
            else:
                self.trained.append(walls)
            return original(method, examples, seed)

        patch.setattr(SupervisedFineTuning, "collate", collate)

    def taken(self) -> tuple[list[list[int]], set[int]]:
        """Micro-batches in order, and what was evaluated, since the last call."""
        found = self.trained, self.evaluated
        self.trained, self.evaluated = [], set()
        return found


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder, base = tmp_path_factory.mktemp("peers"), tiny_llama(tmp_path_factory.mktemp("llama"))
    data = folder / "faq.jsonl"
    records = [
        {"question": f"How thick is wall {i}?", "answer": f"It is {i} cm.", "category": str(i % 6)} for i in range(60)
    ]
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    return command.prepare(folder, data, base, nodes=2, rounds=ROUNDS, local_steps=STEPS, held_out=4)


def expected(task: Task, node: str) -> tuple[list[list[int]], set[int]]:
    """By the definitions alone: (walls of each step, sorted; walls kept apart)."""
    walls = [int(json.loads(line)["question"].split()[4][:-1]) for line in task.shard(node).read_text().splitlines()]
    key = bytes.fromhex(split_seed(7, node, task.shard(node)))
    ranked = sorted(range(len(walls)), key=lambda i: hashlib.blake2b(i.to_bytes(8, "big"), key=key).digest())
    kept = round(len(walls) * APART)
    rest = [walls[i] for i in sorted(ranked[kept:])]
    order: list[int] = []
    while len(order) < ROUNDS * STEPS * BATCH:
        seed = seeds.derive(7, "shuffle", node, len(order) // len(rest), 1)
        order += [rest[i] for i in np.random.Generator(np.random.PCG64(seed)).permutation(len(rest))]
    steps = [sorted(set(order[at : at + BATCH])) for at in range(0, ROUNDS * STEPS * BATCH, BATCH)]
    return steps, {walls[i] for i in ranked[:kept]}


def by_flower() -> Train:
    from confide_simulations.benchmarks.peers import flower_app

    def train(node: str, model: Vector, number: int) -> Vector:
        content = RecordDict({"arrays": ArrayRecord([model]), "config": ConfigRecord({"server-round": number})})
        metadata = Metadata(1, "m", 1, 2, "", "", time.time(), 60.0, "train")
        message = make_message(metadata=metadata, content=content)
        context = Context(run_id=1, node_id=1, node_config={"node": node}, state=RecordDict(), run_config={})
        reply: Message = flower_app.train(message, context)
        assert reply.content["metrics"]["eval_loss"] > 0  # type: ignore[index, operator]
        arrays = reply.content["arrays"]
        assert isinstance(arrays, ArrayRecord)
        return arrays.to_numpy_ndarrays()[0]

    return train


def by_secagg() -> Train:
    from confide_simulations.benchmarks.peers.flower_secagg import _Client

    def train(node: str, model: Vector, number: int) -> Vector:
        (trained,), weight, metrics = _Client(node).fit([model], {"round": number})
        assert weight == 1 and metrics["eval_loss"] > 0
        return trained  # type: ignore[no-any-return]

    return train


def by_nvflare(monkeypatch: pytest.MonkeyPatch, nodes: tuple[str, ...]) -> Train:
    api, package = ModuleType("nvflare.client"), ModuleType("nvflare")
    package.client = api  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nvflare", package)
    monkeypatch.setitem(sys.modules, "nvflare.client", api)
    monkeypatch.delitem(sys.modules, "confide_simulations.benchmarks.peers.nvflare_client", raising=False)
    from confide_simulations.benchmarks.peers import nvflare_client

    def train(node: str, model: Vector, number: int) -> Vector:
        coming = [SimpleNamespace(params={nvflare_client.KEY: model}, current_round=number - 1), None]
        sent: list[Any] = []
        api.__dict__.update(
            init=lambda: None,
            get_site_name=lambda: f"site-{nodes.index(node) + 1}",
            is_running=lambda: True,
            receive=lambda: coming.pop(0),
            FLModel=SimpleNamespace,
            send=sent.append,
        )
        nvflare_client.main()
        (answer,) = sent
        assert answer.meta == {"NUM_STEPS_CURRENT_ROUND": 1} and answer.metrics["eval_loss"] > 0
        return answer.params[nvflare_client.KEY]  # type: ignore[no-any-return]

    return train


class Consortium:
    """The nodes of Confide's arm, each with its runtime, and a coordinator that this test plays."""

    def __init__(self, task: Task, federation: LocalFederation) -> None:
        specification = parse_canonical(task.specification.read_bytes())
        federation.allow(specification)
        self.run, first = Instructions(), task.model("initial").read_bytes()
        self.models: dict[int, bytes] = {}
        admin = load_member(federation.admin_folder)
        document = specification.canonical_bytes()
        signed = sign_submission(admin.identity, admin.name, document, model_digest(first), run_id=self.run.run_id)
        roster = max((load_member(federation.node_folder(node)).roster for node in task.nodes), key=_version).signed
        offer = fleet_pb2.Offer(roster=roster, **vars(signed)).SerializeToString()
        self.nodes = {node: _node(federation.node_folder(node)) for node in task.nodes}
        self.runtimes = {node: NodeRuntime(each) for node, each in self.nodes.items()}
        for node in task.nodes:
            deadline = time.monotonic() + 240
            while not (answer := self._answer(node, self.run.make(fleet_pb2.OFFER, offer))[2]).accepted:
                assert answer.preparing and time.monotonic() < deadline, answer.reason
            # transformers cannot load two models in one process at once, which these nodes share.
            self.runtimes[node]._run(self.run.run_id).warm_up().trainer()

    def _answer(self, node: str, instruction: bytes, payload: dict[str, bytes] | None = None) -> tuple[Any, Any, Any]:
        body, files = unpack(self.runtimes[node].answer(pack(instruction, payload)))
        reply = opened(body, self.nodes[node].member)
        assert reply.WhichOneof("outcome") != "failure", reply.failure
        return reply, files, fleet_pb2.OfferAnswer.FromString(reply.body) if payload is None else None

    def train(self, node: str, model: Vector, number: int) -> Vector:
        sent = model.astype("<f4").tobytes()
        parent = self.models.setdefault(number - 1, b"")
        self.models[number] = model_digest(sent)
        _, files, _ = self._answer(node, *self.run.slot(sent, number, parent_model_sha256=parent))
        return model + np.frombuffer(files["upload"], "<f4")

    def close(self) -> None:
        for runtime in self.runtimes.values():
            runtime.close()


def _version(roster: Any) -> int:
    return int(roster.current.version)


def _node(folder: Path) -> Node:
    state = StateFolder.at(folder)
    return Node(
        state=state,
        member=load_member(folder),
        audit=Audit(Journal(state.audit)),
        make_trainer=trainers_of(state),
        measures=False,
        tries=lambda *_: None,
    )


@pytest.fixture(scope="module")
def consortium(task: Task) -> Iterator[Consortium]:
    made = Consortium(task, confide_arm._set_up(task))
    yield made
    made.close()


def test_all_arms_train_on_the_same_records_step_by_step_and_make_the_same_bits(
    task: Task, consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER, task.folder)
    arms: dict[str, Train] = {
        "flower": by_flower(),
        "flower_secagg": by_secagg(),
        "nvflare": by_nvflare(monkeypatch, task.nodes),
        "confide": consortium.train,
    }
    spy, model = Spy(monkeypatch, Path(task.base)), task.initial()
    steps: dict[tuple[str, str], list[list[int]]] = {}
    for number in range(1, ROUNDS + 1):
        made: dict[tuple[str, str], Vector] = {}
        for arm, train in arms.items():
            for node in task.nodes:
                made[arm, node] = train(node, model, number)
                parts, evaluated = spy.taken()
                assert evaluated == expected(task, node)[1], (arm, node, number)
                steps.setdefault((arm, node), []).extend(parts)
        for (arm, node), trained in made.items():
            assert np.array_equal(trained, made["flower", node]) and not np.array_equal(trained, model), (arm, node)
        model = np.mean([made["flower", node] for node in task.nodes], axis=0, dtype=np.float32)
    for (arm, node), parts in steps.items():
        assert parts == steps["flower", node], (arm, node)
        halves = zip(parts[::2], parts[1::2], strict=True)  # of a step: two micro-batches of four
        assert [sorted(one + other) for one, other in halves] == expected(task, node)[0], (arm, node)
    assert steps["flower", task.nodes[0]] != steps["flower", task.nodes[1]]
