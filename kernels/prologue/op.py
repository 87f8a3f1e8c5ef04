"""The torch operator `uino::scan_prologue`: shape rule, dispatch and gradient."""

from typing import Any

import torch
from torch import Tensor

from uino_deploy.kernels.identity import DIRECTIONS
from uino_deploy.kernels.prologue import naive


@torch.library.custom_op("uino::scan_prologue", mutates_args=())
def scan_prologue(
    xz: Tensor, conv_weight: Tensor, conv_bias: Tensor, projection: Tensor, plane: int
) -> tuple[Tensor, Tensor]:
    """Prepare a scan; see `naive.scan_prologue` for shapes and mathematics.

    Raises:
        ValueError: shapes or types do not fit together.
    """
    _check(xz, conv_weight, conv_bias, projection, plane)
    with torch.autocast(xz.device.type, enabled=False):
        return naive.scan_prologue(xz, conv_weight, conv_bias, projection, plane)


def _check(
    xz: Tensor, conv_weight: Tensor, conv_bias: Tensor, projection: Tensor, plane: int
) -> None:
    if xz.ndim != 6 or xz.shape[5] % 2:
        raise ValueError(f"xz has shape {tuple(xz.shape)}, expected [S, hq, wq, hs, ws, 2D]")
    if plane not in (0, 1):
        raise ValueError(f"plane is {plane}, expected 0 (the query's) or 1 (the support's)")
    channels = xz.shape[5] // 2
    for name, tensor, expected in (
        ("conv_weight", conv_weight, (channels, 3, 3)),
        ("conv_bias", conv_bias, (channels,)),
        ("projection", projection, (DIRECTIONS, projection.shape[1], channels)),
    ):
        if tuple(tensor.shape) != expected:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {expected}")
        if tensor.dtype != xz.dtype:
            raise ValueError(f"{name} is {tensor.dtype}, expected {xz.dtype}")


@scan_prologue.register_fake
def _(
    xz: Tensor, conv_weight: Tensor, conv_bias: Tensor, projection: Tensor, plane: int
) -> tuple[Tensor, Tensor]:
    shots, *cells, both = xz.shape
    query, support = cells[:2], cells[2:]
    others, own = (support, query) if plane == 0 else (query, support)
    planes = (shots * others[0] * others[1], *own)
    return xz.new_empty(*planes, both // 2), xz.new_empty(*planes, *projection.shape[:2])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.plane = inputs[4]


def _backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate the specification; the convolution is computed again rather than kept."""
    with torch.enable_grad():
        inputs = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        outputs = naive.scan_prologue(*inputs, ctx.plane)
    return (*torch.autograd.grad(outputs, inputs, gradients), None)


scan_prologue.register_autograd(_backward, setup_context=_setup_context)
