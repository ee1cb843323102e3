"""Virtual nodes on Flower's Ray engine: the same model as the real federation, sealed too, and through crashes."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from confide import journal
from confide.errors import ConfideError, DataError, SpecificationError, StateError
from confide.models.sent_coordinates import SentCoordinates
from confide.models.store import folder_digest
from confide.models.trainable import schema_of
from confide.privacy.ledger import replay
from confide.runs.specification import Specification
from confide_client.data.datasets import DataSets
from confide_simulations.local_federation import LocalFederation
from confide_simulations.processes import ProcessGroup
from confide_simulations.simulate import comparison
from confide_simulations.simulate.engine import Engine, Resources
from confide_simulations.simulate.population import split_seed
from confide_simulations.simulate.simulation import Finished, Job, Simulation
from confide_simulations.simulate.study import Study, prepare, run

from tests.ray_marks import RAY
from tests.tiny_models import tiny_llama
from tests.training_specs import specification as make_specification

pytestmark = RAY

NODES = ("bank-b", "hospital-a", "law-firm-c")
RECORDS = [
    {"question": f"How thick must wall {i} be?", "answer": f"Wall {i} must be {i + 3} centimetres thick."}
    for i in range(36)
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, files = tmp_path_factory.mktemp("shards"), {}
    for index, name in enumerate(NODES):
        files[name] = folder / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps(record) + "\n" for record in RECORDS[index::3]))
    return files


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    # Another's cluster, running or gone, must not be joined unasked.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "127.0.0.1:1")
        with Engine(Resources(workers=2, cpus=1.0), nodes=3) as made:
            yield made


def specification_of(base: Path, **sections: Any) -> Specification:
    federation = {"rounds": 2, "data": "shard", "clip_norm": 4.0, **sections.pop("federation", {})}
    return make_specification(model={"sha256": folder_digest(base)}, federation=federation, **sections)


def simulate(
    engine: Engine, folder: Path, specification: Specification, base: Path, shards: Mapping[str, Path]
) -> Finished:
    return Simulation(folder, Job(specification=specification, base=base, shards=shards)).run(engine)


def test_the_same_bits_as_the_real_federation(
    engine: Engine, base: Path, shards: Mapping[str, Path], tmp_path: Path
) -> None:
    specification = specification_of(
        base,
        federation={"outer": {"learning_rate": 0.7, "momentum": 0.9, "nesterov": True}},
        training={"keep_optimizer_state": True},
    )
    simulated = simulate(engine, tmp_path / "simulated", specification, base, shards)
    made = LocalFederation(tmp_path / "real", nodes=shards, base=base)
    made.set_up()
    for name, shard in shards.items():
        seed = split_seed(specification.seed, name, shard)
        DataSets(made.node_folder(name)).add(made.data, shard, split_seed=seed)
    with ProcessGroup() as processes:
        made.start(processes)
        made.allow(specification)
        run_id = made.submit(specification)
        events = list(made.watch(run_id))
        real = [made.checkpoint(run_id, number)[1] for number in (1, 2)]
    assert events[-1][0] == "run_finished", events[-3:]
    assert list(simulated.models[1:]) == real
    assert simulated.models[0] != real[0] != real[1]
    other = simulate(engine, tmp_path / "other", specification.model_copy(update={"seed": 6}), base, shards)
    assert other.models[2] != real[1]


def test_sealed_rounds_agree_with_unsealed_ones(
    engine: Engine, base: Path, shards: Mapping[str, Path], tmp_path: Path
) -> None:
    sealed = specification_of(base, sealing={"kind": "sealed", "bits": 16})
    found = simulate(engine, tmp_path / "sealed", sealed, base, shards)
    plain = simulate(engine, tmp_path / "plain", specification_of(base), base, shards)
    models = [np.frombuffer(run.models[2], "<f4") for run in (found, plain)]
    start = np.frombuffer(plain.models[0], "<f4")
    assert np.linalg.norm(models[0] - models[1]) < 1e-3 * np.linalg.norm(models[1] - start)
    assert [event.kind for event in found.events].count("epoch_started") == 1
    assert found.manifest["rounds"][1]["contributors"] == list(NODES)
    assert found.manifest["rounds"][1]["promise"]["kind"] == "sealed"


def test_groups_each_open_a_sum(engine: Engine, base: Path, tmp_path: Path) -> None:
    """Six nodes in two groups, through the real run driver; the mean is that of all six."""
    shards = {}
    for number in range(6):
        shards[f"node-{number}"] = tmp_path / f"{number}.jsonl"
        shards[f"node-{number}"].write_text("".join(json.dumps(record) + "\n" for record in RECORDS[number::6]))
    sealed = specification_of(base, sealing={"kind": "sealed", "bits": 16})
    job = Job(specification=sealed, base=base, shards=shards, groups=2)
    assert "2 sums are seen in every round" in job.check()
    found = Simulation(tmp_path / "sealed", job).run(engine)
    plain = simulate(engine, tmp_path / "plain", specification_of(base), base, shards)
    models = [np.frombuffer(run.models[2], "<f4") for run in (found, plain)]
    start = np.frombuffer(plain.models[0], "<f4")
    assert np.linalg.norm(models[0] - models[1]) < 1e-3 * np.linalg.norm(models[1] - start)
    entry = found.manifest["rounds"][1]
    assert entry["contributors"] == sorted(shards)
    assert entry["promise"]["sums"] == 2
    assert [group["n"] for group in entry["promise"]["groups"].values()] == [3, 3]


NESTEROV = {"learning_rate": 0.7, "momentum": 0.9, "nesterov": True}


@pytest.mark.parametrize(
    "sections",
    [
        {"training": {"keep_optimizer_state": True}},
        {"training": {"keep_optimizer_state": True}, "federation": {"fragments": 2, "outer": NESTEROV}},
        {"adapter": {"aggregation": "fedsvd"}},
    ],
    ids=["average", "fragments", "fedsvd"],
)
def test_a_dead_worker_and_a_killed_coordinator_change_nothing(
    engine: Engine, base: Path, shards: Mapping[str, Path], tmp_path: Path, sections: dict[str, Any]
) -> None:
    generation = engine.generation(0)
    specification = specification_of(
        base, **{**sections, "federation": {"rounds": 3, **sections.get("federation", {})}}
    )
    job = Job(specification=specification, base=base, shards=shards)
    undisturbed = Simulation(tmp_path / "undisturbed", job).run(engine)

    class Killed(Exception):
        """Stands for Ctrl-C in mid-round."""

    def kill(kind: str, data: Mapping[str, Any]) -> None:
        if kind == "round_started" and data["round"] == 2:
            engine.kill_worker(0)
        if kind == "contributed" and data["round"] == 2:
            raise Killed

    with pytest.raises(Killed):
        Simulation(tmp_path / "disturbed", job).run(engine, kill)
    assert engine.generation(0) == generation + 1
    resumed = Simulation(tmp_path / "disturbed", job).run(engine)
    assert resumed.models == undisturbed.models
    assert [e.data["round"] for e in resumed.events if e.kind == "round_committed"] == [1, 2, 3]
    again = Simulation(tmp_path / "disturbed", job).run(engine, lambda kind, data: None)
    assert again.run_id == resumed.run_id
    with pytest.raises(StateError, match=r"holds another simulation.*another --output"):
        changed = job.specification.model_copy(update={"seed": 9})
        Simulation(tmp_path / "disturbed", Job(specification=changed, base=base, shards=shards)).run(engine)


@pytest.mark.parametrize(
    "sections",
    [{"adapter": {"aggregation": "fedsvd"}}, {"federation": {"fragments": 2, "outer": NESTEROV}}],
    ids=["fedsvd", "fragments"],
)
def test_part_of_the_model_travels_sealed(
    engine: Engine, base: Path, shards: Mapping[str, Path], tmp_path: Path, sections: dict[str, Any]
) -> None:
    """Three rounds that every node's model chain admits, of which only what can differ from zero is sent."""
    wanted = {**sections, "federation": {"rounds": 3, **sections.get("federation", {})}}
    runs = [
        simulate(engine, tmp_path / kind, specification_of(base, sealing={"kind": kind}, **wanted), base, shards)
        for kind in ("sealed", "none")
    ]
    sealed, plain = (np.frombuffer(run.models[3], "<f4") for run in runs)
    start = np.frombuffer(runs[1].models[0], "<f4")
    coordinates = SentCoordinates(specification_of(base, **wanted), schema_of(specification_of(base, **wanted), base))
    assert coordinates.count(1) < coordinates.size
    for one in runs:
        assert [len(entry["contributors"]) for entry in one.manifest["rounds"]] == [3, 3, 3]
    sent = {(e.data["round"], e.data["bytes"]) for e in runs[1].events if e.kind == "contributed"}
    assert sent == {(number, 4 * coordinates.count(number)) for number in (1, 2, 3)}
    assert np.linalg.norm(sealed - plain) < 1e-2 * np.linalg.norm(plain - start)


def test_diloco_from_scratch_in_four_bits(engine: Engine, base: Path, tmp_path: Path) -> None:
    """Random weights, H AdamW steps with kept state, Nesterov outside, 4 sealed bits with error feedback."""
    shards = {}
    for index, name in enumerate(NODES):
        shards[name] = tmp_path / f"{name}.jsonl"
        texts = [f"{record['question']} {record['answer']}" for record in RECORDS[index::3]]
        shards[name].write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    finals = {}
    for bits, kind in ((4, "sealed"), (8, "sealed"), (16, "none")):
        spec = specification_of(
            base,
            federation={"rounds": 6, "clip_norm": 3.0, "outer": NESTEROV},
            training={"local_steps": 5, "keep_optimizer_state": True, "learning_rate": 3e-3, "schedule": "cosine"},
            method={"name": "causal_lm", "max_length": 32},
            adapter={"kind": "full"},
            sealing={"kind": kind, "bits": bits, "error_feedback": kind == "sealed"},
        )
        spec = spec.model_copy(update={"model": spec.model.model_copy(update={"initial": "random"})})
        found = simulate(engine, tmp_path / f"{kind}-{bits}", spec, base, shards)
        losses = [entry["metrics"]["eval_loss"]["mean"] for entry in found.manifest["rounds"]]
        assert losses[-1] < losses[0] - 0.3, losses
        finals[bits] = losses[-1]
    assert abs(finals[8] - finals[16]) < 0.02 * finals[16] and abs(finals[4] - finals[16]) < 0.1 * finals[16], finals


TOML = """
version = 1
name = "{name}"
[model]
sha256 = "{sha256}"
[adapter]
rank = 4
target_modules = ["q_proj", "v_proj"]
[method]
max_length = 64
[training]
local_steps = 3
batch_size = 4
learning_rate = {rate}
[federation]
rounds = 2
data = "shard"
clip_norm = 4.0
[sealing]
kind = "{sealing}"
{extra}
"""


@pytest.fixture
def asked(base: Path, tmp_path: Path) -> Study:
    for name, rate in (("fast", 1e-2), ("slow", 1e-5)):
        text = TOML.format(name=name, sha256=folder_digest(base), rate=rate, sealing="none", extra="")
        (tmp_path / f"{name}.toml").write_text(text)
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({**record, "kind": f"k{i % 6}"}) + "\n" for i, record in enumerate(RECORDS)))
    return Study(
        specification=tmp_path / "fast.toml",
        base=base,
        data=data,
        nodes=3,
        output=tmp_path / "out",
        partition="by-key",
        key="kind",
        held_out=0.15,
    )


def test_a_comparison_tells_learning_from_not_learning(engine: Engine, asked: Study, tmp_path: Path) -> None:
    runs = comparison.prepare(asked, [tmp_path / "fast.toml", tmp_path / "slow.toml"], 2)
    seen: list[str] = []
    watching = contextlib.nullcontext(lambda kind, data: seen.append(kind))
    entries = comparison.run(runs, engine, lambda one: watching, asked.output)
    assert seen.count("round_committed") == 8
    fast, slow = comparison.summary(entries)
    assert fast["held_out_eval_loss_mean"] < slow["held_out_eval_loss_mean"] - 0.01
    finals = [report.rows[-1]["held_out_eval_loss"] for report in entries[0].reports]
    assert fast["held_out_eval_loss_mean"] == pytest.approx(sum(finals) / 2)
    assert fast["held_out_eval_loss_std"] == pytest.approx(abs(finals[0] - finals[1]) / 2**0.5)
    document = json.loads((asked.output / "compare.json").read_text())
    assert [row["name"] for row in document["summary"]] == ["fast", "slow"] and len(document["runs"]) == 4
    rounds = pyarrow.parquet.read_table(asked.output / "compare.parquet").to_pylist()
    assert {(row["name"], row["seed"], row["round"]) for row in rounds} == {
        (name, seed, number) for name in ("fast", "slow") for seed in (0, 1) for number in (0, 1, 2)
    }
    assert (asked.output / "compare.png").read_bytes().startswith(b"\x89PNG")

    folder = asked.output / "fast" / "seed-1"
    report = json.loads((folder / "results.json").read_text())
    assert report["meta"]["config"]["partition"] == "by-key by kind" and report["meta"]["seed"] == 1
    assert sum(report["meta"]["config"]["nodes"].values()) == 36 - report["meta"]["config"]["held_out_records"] == 30
    scalars = 2 * ((4 * 32 + 32 * 4) + (4 * 32 + 16 * 4))  # two layers: A and B of q_proj (32, 32), v_proj (16, 32)
    assert report["rounds"][2]["upload_bytes"] == 3 * 4 * scalars
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "model" / "adapter_model.safetensors").exists()


def test_record_level_privacy_is_charged_on_every_virtual_node(engine: Engine, asked: Study, tmp_path: Path) -> None:
    private = '[privacy]\nunit = "record"\nepsilon = 8.0\ndelta = 1e-5\nclip = 1.0'
    text = TOML.format(name="private", sha256=folder_digest(asked.base), rate=1e-3, sealing="sealed", extra=private)
    asked.specification.write_text(text)
    report = run(asked, prepare(asked), engine, lambda kind, data: None)
    assert "held_out_eval_loss" in report.rows[2] and "train_loss" not in report.rows[2]
    assert len(list((asked.output / "work" / "run" / "nodes").glob("*/runs/*/receipts/*.json"))) == 6


def test_organization_level_noise_is_shared_by_virtual_nodes(engine: Engine, asked: Study, tmp_path: Path) -> None:
    private = '[privacy]\nunit = "organization"\nepsilon = 8.0\ndelta = 1e-3\nclip = 4.0'
    text = TOML.format(name="private", sha256=folder_digest(asked.base), rate=1e-3, sealing="sealed", extra=private)
    asked.specification.write_text(text)
    report = run(asked, prepare(asked), engine, lambda kind, data: None)
    assert "train_loss" not in report.rows[2]
    ledgers = list((asked.output / "work" / "run" / "nodes").glob("*/privacy-ledger.jsonl"))
    assert len(ledgers) == 3
    for path in ledgers:
        (charged,) = replay(journal.read(path)[0])
        assert (charged.approved.cost.slot[0].kind, charged.spent_slots, charged.approved.cost.slots) == (
            "skellam",
            2,
            3,
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"partition": "random"}, "one of iid, by-key, dirichlet:ALPHA"),
        ({"nodes": 20, "partition": "iid"}, "30 records are too few for 20 nodes.*at most 15 nodes"),
        ({"key": "ward"}, "no field 'ward'"),
        ({"nodes": 2}, "min_cohort is 3, and there are 2 nodes"),
        ({"held_out": 1.0}, "--held-out is 1.0"),
        ({"data": Path("/nowhere.jsonl")}, "is not a file"),
        ({"specification": Path("/nowhere.toml")}, "cannot read /nowhere.toml"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(asked: Study, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfideError, match=message):
        prepare(replace(asked, **change))


def test_another_model_or_field_is_refused(asked: Study, tmp_path: Path) -> None:
    with pytest.raises(SpecificationError, match=r"hashes to .*model.sha256"):
        prepare(replace(asked, base=tiny_llama(tmp_path / "other", seed=1)))
    asked.data.write_text('{"prompt": "only"}\n' * 40)
    with pytest.raises(DataError, match="record 1: a record lacks the fields"):
        prepare(asked)
