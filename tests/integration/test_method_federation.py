"""Every training method over real processes: a coordinator and four nodes, TLS, sealed, and what came out of it.

The processes are started once; the runs go over them one after the other. One node trains LoRA at a smaller rank.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from confide.tokenizer.state import parse_state
from confide.tokenizer.terms import Terms
from confide_client.data.datasets import DataSets
from confide_simulations.local_federation import run_command
from confide_simulations.processes import ProcessGroup
from peft import PeftModel

from tests.method_runs import (
    CLIP,
    LABELS,
    NODES,
    SMALL,
    VICTIM,
    MethodFederation,
    RealRun,
    Replay,
    distance,
    mean,
    products,
    record,
)
from tests.tiny_models import tiny_bert
from tests.tokenizer_runs import states, tokenizer_spec

ROUNDING = 1e-3
"""Of 16 sealed bits, relative to how far a round moves."""
WHOLE_MODEL_CLIP = 8.0
ROUNDS = 5
"""Of the runs in which somebody is killed."""
FRAGMENTS, OUTER_RATE, MOMENTUM = 2, 0.7, 0.9
EVERYBODY = sorted(NODES)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MethodFederation]:
    with ProcessGroup() as processes:
        made = MethodFederation(tmp_path_factory.mktemp("methods"), processes)
        made.start()
        yield made


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("models") / "bert")


def check_adapter(found: RealRun, folder: Path, kind: Any = transformers.AutoModelForCausalLM, **more: Any) -> None:
    """PEFT makes of the exported adapter what was trained."""
    found.export(folder)
    base = kind.from_pretrained(found.base, **more)
    tokens = torch.arange(5, 25).reshape(2, 10)
    with torch.no_grad():
        before = base.eval()(input_ids=tokens)[0].clone()
        theirs = PeftModel.from_pretrained(base, folder).eval()(input_ids=tokens)[0]
        ours = found.trained()(input_ids=tokens)[0]
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(theirs, before, atol=1e-4)
    check_manifest(found, folder)


def check_manifest(found: RealRun, folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["run_id"] == found.run_id and manifest["sealing"] == "sealed"
    assert [entry["contributors"] for entry in manifest["rounds"]] == found.contributors
    assert {entry["promise"]["kind"] for entry in manifest["rounds"]} == {"sealed"}


class Kill:
    """SIGKILL to one process once a round is committed, in the midst of the next; it is started again at once."""

    def __init__(self, federation: MethodFederation, victim: str = VICTIM, after: int = 2) -> None:
        self._federation, self._victim, self._after = federation, victim, after
        self._left: set[tuple[str, str]] = set()

    def __call__(self, kind: str, data: dict[str, Any]) -> None:
        if kind == "round_committed" and data["round"] == self._after:
            self._federation.kill_and_start_again(self._victim)
            if self._victim in NODES:
                runs = self._federation.made.node_folder(self._victim) / "runs"
                self._left = {(path.parts[-3], path.stem) for path in runs.glob("*/training/values-*.f32")}

    def alone(self, found: RealRun, number: int) -> tuple[str, ...]:
        """The killed node, if it had ended its training of that round, whether or not that got into a sum."""
        return (self._victim,) if (found.run_id, f"values-{number:06d}") in self._left else ()


def check_killed(found: RealRun) -> None:
    """The run went on without the killed node, by name, and had it again at the end."""
    dropped = {(data["node"], bool(data["reason"])) for data in found.of_kind("dropped")}
    assert dropped == {(VICTIM, True)}, found.of_kind("dropped")
    assert len(found.contributors) == ROUNDS
    assert all(set(EVERYBODY) - {VICTIM} <= set(names) for names in found.contributors)
    assert found.contributors[0] == found.contributors[-1] == EVERYBODY


def fedsvd(federation: MethodFederation, kill: Kill, **federated: Any) -> RealRun:
    """A run in which somebody is killed."""
    sections = {"adapter": {"aggregation": "fedsvd"}, "federation": {"rounds": ROUNDS, **federated}}
    return federation.run(federation.specification(**sections), watch=kill)


def check_fedsvd(found: RealRun, folder: Path) -> None:
    """Every round opened the mean of its contributors' products, and refactored it."""
    replay = Replay(found, folder / "replay")
    for number in range(1, ROUNDS + 1):
        start, opened, updates = found.flat(number - 1), found.flat(number), replay.updates(number)
        before, after = (products(found, replay.schema, flat) for flat in (start, opened))
        each = [products(found, replay.schema, start + update) for update in updates.values()]
        assert distance(after, np.mean(each, axis=0), before) < ROUNDING, number
        assert distance(opened, start + mean(updates), start) > 0.1, number
        for name, tensor in replay.schema.unflatten(opened).items():
            if name.endswith("lora_A"):
                torch.testing.assert_close(tensor @ tensor.T, torch.eye(len(tensor)), rtol=0, atol=1e-5)


def fragments(federation: MethodFederation, kill: Kill, **federated: Any) -> RealRun:
    """A run in which somebody is killed."""
    outer = {"learning_rate": OUTER_RATE, "momentum": MOMENTUM, "nesterov": True}
    specification = federation.specification(
        method={"name": "causal_lm", "max_length": 32},
        adapter={"kind": "full"},
        federation={
            "rounds": ROUNDS, "fragments": FRAGMENTS, "outer": outer, "clip_norm": WHOLE_MODEL_CLIP, **federated
        },
    )  # fmt: skip
    return federation.run(specification, watch=kill)


def check_fragments(found: RealRun, kill: Kill, folder: Path) -> None:
    """Every round moved its fragment by the outer step over what the contributors trained, and no other scalar."""
    replay = Replay(found, folder / "replay")
    size = replay.schema.size
    bounds = list(itertools.pairwise(size * index // FRAGMENTS for index in range(FRAGMENTS + 1)))
    velocity = np.zeros(size)
    for number in range(1, ROUNDS + 1):
        start, opened = found.flat(number - 1).astype(np.float64), found.flat(number).astype(np.float64)
        (first, last), others = bounds[(number - 1) % FRAGMENTS], np.ones(size, dtype=bool)
        others[first:last] = False
        assert (start[others] == opened[others]).all() and (start[~others] != opened[~others]).mean() > 0.5
        updates = replay.updates(number, alone=kill.alone(found, number))
        moved = mean(updates)
        assert not moved[others].any()
        velocity[~others] = MOMENTUM * velocity[~others] + moved[~others]
        expected = start + OUTER_RATE * np.where(others, 0.0, moved + MOMENTUM * velocity)
        assert distance(opened, expected, start) < ROUNDING, number
    # What was not exchanged went on from each node's own values: without them the last round would be another.
    forgetful = Replay(found, folder / "forgetful", nodes=(SMALL,)).updates(ROUNDS)[SMALL]
    assert distance(forgetful, updates[SMALL], np.zeros(size)) > 0.05


def test_fedsvd_opens_the_mean_product_and_outlives_a_killed_node(federation: MethodFederation, tmp_path: Path) -> None:
    found = fedsvd(federation, Kill(federation))
    check_killed(found)
    check_fedsvd(found, tmp_path)
    check_adapter(found, tmp_path / "adapter")


def test_a_fragment_moves_in_its_rounds_only_and_outlives_a_killed_node(
    federation: MethodFederation, tmp_path: Path
) -> None:
    kill = Kill(federation)
    found = fragments(federation, kill)
    check_killed(found)
    check_fragments(found, kill, tmp_path)
    sent = {data["bytes"] for data in found.of_kind("contributed")}
    assert max(sent) < 0.6 * 2.5 * found.flat(0).size  # 18 bits a coordinate for four nodes, of half of them
    exported = transformers.AutoModelForCausalLM.from_pretrained(found.export(tmp_path / "model"))
    tokens = torch.arange(5, 25).reshape(2, 10)
    with torch.no_grad():
        theirs, ours = exported.eval()(input_ids=tokens).logits, found.trained()(input_ids=tokens).logits
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    check_manifest(found, tmp_path / "model")


@pytest.mark.full
@pytest.mark.parametrize("method", ["fedsvd", "fragments"])
def test_a_round_that_needs_the_killed_node_is_tried_again_with_it(
    federation: MethodFederation, tmp_path: Path, method: str
) -> None:
    kill = Kill(federation)
    found = {"fedsvd": fedsvd, "fragments": fragments}[method](federation, kill, min_cohort=len(NODES))
    assert found.contributors == [EVERYBODY] * ROUNDS
    assert {data["code"] for data in found.of_kind("slot_abandoned")} == {"LIST_TOO_SMALL"}
    assert 2 in {found.attempt(number) for number in range(1, ROUNDS + 1)}
    if method == "fedsvd":
        check_fedsvd(found, tmp_path)
    else:
        check_fragments(found, kill, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("method", ["fedsvd", "fragments"])
def test_a_killed_coordinator_goes_on_where_it_was(federation: MethodFederation, tmp_path: Path, method: str) -> None:
    kill = Kill(federation, "coordinator")
    found = {"fedsvd": fedsvd, "fragments": fragments}[method](federation, kill)
    assert found.contributors == [EVERYBODY] * ROUNDS
    assert [data["round"] for data in found.of_kind("round_committed")] == list(range(1, ROUNDS + 1))
    if method == "fedsvd":
        check_fedsvd(found, tmp_path)
    else:
        check_fragments(found, kill, tmp_path)


@pytest.mark.parametrize("scheme", ["average", pytest.param("ffa", marks=pytest.mark.full), "rolora", "fedsb"])
def test_a_node_of_smaller_rank_takes_part_in_every_scheme(
    federation: MethodFederation, tmp_path: Path, scheme: str
) -> None:
    specification = federation.specification(
        adapter={"aggregation": scheme}, training={"keep_optimizer_state": scheme == "rolora"}
    )
    found = federation.run(specification)
    assert found.contributors == [EVERYBODY] * 2
    replay = Replay(found, tmp_path / "replay")
    at_whole_rank = Replay(found, tmp_path / "whole-rank", nodes=(SMALL,), small_rank=None)
    for number in (1, 2):
        start, opened = found.flat(number - 1), found.flat(number)
        updates = replay.updates(number)
        assert distance(opened, start + mean(updates), start) < ROUNDING
        assert distance(opened, start + mean(updates | at_whole_rank.updates(number)), start) > 0.05
        if scheme != "average":
            before, after = (products(found, replay.schema, flat) for flat in (start, opened))
            each = [products(found, replay.schema, start + update) for update in updates.values()]
            assert distance(after, np.mean(each, axis=0), before) < ROUNDING
        for name, tensor in replay.schema.unflatten(opened - start).items():
            rests = scheme == "rolora" and name.endswith("lora_A" if number == 1 else "lora_B")
            assert bool(tensor.any()) is not rests, (name, number)
    check_adapter(found, tmp_path / "adapter")


def one_round(
    federation: MethodFederation, base: Path, folder: Path, *, clip_norm: float = CLIP, **sections: Any
) -> RealRun:
    """Run one round, and insist that it opened the mean of what the nodes trained and measured."""
    federated = {"rounds": 1, "clip_norm": clip_norm}
    found = federation.run(federation.specification(base, federation=federated, **sections), base)
    replay = Replay(found, folder)
    start = found.flat(0)
    assert distance(found.flat(1), start + mean(replay.updates(1)), start) < ROUNDING
    told = {name: metric["mean"] for name, metric in found.of_kind("round_committed")[0]["metrics"].items()}
    measured = replay.metrics()
    assert measured and {name: told[name] for name in measured} == pytest.approx(measured, rel=1e-3, abs=1e-3)
    return found


def test_masked_language_modelling(federation: MethodFederation, bert: Path, tmp_path: Path) -> None:
    method = {"name": "masked_lm", "max_length": 32, "mask_probability": 0.3}
    sections = {"method": method, "adapter": {"kind": "full"}}
    found = one_round(federation, bert, tmp_path / "replay", clip_norm=WHOLE_MODEL_CLIP, **sections)
    exported = transformers.AutoModelForMaskedLM.from_pretrained(found.export(tmp_path / "model"))
    tokens = torch.arange(5, 25).reshape(2, 10)
    with torch.no_grad():
        theirs, ours = exported.eval()(input_ids=tokens).logits, found.trained()(input_ids=tokens).logits
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)


def test_classification(federation: MethodFederation, tmp_path: Path) -> None:
    method = {"name": "classification", "max_length": 32, "labels": list(LABELS)}
    found = one_round(federation, federation.llama, tmp_path / "replay", method=method)
    kind = transformers.AutoModelForSequenceClassification
    check_adapter(found, tmp_path / "adapter", kind, num_labels=len(LABELS))


def test_contrastive(federation: MethodFederation, bert: Path, tmp_path: Path) -> None:
    sections = {
        "method": {"name": "contrastive", "max_length": 32},
        "adapter": {"target_modules": ["query", "value"]},
        "training": {"batch_size": 8},
    }
    found = one_round(federation, bert, tmp_path / "replay", **sections)
    check_adapter(found, tmp_path / "adapter", transformers.AutoModel)


def test_in_context_only_sealed_metrics_leave(federation: MethodFederation, tmp_path: Path) -> None:
    specification = federation.specification(
        method={"name": "in_context", "max_length": 128, "labels": list(LABELS), "prompt": "{input} It is {output}"},
        training={"local_steps": 0},
        federation={"rounds": 1},
    )
    found = federation.run(specification)
    assert (found.model(0), found.model(1)) == (b"", b"")
    (entry,) = found.manifest["rounds"]
    told = {name: metric["mean"] for name, metric in entry["metrics"].items()}
    assert told == pytest.approx(Replay(found, tmp_path / "replay").metrics(), abs=1e-3)
    assert set(told) == {"eval_exact_match", "eval_accuracy", "eval_macro_f1"}
    assert {metric["count"] for metric in entry["metrics"].values()} == {len(NODES)}
    sizes = {data["bytes"] for data in found.of_kind("contributed")}
    assert len(sizes) == 1 and sizes.pop() < 4096  # one block of the packing, for the metrics
    exported = found.export(tmp_path / "metrics")
    assert [path.name for path in exported.iterdir()] == ["manifest.json"]
    assert json.loads((exported / "manifest.json").read_text())["rounds"][0]["metrics"] == entry["metrics"]
    check_manifest(found, exported)


def test_the_tokenizer_is_that_of_the_pooled_text(federation: MethodFederation, tmp_path: Path) -> None:
    made, written = federation.made, tmp_path / "words.toml"
    written.write_text(
        'version = 1\nname = "words"\nmethod.name = "tokenizer"\ntokenizer.vocabulary = 320\n'
        f'[federation]\nrounds = 3\ndata = "{made.data}"\nclip_norm = 1e4\n'
    )
    specification = tokenizer_spec(sealing="sealed", vocabulary=320)
    made.allow(specification)
    run_command("run", "submit", str(written), "--admin", str(made.admin_folder))
    with made.client() as client:
        run_id = client.list_runs().runs[0].run_id
    found = federation.followed(specification, run_id)
    assert found.manifest["specification_sha256"] == specification.digest
    pooled = [str(row["text"]) for name in NODES for row in DataSets(made.node_folder(name)).load(made.data).train]
    assert [found.model(number) for number in range(4)] == [state.to_bytes() for state in states(specification, pooled)]
    assert len({data["bytes"] for data in found.of_kind("contributed")}) == 1
    tokenizer = transformers.AutoTokenizer.from_pretrained(found.export(tmp_path / "tokenizer"), local_files_only=True)
    assert len(tokenizer) == parse_state(found.model(3), Terms.of(specification)).size + 2
    for text in (record(1000)["text"], "naïve façade — 壁 is a wall too"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    known = record(1)["text"]
    assert len(tokenizer.encode(known)) < 0.7 * len(known.encode())
    check_manifest(found, tmp_path / "tokenizer")
