"""Prompts that are read once for many answers: the same answers and likelihoods as when each row is read by itself."""

from typing import Any

import pytest
import torch
from confide_server.rlhf.policy import Policy
from confide_server.rlhf.prompted import choose, read_prompts, write

from tests.tiny_models import tiny_llama

PROMPTS = [[5, 6, 7], [5, 6, 8, 9, 10], [5, 6]]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return Policy(tiny_llama(tmp_path_factory.mktemp("llama")))


def alone(model: Any, ids: list[int]) -> torch.Tensor:
    """(T, V) scores of one row that is read whole."""
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.tensor([ids])).logits[0]
    return logits


@pytest.mark.parametrize("prompts", [PROMPTS, [[7, 5], [8, 5, 6]], [[9]]])
def test_rows_go_on_from_prompts_that_were_read_once(policy: Policy, prompts: list[list[int]]) -> None:
    order = [number for number in range(len(prompts)) for _ in range(2)]
    after = torch.arange(3 * len(order)).reshape(len(order), 3) + 11
    with torch.no_grad():
        rows = read_prompts(policy.model, prompts, 0)
        rows.spread(order)
        first = rows.last
        logits = rows.forward(policy.model, after)
    for row, number in enumerate(order):
        expected = alone(policy.model, prompts[number] + after[row].tolist())[len(prompts[number]) - 1 :]
        torch.testing.assert_close(torch.cat([first[row, None], logits[row]]), expected, rtol=1e-4, atol=1e-5)


def test_the_likeliest_tokens_are_those_of_each_row_alone(policy: Policy) -> None:
    expected = []
    for prompt in PROMPTS:
        ids = list(prompt)
        for _ in range(6):
            ids.append(int(alone(policy.model, ids)[-1].argmax()))
        expected.append(ids[len(prompt) :])
    with torch.no_grad():
        rows = read_prompts(policy.model, PROMPTS, 0)
        assert write(policy.model, rows, most=6, end=-1, temperature=0.0, top_p=1.0) == expected
        rows = read_prompts(policy.model, PROMPTS, 0)
        cut = write(policy.model, rows, most=6, end=expected[0][2], temperature=0.0, top_p=1.0)
    assert cut[0] == expected[0][: expected[0].index(expected[0][2]) + 1]


def test_tokens_are_drawn_as_likely_as_they_are() -> None:
    torch.manual_seed(1)
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(20_000, 4)
    found = torch.bincount(choose(logits, 1.0, 1.0), minlength=4) / 20_000
    torch.testing.assert_close(found, torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.02, rtol=0)
    cut = torch.bincount(choose(logits, 1.0, 0.7), minlength=4) / 20_000
    torch.testing.assert_close(cut, torch.tensor([0.625, 0.375, 0, 0]), atol=0.02, rtol=0)
    assert set(choose(logits, 1.0, 0.01).tolist()) == {0}
    hot = torch.bincount(choose(logits, 1e6, 1.0), minlength=4) / 20_000
    torch.testing.assert_close(hot, torch.full((4,), 0.25), atol=0.02, rtol=0)


def test_answers_are_as_likely_as_when_each_is_read_by_itself(policy: Policy) -> None:
    asked = ["why?", "why?", "how is a wall built, then?", ""]
    said = ["because", "so that it stands", "of stones", "a passage of some length by itself"]
    found = policy.log_probabilities(asked, said)
    for number, (prompt, text) in enumerate(zip(asked, said, strict=True)):
        answer = policy._encoder.answer([{"role": "user", "content": prompt}], text)
        log_p = torch.log_softmax(alone(policy.model, answer.ids.tolist()).double(), dim=-1)
        expected = sum(float(log_p[t - 1, answer.ids[t]]) for t in range(max(1, answer.start), len(answer.ids)))
        assert float(found[number]) == pytest.approx(expected, rel=1e-5)
