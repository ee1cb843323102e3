"""The demo's way from a reward head to a gate, with tiny models."""

from pathlib import Path

import numpy as np
import pytest
from confide.models.store import folder_digest
from confide_server.rlhf.reward_model import FeatureReader
from confide_simulations.rlhf.align import Head, align

from tests.tiny_models import tiny_bert, tiny_llama


@pytest.mark.filterwarnings("default")
def test_a_policy_is_aligned_and_passes_by_the_gate(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    base, reader = tiny_llama(tmp_path / "llama"), FeatureReader(tiny_bert(tmp_path / "bert"), "mean", 64)
    rng = np.random.default_rng(1)
    reward, judge = (Head(reader, rng.normal(size=32)) for _ in range(2))
    said: list[str] = []
    made = align(
        base,
        folder_digest(base),
        reward,
        judge,
        tmp_path,
        lineage={"privacy": "none"},
        steps=2,
        count=4,
        gate_prompts=12,
        say=said.append,
    )
    assert made.pairs > 0 and made.rewards[0] > made.rewards[1] and made.stopped == ""
    assert made.figures.prompts == 12 and made.figures.interval[0] <= made.figures.win_rate <= made.figures.interval[1]
    assert made.figures.perplexity is not None and len(said) == 3
