"""The training benchmark's parts on tiny models: both loops take the same batches, DiLoCo's runs share their start."""

from pathlib import Path

import pytest
from confide.codec.layout import VectorLayout
from confide.models.architecture import load_config
from confide_simulations.benchmarks.training.diloco import NODES, Corpus, Scale, compare, save_byte_model
from confide_simulations.benchmarks.training.speed import flop_per_token, speed_specification, throughput

from tests.tiny_models import TEXT, tiny_llama

SCALE = Scale(steps=60, warm_steps=30, batch=2, length=32, width=16, layers=1, learning_rate=1e-2, momentum=0.0)


def test_runs_share_their_start_and_count_their_bits(tmp_path: Path) -> None:
    save_byte_model(tmp_path / "base", SCALE)
    corpus = Corpus(tmp_path / "base", tuple([{"text": TEXT[node:]}] for node in range(NODES)), [{"text": TEXT[:100]}])
    found = compare(corpus, SCALE, tmp_path / "runs", 0, lambda _: None)
    for name in ("synchronous", "h30", "h30_4bit", "h10"):
        assert found[name] < found["after_warm_start"] and found["curves"][name][-1][0] == 60
    assert found["h30_4bit"] == pytest.approx(found["h30"], rel=0.05) and found["h30_4bit"] != found["h30"]
    layout = VectorLayout(
        parameters=found["parameters"], scalars=1, bits=4, members=NODES, clip=1.0, rotation_seed=bytes(32)
    )
    synchronous = 30 * 4 * found["parameters"]
    assert found["bits_ratio"] == pytest.approx(synchronous / layout.wire_bytes, abs=0.1)
    warm = 30 * 4 * found["parameters"]
    assert found["bits_ratio_warm_start_counted"] == pytest.approx(
        (warm + synchronous) / (warm + layout.wire_bytes), abs=0.01
    )


@pytest.mark.parametrize("training", [{}, {"autocast": True}])
def test_both_loops_run_on_the_same_batches(tmp_path: Path, training: dict[str, bool]) -> None:
    base = tiny_llama(tmp_path / "llama", chat=False)
    spec = speed_specification("tiny", method={"name": "causal_lm", "max_length": 32}, training=training)
    found = throughput(spec, base, [{"text": TEXT * 4}], tmp_path / "node", 1)
    assert set(found) == {"ratio", "ours", "bare"} and all(value > 0 for value in found.values())


def test_flop_formula(tmp_path: Path) -> None:
    config = load_config(tiny_llama(tmp_path / "llama"))
    assert flop_per_token(config, 1000, 64) == 6000 + 12 * 2 * 32 * 64 / 2
