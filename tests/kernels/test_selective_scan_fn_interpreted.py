"""The one-dimensional scan's Triton kernel in the interpreter, against float64."""

import pytest
import torch

from uino_deploy.kernels.selective_scan import naive
from uino_deploy.kernels.selective_scan.op import _Scan1d
from uino_deploy.kernels.selective_scan.triton_kernel_1d import selective_scan_fn
from uino_deploy.tolerances import OPERATOR

FP32 = OPERATOR["float32"].relative_l2


def operands(batch=2, dim=4, length=11, states=2, groups=2):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    return {
        "u": draw(batch, dim, length),
        "delta": draw(batch, dim, length).abs() * 0.2,
        "A": -4 * torch.rand(dim, states, generator=generator),
        "B": draw(batch, groups, states, length),
        "C": draw(batch, groups, states, length),
    }


def check(values, **options):
    exact = {k: v.double() for k, v in values.items()}
    expected = naive.selective_scan_fn(**exact, **options, return_last_state=True)
    got = selective_scan_fn(**values, **options)
    bound = OPERATOR[str(values["u"].dtype).removeprefix("torch.")].relative_l2
    for mine, right, allowed in zip(got, expected, (bound, max(bound, FP32)), strict=True):
        assert mine.shape == right.shape
        assert ((mine.double() - right).norm() / right.norm()).item() <= allowed


def test_groups_and_last_state():
    check(operands())


def test_more_steps_than_a_chunk_holds():
    check(operands(batch=1, dim=1, length=67, groups=1))


def test_every_option():
    values = operands()
    values |= {"D": torch.randn(4), "z": torch.randn(2, 4, 11), "delta_bias": torch.randn(4)}
    check(values, delta_softplus=True)


def test_halves():
    check({k: v.half() if k in ("u", "delta", "B", "C") else v for k, v in operands().items()})


def test_constant_and_ungrouped_inputs():
    values = operands(groups=1)
    values["B"] = torch.randn(4, 2)
    values["C"] = values["C"][:, 0]
    check(values)


def test_different_groups():
    values = operands()
    values["C"] = operands(groups=4)["C"]
    check(values)


def test_a_wrong_shape_is_refused():
    values = operands()
    values["B"] = values["B"][..., :-1]
    with pytest.raises(ValueError, match="B has shape"):
        selective_scan_fn(**values)


def test_gradients_are_the_references():
    values = {k: v.requires_grad_() for k, v in operands(length=3).items()}
    skip = torch.randn(4, requires_grad=True)
    tensors = [*values.values(), skip]
    out, state = _Scan1d.apply(True, *tensors, None, None)
    mine = torch.autograd.grad((out * 2).sum() + state.sum(), tensors)
    out, state = naive.selective_scan_fn(*tensors, delta_softplus=True, return_last_state=True)
    right = torch.autograd.grad((out * 2).sum() + state.sum(), tensors)
    for a, b in zip(mine, right, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)
