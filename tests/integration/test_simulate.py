"""Virtual nodes on Flower's Ray engine: the same model as the real federation, sealed too, and through crashes."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confide.models.store import folder_digest
from confide.runs.specification import Specification
from confide_client.datasets import DataSets
from confide_simulations.local_federation import LocalFederation
from confide_simulations.processes import ProcessGroup
from confide_simulations.simulate.engine import Engine, Resources
from confide_simulations.simulate.population import split_seed
from confide_simulations.simulate.simulation import Finished, Job, Simulation

from tests.tiny_models import tiny_llama
from tests.training_specs import specification as make_specification

# Ray lets go of its own server processes and sockets without closing them.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

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
