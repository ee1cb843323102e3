"""Prompts read once, whatever is written to them: their keys and values, from which answers go on.

Several answers to a prompt, or how likely each of them is, need it read but once. What all prompts begin with (a chat
template's system turn) is read once for all of them.

    rows = read_prompts(model, [[1, 2, 3], [1, 2, 4, 5]], pad=0)
    rows.spread([0, 0, 1])                                                # three that go on from there
    written = write(model, rows, most=20, end=7, temperature=1.0, top_p=1.0)

Equal to reading each row by itself up to rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch


@dataclass
class Rows:
    """Rows that go on from their prompts, by columns of tokens that all of them have."""

    cache: Any
    mask: torch.Tensor
    """(B, T) int64: 1 where a token was read, 0 for padding."""
    last: torch.Tensor
    """(B, V) scores of the token after the newest one."""

    def forward(self, model: Any, tokens_BT: torch.Tensor) -> torch.Tensor:
        """(B, T, V) scores of what follows each of these tokens, all of which are read now."""
        position = self.mask.sum(dim=1, keepdim=True) + torch.arange(tokens_BT.shape[1])
        self.mask = torch.cat([self.mask, torch.ones_like(tokens_BT)], dim=1)
        logits: torch.Tensor = model(
            input_ids=tokens_BT, attention_mask=self.mask, position_ids=position, past_key_values=self.cache,
            use_cache=True,
        ).logits  # fmt: skip
        self.last = logits[:, -1]
        return logits

    def spread(self, rows: Sequence[int]) -> None:
        """These rows from now on, each as often as it is named."""
        chosen = torch.tensor(list(rows))
        self.cache.batch_select_indices(chosen)
        self.mask, self.last = self.mask[chosen], self.last[chosen]


def read_prompts(model: Any, prompts: Sequence[Sequence[int]], pad: int) -> Rows:
    """One row a prompt, none of which is empty."""
    from transformers import DynamicCache

    # Each keeps a token of its own, whose scores are asked for.
    shared = min(_common(prompts), min(map(len, prompts)) - 1)
    rows = Rows(DynamicCache(config=model.config), torch.zeros((1, 0), dtype=torch.int64), torch.zeros(1, 0))
    if shared:
        rows.forward(model, torch.tensor([list(prompts[0][:shared])]))
        rows.spread([0] * len(prompts))
    else:
        rows.mask = rows.mask.expand(len(prompts), 0)
    own = [list(one[shared:]) for one in prompts]
    width = max(map(len, own))
    # On the left, so that all go on from the last column.
    tokens = torch.tensor([[pad] * (width - len(one)) + one for one in own])
    seen = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in own])
    rows.mask = torch.cat([rows.mask, seen], dim=1)
    position = (rows.mask.cumsum(dim=1) - 1).clamp(min=0)[:, shared:]
    rows.last = model(
        input_ids=tokens, attention_mask=rows.mask, position_ids=position, past_key_values=rows.cache, use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]  # fmt: skip
    return rows


def _common(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all begin with."""
    columns = zip(*prompts, strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def choose(logits_BV: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """(B,) tokens drawn from torch's generator; temperature 0: the likeliest."""
    if temperature == 0:
        return logits_BV.argmax(dim=-1)
    probabilities = torch.softmax(logits_BV.float() / temperature, dim=-1)
    if top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        # The likeliest are kept until they have top_p together, one at least.
        ordered[ordered.cumsum(dim=-1) - ordered >= top_p] = 0
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered)
    return torch.multinomial(probabilities, 1)[:, 0]


def write(model: Any, rows: Rows, *, most: int, end: int, temperature: float, top_p: float) -> list[list[int]]:
    """Tokens that follow each row, up to `end` or `most` of them; the end token is written where it came."""
    columns: list[torch.Tensor] = []
    ended = torch.zeros(len(rows.mask), dtype=torch.bool)
    for _ in range(most):
        token = choose(rows.last, temperature, top_p).masked_fill(ended, end)
        columns.append(token)
        ended |= token == end
        if ended.all() or len(columns) == most:
            break
        rows.forward(model, token[:, None])
    written = torch.stack(columns, dim=1).tolist()
    return [row[: row.index(end) + 1] if end in row else row for row in written]
