"""Our backward pass of attention in bfloat16: a gradient nearly as exact as torch's, and no document in another's."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from confide.methods.base import Batch, create
from confide.methods.token_loss import body_of
from confide.models.architecture import load_tokenizer
from confide.models.arithmetic import attention, attention_kernels, matrix_unit
from confide.models.trainable import build
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tests.tiny_models import tiny_bert, tiny_gpt2, tiny_llama
from tests.training_specs import specification

BATCH, HEADS, LENGTH, WIDTH = 3, 4, 40, 16


def documents(length: int = LENGTH) -> torch.Tensor:
    """Causal inside documents of 13 tokens, bool (BATCH, 1, T, T)."""
    number = torch.arange(length) // 13
    seen = (number[:, None] == number) & torch.ones(length, length, dtype=torch.bool).tril()
    return seen.expand(BATCH, 1, length, length)


def additive(seen: torch.Tensor) -> torch.Tensor:
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)


def gradients(
    attend: Any,
    dtype: torch.dtype,
    mask: torch.Tensor | None,
    *,
    causal: bool,
    kv_heads: int = HEADS,
    shape: tuple[int, int] = (LENGTH, WIDTH),
    **others: Any,
) -> list[torch.Tensor]:
    """Output, and gradients of query, key and value, as float32, of the same numbers in whatever dtype."""
    draw = torch.Generator().manual_seed(1)
    length, width = shape
    shapes = [(BATCH, heads, length, width) for heads in (HEADS, kv_heads, kv_heads)]
    parts = [torch.randn(shape, generator=draw).bfloat16().to(dtype).requires_grad_() for shape in shapes]
    wanted = torch.randn(BATCH, length, HEADS, width, generator=draw).bfloat16().to(dtype)
    module = SimpleNamespace(is_causal=causal, num_key_value_groups=HEADS // kv_heads)
    output, _ = attend(module, *parts, mask, scaling=width**-0.5, **others)
    output.backward(wanted)
    return [tensor.float() for tensor in (output.detach(), *(part.grad for part in parts if part.grad is not None))]


MASKS: dict[str, Any] = {
    "causal": lambda length: (None, True),
    "bidirectional": lambda length: (None, False),
    "documents": lambda length: (documents(length), True),
    "additive": lambda length: (additive(documents(length)), True),
    "shared mask": lambda length: (documents(length)[:1], True),
    "of each head": lambda length: (documents(length).expand(-1, HEADS, -1, -1), True),
}


@pytest.mark.parametrize("shape", [(LENGTH, WIDTH), (96, 64)], ids=["products", "matrix unit"])
@pytest.mark.parametrize("kv_heads", [HEADS, 2])
@pytest.mark.parametrize("kind", MASKS)
def test_the_gradient_is_nearly_as_exact_as_torchs(kind: str, kv_heads: int, shape: tuple[int, int]) -> None:
    """Against float32: the error of bfloat16 is below 2 % and twice that of torch's own kernel."""
    mask, causal = MASKS[kind](shape[0])
    half = mask.bfloat16() if mask is not None and mask.dtype == torch.float32 else mask
    how: Any = {"causal": causal, "kv_heads": kv_heads, "shape": shape}
    exact = gradients(sdpa_attention_forward, torch.float32, mask, **how)
    theirs = gradients(sdpa_attention_forward, torch.bfloat16, half, **how)
    ours = gradients(attention.attend, torch.bfloat16, mask, **how)
    for true, other, own in zip(exact, theirs, ours, strict=True):
        assert torch.dist(own, true) < 2 * torch.dist(other, true) < 0.02 * true.norm()


def test_the_matrix_unit_is_taken_where_the_processor_has_one() -> None:
    """Else the tests of its kernels would be left out, and nobody would notice."""
    processor = Path("/proc/cpuinfo")
    flags = processor.read_text().split() if processor.exists() else []
    assert ({"amx_tile", "amx_bf16"} <= set(flags)) == matrix_unit.AVAILABLE


needs_unit = pytest.mark.skipif(not matrix_unit.AVAILABLE, reason="this processor has no matrix unit for bfloat16")


@needs_unit
def test_a_query_that_sees_nothing_makes_zeros() -> None:
    """A row and a whole block of rows: nothing divides by zero, and no gradient comes of it."""
    mask = documents(96).clone()
    mask[:, :, 5] = mask[:, :, 32:64] = False
    output, *made = gradients(attention.attend, torch.bfloat16, mask, causal=True, shape=(96, 32))
    for tensor in (output.transpose(1, 2), made[0]):
        assert torch.isfinite(tensor).all() and tensor[:, :, 6].any()
        assert not tensor[:, :, 5].any() and not tensor[:, :, 32:64].any()
    assert not any(tensor[:, :, 39:52].any() for tensor in made[1:])


def test_what_is_no_number_comes_out_of_the_rows_that_see_it() -> None:
    """A model that diverged must not look as if it had not."""
    for broken, rows in enumerate(([40], range(40, 64), range(40, 64))):
        parts = [torch.ones(1, 1, 64, 32).bfloat16() for _ in ("query", "key", "value")]
        parts[broken][0, 0, 40] = float("nan")
        output = attention._attention(*parts, None, True)[0, :, 0]
        assert set(rows) <= {row for row in range(64) if output[row].isnan().any()}


def test_threads_share_the_sequences_and_change_no_bit() -> None:
    how: Any = {"causal": True, "shape": (64, 32)}
    alone = gradients(attention.attend, torch.bfloat16, None, **how)
    torch.set_num_threads(2)
    try:
        together = gradients(attention.attend, torch.bfloat16, None, **how)
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


@needs_unit
def test_the_matrix_unit_serves_whole_blocks_and_boolean_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    for kernel in ("attend", "attend_backward"):
        with monkeypatch.context() as patch:
            patch.setattr(attention_kernels, kernel, None)
            gradients(attention.attend, torch.bfloat16, None, causal=True)
            gradients(attention.attend, torch.bfloat16, additive(documents(64)), causal=True, shape=(64, 32))
            with pytest.raises(TypeError, match="NoneType"):
                gradients(attention.attend, torch.bfloat16, documents(64), causal=True, shape=(64, 32))


def test_both_operators_are_what_torch_expects_of_one() -> None:
    """Schema, shapes of the fake versions, autograd and compilation."""
    parts = [torch.randn(2, 2, 8, 4, requires_grad=True) for _ in range(3)]
    torch.library.opcheck(attention._attention, (*parts, None, True))
    torch.library.opcheck(attention._attention, (*parts, documents(8)[:2], True))
    wanted = torch.randn(2, 8, 2, 4)
    torch.library.opcheck(attention._attention_backward, (wanted, *(part.detach() for part in parts), None, True))
    rows = [torch.randn(2, 32, 2, 32).bfloat16().transpose(1, 2).requires_grad_() for _ in range(3)]
    torch.library.opcheck(attention._attention, (*rows, documents(32)[:2], True))


def test_the_backward_pass_is_the_gradient_in_float64() -> None:
    parts = [torch.randn(2, 2, 6, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(lambda *qkv: attention._attention(*qkv, documents(6)[:2], True), parts)


@pytest.mark.parametrize(
    ("dtype", "others"), [(torch.float32, {}), (torch.bfloat16, {"dropout": 0.5})], ids=["float32", "dropout"]
)
def test_elsewhere_it_is_torchs_kernel_to_the_bit(dtype: torch.dtype, others: dict[str, Any]) -> None:
    made = []
    for attend in (sdpa_attention_forward, attention.attend):
        torch.manual_seed(2)
        made.append(gradients(attend, dtype, documents(), causal=True, **others))
    assert all(torch.equal(one, other) for one, other in zip(*made, strict=True))


@pytest.mark.parametrize("length", [8, attention.LONGEST + 1, attention.LONGEST_IN_BLOCKS + 32])
def test_without_gradients_or_for_long_sequences_nothing_changes(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_attention", None)
    parts = [torch.randn(1, 1, length, 32, dtype=torch.bfloat16) for _ in range(3)]
    with torch.set_grad_enabled(length > 8):
        attention.attend(torch.nn.Identity(), *parts, None, is_causal=True)
    with pytest.raises(TypeError, match="NoneType"):  # the very call that is made where it does change something
        attention.attend(torch.nn.Identity(), *(part[:, :, :8] for part in parts), None, is_causal=True)


def test_masks_are_those_of_sdpa_but_for_one_that_no_kernel_needs() -> None:
    padding = torch.ones(2, 8, dtype=torch.bool)
    padding[0, 6:] = False
    ours, theirs = attention.mask(2, 8, 8, attention_mask=padding), sdpa_mask(2, 8, 8, attention_mask=padding)
    assert ours is not None and theirs is not None and torch.equal(ours, theirs)
    assert attention.mask(2, 8, 8) is None
    for kept in ({"allow_is_causal_skip": False}, {"local_size": 4}):
        made = attention.mask(2, 8, 8, **kept)  # type: ignore[arg-type]
        assert made is not None and made.shape == (2, 1, 8, 8) and not made[0, 0, 0, 1]


MAKERS = {"llama": (tiny_llama, "causal_lm"), "gpt2": (tiny_gpt2, "causal_lm"), "bert": (tiny_bert, "masked_lm")}


@pytest.mark.parametrize("family", MAKERS)
def test_no_gradient_reaches_another_document(family: str, tmp_path: Path) -> None:
    """Packed in bfloat16: what is learned from one document does not depend on its neighbours at all."""
    make, name = MAKERS[family]
    base = make(tmp_path)
    spec = specification(method={"name": name, "max_length": 96}, adapter={"kind": "full"})
    model: Any = build(spec, base).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # torch's kernel serves dropout
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    method = create(spec, load_tokenizer(base))
    (example,) = method.prepare([{"text": text} for text in ("Who pays?", "a lime mortar", "The client.")])
    batch = method.collate([example], seed=1)
    starts = [*(example.positions == 0).nonzero()[0], len(example.ids)]
    middle = torch.zeros(batch.labels.shape, dtype=torch.bool)
    middle[:, starts[1] : starts[2]] = True
    labels = torch.where(middle, batch.inputs["input_ids"], -100)
    caught: list[torch.Tensor] = []

    def catch(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if output.requires_grad:  # not while the loss looks for the head
            output.retain_grad()
            caught.append(output)

    body_of(model).get_input_embeddings().register_forward_hook(catch)
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.loss(model, Batch(batch.inputs, labels, int(middle.sum())))
    loss.backward()  # type: ignore[no-untyped-call]
    gradient = caught[0].grad
    assert gradient is not None
    assert gradient[middle].abs().sum() > 0 and torch.count_nonzero(gradient[~middle]) == 0
