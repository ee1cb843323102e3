"""A batch of padded rows as one sequence: no padding, and what all rows begin with only once.

Most of a model works on each token by itself, and most of its time goes there. Rows of a batch differ in length, and
begin alike where a chat template puts the same words first, whose states are the same in every row of a causal model.
So the body runs on one sequence of the tokens that differ; attention alone sees rows (attention.in_rows).

    if (found := rows_of(batch.inputs, shared=True)) and runs_in_rows(model, body):
        rows, mask = found
        states = rows.states(body)   # (N, D)
        labelled = states.index_select(0, rows.places[wanted])

Which models this holds for is tried out, not listed.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from confide.models.arithmetic import attention

_WORTH = 0.95
"""Of the padded batch: with more than that left, rows are taken as they are."""
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
_COARSE = 5e-2
"""Of bfloat16, whose products round differently where their shapes differ."""


@dataclass(frozen=True)
class Rows:
    """ids, positions: (1, N), the tokens in one sequence and each one's position in its row.

    places: (B, T), where in the sequence token t of row b lies; of padding, anywhere.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    places: torch.Tensor

    def states(self, body: nn.Module) -> torch.Tensor:
        """(N, D): what a model's body makes of the sequence."""
        with attention.in_rows(self.places, self.ids.shape[1]):
            states: torch.Tensor = body(input_ids=self.ids, position_ids=self.positions).last_hidden_state
        return states[0]


def rows_of(inputs: Mapping[str, torch.Tensor], *, shared: bool) -> tuple[Rows, torch.Tensor] | None:
    """Of a batch padded on the right, on a processor, with its mask; None for another one, or where little is won.

    shared: whether the tokens that all rows begin with are taken once.
    """
    if set(inputs) != {"input_ids", "attention_mask"} or inputs["input_ids"].device.type != "cpu":
        return None
    mask = inputs["attention_mask"].bool()
    if not bool((mask[:, :-1] >= mask[:, 1:]).all()) or not bool(mask[:, 0].all()):
        return None
    rows = packed(inputs["input_ids"], mask, shared=shared)
    return None if rows.ids.numel() > _WORTH * mask.numel() else (rows, mask)


def packed(ids: torch.Tensor, mask: torch.Tensor, *, shared: bool) -> Rows:
    """Rows (B, T) of tokens; mask: (B, T) bool, False for padding, which is on the right."""
    alike = int(((ids == ids[:1]) & mask).all(0).long().cumprod(0).sum()) if shared and len(ids) > 1 else 0
    kept = mask.clone()
    kept[1:, :alike] = False
    places = kept.flatten().long().cumsum(0).view_as(ids) - 1
    places[1:, :alike] = places[0, :alike]
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    return Rows(ids[kept][None], positions[kept][None], torch.where(mask, places, 0))


@contextlib.contextmanager
def trial(model: Any) -> Iterator[tuple[Rows, torch.Tensor]]:
    """Two short rows that begin alike, and their mask; within, the model evaluates without gradients or autocast."""
    training = model.training
    ids = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 6, 4, 0, 0, 0]])
    mask = torch.tensor([[True] * 8, [True] * 5 + [False] * 3])
    model.eval()
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            yield packed(ids, mask, shared=True), mask
    finally:
        model.train(training)


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Up to rounding, against the largest of them."""
    allowed = _TOLERANCE.get(expected.dtype, _COARSE) * float(expected.abs().max())
    return found.shape == expected.shape and float((found - expected).abs().max()) <= allowed


def runs_later(model: nn.Module) -> bool:
    """Whether layers are computed when rows are no longer known: compiled, or again in the backward pass."""
    return any(
        getattr(module, "gradient_checkpointing", False) or module._compiled_call_impl is not None
        for module in model.modules()
    )


def runs_in_rows(model: Any, body: Any) -> bool:
    """Whether a model's states are the same in rows, found out on a few tokens."""
    if runs_later(model):
        return False
    with trial(model) as (rows, mask):
        ids = rows.ids[0].index_select(0, rows.places.flatten()).view_as(mask)
        try:
            expected = body(input_ids=ids, attention_mask=mask.long()).last_hidden_state[mask]
            return same(rows.states(body).index_select(0, rows.places[mask]), expected)
        except (attention.NotInRows, RuntimeError, TypeError, AttributeError, IndexError):
            return False


def watched(model: nn.Module) -> bool:
    """Whether something looks at modules while they run: gradients of single records, or shards that are gathered."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def drops(model: Any) -> bool:
    """Whether something is drawn for every token anew (dropout), so that equal tokens have different states."""
    if not model.training:
        return False
    rates = [value for name, value in vars(model.config).items() if "drop" in name and isinstance(value, float)]
    return any(rate > 0 for rate in rates) or any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules())
