"""From text on nodes to a pre-trained model: a sealed tokenizer run, its export, a model folder, and a training run."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import transformers
from confide import journal
from confide.files import write_atomic
from confide.models.store import folder_digest
from confide.runs.specification import Specification, parse_toml
from confide.tokenizer.counting import Corpus
from confide.tokenizer.state import parse_state
from confide.tokenizer.terms import Terms
from confide_client.data.datasets import DataSets
from confide_simulations.local_federation import run_command
from confide_simulations.simulate.engine import Engine, Resources
from confide_simulations.simulate.simulation import Finished, Job, Simulation
from confide_simulations.simulate.study import Study, prepare, run

from tests.ray_marks import RAY
from tests.tokenizer_runs import states, tokenizer_spec

pytestmark = RAY

NODES = ("bank-b", "hospital-a", "law-firm-c")
WORDS = ("the wall", "thick mortar", "an old brick", "the mason thinks", "lime is right", "of the client")
TEXTS = [f"{WORDS[i % 6]} {WORDS[(i // 2) % 6]} number {i}: {WORDS[(i * 5 + 1) % 6]}" for i in range(90)]
TINY = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(Resources(workers=1, cpus=1.0), nodes=3) as made:
        yield made


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, files = tmp_path_factory.mktemp("shards"), {}
    for index, name in enumerate(NODES):
        files[name] = folder / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[index::3]))
    return files


def simulate(engine: Engine, folder: Path, spec: Specification, shards: dict[str, Path]) -> Finished:
    return Simulation(folder, Job(specification=spec, base=None, shards=shards)).run(engine)


def test_sealed_and_plain_runs_learn_what_the_pooled_training_splits_would(
    engine: Engine, shards: dict[str, Path], tmp_path: Path
) -> None:
    models = {}
    for sealing in ("sealed", "none"):
        spec = tokenizer_spec(sealing=sealing, vocabulary=320)
        found = simulate(engine, tmp_path / sealing, spec, shards)
        models[sealing] = found.models
        folders = [tmp_path / sealing / "nodes" / name for name in NODES]
        pooled = [str(r["text"]) for folder in folders for r in DataSets(folder).load("shard").train]
        assert list(found.models) == [state.to_bytes() for state in states(spec, pooled)]
        uploads = [event.data["bytes"] for event in found.events if event.kind == "contributed"]
        assert len(uploads) == 9 and len(set(uploads)) == 1  # an upload's size tells nothing
    assert parse_state(models["sealed"][-1], Terms.of(spec)).size > 300


def test_a_private_run_is_noised_and_charged(engine: Engine, shards: dict[str, Path], tmp_path: Path) -> None:
    privacy = '[privacy]\nunit = "record"\nepsilon = 8.0\ndelta = 1e-3\nclip = 1.0'
    spec = tokenizer_spec(sealing="sealed", rounds=2, privacy=privacy)
    found = simulate(engine, tmp_path / "private", spec, shards)
    assert [event.data["metrics"] for event in found.events if event.kind == "round_committed"] == [{}, {}]
    for name in NODES:
        lines = journal.read(tmp_path / "private" / "nodes" / name / "privacy-ledger.jsonl")[0]
        approved = next(line for line in lines if line["kind"] == "approved")
        assert [event["kind"] for event in approved["cost"]["slot"]] == ["gaussian"]
        assert [line["kind"] for line in lines].count("spent") == 2
    state = parse_state(found.models[1], Terms.of(spec))
    texts = Corpus.of([[text] for text in TEXTS])
    occurring = set(np.flatnonzero(texts.counts(parse_state(found.models[0], Terms.of(spec)))).tolist())
    # Noise alone lifts pairs that never occur into what is counted next: who has which is no longer told by it.
    assert set(state.candidates[state.candidates < 256 << 20].tolist()) - occurring


def test_from_tokenizer_to_pre_training(engine: Engine, tmp_path: Path) -> None:
    data = tmp_path / "notes.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    words = tmp_path / "words.toml"
    words.write_text(
        'version = 1\nname = "words"\nmethod.name = "tokenizer"\ntokenizer.vocabulary = 320\n'
        '[federation]\nrounds = 3\ndata = "shard"\nclip_norm = 1e4\n'
    )
    asked = Study(specification=words, base=None, data=data, nodes=3, output=tmp_path / "words")
    report = run(asked, prepare(asked), engine, lambda kind, fields: None)
    shown = [row["held_out_bytes_per_token"] for row in report.rows]
    assert shown[0] == pytest.approx(1.0) and shown == sorted(shown) and shown[-1] > 1.5
    exported = tmp_path / "words" / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported, local_files_only=True)
    manifest = json.loads((exported / "manifest.json").read_text())
    assert manifest["tokens"] == len(tokenizer) and set(manifest["files"]) == {
        "tokenizer.json",
        "tokenizer_config.json",
    }

    write_atomic(tmp_path / "tiny.json", json.dumps(TINY).encode())
    base = tmp_path / "base"
    command = ("model", "new", str(base), "--config", str(tmp_path / "tiny.json"), "--tokenizer", str(exported))
    printed = run_command(*command)
    assert folder_digest(base) in printed
    training = tmp_path / "pretrain.toml"
    training.write_text(
        f"""
version = 1
name = "pretrain"
model = {{sha256 = "{folder_digest(base)}", initial = "random"}}
adapter.kind = "full"
method = {{name = "causal_lm", max_length = 32}}
training = {{local_steps = 12, batch_size = 8, learning_rate = 3e-3}}
[federation]
rounds = 2
data = "shard"
clip_norm = 10.0
"""
    )
    assert parse_toml(training.read_text()).model.initial == "random"
    asked = Study(specification=training, base=base, data=data, nodes=3, output=tmp_path / "pretrain")
    report = run(asked, prepare(asked), engine, lambda kind, fields: None)
    losses = [row["held_out_eval_loss"] for row in report.rows]
    assert losses[-1] < losses[0] - 0.1
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "pretrain" / "model", local_files_only=True)
    assert loaded.config.vocab_size == len(tokenizer)
