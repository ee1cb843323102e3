"""What `confide demo rlhf` is made of: honest pairs, baselines, prompts that do not leak."""

import numpy as np
import pytest
from confide.errors import DataError
from confide_server.rlhf.gate import check_no_leak
from confide_simulations.rlhf import comparisons, heads, job, prompts


def snippets(count: int = 400) -> list[comparisons.Snippet]:
    rng = np.random.default_rng(1)
    likes = rng.uniform(-3, 3, count)
    return [
        comparisons.Snippet("movies", f"snippet {n}", tuple(np.clip(np.rint(likes[n] + rng.normal(0, 0.5, 15)), -4, 4)))
        for n in range(count)
    ]


def split(found: list[comparisons.Snippet], **changes: int) -> comparisons.Split:
    sizes = {"snippets_each": 60, "pairs_each": 80, "test_snippets": 100, "test_pairs": 30, "judge_snippets": 60}
    return comparisons.split(found, ("a", "b"), **{**sizes, **changes}, seed=3)


def test_no_snippet_is_in_two_places_and_test_pairs_share_none() -> None:
    found = snippets()
    made = split(found)
    places = [*made.organizations.values(), made.test, made.judge]
    texts = [{pair[side] for pair in part for side in ("chosen", "rejected")} for part in places]
    assert all(not one & other for i, one in enumerate(texts) for other in texts[i + 1 :])
    assert [len(part) for part in places] == [80, 80, 30, 80] and len(texts[2]) == 60
    means = {one.text: np.mean(one.ratings) for one in found}
    assert all(means[p["chosen"]] - means[p["rejected"]] >= comparisons.LEAST_GAP for part in places for p in part)
    assert split(found) == made
    assert 0.8 < comparisons.agreement(found) <= 1.0
    with pytest.raises(DataError, match="ask for fewer"):
        split(found, snippets_each=300)
    with pytest.raises(DataError, match="pairs were found"):
        split(found, test_pairs=60)


def test_baselines_learn_and_noise_costs_what_it_should() -> None:
    rng = np.random.default_rng(2)
    true = rng.normal(size=48)
    x = rng.normal(size=(1200, 48)) / 7
    x *= np.sign(x @ true)[:, None]
    shards, test = [x[:500], x[500:1000]], x[1000:]
    plain = heads.right(heads.train(shards), test).mean()
    alone = heads.right(heads.alone_private(shards[0], 1.0, slots=14, seed=1), test).mean()
    assert plain > 0.9 and plain - alone > 0.03
    mean, low, high = heads.paired_interval(heads.right(heads.train(shards), test), np.full(len(test), 0.5))
    assert low < mean < high and mean == pytest.approx(plain - 0.5)
    gradients = [heads.gradient_sum(true, row[None], job.CLIP) for row in test[:5]]
    assert all(np.linalg.norm(one) <= job.CLIP * (1 + 1e-9) for one in gradients)


def test_gate_prompts_are_none_of_training() -> None:
    assert len(prompts.training(40)) == 40 and len(set(prompts.gate(64))) == 64
    check_no_leak(prompts.training(40), prompts.gate(64))


@pytest.mark.parametrize("epsilon", [None, 8.0, 3.0, 1.0])
def test_the_demos_runs_are_specified(epsilon: float | None) -> None:
    made = job.specification("0" * 63 + "1", nodes=4, epsilon=epsilon)
    assert made.privacy.shared == (epsilon is not None) and made.federation.rounds == job.ROUNDS
