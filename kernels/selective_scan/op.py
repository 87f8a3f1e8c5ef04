"""The torch operators `uino::selective_scan2d` and `selective_scan_fn`."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from uino_deploy.kernels.dispatch import native_for, native_type, runs_on_triton
from uino_deploy.kernels.identity import DIRECTIONS
from uino_deploy.kernels.selective_scan import blocked, naive


@torch.library.custom_op("uino::selective_scan2d", mutates_args=())
def selective_scan2d(
    x: Tensor, packed: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, skip: Tensor
) -> Tensor:
    """Scan a plane in four directions; see `naive.selective_scan2d` for shapes and mathematics.

    Raises:
        ValueError: shapes or types do not fit together.
    """
    _check(x, packed, dt_weight, dt_bias, A, skip)
    if runs_on_triton(x):
        from uino_deploy.kernels.selective_scan import triton_kernel

        with torch.cuda.device(x.device):
            return triton_kernel.selective_scan2d(x, packed, dt_weight, dt_bias, A, skip)
    if native := native_for(x):
        y = x.new_empty(x.shape)
        inputs = [tensor.contiguous() for tensor in (x, packed, dt_weight, dt_bias, A, skip)]
        operands = [tensor.data_ptr() for tensor in (*inputs, y)]
        shapes = [tensor.shape for tensor in inputs]
        native.selective_scan2d(native_type(x), operands, shapes, torch.get_num_threads())
        return y
    return blocked.selective_scan2d(x, packed, dt_weight, dt_bias, A, skip)


def _check(
    x: Tensor, packed: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, skip: Tensor
) -> None:
    cells, channels = tuple(x.shape[:3]), x.shape[3]
    rank, states = dt_weight.shape[-1], A.shape[-1]
    width = max(packed.shape[-1], rank + 2 * states)
    for name, tensor, expected in (
        ("packed", packed, (*cells, DIRECTIONS, width)),
        ("dt_weight", dt_weight, (DIRECTIONS, channels, rank)),
        ("dt_bias", dt_bias, (DIRECTIONS, channels)),
        ("A", A, (DIRECTIONS, channels, states)),
        ("skip", skip, (DIRECTIONS, channels)),
    ):
        if tuple(tensor.shape) != expected:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {expected}")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x is on {x.device}")
    parameter = torch.float64 if x.dtype == torch.float64 else torch.float32
    for name, tensor, dtype in (
        ("packed", packed, x.dtype),
        ("dt_weight", dt_weight, parameter),
        ("dt_bias", dt_bias, parameter),
        ("A", A, parameter),
        ("skip", skip, parameter),
    ):
        if tensor.dtype != dtype:
            raise ValueError(f"{name} is {tensor.dtype}, expected {dtype}")


@selective_scan2d.register_fake
def _(
    x: Tensor, packed: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, skip: Tensor
) -> Tensor:
    return x.new_empty(x.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
    """Differentiate the scan; its states are recomputed rather than kept."""
    operands = [*ctx.saved_tensors, gradient]
    if runs_on_triton(gradient):
        from uino_deploy.kernels.selective_scan import triton_kernel_backward

        with torch.cuda.device(gradient.device):
            return triton_kernel_backward.selective_scan2d_backward(*operands)
    return blocked.gradients(*operands)


selective_scan2d.register_autograd(_backward, setup_context=_setup_context)


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scan one dimension; a drop-in for mamba-ssm's `selective_scan_fn` with real states.

    See `naive.selective_scan_fn` for shapes and errors.
    """
    if runs_on_triton(u) and not A.is_complex():
        tensors = (u, delta, A, B, C, D, z, delta_bias)
        # torch does not type `apply`.
        out, state = _Scan1d.apply(delta_softplus, *tensors)  # type: ignore[no-untyped-call]
        return (out, state) if return_last_state else out
    return naive.selective_scan_fn(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state
    )


class _Scan1d(torch.autograd.Function):
    """The Triton kernels as a differentiable function."""

    @staticmethod
    def forward(
        ctx: Any,
        softplus: bool,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        from uino_deploy.kernels.selective_scan import triton_kernel_1d

        ctx.softplus = softplus
        ctx.save_for_backward(u, delta, A, B, C, D, z, bias)
        with torch.cuda.device(u.device) if u.is_cuda else nullcontext():
            return triton_kernel_1d.selective_scan_fn(u, delta, A, B, C, D, z, bias, softplus)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from uino_deploy.kernels.selective_scan import triton_kernel_1d_backward as kernel

        operands = [*ctx.saved_tensors, ctx.softplus, *gradients]
        device = operands[0].device
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            return None, *kernel.selective_scan_fn_backward(*operands)
