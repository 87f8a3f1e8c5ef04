"""The operators' backward kernels in Triton's interpreter, against float64 gradients."""

from dataclasses import replace

import pytest
import torch

from tests.kernels.operands import scan_operands
from uino_deploy.kernels.correlation import naive as correlation
from uino_deploy.kernels.correlation.triton_kernel_backward import correlation4d_backward
from uino_deploy.kernels.selective_scan import naive, triton_kernel_1d_backward
from uino_deploy.kernels.selective_scan.op import _Scan1d
from uino_deploy.kernels.selective_scan.tiling import Tiling
from uino_deploy.kernels.selective_scan.triton_kernel_backward import selective_scan2d_backward
from uino_deploy.tolerances import OPERATOR

pytestmark = pytest.mark.usefixtures("poisoned")

PARALLEL, SERIAL = Tiling(True, 4, 2, 16, 1), Tiling(False, 4, 2, 16, 1)
TILINGS = pytest.mark.parametrize("tiling", [PARALLEL, SERIAL], ids=["parallel", "serial"])
NAMES = ("x", "packed", "dt_weight", "dt_bias", "A", "skip")


def operands(shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tensors = scan_operands(shape, dtype, generator, bias=-1, decay=-2)
    gradient = torch.randn(*shape[:4], generator=generator)
    return tensors, gradient.to(dtype)


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
    tensors[1][..., :1], tensors[2][:], tensors[3][:] = -99.0, 1.0, 100.0
    tensors[4] *= -1
    check(tensors, gradient, tiling)


@TILINGS
def test_one_gradient_for_all_cells(tiling):
    tensors, gradient = operands((2, 2, 3, 4, 2, 3))
    check(tensors, gradient[:1, :1, :1].expand_as(gradient), tiling)


def test_other_strides_are_copied():
    tensors, gradient = operands((2, 2, 3, 4, 2, 2))
    tensors = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in tensors]
    check(tensors, gradient.transpose(0, 1).contiguous().transpose(0, 1), SERIAL)


# --- selective_scan_fn, through autograd as a CUDA tensor takes it

DIM, STATES, LENGTH = 6, 3, 21
LAYOUTS = {"constant": (DIM, STATES), "per step": (2, STATES, LENGTH)}
LAYOUTS |= {f"{groups} groups": (2, groups, STATES, LENGTH) for groups in (1, 2, 3)}
OPTIONS = ("D", "z", "delta_bias", "softplus")


def sequence(of_b, of_c, given, dtype=torch.float32):
    generator = torch.Generator().manual_seed(2)
    draw = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    narrow = lambda t: t.to(dtype)  # noqa: E731
    plane = (2, DIM, LENGTH)
    values = [narrow(draw(*plane)), narrow(draw(*plane).abs() * 0.3), -2 * draw(DIM, STATES).abs()]
    values += [narrow(draw(*LAYOUTS[of_b])), narrow(draw(*LAYOUTS[of_c]))]
    options = {"D": draw(DIM), "z": narrow(draw(*plane)), "delta_bias": draw(DIM).abs() * 0.2}
    values += [options[name] if name in given else None for name in options]
    return values, "softplus" in given


def check_sequence(values, softplus):
    mine, right = (
        [None if t is None else change(t).requires_grad_() for t in values]
        for change in (torch.clone, torch.Tensor.double)
    )
    out, last = _Scan1d.apply(softplus, *mine)
    exact, exact_last = naive.selective_scan_fn(*right, softplus, return_last_state=True)
    generator = torch.Generator().manual_seed(4)
    weights = [torch.randn(t.shape, generator=generator).to(t.dtype) for t in (out, last)]
    mine, right = ([t for t in given if t is not None] for given in (mine, right))
    got = torch.autograd.grad((out, last), mine, weights)
    expected = torch.autograd.grad((exact, exact_last), right, [w.double() for w in weights])
    for a, b, operand in zip(got, expected, mine, strict=True):
        assert (a.shape, a.dtype) == (operand.shape, operand.dtype)
        bound = OPERATOR[str(a.dtype).removeprefix("torch.")].relative_l2
        assert (a.double() - b).norm() <= bound * b.norm(), [tuple(t.shape) for t in mine]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_sequence_types(dtype):
    check_sequence(*sequence("2 groups", "2 groups", OPTIONS, dtype))


@pytest.mark.parametrize("given", [(), *((name,) for name in OPTIONS)], ids="+".join)
def test_sequence_options(given):
    check_sequence(*sequence("per step", "1 groups", given))


@pytest.mark.parametrize(
    ("of_b", "of_c"),
    [("constant", "per step"), ("2 groups", "constant"), ("constant", "constant"),
     ("3 groups", "1 groups"), ("2 groups", "3 groups")],
)  # fmt: skip
def test_sequence_layouts(of_b, of_c):
    check_sequence(*sequence(of_b, of_c, OPTIONS))


def test_more_channels_than_a_block_of_a_sequence(monkeypatch):
    rule = triton_kernel_1d_backward.backward_tiling
    small = lambda *sizes: replace(rule(*sizes), block_d=4)  # noqa: E731
    monkeypatch.setattr(triton_kernel_1d_backward, "backward_tiling", small)
    check_sequence(*sequence("1 groups", "per step", OPTIONS))


# --- Correlation4d


def tokens(shape, dtype=torch.float32):
    batch, shared, shots, layers, n_query, height, width, channels = shape
    generator = torch.Generator().manual_seed(6)
    draw = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    own = 1 if shared else batch
    query = draw(batch, layers, n_query, channels)
    support = draw(own, shots, layers, height * width, channels)
    return [t.to(dtype) for t in (query, support, draw(own, shots, height * width))]


def check_tokens(tensors, height, width, pool):
    exact = [t.double().requires_grad_() for t in tensors]
    out = correlation.correlation4d(*exact, height, width, pool)
    generator = torch.Generator().manual_seed(7)
    gradient = torch.randn(out.shape, generator=generator).to(tensors[0].dtype)
    right = torch.autograd.grad(out, exact, gradient.double())
    mine = correlation4d_backward(*tensors, height, width, pool, gradient)
    names = ("query", "support", "weight")
    for name, a, b, operand in zip(names, mine, right, tensors, strict=True):
        assert (a.shape, a.dtype) == (operand.shape, operand.dtype), name
        bound = OPERATOR[str(a.dtype).removeprefix("torch.")].relative_l2
        assert (a.double() - b).norm() <= bound * b.norm(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pool", [1, 2, 3])
def test_correlation_types_and_pools(dtype, pool):
    check_tokens(tokens((1, False, 1, 2, 17, 5, 7, 40), dtype), 5, 7, pool)


@pytest.mark.parametrize("shared", [False, True])
def test_correlation_batch_and_shots(shared):
    check_tokens(tokens((2, shared, 2, 2, 66, 9, 8, 8)), 9, 8, 2)


def test_tokens_shorter_than_epsilon():
    tensors = tokens((1, False, 1, 1, 6, 3, 3, 8))
    tensors[0][:, :, 2] *= 1e-9
    tensors[1][:, :, :, 4] *= 1e-9
    check_tokens(tensors, 3, 3, 2)
