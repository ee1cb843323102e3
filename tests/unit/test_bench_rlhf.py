"""The parts of `confide bench rlhf`, on tiny models and made-up features: that they measure what they say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confide.privacy.shared_units import shared_unit_plan
from confide_simulations import assets
from confide_simulations.benchmarks.rlhf import command, dpo, speed, traffic
from confide_simulations.benchmarks.rlhf import epsilon as epsilon_bench
from confide_simulations.rlhf import job
from typer import BadParameter, Typer
from typer.testing import CliRunner

from tests.preferences import pairs
from tests.tiny_models import tiny_bert, tiny_llama


def test_the_curve_is_of_all_arms_and_less_privacy_is_no_worse(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    truth = rng.normal(size=16)

    def made(count: int) -> np.ndarray:
        raw = rng.normal(size=(count, 16))
        return raw * np.sign(raw @ truth)[:, None] / 4

    shards, test = [made(400) for _ in range(4)], made(300)
    arms = epsilon_bench._arms(shards, test, seed=7)
    assert set(arms) == {"pooled", "federated", "alone"} | {
        f"{arm} {epsilon:g}" for arm in ("federated", "alone") for epsilon in epsilon_bench.EPSILONS
    }
    means = {name: values.mean() for name, values in arms.items()}
    assert means["federated"] > 0.9 and means["federated 8"] > means["federated 0.5"]
    found = {name: epsilon_bench._interval([values, values]) for name, values in arms.items()}
    assert all(one["low"] <= one["mean"] <= one["high"] for one in found.values())
    epsilon_bench.plot({"accuracy": found, "delta": 1e-5}, tmp_path / "curve.svg")
    assert (tmp_path / "curve.svg").stat().st_size > 1000


def test_the_curves_noise_is_what_the_plan_promises() -> None:
    """All four nodes' shares together are at least the noise that the accountant asked for."""
    for epsilon in epsilon_bench.EPSILONS:
        run = job.specification("0" * 63 + "1", nodes=4, epsilon=epsilon)
        plan = shared_unit_plan(run, members=4, trained=384)
        together = 2 * epsilon_bench._own_share(run, 384)
        assert together == pytest.approx(plan.noise_multiplier * job.CLIP * (4 / 3) ** 0.5, rel=0.01)


def test_bytes_by_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bert, llama = tiny_bert(tmp_path / "bert"), tiny_llama(tmp_path / "llama")
    monkeypatch.setattr(assets, "minilm", lambda say: bert)
    monkeypatch.setattr(assets, "smollm2", lambda say: llama)
    monkeypatch.setitem(traffic.LLAMA, "first_layer", 0)
    found = traffic.measure(lambda text: None)["upload"]
    assert found["reward head"]["scalars"] == 32 < found["reward, LoRA r=8"]["scalars"]
    assert found["feedback, 128 answers"]["scalars"] == 128
    assert all(0 < one["bytes"] < 2e6 for one in found.values())


def test_both_arms_of_dpo_see_as_many_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = tiny_llama(tmp_path / "llama")
    monkeypatch.setattr(assets, "smollm2", lambda say: llama)
    monkeypatch.setattr(assets, "preference_pairs", lambda say: pairs(40))
    for name, value in (("EACH", 6), ("HELD_OUT", 10), ("ROUNDS", 2), ("FIRST_LAYER", 0)):
        monkeypatch.setattr(dpo, name, value)
    found = dpo.measure(lambda text: None)
    assert (found["pairs"], found["held_out"]) == (24, 10)
    assert found["federated"]["accuracy"] > 0.5 and found["central"]["accuracy"] > 0.5
    low, high = found["federated_minus_central"][1:]
    assert low <= found["federated_minus_central"][0] <= high


@pytest.mark.filterwarnings("default")
def test_grpo_is_timed_on_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl")
    llama = tiny_llama(tmp_path / "llama")
    monkeypatch.setattr(assets, "smollm2", lambda say: llama)
    for name, value in (("STEPS", 3), ("TURNS", 1), ("NEW_TOKENS", 4), ("FIRST_LAYER", 0)):
        monkeypatch.setattr(speed, name, value)
    found = speed.measure(lambda text: None)
    assert found["steps"] == {"confide": 1, "trl": 1} and found["throughput_of_bare"] > 0


def test_the_command_writes_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "PARTS", {"bytes": lambda say: {"upload": 1}})
    app = Typer()
    app.command()(command.rlhf)
    out = tmp_path / "rlhf.json"
    assert CliRunner().invoke(app, ["--json", str(out)], catch_exceptions=False).exit_code == 0
    assert '"upload": 1' in out.read_text()
    parts: Any = command.rlhf
    with pytest.raises(BadParameter, match="none of bytes"):
        parts(part="x")
