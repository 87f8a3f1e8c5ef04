"""The torch operator `uino::scan_epilogue`: shape rule, dispatch and gradient."""

from typing import Any

import torch
from torch import Tensor

from uino_deploy.kernels.epilogue import naive


@torch.library.custom_op("uino::scan_epilogue", mutates_args=())
def scan_epilogue(
    y: Tensor,
    xz: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    projection: Tensor,
    residual: Tensor,
    plane: int,
) -> Tensor:
    """End a scan; see `naive.scan_epilogue` for shapes and mathematics.

    Raises:
        ValueError: shapes or types do not fit together.
    """
    _check(y, xz, norm_weight, norm_bias, projection, residual, plane)
    operands = (y, xz, norm_weight, norm_bias, projection, residual)
    with torch.autocast(y.device.type, enabled=False):
        return naive.scan_epilogue(*operands, plane)


def _check(
    y: Tensor,
    xz: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    projection: Tensor,
    residual: Tensor,
    plane: int,
) -> None:
    if xz.ndim != 6:
        raise ValueError(f"xz has shape {tuple(xz.shape)}, expected [S, hq, wq, hs, ws, 2D]")
    if plane not in (0, 1):
        raise ValueError(f"plane is {plane}, expected 0 (the query's) or 1 (the support's)")
    channels = y.shape[-1]
    shots, hq, wq, hs, ws = xz.shape[:5]
    planes = (shots * hs * ws, hq, wq) if plane == 0 else (shots * hq * wq, hs, ws)
    for name, tensor, expected in (
        ("y", y, (*planes, channels)),
        ("xz", xz, (shots, hq, wq, hs, ws, 2 * channels)),
        ("norm_weight", norm_weight, (channels,)),
        ("norm_bias", norm_bias, (channels,)),
        ("projection", projection, (channels, channels)),
        ("residual", residual, (shots, hq, wq, hs, ws, channels)),
    ):
        if tuple(tensor.shape) != expected:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {expected}")
        if tensor.dtype != y.dtype:
            raise ValueError(f"{name} is {tensor.dtype}, expected {y.dtype}")


@scan_epilogue.register_fake
def _(
    y: Tensor,
    xz: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    projection: Tensor,
    residual: Tensor,
    plane: int,
) -> Tensor:
    return residual.new_empty(residual.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.plane = inputs[6]


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate the specification; the norm and the gate are computed again."""
    with torch.enable_grad():
        inputs = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        output = naive.scan_epilogue(*inputs, ctx.plane)
    return (*torch.autograd.grad(output, inputs, gradient), None)


scan_epilogue.register_autograd(_backward, setup_context=_setup_context)
