"""What figures of preferences claim: with known answers, and with data that would flatter them."""

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confide.errors import DataError
from confide_server.rlhf import best_of_n, central_reward, gate
from confide_server.rlhf.opinions_of_nodes import faults
from confide_server.rlhf.policy import Completion, Policy

from tests.tiny_models import tiny_llama
from tests.unit.test_rlhf_preferences import Fixed, measured


def noise(count: int, width: int = 64) -> Any:
    """Pairs of which nothing can be learned."""
    x = np.random.default_rng(0).normal(size=(count, width))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("shared", ["prompt", "pair", "pair and its opposite"])
def test_what_was_learned_by_heart_is_not_held_out(shared: str) -> None:
    x = np.repeat(noise(80), 5, axis=0)
    prompts = [f"prompt {n // 5}" if shared == "prompt" else "" for n in range(400)]
    texts = [(prompt, f"a{n // 5}", f"b{n // 5}") for n, prompt in enumerate(prompts)]
    if shared == "pair and its opposite":
        texts = [(p, b, a) if n % 2 else (p, a, b) for n, (p, a, b) in enumerate(texts)]
    by_heart = central_reward.fit(x)[1]
    honest = central_reward.fit(x, texts_N=texts)[1]
    assert by_heart.accuracy > 0.8 and 0.3 < honest.accuracy < 0.7
    assert honest.held_out == 80 and honest.seen == 0.0
    # Sixteen questions were asked, not eighty.
    low, high = honest.interval
    assert high - low > 0.3


def test_what_held_out_pairs_share_with_others_is_said() -> None:
    snippets = [("", f"s{a}", f"s{b}") for a, b in list(itertools.combinations(range(20), 2))[:100]]
    report = central_reward.fit(noise(100), texts_N=snippets)[1]
    assert report.seen == 1.0 and central_reward.fit(noise(100))[1].seen is None
    with pytest.raises(DataError, match="the same one"):
        central_reward.fit(noise(100), texts_N=[("", "a", "b")] * 100)
    one_instruction = central_reward.fit(noise(100), texts_N=[("Go on:", f"a{n}", f"b{n}") for n in range(100)])[1]
    assert one_instruction.held_out == 20


def test_a_model_that_knows_nothing_and_says_so_is_calibrated() -> None:
    report = central_reward.fit(np.zeros((100, 4)))[1]
    assert (report.accuracy, report.calibration_error) == (0.5, 0.0)
    assert report.log_loss == pytest.approx(math.log(2))


def test_a_handful_of_wins_among_ties_tells_nothing() -> None:
    """By chance five prompts go the same way once in sixteen times, whatever the bootstrap says of them."""

    def won(count: int) -> gate.Figures:
        ours = [["good"] if n < count else ["same"] for n in range(64)]
        return gate.measure(Fixed(), Fixed(), Fixed(), [f"prompt {n}" for n in range(64)], (ours, [["same"]] * 64))

    assert won(4).interval[0] > 0.5
    passed = [gate.decide(won(count), gate.Thresholds()).passed for count in (1, 3, 4, 5, 6, 20)]
    assert passed == [False, False, False, False, True, True]
    assert won(5).decided == 5 and won(5).win_rate == pytest.approx(0.5 + 2.5 / 64)


@pytest.mark.parametrize("figure", [{"kl": math.nan}, {"perplexity": (math.nan, 3.0)}])
def test_what_is_no_number_does_not_pass(figure: dict[str, Any]) -> None:
    assert gate.decide(measured(34), gate.Thresholds()).passed
    assert not gate.decide(dataclasses.replace(measured(34), **figure), gate.Thresholds()).passed


def test_nodes_that_object_are_not_outweighed_by_noise() -> None:
    said = {"gate": {"win_rate": 0.8, "organizations_below": 0.35}, "half_width": 0.15}
    assert len(faults(said)) == 1
    assert not faults(said | {"gate": {"win_rate": 0.8, "organizations_below": 0.2}})


def test_perplexity_is_of_the_tokens_that_were_scored(tmp_path: Path) -> None:
    policy = Policy(tiny_llama(tmp_path), max_length=16)
    for text in ("a wall", "a wall stands on its foundation " * 10):
        with_end = len(policy.tokenizer(text, add_special_tokens=False)["input_ids"]) + 1
        # A text that fills all of it has nothing before its first token, which follows from nothing.
        assert policy.counted(text) == (with_end if with_end < 16 else 15)
    long = ["a wall stands on its foundation " * 10]
    log_p = float(policy.log_probabilities([""], long)[0])
    figures = gate.measure(
        policy, policy, Fixed(), ["a", "b"], ([["x"], ["y"]], [["x"], ["z"]]), general=long, tokens=policy.counted
    )
    assert figures.perplexity is not None
    assert figures.perplexity[0] == pytest.approx(math.exp(-log_p / policy.counted(long[0])), rel=1e-6)
    assert figures.perplexity[0] == pytest.approx(300, rel=0.5), "a model that knows nothing: its vocabulary"


def test_the_prompts_that_a_run_learned_from_are_not_the_gates() -> None:
    training = {"prompts": "ab" * 32}
    for learned, named in (({}, ""), ({}, "cd" * 32), (training, ""), (training, "ab" * 32), ({"prompts": ""}, "")):
        gate.check_other_prompts(learned, "ef" * 32, named)
    for asked, named, said in (("ab" * 32, "", "trained on; ask others"), ("ef" * 32, "cd" * 32, "were named")):
        with pytest.raises(DataError, match=f"PROMPTS_LEAK.*{said}"):
            gate.check_other_prompts(training, asked, named)


def test_the_judge_and_best_of_n_are_told_what_was_asked() -> None:
    """Which of two answers is better may hang on the question alone."""

    class Relevant:
        def scores(self, prompts: Any, answers: Any) -> Any:
            return np.array([float(prompt in answer) for prompt, answer in zip(prompts, answers, strict=True)])

    said = gate.RewardJudge(Relevant()).prefers(["wall", "roof"], ["the wall", "the wall"], ["the roof", "the roof"])
    assert said.tolist() == [1.0, 0.0]
    group = [Completion("roof", text, False) for text in ("the wall", "the roof")]
    assert best_of_n.ranked([group], Relevant())[0][0][1].text == "the roof"
