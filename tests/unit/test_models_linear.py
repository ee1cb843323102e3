"""The weight's gradient of a linear layer on the matrix unit: float32's own, and torch's layer in everything else."""

import pytest
import torch
from confide.models.arithmetic import linear, linear_kernels, matrix_unit
from torch import nn

pytestmark = pytest.mark.skipif(not matrix_unit.AVAILABLE, reason="this processor has no matrix unit for bfloat16")


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


@pytest.mark.parametrize("count", [1, 31, 32, 256, 300, 544])
@pytest.mark.parametrize(("outer", "inner"), [(32, 96), (160, 32)])
def test_the_gradient_is_that_of_float32(count: int, outer: int, inner: int) -> None:
    """Any number of tokens; rows of a wider matrix too."""
    gradient, rows = drawn(count, outer + 8)[:, :outer], drawn(count, inner + 4)[:, 4:]
    made = linear_kernels.weight_gradient(gradient, rows)
    true = gradient.double().T @ rows.double()
    assert made.dtype == torch.float32 and torch.dist(made.double(), true) < 1e-6 * true.norm()


def test_threads_share_the_rows_and_change_no_bit() -> None:
    gradient, rows = drawn(300, 96), drawn(300, 64)
    alone = linear_kernels.weight_gradient(gradient, rows)
    torch.set_num_threads(2)
    try:
        together = linear_kernels.weight_gradient(gradient, rows)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(alone, together)


def pair(inner: int = 64, outer: int = 96, *, bias: bool = True) -> tuple[nn.Module, nn.Module]:
    """torch's layer and ours, with the same weights."""
    torch.manual_seed(3)
    theirs = nn.Sequential(nn.Linear(inner, outer, bias=bias))
    ours = nn.Sequential(nn.Linear(inner, outer, bias=bias))
    ours.load_state_dict(theirs.state_dict())
    linear.use_matrix_unit(ours)
    assert type(ours[0]) is linear.TiledLinear and isinstance(ours[0], nn.Linear)
    return theirs, ours


def trained(layer: nn.Module, rows: torch.Tensor, *, autocast: bool) -> list[torch.Tensor]:
    """Output, and gradients of the input and all parameters."""
    rows = rows.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = layer(rows)
        (output.float() * drawn(*output.shape).float()).sum().backward()
    assert rows.grad is not None
    return [output.detach(), rows.grad, *(p.grad for p in layer.parameters() if p.grad is not None)]


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_torchs_but_for_an_unrounded_gradient(bias: bool) -> None:
    theirs, ours = (trained(layer, drawn(3, 40, 64).float(), autocast=True) for layer in pair(bias=bias))
    assert len(ours) == len(theirs) == 3 + bias
    for place, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert torch.dist(one.float(), other.float()) < (1e-6 if place == 1 else 1e-2) * other.float().norm()
    assert not torch.equal(ours[2], ours[2].bfloat16().float()) and torch.equal(theirs[2], theirs[2].bfloat16().float())


def test_without_autocast_it_is_torchs_to_the_bit() -> None:
    made = [trained(layer, drawn(5, 64).float(), autocast=False) for layer in pair()]
    assert all(torch.equal(one, other) for one, other in zip(*made, strict=True))


def test_a_resting_weight_and_evaluation_keep_torchs_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_Product", None)
    _, ours = pair()
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            ours(torch.randn(2, 64))
        with pytest.raises(AttributeError, match="apply"):  # where it does change something
            ours(torch.randn(2, 64))
        ours.requires_grad_(False)
        ours(torch.randn(2, 64, requires_grad=True)).sum().backward()


def test_what_does_not_fit_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(64, 33), nn.Linear(64, 64).bfloat16(), nn.Linear(64, 64, device="meta"))
    linear.use_matrix_unit(model)
    assert [type(layer) for layer in model] == [nn.Linear] * 3


def test_the_operator_is_what_torch_expects_of_one() -> None:
    torch.library.opcheck(linear._weight_gradient, (drawn(40, 32), drawn(40, 64)))
