"""Attention as two products with a softmax between them, for encoders in bfloat16 on a CPU.

torch's fused kernel keeps the scores out of memory, which is what long texts need. On a CPU without a matrix unit it
does not reach the speed of the plain products, which bfloat16's own instructions carry: passages of 400 tokens are
read faster this way. With a matrix unit it is the other way round, from some 160 tokens on (bert.py). Used only where
nothing is hidden from anything: no mask, no order, no bias; else the fused kernel computes.

    model.set_attn_implementation(plain_attention.NAME)
"""

import threading
from typing import Any

import torch

NAME = "confide_plain"
_MOST_SCORES = 16 * 2**20
"""Of one call, two bytes each. More is left to the kernel that does not write them down."""
_LEAST_SUM, _MOST_SUM = 1e-30, 1e30
"""Below, terms would be lost that count; above, infinity is near."""


def register() -> None:
    """Make the name known to transformers; a second time changes nothing."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, attention)
    # A mask that hides nothing comes as None, as for the fused kernel.
    AttentionMaskInterface.register(NAME, sdpa_mask)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """query, key, value: (B, heads, T, D). Returns (B, T, heads, D)."""
    ordered = getattr(module, "is_causal", True) if is_causal is None else is_causal
    plain = (
        attention_mask is None
        and not ordered
        and not dropout
        and key.shape == query.shape
        and fits(query)
        and all(others.get(name) is None for name in ("position_bias", "softcap", "s_aux", "cache"))
    )
    if not plain:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **others
        )
        return found
    return mixed(query, key, value, query.shape[-1] ** -0.5 if scaling is None else scaling), None


def fits(query: torch.Tensor) -> bool:
    """Whether the scores of (B, heads, T, D) are few enough to be written down."""
    return query.shape[:3].numel() * query.shape[2] <= _MOST_SCORES


def mixed(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """(B, heads, T, D) each; nothing is hidden from anything. Returns (B, T, heads, D)."""
    rows, heads, length, _ = query.shape
    query, key, value = (each.reshape(rows * heads, length, -1) for each in (query * scale, key, value))
    scores = _scratch(rows * heads, length, query.dtype)
    torch.bmm(query, key.transpose(1, 2), out=scores)
    # A softmax that does not look for each row's largest score first takes half the time, and is as exact while the
    # sums are numbers that bfloat16 holds, which has the range of float32.
    sums = torch.exp(scores, out=scores).sum(dim=-1, keepdim=True)
    low, high = sums.aminmax()
    if low >= _LEAST_SUM and high <= _MOST_SUM:
        found = torch.bmm(scores, value).div_(sums)
    else:
        torch.bmm(query, key.transpose(1, 2), out=scores)
        found = torch.bmm(torch.softmax(scores, dim=-1, out=scores), value)
    return found.view(rows, heads, length, -1).transpose(1, 2).contiguous()


_kept = threading.local()


def _scratch(heads: int, length: int, dtype: torch.dtype) -> torch.Tensor:
    """(heads, T, T) of this thread, with anything in it: memory that is new each time costs more than the products."""
    needed = heads * length * length
    held: torch.Tensor | None = getattr(_kept, "scores", None)
    if held is None or held.numel() < needed or held.dtype != dtype:
        with torch.inference_mode(False):  # else it could be written to in inference mode alone
            held = _kept.scores = torch.empty(needed, dtype=dtype)
    return held[:needed].view(heads, length, length)
