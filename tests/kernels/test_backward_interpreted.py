"""The operators' backward kernels in Triton's interpreter, against float64 gradients."""

import pytest
import torch

from uino_deploy.kernels.selective_scan import naive
from uino_deploy.kernels.selective_scan.tiling import Tiling
from uino_deploy.kernels.selective_scan.triton_kernel_backward import selective_scan2d_backward
from uino_deploy.tolerances import OPERATOR

PARALLEL, SERIAL = Tiling(True, 4, 2, 16, 1), Tiling(False, 4, 2, 16, 1)
TILINGS = pytest.mark.parametrize("tiling", [PARALLEL, SERIAL], ids=["parallel", "serial"])
NAMES = ("x", "dt", "B", "C", "dt_weight", "dt_bias", "A", "skip")


def operands(shape, dtype=torch.float32, seed=0):
    sequences, height, width, channels, rank, states = shape
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    plane = (sequences, height, width)
    own = [draw(*plane, channels), draw(*plane, 4, rank)]
    own += [draw(*plane, 4, states), draw(*plane, 4, states)]
    parameters = [draw(4, channels, rank), draw(4, channels) - 1]
    parameters += [-2 * torch.rand(4, channels, states, generator=generator), draw(4, channels)]
    return [t.to(dtype) for t in own] + parameters, draw(*plane, 4, channels).to(dtype)


def right(tensors, gradient):
    exact = [t.detach().double().requires_grad_() for t in tensors]
    return torch.autograd.grad(naive.selective_scan2d(*exact), exact, gradient.double())


def check(tensors, gradient, tiling):
    got = selective_scan2d_backward(*tensors, gradient, tiling=tiling)
    for name, mine, exact, operand in zip(
        NAMES, got, right(tensors, gradient), tensors, strict=True
    ):
        assert (mine.shape, mine.dtype) == (operand.shape, operand.dtype), name
        bound = OPERATOR[str(mine.dtype).removeprefix("torch.")].relative_l2
        assert (mine.double() - exact).norm() <= bound * exact.norm(), name


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    """Give every output NaN to start with, so that an unwritten element shows."""
    empty = torch.Tensor.new_empty
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda *a, **k: empty(*a, **k).fill_(float("nan"))
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@TILINGS
def test_directions_and_types(dtype, tiling):
    check(*operands((2, 3, 4, 5, 2, 2), dtype), tiling)


@TILINGS
def test_states_and_ranks_off_the_powers_of_two(tiling):
    check(*operands((1, 2, 5, 3, 3, 5)), tiling)


@TILINGS
def test_one_cell_one_channel_one_state(tiling):
    check(*operands((1, 1, 1, 1, 1, 1)), tiling)


@TILINGS
def test_more_channels_than_a_block(tiling):
    check(*operands((5, 2, 3, 19, 2, 1)), tiling)


@pytest.mark.parametrize("shape", [(1, 6, 7, 16, 2, 4), (9, 2, 3, 16, 2, 4)], ids=str)
def test_the_rule(shape):
    check(*operands(shape), None)


@TILINGS
def test_growing_states_are_finite_past_the_end(tiling):
    """The steps that pad a chunk have dt = 0: here their decay alone would be infinite."""
    tensors, gradient = operands((1, 1, 3, 4, 1, 2))
    tensors[1][:], tensors[4][:], tensors[5][:] = -99.0, 1.0, 100.0
    tensors[6] *= -1
    check(tensors, gradient, tiling)


@TILINGS
def test_parts_of_one_projection_and_one_gradient_for_all_directions(tiling):
    tensors, gradient = operands((2, 2, 3, 4, 2, 3))
    packed = torch.cat(tensors[1:4], dim=-1)
    tensors[1:4] = packed.split([2, 3, 3], dim=-1)
    gradient = gradient[:, :, :, :1].expand(-1, -1, -1, 4, -1)
    check(tensors, gradient, tiling)


def test_other_strides_are_copied():
    tensors, gradient = operands((2, 2, 3, 4, 2, 2))
    tensors = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in tensors]
    check(tensors, gradient.transpose(0, 1).contiguous().transpose(0, 1), SERIAL)
