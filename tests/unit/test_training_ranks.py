"""A node that affords a smaller LoRA rank takes part all the same, through its runtime and by one setting."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confide.codec.tensors import model_digest
from confide.journal import Journal
from confide.models.store import ModelStore
from confide.models.trainable import initial_state, schema_of
from confide_client.agent.runtime import NodeRuntime
from confide_client.audit.log import Audit
from confide_client.runs.loading import trainers_of
from confide_client.runs.run import Node

from tests.node_bench import Bench, ShardTrainer
from tests.node_worlds import World, faq
from tests.tiny_models import tiny_llama
from tests.training_specs import specification

RANK, OWN = 4, 2


@pytest.mark.parametrize("scheme", ["average", "fedsvd", "fedsb"])
def test_a_node_trains_its_own_rank_and_leaves_the_rest_at_zero(tmp_path: Path, scheme: str) -> None:
    world = World.make(tmp_path / "world", ("node-a", "node-b"))
    (tmp_path / "llama").mkdir()
    base = tiny_llama(tmp_path / "llama")
    sha256 = ModelStore(tmp_path / "store").add(str(base), "tiny")
    state = world.equip("node-a", sha256, tmp_path / "store", faq(tmp_path / "faq.jsonl", 8))
    state.save_settings(state.settings.model_copy(update={"max_rank": OWN, "threads": 1}))
    spec = specification(
        model={"sha256": sha256},
        adapter={"rank": RANK, "aggregation": scheme},
        federation={"data": "faq", "min_cohort": 2},
    )
    node = Node(
        state=state,
        member=world.members["node-a"],
        audit=Audit(Journal(state.audit)),
        make_trainer=trainers_of(state),
    )
    bench = Bench(world, spec, ShardTrainer(), NodeRuntime(node), node)
    schema = schema_of(spec, base)
    model = schema.encode(initial_state(spec, base))
    try:
        assert bench.settled_offer(bench.signed(model=model)).accepted
        reply, files = bench.ask(*bench.run.slot(model, model_sha256=model_digest(model)))
        assert reply.WhichOneof("outcome") != "failure", reply.failure
    finally:
        bench.runtime.close()
        node.audit.close()
    update = _expanded(spec, schema, np.frombuffer(files["upload"], dtype="<f4"))
    for name, part in schema.unflatten(update).items():
        if name.endswith("lora_A") and scheme == "fedsvd":
            assert not part.any()
            continue
        rows, columns = not name.endswith("lora_B"), not name.endswith("lora_A")
        assert not (rows and part[OWN:].any()) and not (columns and part[:, OWN:].any()), name
        assert part[:OWN, :OWN].any() or name.endswith("lora_A")


def _expanded(spec: Any, schema: Any, part: np.ndarray) -> np.ndarray:
    from confide.models.sent_coordinates import SentCoordinates

    coordinates, flat = SentCoordinates(spec, schema), np.zeros(schema.size, np.float32)
    assert len(part) == coordinates.count(1)
    coordinates.scatter(part, 1, flat)
    return flat
