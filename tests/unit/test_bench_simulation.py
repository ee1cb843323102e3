"""`confide bench simulation`: the bare local steps that a simulation is compared with."""

from pathlib import Path

from confide_simulations.benchmarks.training.simulation import bare_contribution, specification

from tests.tiny_models import tiny_llama


def test_bare_steps_are_those_of_the_simulated_run(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    shard = tmp_path / "shard.jsonl"
    shard.write_text('{"question": "How thick?", "answer": "Twelve centimetres."}\n' * 4)
    assert bare_contribution(base, shard, 1, 2, 1) > 0
    runs = [specification(base, 5, 7, kind) for kind in ("none", "sealed")]
    assert runs[0].training == runs[1].training
    assert (runs[0].federation.rounds, runs[0].training.local_steps) == (5, 7)
