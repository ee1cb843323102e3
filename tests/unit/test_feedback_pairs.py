"""A candidate held against its base on a node's own comparisons: three numbers travel, and the model stays."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from confide.codec.tensors import TensorSchema, model_digest
from confide.errors import DataError, ModelError, SpecificationError, UpdateError
from confide.methods.base import create
from confide.methods.first_model import check_first_model, first_model
from confide.models.architecture import load_tokenizer
from confide.models.opinions import opinions_of
from confide.models.sent_coordinates import SentCoordinates
from confide.models.store import folder_digest
from confide.models.trainable import as_trained, build, initial_state, load_trainable, schema_of
from confide.planning.run_plan import render
from confide.proto import fleet_pb2
from confide.rounds.outer_step import mean_update
from confide.runs.contribution import Contribution
from confide.runs.feedback import decode_gate
from confide.runs.specification import Specification, parse_document, parse_toml
from confide.sealing.roles import Opened
from confide_client.training.candidates import CandidateTrainer
from confide_server.rlhf.opinions_of_nodes import question_of_pairs

from tests.preferences import pairs
from tests.sealing_harness import Federation
from tests.tiny_models import tiny_llama
from tests.training_specs import specification

SLOT = fleet_pb2.SlotOpen(slot=1, round=1, attempt=1)


class Shard:
    """confide_client.training.LocalData."""

    def __init__(self, records: list[Any]) -> None:
        self.train, self.evaluation, self.digest = records, list[Any](), ""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


def candidate_of(base: Path, **adapter: Any) -> tuple[dict[str, Any], bytes]:
    """(manifest, raw tensors) of a run whose adapter has an effect."""
    run = specification(
        model={"sha256": folder_digest(base)}, adapter={"rank": 4, "target_modules": ["q_proj", "v_proj"], **adapter}
    )
    generator = torch.Generator().manual_seed(3)
    state = {name: t + torch.randn(t.shape, generator=generator) for name, t in initial_state(run, base).items()}
    data = schema_of(run, base).encode(state)
    manifest = {"specification": json.loads(run.canonical_bytes()), "model_sha256": model_digest(data).hex()}
    return manifest, data


def asked(base: Path, privacy: tuple[float, float] | None = None, **adapter: Any) -> tuple[Specification, bytes]:
    """The run and its first model."""
    manifest, data = candidate_of(base, **adapter)
    return parse_toml(question_of_pairs(manifest, data="preferences", privacy=privacy)), data + bytes(12)


@pytest.mark.parametrize("aggregation", ["average", "ffa", "rolora", "fedsvd"])
def test_only_the_opinion_travels_whatever_the_candidates_scheme(base: Path, aggregation: str) -> None:
    run, first = asked(base, aggregation=aggregation)
    schema = schema_of(run, base)
    coordinates = SentCoordinates(run, schema)
    assert (coordinates.most, coordinates.phases) == (3, 1) and coordinates.intervals(1)[-1][1] == schema.size
    assert len(first) == 4 * schema.size == len(first_model(run, base)[0])
    check_first_model(run, first, schema)
    moved = np.frombuffer(first, "<f4").copy()
    for place in (0, -1):
        altered = moved.copy()
        altered[place] += 1
        with pytest.raises(UpdateError, match="CANDIDATE_CHANGED"):
            check_first_model(run, altered.tobytes(), schema)


def test_a_node_says_what_its_comparisons_say_of_exactly_this_candidate(base: Path) -> None:
    run, first = asked(base)
    trainer, records = CandidateTrainer(run, base), pairs(24)
    flat = np.frombuffer(first, "<f4")
    found = trainer.contribute(flat, Shard(records), SLOT).update
    assert not found[:-3].any() and (np.abs(found[-3:]) <= 0.5).all()
    model, inner = build(as_trained(run), base).eval(), as_trained(run)
    load_trainable(model, schema_of(inner, base).unflatten(flat[:-3].copy()))
    method: Any = create(inner, load_tokenizer(base))
    with torch.no_grad():
        margins = method.margins(model, method.collate(method.prepare(records), seed=0)).numpy()
    assert decode_gate(tuple(found[-3:]))["win_rate"] == pytest.approx(float((margins > 0).mean()), abs=1e-6)
    other = flat.copy()
    other[0] += 1
    with pytest.raises(UpdateError, match="CANDIDATE_CHANGED"):
        trainer.contribute(other, Shard(records), SLOT)
    with pytest.raises(DataError, match="fewer than 20"):
        trainer.contribute(flat, Shard(pairs(5)), SLOT)


def test_inside_the_sealed_sum_under_privacy(base: Path, tmp_path: Path) -> None:
    run, first = asked(base, privacy=(8.0, 1e-5))
    schema = schema_of(run, base)

    class Judging(Federation):
        def contribution(self, name: str, plan: fleet_pb2.SlotOpen) -> Contribution:
            update = np.zeros(schema.size, dtype=np.float32)
            update[-3:] = (0.5, -0.5, -0.5)
            return Contribution(update)

    federation = Judging(
        tmp_path, 5, specification=run, schema=schema, model=np.frombuffer(first, "<f4").copy()
    )  # fmt: skip
    outcome = federation.slot()
    assert isinstance(outcome, Opened) and mean_update(outcome).shape == (3,)
    assert federation.model[:-3].tobytes() == first[:-12], "the candidate is as it was"
    assert 0 < np.abs(federation.model[-3:] - np.array([0.5, -0.5, -0.5])).max() < 4
    found = opinions_of(run.feedback, federation.model[-3:].tolist())
    assert found["candidate_sha256"] == run.feedback.candidate_sha256 and "win_rate" in found["gate"]


def test_what_cannot_be_asked(base: Path) -> None:
    run, _ = asked(base)
    document = json.loads(run.canonical_bytes())
    for section, named in (
        ({**document["feedback"], "candidate_sha256": ""}, "name it by candidate_sha256"),
        ({**document["feedback"], "answers": ["a"], "prompts": ["p"], "source": "s"}, "give no prompts"),
    ):
        with pytest.raises(SpecificationError, match=named):
            parse_document({**document, "feedback": section}, "the test's")
    with pytest.raises(SpecificationError, match="takes the adapter of the candidate"):
        parse_document({**document, "adapter": {**document["adapter"], "kind": "none"}}, "the test's")
    manifest, _ = candidate_of(base)
    manifest["specification"]["method"]["name"] = "contrastive"
    with pytest.raises(ModelError, match="language model with LoRA"):
        question_of_pairs(manifest, data="preferences", privacy=None)
    assert "held against its base on each node's own comparisons" in render(run, nodes=4)
    assert TensorSchema.of(initial_state(run, base)).names[-1] == "~opinion"
