"""Every training method under [privacy] over real processes: charged as planned, noised as charged, and nothing else.

Four nodes, one of which trains LoRA at a smaller rank, note every request that they send. A training step takes all
units of a node into its batch (batch_size is larger than any shard), so that without noise it could be repeated here
exactly: what a round opened, minus that, is the noise.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from confide.codec.tensors import model_digest
from confide.models.sent_coordinates import SentCoordinates
from confide.models.store import ModelStore
from confide.models.trainable import initial_state, schema_of
from confide.proto import fleet_pb2
from confide.runs.feedback import FeedbackSection
from confide.runs.specification import Specification, parse_document, parse_toml
from confide.tokenizer.state import parse_state
from confide.tokenizer.terms import Terms
from confide_server.rlhf.opinions_of_nodes import question_of_pairs
from confide_simulations.processes import ProcessGroup

from tests.method_runs import (
    LABELS,
    NODES,
    OWN_RANK,
    SMALL,
    WORDS,
    MethodFederation,
    RealRun,
    Replay,
    mean,
    products,
)
from tests.private_runs import (
    EVERY_STEP,
    ONE_STEP,
    ORGANIZATION,
    RECORDING,
    Asked,
    ask_twice,
    check_charged,
    check_left,
    check_noise,
    expected_stddev,
    ledger_of,
    promised,
    register,
    shared_stddev,
    texts_nowhere,
    without_noise,
)
from tests.tiny_models import tiny_bert
from tests.tokenizer_runs import tokenizer_spec

pytestmark = [pytest.mark.full, pytest.mark.xdist_group("private-methods")]

RECORD = {"unit": "record", "epsilon": 4.0, "delta": 1e-3, "clip": 1.0}
USER = {**RECORD, "unit": "user", "user_key": "label"}
RANKS = {SMALL: OWN_RANK}
WHOLE_MODEL_CLIP = 64.0


@dataclass
class Private:
    """The federation, and what was asked of it."""

    federation: MethodFederation
    folder: Path
    asked: list[Asked] = field(default_factory=list)

    def run(self, base: Path | None = None, **sections: Any) -> RealRun:
        """A private run, asked for twice, and its charges checked."""
        made = self.federation.made
        made.base = base or self.federation.llama
        federated = {"rounds": 1, "data": register(made, f"notes-{len(self.asked)}"), **sections.pop("federation", {})}
        sealing = sections.pop("sealing", None)
        specification = self.federation.specification(
            made.base, **{"training": ONE_STEP, "privacy": RECORD, **sections}, federation=federated
        )
        if sealing is not None:
            specification = type(specification).model_validate(
                {**specification.model_dump(), "sealing": {**specification.sealing.model_dump(), **sealing}}
            )
        return self.follow(specification)

    def follow(self, specification: Specification) -> RealRun:
        """The same for a specification."""
        found = ask_twice(self.federation.made, specification)
        self.asked.append(found)
        check_charged(self.federation.made, found)
        return RealRun(self.federation, specification, self.federation.made.base, found.run_id, found.events)

    def noiseless(self, found: RealRun, number: int = 1) -> tuple[Replay, np.ndarray]:
        """The mean update of a round as it would have been without noise: float64, shape (schema.size,)."""
        folder = self.folder / found.run_id
        shutil.rmtree(folder, ignore_errors=True)
        with pytest.MonkeyPatch.context() as patch:
            without_noise(patch)
            replay = Replay(found, folder)
            return replay, mean(replay.updates(number))

    def stddev(self, found: RealRun, *, steps: int = 1) -> np.ndarray:
        """Of each coordinate of the opened mean."""
        return expected_stddev(self.federation.made, found.specification, RANKS, steps=steps)


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Private]:
    folder = tmp_path_factory.mktemp("private-methods")
    with ProcessGroup() as processes:
        federation = MethodFederation(folder, processes, node_program=RECORDING)
        federation.start()
        yield Private(federation, tmp_path_factory.mktemp("replays"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("models") / "bert")


def travelled(found: RealRun, number: int) -> np.ndarray:
    """Bool of shape (schema.size,): what a round sends."""
    schema = Replay(found, Path(), nodes=()).schema
    travels = np.zeros(schema.size, dtype=bool)
    for start, stop in SentCoordinates(found.specification, schema).intervals(number):
        travels[start:stop] = True
    return travels


def check_round(private: Private, found: RealRun, number: int, *, steps: int = 1) -> None:
    """What a round opened is the mean of the noiseless updates and as much noise as was charged, where it travels."""
    moved = found.flat(number).astype(np.float64) - found.flat(number - 1)
    _, update = private.noiseless(found, number)
    stddev = np.where(travelled(found, number), private.stddev(found, steps=steps), 0.0)
    check_noise(moved - np.where(stddev > 0, update, 0.0), stddev)
    assert np.linalg.norm(update) > 0, "without noise nothing was learned: the residual says nothing"


@pytest.mark.parametrize("scheme", ["average", "ffa", "fedsb"])
@pytest.mark.parametrize("unit", [RECORD, USER], ids=["record", "user"])
def test_lora_of_mixed_ranks(private: Private, scheme: str, unit: dict[str, Any]) -> None:
    found = private.run(adapter={"aggregation": scheme}, privacy=unit)
    check_round(private, found, 1)


def test_rolora_in_both_halves_with_kept_optimizer_state(private: Private) -> None:
    found = private.run(
        adapter={"aggregation": "rolora"}, federation={"rounds": 2}, training={**ONE_STEP, "keep_optimizer_state": True}
    )
    check_round(private, found, 1)
    check_round(private, found, 2)


def test_fedsvd_refactors_the_noised_mean(private: Private) -> None:
    found = private.run(adapter={"aggregation": "fedsvd"})
    replay, update = private.noiseless(found)
    start, opened = found.flat(0), found.flat(1)
    before = replay.schema.unflatten(start)
    matrices = replay.schema.unflatten(update.astype(np.float32))
    stddev = replay.schema.unflatten(private.stddev(found).astype(np.float32))
    residuals, expected = [], []
    flat, offset = products(found, replay.schema, opened), 0
    # Before the round B was 0 and A had orthonormal rows: (B A) A^T is what was added to B.
    for name in sorted(name.removesuffix(".lora_A") for name in before if name.endswith("lora_A")):
        a, b = before[f"{name}.lora_A"].double(), matrices[f"{name}.lora_B"]
        size = b.shape[0] * a.shape[1]
        product = torch.from_numpy(flat[offset : offset + size]).reshape(b.shape[0], a.shape[1])
        offset += size
        residuals.append((product @ a.T - b.double()).numpy().ravel())
        expected.append(stddev[f"{name}.lora_B"].numpy().ravel())
    assert offset == flat.size
    check_noise(np.concatenate(residuals), np.concatenate(expected))


def test_causal_pre_training_in_fragments(private: Private) -> None:
    found = private.run(
        method={"name": "causal_lm", "max_length": 16}, adapter={"kind": "full"},
        federation={"rounds": 2, "fragments": 2, "clip_norm": WHOLE_MODEL_CLIP},
    )  # fmt: skip
    check_round(private, found, 1)
    # The second fragment travels for the first time, and holds the noise of both rounds' steps.
    moved = found.flat(2).astype(np.float64) - found.flat(1)
    stddev = np.where(travelled(found, 2), private.stddev(found, steps=2), 0.0)
    # All that 18 units can push in two steps adds a twentieth at most to the noise of half a model.
    assert np.linalg.norm(stddev) > 3 * 2 * 18 / 32
    check_noise(moved, stddev, slack=0.1)


def test_masked_pre_training(private: Private, bert: Path) -> None:
    method = {"name": "masked_lm", "max_length": 32, "mask_probability": 0.3}
    found = private.run(
        bert, method=method, adapter={"kind": "full"}, federation={"clip_norm": WHOLE_MODEL_CLIP}
    )  # fmt: skip
    moved = found.flat(1).astype(np.float64) - found.flat(0)
    # Which tokens are masked is drawn from a secret seed: the update is not known here, but how long it can be.
    stddev = private.stddev(found)
    assert np.linalg.norm(stddev) > 3 * 18 / 32
    check_noise(moved, stddev, slack=0.1)


@pytest.mark.parametrize("sealing", ["sealed", "none"])
def test_classification(private: Private, sealing: str) -> None:
    method = {"name": "classification", "max_length": 32, "labels": list(LABELS)}
    found = private.run(method=method, sealing={"kind": sealing})
    check_round(private, found, 1)


PAIRS = {"name": "reward", "max_length": 32}


@pytest.mark.parametrize("kind", ["none", "lora"])
@pytest.mark.parametrize("unit", [RECORD, USER], ids=["record", "user"])
def test_reward(private: Private, kind: str, unit: dict[str, Any]) -> None:
    found = private.run(method=PAIRS, adapter={"kind": kind}, privacy=unit)
    check_round(private, found, 1)


@pytest.mark.parametrize("unit", [RECORD, USER], ids=["record", "user"])
def test_reward_with_noise_that_all_add_together(private: Private, unit: dict[str, Any]) -> None:
    """What was opened is the exact mean of the nodes' integers, and the noise of all of them."""
    found = private.run(
        method=PAIRS, adapter={"kind": "none"}, privacy={**unit, "noise": "shared"}, federation={"clip_norm": None}
    )
    moved = found.flat(1).astype(np.float64) - found.flat(0)
    _, update = private.noiseless(found)
    assert np.linalg.norm(update) > 0
    check_noise(moved - update, shared_stddev(private.federation.made, found.specification))


def test_dpo(private: Private) -> None:
    found = private.run(method={"name": "dpo", "max_length": 64})
    check_round(private, found, 1)


def test_sampled_batches_with_adam(private: Private) -> None:
    """As a real run is: q < 1, several steps and an optimizer with a memory; what is charged says so."""
    found = private.run(training={"local_steps": 4, "batch_size": 4, "learning_rate": 1e-2}, federation={"rounds": 2})
    for name in NODES:
        (event,) = ledger_of(private.federation.made, name).run(found.run_id).approved.cost.slot
        assert (event.sampling_rate, event.steps) == (4 / 18, 4)
    assert not np.array_equal(found.flat(2), found.flat(1))


def test_a_tokenizers_counts(private: Private) -> None:
    made = private.federation.made
    data = register(made, "words")
    privacy = '[privacy]\nunit = "user"\nuser_key = "label"\nepsilon = 8.0\ndelta = 1e-3\nclip = 1.0'
    specification = tokenizer_spec(sealing="sealed", rounds=2, privacy=privacy)
    federated = specification.federation.model_copy(update={"data": data, "exchange_deadline_s": 240.0})
    found = private.follow(specification.model_copy(update={"federation": federated}))
    state = parse_state(found.model(1), Terms.of(found.specification))
    # Bytes that no text holds are counted all the same: which pairs occur is hidden by noise.
    pairs = state.candidates[state.candidates < 256 << 20]
    heard = {byte for word in (*WORDS, *LABELS, "number : 0123456789") for byte in word.encode()}
    assert any(int(key >> 20) not in heard for key in pairs)


@pytest.mark.parametrize("method", ["sft", "contrastive", "masked_lm"])
def test_organization_level(private: Private, bert: Path, method: str) -> None:
    """Any method, since whole updates are hidden: contrastive learning too, which relates records to each other."""
    base = None if method == "sft" else bert
    target = {} if method == "sft" else {"target_modules": ["query", "value"]}
    found = private.run(
        base, method={"name": method, "max_length": 64}, privacy=ORGANIZATION, adapter=target,
        training={**ONE_STEP, "batch_size": 8, "learning_rate": 1e-2}, federation={"clip_norm": 1.0},
    )  # fmt: skip
    moved = found.flat(1).astype(np.float64) - found.flat(0)
    _, update = private.noiseless(found)
    check_noise(moved - update, shared_stddev(private.federation.made, found.specification), slack=0.05)


def test_feedback(private: Private, bert: Path) -> None:
    """Opinions on public answers: charged, noised as the plan says, and not given twice."""
    made = private.federation.made
    made.base, data = bert, register(made, "opinions", "--evaluation", "0")
    section = {"purpose": "gate", "source": "made up", "prompts": ["How?"] * 6}
    section |= {"answers": [f"It must be {n} centimetres" for n in range(6)], "against": ["Nobody knows"] * 6}
    clip = FeedbackSection.model_validate_json(json.dumps(section)).longest
    specification = parse_document(
        {
            "version": 1, "name": "gate", "model": {"sha256": ModelStore(made.models).add(str(bert), "bert")},
            "method": {"name": "feedback", "max_length": 64}, "feedback": section,
            "federation": {"rounds": 1, "data": data, "clip_norm": clip, "min_cohort": 4, "exchange_deadline_s": 240.0},
            "sealing": {"max_attempts": 1, "colluding": 1},
            "privacy": {"unit": "organization", "epsilon": 8.0, "delta": 1e-3, "clip": clip},
        },
        "the test's",
    )  # fmt: skip
    made.allow(specification, budget_epsilon=100.0)
    run_id = made.submit(specification)
    events = tuple(made.watch(run_id))
    assert events[-1][0] == "run_finished", events[-4:]
    again = tuple(made.watch(made.submit(specification.model_copy(update={"name": "again"}))))
    reasons = [data["reason"] for kind, data in again if kind == "offer_answered"]
    assert reasons and all("FEEDBACK_REPLAYED" in reason for reason in reasons), reasons
    private.asked.append(Asked(specification, run_id, events, "", again))
    for name in NODES:
        charged = ledger_of(made, name).run(run_id)
        assert (charged.spent_slots, charged.approved.cost) == (1, promised(made, specification, name))
    found = RealRun(private.federation, specification, bert, run_id, events)
    opinions = json.loads((found.export(private.folder / "opinions") / "opinions.json").read_text())
    # Every node prefers what begins like the answers that its comparisons preferred; the rest is noise.
    noise = 7 * shared_stddev(made, specification)
    assert abs(opinions["gate"]["win_rate"] - 1.0) < noise + 0.5 and opinions["pairs"] == 6


def test_feedback_by_comparisons(private: Private) -> None:
    """A candidate travels to the nodes, is judged by what lies there, and comes back as it was with three numbers."""
    made = private.federation.made
    made.base, data = private.federation.llama, register(made, "held", "--evaluation", "0")
    run = private.federation.specification(made.base, method={"name": "dpo", "max_length": 64})
    schema = schema_of(run, made.base)
    noise = torch.Generator().manual_seed(1)
    state = {name: t + torch.randn(t.shape, generator=noise) for name, t in initial_state(run, made.base).items()}
    candidate = schema.encode(state)
    manifest = {"specification": json.loads(run.canonical_bytes()), "model_sha256": model_digest(candidate).hex()}
    specification = parse_toml(question_of_pairs(manifest, data=data, privacy=(8.0, 1e-3), min_cohort=4))
    federated = specification.federation.model_copy(update={"exchange_deadline_s": 240.0})
    specification = specification.model_copy(update={"federation": federated})
    made.allow(specification)
    run_id = made.submit(specification, candidate + bytes(12))
    events = tuple(made.watch(run_id))
    assert events[-1][0] == "run_finished", events[-4:]
    private.asked.append(Asked(specification, run_id, events, "", ()))
    found = RealRun(private.federation, specification, made.base, run_id, events)
    assert found.model(1)[:-12] == candidate and found.model(1)[-12:] != bytes(12)
    opinions = json.loads((found.export(private.folder / "held") / "opinions.json").read_text())
    assert opinions["candidate_sha256"] == manifest["model_sha256"]
    for name in NODES:
        assert ledger_of(made, name).run(run_id).spent_slots == 1


def test_nothing_else_left(private: Private) -> None:
    """After all the runs above."""
    assert private.asked
    assert check_left(private.federation.made, private.asked) == EVERY_STEP | {fleet_pb2.SCORE}
    texts_nowhere(private.federation.made, (*WORDS, "centimetres", "mortar"))
