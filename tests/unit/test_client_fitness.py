"""A run's method is tried on the node's own records before a person approves it: counted, warned of, refused at all."""

import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from confide.errors import DataError
from confide.models.store import ModelStore
from confide_client.data.datasets import DataSets
from confide_client.data.fitness import check_worth_approving, try_method, try_offer
from confide_client.data.rows import open_rows
from confide_client.runs.plan import plan_of
from confide_client.state import StateFolder

from tests.tiny_models import tiny_bert, tiny_llama
from tests.training_specs import specification

GOOD = {"prompt": "Who?", "completion": "The client."}
BAD = {"messages": [{"role": "secret", "content": "secret"}]}
LONG = {"prompt": "Who? " * 200, "completion": "The client."}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


def written(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_records_that_teach_nothing_are_counted_by_reason_and_line(base: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [GOOD, BAD, LONG, GOOD, BAD])
    found = try_method(specification(), base, open_rows(path, "jsonl"))
    assert (found.records, found.unfit, found.hopeless) == (5, 3, False)
    said = "\n".join(found.warnings())
    assert "from 3 of 5 training records" in said
    assert "2 records, first line 2: a turn in 'messages' needs a role" in said
    assert "1 records, first line 3: in no record a completion begins within method.max_length = 64" in said
    assert "secret" not in said
    well = try_method(specification(), base, [GOOD, None, GOOD])
    assert (well.warnings(), well.lines()) == ([], ["all 2 training records fit the method"])


def test_of_many_records_an_even_share_is_tried(base: Path) -> None:
    found = try_method(specification(), base, [BAD, GOOD, GOOD, GOOD, GOOD] * 8, most=8)
    assert (found.records, found.unfit) == (8, 8)
    found = try_method(specification(), base, [BAD, GOOD, GOOD, GOOD, GOOD] * 8, most=13)
    assert found.records == 10 and 0 < found.unfit < 10


def test_labels_and_empty_texts(tmp_path: Path) -> None:
    bert = tiny_bert(tmp_path)
    labels = specification(method={"name": "classification", "labels": ["0", "1"]})
    records = [{"text": "a", "label": 1.0}, {"text": "b", "label": "low"}]
    assert try_method(labels, bert, records).unfit == 1
    masked = specification(method={"name": "masked_lm"})
    assert try_method(masked, bert, [{"text": "a wall"}, {"text": "\ud800"}, {"label": "no text"}]).unfit == 2


def test_plan_and_approval_refuse_what_could_learn_nothing(base: Path, tmp_path: Path) -> None:
    """Also under privacy, where the agent itself is silent: then the budget would be spent on noise alone."""
    state = StateFolder.create(tmp_path / "node")
    sha256 = ModelStore(state.models).add(str(base), "base")
    privacy = {"unit": "record", "epsilon": 8.0, "delta": 1e-5, "clip": 0.5}
    spec = specification(model={"sha256": sha256}, privacy=privacy)
    spec_file = tmp_path / "run.toml"
    assert try_offer(state, spec) is None
    registry = DataSets(state.root)
    registry.add("shard", written(tmp_path / "bad.jsonl", [BAD] * 5), evaluation_fraction=0.0)
    with pytest.raises(DataError, match="nothing can be learned from any of the 5 training records"):
        check_worth_approving(state, spec)
    document = json.loads(spec.model_dump_json(exclude_defaults=True, exclude_none=True))
    spec_file.write_text(tomli_w.dumps({**document, "version": 1}))
    plan = plan_of(state, str(spec_file))
    assert any("nothing can be learned from any" in warning for warning in plan.warnings)
    assert plan.refusal is not None and "nothing can be learned" in plan.refusal
    registry.add("shard", written(tmp_path / "some.jsonl", [GOOD] * 4 + [BAD]), evaluation_fraction=0.0)
    assert check_worth_approving(state, spec)[0] == "nothing can be learned from 1 of 5 training records"
    registry.add("shard", written(tmp_path / "good.jsonl", [GOOD] * 5), evaluation_fraction=0.0)
    assert check_worth_approving(state, spec) == []
