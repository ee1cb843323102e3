"""Attacks on nodes' feedback, against the real node code: each is refused by name, and nothing is said.

The coordinator (or an administrator's key in its hand) asks adaptively past the budget, asks the same again, asks for
one organization's opinion, names another base than the judges have, passes feedback off as training; and a node lies.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confide.codec.tensors import TensorSchema
from confide.errors import FailureName, ProtocolFailure
from confide.journal import Journal
from confide.methods.feedback import opinion
from confide.models.reward_folder import write_reward
from confide.models.store import ModelStore
from confide.privacy.ledger import LEDGER_NAME
from confide.proto import fleet_pb2
from confide.rounds.outer_step import mean_update
from confide.runs.contribution import Contribution
from confide.runs.specification import Specification
from confide.sealing.roles import Opened
from confide_client.agent.runtime import NodeRuntime
from confide_client.audit.log import Audit
from confide_client.data.datasets import DataSets
from confide_client.runs.feedback_memory import FEEDBACK_NAME
from confide_client.runs.loading import trainers_of
from confide_client.runs.run import Node
from confide_client.state import Settings

from tests.node_bench import Bench, ShardTrainer
from tests.node_worlds import Instructions, World
from tests.preferences import pairs
from tests.sealing_harness import Federation
from tests.tiny_models import tiny_bert
from tests.unit.test_feedback import ANSWERS, GATE, SCORES, asked, judged

POLICY = """
version = 1
consortium_root = "{root}"
allow_demo_root = true
methods = ["feedback", "reward"]
models = ["{model}"]
data_sets = ["preferences"]
min_cohort = 2
max_rounds = 1
max_local_steps = 1
training_hours = ["00:00-24:00"]
sealing = "optional"
privacy_units = ["none", "organization"]
approval = "auto"
[feedback]
purposes = ["scores"]
answers_a_day = 8
judge = "{judge}"
[budgets.preferences]
epsilon = 9.0
delta = 1e-4
"""


@dataclass(frozen=True)
class Place:
    """A base, its hash, and a folder for nodes."""

    store: Path
    base: Path
    sha256: str


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("judges")
    base = tiny_bert(folder / "bert")
    return Place(folder / "store", base, ModelStore(folder / "store").add(str(base), "bert"))


@contextmanager
def a_node(folder: Path, place: Place, *, judge: str = "") -> Iterator[Bench]:
    """The real runtime and the real trainer, over comparisons of its own."""
    world = World.make(folder, ("node-a", "node-b"))
    state = world.state("node-a")
    root = world.consortium.root.public.hex()
    state.policy.write_text(POLICY.format(root=root, model=place.sha256, judge=judge))
    state.save_settings(Settings(models=str(place.store), threads=1))
    path = folder / "comparisons.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs(40)))
    DataSets(state.root).add("preferences", path)
    node = Node(
        state=state, member=world.members["node-a"], audit=Audit(Journal(state.audit)), make_trainer=trainers_of(state)
    )
    bench = Bench(world, plainly(place), ShardTrainer(), NodeRuntime(node), node)
    try:
        yield bench
    finally:
        bench.runtime.close()
        node.close()
        node.audit.close()


def plainly(place: Place, section: dict[str, Any] = SCORES, **changes: Any) -> Specification:
    """Without privacy and sealing: what the policies here allow, so that each refusal is for its own reason."""
    more: dict[str, Any] = {"model": {"sha256": place.sha256}, "sealing": {"kind": "none", "max_attempts": 2}}
    federation = {"rounds": 1, "data": "preferences", "clip_norm": 2.0, "min_cohort": 2}
    return asked(section, unit="none", **{**more, "federation": federation, **changes})


def other_answers(tag: str) -> dict[str, Any]:
    return {**SCORES, "answers": [f"{answer} {tag}" for answer in ANSWERS]}


def offer(bench: Bench, spec: Specification) -> fleet_pb2.OfferAnswer:
    """As a run of its own."""
    bench.run = Instructions()
    model = bytes(4 * spec.feedback.numbers)
    return bench.settled_offer(bench.signed(spec, model))


def ask(bench: Bench, spec: Specification, step: "fleet_pb2.Step.ValueType" = fleet_pb2.SCORE) -> fleet_pb2.Reply:
    """Open the run's slot."""
    model = bytes(4 * spec.feedback.numbers)
    instruction, payload = bench.run.slot(model)
    made = fleet_pb2.Instruction.FromString(instruction)
    made.step = step
    return bench.ask(made.SerializeToString(deterministic=True), payload)[0]


def test_an_honest_question_is_answered_and_kept_in_mind(tmp_path: Path, place: Place) -> None:
    with a_node(tmp_path, place) as bench:
        spec = plainly(place)
        assert offer(bench, spec).accepted
        reply = ask(bench, spec)
        assert reply.WhichOneof("outcome") == "body", reply.failure
        assert (bench.node.state.root / FEEDBACK_NAME).stat().st_size > 0
        assert any(line["event"] == "answering" for line in bench.events())


def test_a_replayed_rollout_is_refused_in_a_new_run(tmp_path: Path, place: Place) -> None:
    with a_node(tmp_path, place) as bench:
        spec = plainly(place)
        assert offer(bench, spec).accepted and ask(bench, spec).WhichOneof("outcome") == "body"
        mixed = {**SCORES, "answers": [*[f"{answer} new" for answer in ANSWERS[:3]], ANSWERS[3]]}
        for section in (SCORES, mixed):
            answer = offer(bench, plainly(place, section))
            assert not answer.accepted and "FEEDBACK_REPLAYED" in answer.reason


def test_two_runs_accepted_side_by_side_are_answered_once(tmp_path: Path, place: Place) -> None:
    with a_node(tmp_path, place) as bench:
        spec = plainly(place)
        assert offer(bench, spec).accepted
        first = bench.run
        assert offer(bench, spec).accepted
        second, bench.run = bench.run, first
        assert ask(bench, spec).WhichOneof("outcome") == "body"
        bench.run = second
        assert "FEEDBACK_REPLAYED" in ask(bench, spec).failure.message


def test_more_than_a_day_allows_is_refused(tmp_path: Path, place: Place) -> None:
    with a_node(tmp_path, place) as bench:
        for tag in ("a", "b"):
            spec = plainly(place, other_answers(tag))
            assert offer(bench, spec).accepted and ask(bench, spec).WhichOneof("outcome") == "body"
        answer = offer(bench, plainly(place, other_answers("c")))
        assert not answer.accepted and "FEEDBACK_LIMIT" in answer.reason
        nine = {**SCORES, "prompts": ["p"] * 9, "answers": [f"a{i}" for i in range(9)]}
        assert "FEEDBACK_LIMIT" in offer(bench, plainly(place, nine)).reason


def test_adaptive_questions_end_with_the_budget(tmp_path: Path, place: Place) -> None:
    """Each answer is charged when it is promised; the next question, whatever the last one told, is not accepted."""
    with a_node(tmp_path, place) as bench:
        sealed = {"model": {"sha256": place.sha256}, "sealing": {"max_attempts": 1}}
        sealed["federation"] = {"rounds": 1, "data": "preferences", "clip_norm": 2.0, "min_cohort": 3}
        assert offer(bench, asked(other_answers("a"), **sealed)).accepted
        assert (bench.node.state.root / LEDGER_NAME).exists()
        answer = offer(bench, asked(other_answers("b"), **sealed))
        assert not answer.accepted and "BUDGET_EXHAUSTED" in answer.reason


def test_a_policy_without_the_section_or_the_purpose_answers_nothing(tmp_path: Path, place: Place) -> None:
    with a_node(tmp_path, place) as bench:
        answer = offer(bench, plainly(place, GATE))
        assert not answer.accepted and "FEEDBACK_FORBIDDEN" in answer.reason
        bench.policy('[feedback]\npurposes = ["scores"]\nanswers_a_day = 8\njudge = ""\n', "")
        answer = offer(bench, plainly(place))
        assert not answer.accepted and "FEEDBACK_FORBIDDEN" in answer.reason
        bench.policy('methods = ["feedback", "reward"]', 'methods = ["reward"]')
        assert "not allowed by this node's policy" in offer(bench, plainly(place)).reason


def test_a_policy_that_forbids_it_in_mid_run_holds_at_once(tmp_path: Path, place: Place) -> None:
    with a_node(tmp_path, place) as bench:
        spec = plainly(place)
        assert offer(bench, spec).accepted
        bench.policy('purposes = ["scores"]', "purposes = []")
        assert "FEEDBACK_FORBIDDEN" in ask(bench, spec).failure.message
        assert not any(line["event"] == "answering" for line in bench.events())


def test_one_organization_is_not_asked_alone(tmp_path: Path, place: Place) -> None:
    with a_node(tmp_path, place) as bench:
        alone = {"rounds": 1, "data": "preferences", "clip_norm": 2.0, "min_cohort": 1}
        for federation in (alone, {**alone, "nodes": ["node-a"]}):
            answer = offer(bench, plainly(place, federation=federation))
            assert not answer.accepted and "min_cohort" in answer.reason


def test_a_swapped_base_is_refused(tmp_path: Path, place: Place) -> None:
    judge = write_reward(
        tmp_path / "judge", np.ones(32), base_sha256="cd" * 32, pooling="mean", max_length=64, lineage={}
    )
    with a_node(tmp_path / "world", place, judge=str(judge)) as bench:
        answer = offer(bench, plainly(place))
        assert not answer.accepted and "REWARD_OF_ANOTHER_BASE" in answer.reason
        assert "not allowed by this node's policy" in offer(bench, plainly(place, model={"sha256": "cd" * 32})).reason


def test_feedback_is_no_training_and_training_no_feedback(tmp_path: Path, place: Place) -> None:
    with a_node(tmp_path, place) as bench:
        spec = plainly(place)
        assert offer(bench, spec).accepted
        reply = ask(bench, spec, fleet_pb2.TRAIN)
        assert reply.failure.code == "MALFORMED" and "opened by SCORE" in reply.failure.message


# --- inside the sealed sum


@dataclass
class Opinions(Federation):
    """Members whose contributions are opinions; a test can let one lie."""

    lie: float = 0.0

    def contribution(self, name: str, plan: fleet_pb2.SlotOpen) -> Contribution:
        found = opinion(self.specification.feedback, judged)
        if self.lie and name == sorted(self.keys)[0]:
            found = found * self.lie
        return Contribution(found.astype(np.float32))


def in_one_sum(folder: Path, **changes: Any) -> Opinions:
    federation = {"rounds": 1, "data": "preferences", "clip_norm": changes.pop("clip", 2.0)}
    unit = changes.pop("unit", "none")
    privacy = {"privacy": {"unit": unit}} if unit == "none" else {}
    spec = asked(unit=unit, federation=federation, sealing={"max_attempts": 2, "slots_per_epoch": 2}, **privacy)
    return Opinions(folder, 4, specification=spec, schema=TensorSchema.unnamed(4), **changes)


def one_slot(federation: Opinions) -> object:
    federation.epoch()
    return federation.slot()


def test_sealed_opinions_are_their_plain_sum(tmp_path: Path) -> None:
    federation = in_one_sum(tmp_path)
    outcome = one_slot(federation)
    assert isinstance(outcome, Opened)
    own = opinion(federation.specification.feedback, judged)
    assert np.allclose(mean_update(outcome), own, atol=1e-3)
    assert {step for step, *_ in federation.seen} >= {fleet_pb2.SCORE, fleet_pb2.CONFIRM, fleet_pb2.REVEAL}
    assert fleet_pb2.TRAIN not in {step for step, *_ in federation.seen}


def test_under_privacy_the_sum_is_noised_as_the_plan_says(tmp_path: Path) -> None:
    federation = in_one_sum(tmp_path, unit="organization")
    outcome = one_slot(federation)
    assert isinstance(outcome, Opened)
    found = mean_update(outcome) - opinion(federation.specification.feedback, judged)
    assert 0.0 < np.abs(found).max() < 5.0


def test_a_node_that_answers_outside_the_range_is_clipped_or_its_sum_is_not_used(tmp_path: Path) -> None:
    clipped = in_one_sum(tmp_path / "clipped", lie=1e6)
    outcome = one_slot(clipped)
    assert isinstance(outcome, Opened), "its length is bounded on the way"
    beyond = in_one_sum(tmp_path / "beyond", lie=1e6, clip=50.0)
    with pytest.raises(ProtocolFailure) as refused:
        one_slot(beyond)
    assert refused.value.name is FailureName.SUM_OUT_OF_RANGE


def test_a_record_of_what_was_judged_that_was_restored_alone_is_noticed(tmp_path: Path, place: Place) -> None:
    with a_node(tmp_path, place) as bench:
        node, path = bench.node, bench.node.state.root / FEEDBACK_NAME
        node.feedback.reserve("one", "preferences", ["a"], 8, 1.0)
        earlier = path.read_bytes()
        node.feedback.reserve("two", "preferences", ["b"], 8, 2.0)
        node.heights.begin("ab" * 16, 1)
        node.close()
        path.write_bytes(earlier)
        with pytest.raises(ProtocolFailure) as refused:
            node.heights.begin("cd" * 16, 1)
        assert refused.value.name is FailureName.ROLLBACK_DETECTED
