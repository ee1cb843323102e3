"""Runs whose privacy would not hold, or that would ask the data a question: refused, and nothing is charged for them.

An administrator (or whoever has its key) signs a document that no honest tool would make; the coordinator hands it on.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confide import canonical
from confide.codec.tensors import model_digest
from confide.errors import ModelError, SpecificationError
from confide.identity.submission import sign_submission
from confide.methods import base as methods
from confide.models.architecture import load_tokenizer
from confide.models.store import ModelStore
from confide.planning.run_plan import render
from confide.privacy.families import FAMILIES
from confide.privacy.ledger import LEDGER_NAME
from confide.proto import fleet_pb2
from confide.runs.specification import parse_document
from confide_client.training.private import units_of
from confide_client.training.tokens import units_of as texts_of_units

from tests.node_bench import MODEL, Bench, allow, kinds, make_store, open_bench
from tests.tiny_models import tiny_llama
from tests.tokenizer_runs import tokenizer_spec
from tests.training_specs import specification

RECORD = {"unit": "record", "epsilon": 3.0, "delta": 1e-5, "clip": 1.0}
USER = {**RECORD, "unit": "user", "user_key": "author"}
ORGANIZATION = {**RECORD, "unit": "organization"}
SEALED = {"kind": "sealed"}
Lie = tuple[dict[str, Any], str]

LIES: dict[str, Lie] = {
    "contrastive relates records": ({"privacy": RECORD, "method": {"name": "contrastive"}}, "contrastive"),
    "contrastive relates users": ({"privacy": USER, "method": {"name": "contrastive"}}, "contrastive"),
    "in_context sends metrics alone": (
        {"privacy": RECORD, "method": {"name": "in_context"}, "training": {"local_steps": 0}}, "local_steps is 0",
    ),
    "in_context, whole organizations": (
        {"privacy": ORGANIZATION, "method": {"name": "in_context"}, "training": {"local_steps": 0},
         "sealing": SEALED, "federation": {"clip_norm": 1.0}}, "local_steps is 0",
    ),
    "weights are counts of records": ({"privacy": RECORD, "federation": {"weights": "examples"}}, "example counts"),
    "weights are counts of classes": (
        {"privacy": RECORD, "method": {"name": "classification", "labels": ["a", "b"], "class_weights": "balanced"}},
        "class_weights",
    ),
    "checkpointing breaks single gradients": (
        {"privacy": RECORD, "training": {"gradient_checkpointing": True}}, "gradient_checkpointing",
    ),
    "so does a compiled model": ({"privacy": RECORD, "training": {"compile": True}}, "compile"),
    "steps of a warm start are not in the plan": (
        {"privacy": RECORD, "federation": {"warm_start_rounds": 1}}, "warm start",
    ),
    "fragments of a noised whole": (
        {"privacy": ORGANIZATION, "sealing": SEALED, "federation": {"clip_norm": 1.0, "fragments": 2}}, "fragments",
    ),
    "error feedback brings back what noise hid": (
        {"privacy": ORGANIZATION, "sealing": {**SEALED, "error_feedback": True}, "federation": {"clip_norm": 1.0}},
        "error feedback",
    ),
    "a clip that shrinks under noise for one clip": (
        {"privacy": ORGANIZATION, "sealing": SEALED,
         "federation": {"clip_norm": 1.0, "clip_schedule": "learning_rate"}}, "one clip",
    ),
    "noise outside of sealing": ({"privacy": ORGANIZATION, "federation": {"clip_norm": 1.0}}, "inside sealing"),
}  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return make_store(tmp_path_factory.mktemp("models"))


@pytest.fixture
def bench(tmp_path: Path, store: tuple[Path, str]) -> Iterator[Bench]:
    with open_bench(tmp_path, store, records=40, privacy=RECORD) as bench:
        allow(bench)
        yield bench


def forged(bench: Bench, sections: dict[str, Any]) -> dict[str, Any]:
    """The bench's specification with changes that it would not take."""
    document = bench.spec.model_dump(mode="json")
    for name, values in sections.items():
        document[name] = {**document[name], **values}
    return document


def offered(bench: Bench, document: dict[str, Any]) -> fleet_pb2.OfferAnswer:
    key, data = bench.world.members["admin"].identity, canonical.encode(document)
    signed = sign_submission(key, "admin", data, model_digest(MODEL), run_id=bench.run.run_id)
    return bench.offer(bench.world.offered(signed))


@pytest.mark.parametrize("lie", list(LIES))
def test_what_breaks_the_promise_is_refused_by_name_in_a_plan_and_on_the_node(bench: Bench, lie: str) -> None:
    sections, named = LIES[lie]
    document = forged(bench, sections)
    with pytest.raises(SpecificationError, match=named):
        parse_document(document, "the specification")
    answer = offered(bench, document)
    assert not answer.accepted and answer.reason.startswith("SpecificationError") and named in answer.reason
    assert not (bench.node.state.root / LEDGER_NAME).exists(), "a ledger was begun for a run that cannot be"
    assert bench.failure(*bench.run.slot(MODEL)).code == "StateError"
    assert not bench.trainer.trained


def test_an_honest_document_passes_the_same_way(bench: Bench) -> None:
    assert offered(bench, forged(bench, {})).accepted and kinds(bench) == ["approved"]


@pytest.mark.parametrize("config", ['{"model_type": "resnet"}', '{"model_type": "opt"}', "{}", "[]"])
def test_a_model_without_tested_single_gradients_is_refused_before_anything_is_set_aside(
    tmp_path: Path, config: str
) -> None:
    """Batch normalization relates records; of other families a library's gradients were never compared."""
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "config.json").write_text(config)
    (folder / "model.safetensors").write_bytes(bytes([2] + [0] * 7) + b"{}")
    sha256 = ModelStore(tmp_path / "store").add(str(folder), "odd")
    with open_bench(tmp_path / "bench", (tmp_path / "store", sha256), records=40, privacy=RECORD) as bench:
        allow(bench)
        answer = bench.offer()
        assert not answer.accepted and answer.reason.startswith("ModelError: per-record gradients of a")
        assert not (bench.node.state.root / LEDGER_NAME).exists()


def test_an_untested_family_is_refused_by_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, spec = tiny_llama(tmp_path), specification(privacy=RECORD)
    assert "privacy" in render(spec, nodes=4, base=base)
    monkeypatch.delitem(FAMILIES, "llama")
    with pytest.raises(ModelError, match="'llama' model were never compared"):
        render(spec, nodes=4, base=base)


def test_a_data_set_without_the_fields_is_refused_by_its_field_names_alone(
    tmp_path: Path, store: tuple[Path, str]
) -> None:
    """Before anything is set aside; what it lacks is not told."""
    for privacy in (USER, RECORD):
        method = {} if privacy is USER else {"name": "causal_lm"}
        with open_bench(tmp_path / privacy["unit"], store, records=40, privacy=privacy, method=method) as bench:
            allow(bench, str(privacy["unit"]))
            bench.policy('methods = ["sft"', 'methods = ["causal_lm", "sft"')
            answer = bench.offer()
            assert not answer.accepted and "does not say why" in answer.reason
            assert not (bench.node.state.root / LEDGER_NAME).exists()


GOOD = {"text": "The client pays.", "label": "a"}
PROBES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "is there a record with another label?": (
        {"method": {"name": "classification", "max_length": 32, "labels": ["a", "b"]}}, {**GOOD, "label": "rare"},
    ),
    "a text without a label": (
        {"method": {"name": "classification", "max_length": 32, "labels": ["a", "b"]}}, {**GOOD, "label": None},
    ),
    "a text that is none": ({"method": {"name": "causal_lm", "max_length": 32}}, {"text": 7}),
    "half of a surrogate pair": ({"method": {"name": "causal_lm", "max_length": 32}}, {"text": "\ud800"}),
    "and in a text with a label": (
        {"method": {"name": "classification", "max_length": 32, "labels": ["a", "b"]}}, {**GOOD, "text": "\ud800"},
    ),
    "and in an answer": ({"method": {"name": "sft"}}, {"question": "Who?", "answer": "\ud800"}),
    "a chat that the template refuses": ({"method": {"name": "sft"}}, {"messages": [{"role": "x"}]}),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_tokenizer(tiny_llama(tmp_path_factory.mktemp("llama")))


@pytest.mark.parametrize("probe", list(PROBES))
@pytest.mark.parametrize("alone", [False, True])
def test_no_record_makes_a_private_training_fail(tokenizer: Any, probe: str, alone: bool) -> None:
    """Whether a node fails is not noised: labels and lengths would ask for records by name, again and again."""
    sections, record = PROBES[probe]
    spec = specification(privacy=RECORD, **sections)
    method = methods.create(spec, tokenizer)
    good = GOOD if sections["method"]["name"] != "sft" else {"question": "Who?", "answer": "I."}
    records = [record] if alone else [good, record, good]
    assert [len(unit) for unit in units_of(spec, method, records)] == ([0] if alone else [1, 0, 1])


@pytest.mark.parametrize("record", [{"text": 7}, {"text": "\ud800"}, {"messages": "x"}, {}])
def test_no_record_makes_a_private_count_fail(record: dict[str, Any]) -> None:
    section = '[privacy]\nunit = "record"\nepsilon = 8.0\ndelta = 1e-6\nclip = 1.0'
    assert texts_of_units(tokenizer_spec(privacy=section), [{"text": "a"}, record]) == [["a"], []]


def test_what_is_asked_is_what_was_signed(bench: Bench) -> None:
    """The coordinator cannot take the privacy out of a run, or change a number in it."""
    change: Callable[[dict[str, Any]], None]
    for change in (
        lambda document: document.update(privacy={**document["privacy"], "epsilon": 300.0}),
        lambda document: document.update(training={**document["training"], "batch_size": 1}),
    ):
        document = forged(bench, {})
        change(document)
        offer = bench.signed()
        offer.specification = canonical.encode(document)
        answer = bench.offer(offer)
        assert not answer.accepted and answer.reason.startswith("IdentityError")
    assert json.loads(bench.signed().specification)["privacy"]["epsilon"] == 3.0
    assert not (bench.node.state.root / LEDGER_NAME).exists()
