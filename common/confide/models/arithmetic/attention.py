"""Attention as transformers' "sdpa", except where that is slow on a processor: the backward pass in bfloat16.

There torch's kernel takes seven times as long as its forward pass. With a matrix unit (AMX) both passes are kernels of
our own that skip what the mask hides (attention_kernels.py); for lengths that they do not divide and on other
processors, the gradient is made of batched products. The probabilities are made again from queries and keys, so that
nothing of size T x T outlives the backward pass of a layer. Float32, where products did not win, keeps torch's kernel
and its bits, as do GPUs and all evaluation.

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention.IMPLEMENTATION)

Masks are those of "sdpa". When a model is compiled, transformers builds a causal mask that no kernel needs: not here.
"""

import contextlib
import functools
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from confide.models.arithmetic import attention_kernels, matrix_unit

# transformers asks for an architecture's support of torch's attention where "sdpa" is part of the name.
IMPLEMENTATION = "confide_sdpa"

LONGEST = 512
"""Tokens for products; with 1,024 under a causal mask torch's kernel, which skips what is masked, is faster again."""

LONGEST_IN_BLOCKS = 2048
"""Tokens for the kernels, which were not measured beyond."""


_ROWS: ContextVar[tuple[torch.Tensor, torch.Tensor] | None] = ContextVar("rows", default=None)
"""places (B, T) and back (N,), as `in_rows` has them."""


class NotInRows(Exception):
    """A layer attends in another way than plainly and causally over its row."""


@contextlib.contextmanager
def in_rows(places: torch.Tensor, count: int) -> Iterator[None]:
    """Within, one sequence of `count` tokens stands for rows that each attend to themselves (unpadded.py).

    places: (B, T) int64, where in the sequence token t of row b lies; padding is on the right, and never looked at.
    """
    back = torch.zeros(count, dtype=torch.int64)
    # Padding points anywhere: written last to first, what stands in the first row that has a token remains.
    flat = places.flatten()
    back[flat.flip(0)] = torch.arange(flat.numel()).flip(0)
    token = _ROWS.set((places, back))
    try:
        yield
    finally:
        _ROWS.reset(token)


def attend(
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
    """transformers' attention interface: query (B, H, T, D), key and value (B, H or fewer, T, D) -> (B, T, H, D)."""
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    if (rows := _ROWS.get()) is not None:
        if attention_mask is not None or not causal or any(others.get(name) is not None for name in _UNLIKE_ROWS):
            raise NotInRows
        return _by_rows(rows, module, (query, key, value), dropout=dropout, scaling=scaling, **others), None
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else value.dtype
    special = dropout > 0 or any(others.get(name) is not None for name in ("position_bias", "softcap", "cache"))
    if special or not _faster(query, key, value, dtype, attention_mask):
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **others
        )
        return output, None
    groups = query.shape[1] // key.shape[1]
    # Scaled here, where it fuses with what came before.
    scaled = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    parts = (scaled, repeat_kv(key, groups), repeat_kv(value, groups))
    cast = [part.to(dtype) for part in parts]
    if not _fits(query, attention_mask):
        cast = [part.contiguous() for part in cast]
    return _attention(*cast, attention_mask, causal), None


_UNLIKE_ROWS = ("position_bias", "sliding_window", "cache")


def _by_rows(
    rows: tuple[torch.Tensor, torch.Tensor], module: torch.nn.Module, parts: tuple[torch.Tensor, ...], **others: Any
) -> torch.Tensor:
    """Three times (1, H, N, D) -> (1, N, H, D): each row attends by itself, what rows share in each of them."""
    places, back = rows
    spread = [p[0].index_select(1, places.flatten()).view(-1, *places.shape, p.shape[3]).transpose(0, 1) for p in parts]
    token = _ROWS.set(None)
    try:
        output, _ = attend(module, spread[0], spread[1], spread[2], None, is_causal=True, **others)
    finally:
        _ROWS.reset(token)
    return output.flatten(0, 1).index_select(0, back)[None]


def _faster(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dtype: torch.dtype,
    attention_mask: torch.Tensor | None,
) -> bool:
    return (
        dtype == torch.bfloat16
        and query.device.type == "cpu"
        and torch.is_grad_enabled()
        and query.shape[2] == key.shape[2]
        and query.shape[2] <= (LONGEST_IN_BLOCKS if _fits(query, attention_mask) else LONGEST)
        and query.shape[3] == value.shape[3]
    )


def _fits(query: torch.Tensor, attention_mask: torch.Tensor | None) -> bool:
    """Whether a processor with a matrix unit can do it in blocks, by our own kernels."""
    block = attention_kernels.BLOCK
    divided = query.shape[2] % block == 0 and query.shape[3] % block == 0
    return divided and matrix_unit.AVAILABLE and (attention_mask is None or attention_mask.dtype == torch.bool)


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    *,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    **others: Any,
) -> torch.Tensor | None:
    """transformers' mask interface: bool (B, 1, T, T), True where a query sees a key; None where none is needed."""
    if _ROWS.get() is not None:
        if local_size is not None:
            raise NotInRows
        return None
    skips = allow_is_causal_skip or allow_is_bidirectional_skip
    if skips and attention_mask is None and local_size is None and q_length == kv_length:
        return None
    made: torch.Tensor | None = sdpa_mask(
        batch_size,
        q_length,
        kv_length,
        attention_mask=attention_mask,
        local_size=local_size,
        allow_is_causal_skip=allow_is_causal_skip,
        allow_is_bidirectional_skip=allow_is_bidirectional_skip,
        **others,
    )
    return made


@torch.library.custom_op("confide::attention", mutates_args=())
def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None, causal: bool
) -> torch.Tensor:
    """softmax(query key^T + mask) value, queries scaled before: three times (B, H, T, D) -> (B, T, H, D).

    attention_mask: bool or additive, (B or 1, H or 1, T, T); then `causal` means nothing.
    """
    if query.dtype == torch.bfloat16 and _fits(query, attention_mask):
        batch, heads, length, width = query.shape
        made = query.new_empty(batch, length, heads, width)
        seen = _seen(length, causal) if attention_mask is None else attention_mask
        attention_kernels.attend(query, key, value, seen, made.transpose(1, 2))
        return made
    if attention_mask is not None and attention_mask.dtype != torch.bool:
        attention_mask = attention_mask.to(query.dtype)
    output = F.scaled_dot_product_attention(
        query, key, value, attention_mask, is_causal=causal and attention_mask is None, scale=1.0
    )
    return output.transpose(1, 2).contiguous()


@torch.library.custom_op("confide::attention_backward", mutates_args=())
def _attention_backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of the output (B, T, H, D), to those of query, key and value (B, H, T, D)."""
    d_query, d_key, d_value = (torch.empty_like(part) for part in (query, key, value))
    if query.dtype == torch.bfloat16 and _fits(query, attention_mask):
        seen = _seen(query.shape[2], causal) if attention_mask is None else attention_mask
        given = gradient.contiguous().transpose(1, 2)
        attention_kernels.attend_backward((query, key, value, given), seen, (d_query, d_key, d_value))
        return d_query, d_key, d_value
    bias = _causal_bias(query.shape[2], query.dtype) if causal and attention_mask is None else None
    for row in range(query.shape[0]):
        if attention_mask is not None:
            bias = _bias(attention_mask[row if attention_mask.shape[0] > 1 else 0], query.dtype)
        keys, d_output = key[row].transpose(1, 2), gradient[row].transpose(0, 1).contiguous()
        shares = torch.bmm(query[row], keys) if bias is None else torch.baddbmm(bias, query[row], keys)
        # In place, as both kernels allow: what is worked on stays in the core's cache.
        torch.softmax(shares, dim=-1, out=shares)
        torch.bmm(shares.transpose(1, 2), d_output, out=d_value[row])
        d_scores = torch.bmm(d_output, value[row].transpose(1, 2))
        torch._softmax_backward_data(d_scores, shares, -1, shares.dtype, grad_input=d_scores)
        torch.bmm(d_scores, key[row], out=d_query[row])
        torch.bmm(d_scores.transpose(1, 2), query[row], out=d_key[row])
    return d_query, d_key, d_value


def _bias(attention_mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if attention_mask.dtype != torch.bool:
        return attention_mask.to(dtype)
    # Finite, so that a query that sees nothing does not make NaN.
    return torch.zeros(attention_mask.shape, dtype=dtype).masked_fill_(~attention_mask, torch.finfo(dtype).min)


@functools.lru_cache(maxsize=16)
def _seen(length: int, causal: bool) -> torch.Tensor:
    every = torch.ones(1, 1, length, length, dtype=torch.bool)
    return every.tril_() if causal else every


@functools.lru_cache(maxsize=16)
def _causal_bias(length: int, dtype: torch.dtype) -> torch.Tensor:
    return _bias(_seen(length, True)[0], dtype)


@_attention.register_fake
def _(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None, causal: bool
) -> torch.Tensor:
    batch, heads, length, width = query.shape
    return query.new_empty(batch, length, heads, width)


@_attention_backward.register_fake
def _(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    *tensors, causal = inputs
    ctx.save_for_backward(*tensors)
    ctx.causal = causal


def _backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    made = _attention_backward(gradient, *context.saved_tensors, context.causal)
    return (*made, None, None)


_attention.register_autograd(_backward, setup_context=_keep)
AttentionInterface.register(IMPLEMENTATION, attend)
AttentionMaskInterface.register(IMPLEMENTATION, mask)
