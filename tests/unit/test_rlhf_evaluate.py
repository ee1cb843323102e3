"""`confide rlhf evaluate` from an exported candidate to evidence that a release takes or refuses, with tiny models."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confide.errors import DataError, IdentityError, ModelError, StateError
from confide.files import sha256_file
from confide.identity.member import load_member
from confide.models.opinions import write_opinions
from confide.models.reward_folder import write_reward
from confide.models.store import folder_digest
from confide.runs.specification import parse_toml
from confide_server.rlhf import gate, release_evidence
from confide_server.rlhf.annotation.preferences import Candidate
from confide_server.rlhf.commands import app
from confide_server.rlhf.gate_subject import released
from confide_server.rlhf.opinions_of_nodes import question
from confide_server.state.release_gate import Bound
from typer.testing import CliRunner

from tests.coordinator_world import World
from tests.served_models import signed_adapter, strong_llama
from tests.tiny_models import tiny_bert


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("gate")
    world, base, bert = (
        World.create(folder / "world", nodes=1),
        strong_llama(folder / "base"),
        tiny_bert(folder / "bert"),
    )
    candidate, baseline = (signed_adapter(world, base, folder / f"adapter-{seed}", seed) for seed in (1, 2))
    weight = np.random.default_rng(1).normal(size=32)
    judge = write_reward(
        folder / "judge", weight, base_sha256=folder_digest(bert), pooling="mean", max_length=64, lineage={}
    )
    (folder / "prompts.txt").write_text("".join(f"How is wall {n}?\n" for n in range(4)))
    (folder / "whose.txt").write_text("bank\nbank\nhospital\nhospital\n")
    (folder / "general.txt").write_text("A wall stands on its foundation.\n")
    return {
        "folder": folder, "world": world, "base": base, "bert": bert, "candidate": candidate, "baseline": baseline,
        "judge": judge,
    }  # fmt: skip


def evaluate(place: dict[str, Any], out: Path, *options: str) -> Any:
    folder = place["folder"]
    arguments = [
        "evaluate", str(place["candidate"]), "--base", str(place["base"]), "--against", str(place["baseline"]),
        "--prompts", str(folder / "prompts.txt"), "--reward-model", str(place["judge"]),
        "--reward-base", str(place["bert"]), "--member", str(place["world"].of("administrator")),
        "--max-new-tokens", "6", "--out", str(out), *options,
    ]  # fmt: skip
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def bound_of(place: dict[str, Any]) -> Bound:
    names = released(place["candidate"], place["baseline"], place["base"])
    assert names is not None
    return Bound(
        model_sha256=names["model_sha256"], specification_sha256=names["specification_sha256"],
        base_model_sha256=names["base_sha256"], baseline_sha256=names["baseline_sha256"],
    )  # fmt: skip


def opinions(place: dict[str, Any], folder: Path, margin: float, **names: str) -> Path:
    """What nodes said of candidate and baseline, without privacy."""
    both = [
        Candidate(prompt="p", text=f"{who} says {n}", model="0" * 64, adapter=who)
        for who in (place_digest(place, "candidate"), place_digest(place, "baseline"))
        for n in range(3)
    ]
    text = question(
        both, "cd" * 32, data="preferences", purpose="gate", source="made up", privacy=None,
        candidate=place_digest(place, "candidate"), baseline=place_digest(place, "baseline"),
        released=names or released(place["candidate"], place["baseline"], place["base"]),
    )  # fmt: skip
    made = parse_toml(text)
    manifest = {"specification": json.loads(made.canonical_bytes()), "rounds": [{"contributors": ["a", "b", "c"]}]}
    return write_opinions(folder, [margin, -0.5, -0.5], manifest, made)


def place_digest(place: dict[str, Any], name: str) -> str:
    return sha256_file(place[name] / "adapter_model.safetensors")


def test_evidence_of_an_export_is_bound_to_it_and_judged_by_its_figures(place: dict[str, Any], tmp_path: Path) -> None:
    general, whose = place["folder"] / "general.txt", place["folder"] / "whose.txt"
    told = evaluate(place, tmp_path / "gate", "--general", str(general), "--organizations", str(whose))
    assert told.exit_code == 3 and "4 prompts, too few to tell" in told.output
    data = (tmp_path / "gate" / "evidence.json").read_bytes()
    public = load_member(place["world"].of("administrator")).identity.public
    said = gate.open_evidence(data, public)
    assert set(said["figures"]["organizations"]) == {"bank", "hospital"} and said["figures"]["perplexity"]
    bound = bound_of(place)
    with pytest.raises(StateError, match="GATE_NOT_PASSED"):
        release_evidence.check(data, public, bound, time.time())
    with pytest.raises(StateError, match="GATE_OF_ANOTHER_MODEL"):
        release_evidence.check(data, public, replace(bound, model_sha256="ab" * 32), time.time())
    with pytest.raises(StateError, match="GATE_OF_ANOTHER_BASELINE"):
        release_evidence.check(data, public, replace(bound, baseline_sha256=""), time.time())
    with pytest.raises(IdentityError):
        release_evidence.check(data, load_member(place["world"].of("coordinator")).identity.public, bound, time.time())


def test_what_nodes_said_goes_into_the_evidence(place: dict[str, Any], tmp_path: Path) -> None:
    folder = opinions(place, tmp_path / "opinions", 0.4)
    told = evaluate(place, tmp_path / "gate", "--opinions", str(folder))
    assert told.exit_code == 3
    public = load_member(place["world"].of("administrator")).identity.public
    key = load_member(place["world"].of("administrator")).identity
    said = gate.open_evidence((tmp_path / "gate" / "evidence.json").read_bytes(), public)
    assert said["nodes"]["organizations"] == 3 and said["nodes"]["gate"]["win_rate"] == pytest.approx(0.9)
    # With figures that pass, the nodes decide.
    good = {
        "prompts": 48, "answers": 96, "win_rate": 0.7, "interval": (0.6, 0.8), "kl": 0.5, "perplexity": (1.0, 1.0),
        "length_ratio": 1.0, "repetition": 0.1, "organizations": {}, "seed": 1,
    }  # fmt: skip
    passing = said | {"figures": good, "passed": True, "failed": []}
    release_evidence.check(gate.sign_evidence(passing, key), public, bound_of(place), time.time())
    against = passing | {"nodes": said["nodes"] | {"gate": said["nodes"]["gate"] | {"win_rate": 0.4}}}
    with pytest.raises(StateError, match="GATE_NOT_PASSED: nodes' win rate"):
        release_evidence.check(gate.sign_evidence(against, key), public, bound_of(place), time.time())
    others = passing | {"nodes": said["nodes"] | {"candidate_sha256": "ab" * 32}}
    with pytest.raises(StateError, match="the nodes judged another candidate"):
        release_evidence.check(gate.sign_evidence(others, key), public, bound_of(place), time.time())


def test_opinions_of_another_model_and_a_leak_are_refused(place: dict[str, Any], tmp_path: Path) -> None:
    names = {"model_sha256": "ab" * 32, "baseline_sha256": "cd" * 32}
    folder = opinions(place, tmp_path / "opinions", 0.4, **names)
    with pytest.raises(ModelError, match="OPINIONS_OF_ANOTHER_MODEL"):
        evaluate(place, tmp_path / "gate", "--opinions", str(folder))
    with pytest.raises(DataError, match="PROMPTS_LEAK"):
        evaluate(place, tmp_path / "gate", "--trained-on", str(place["folder"] / "prompts.txt"))
