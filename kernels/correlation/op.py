"""The torch operator `uino::correlation4d`: shape rule, dispatch and gradient."""

from typing import Any

import torch
from torch import Tensor

from uino_deploy.kernels.correlation import naive
from uino_deploy.kernels.correlation.plugin import LARGEST_POOL
from uino_deploy.kernels.dispatch import native_for, native_type, runs_on_triton
from uino_deploy.kernels.native import Native


@torch.library.custom_op("uino::correlation4d", mutates_args=())
def correlation4d(
    query: Tensor, support: Tensor, weight: Tensor, height: int, width: int, pool: int
) -> Tensor:
    """Correlate query and support tokens; see `naive.correlation4d` for shapes and mathematics.

    Raises:
        ValueError: shapes, types or the grid do not fit together.
    """
    _check(query, support, weight, height, width, pool)
    if runs_on_triton(query):
        from uino_deploy.kernels.correlation import triton_kernel

        if pool <= LARGEST_POOL:
            with torch.cuda.device(query.device):
                return triton_kernel.correlation4d(query, support, weight, height, width, pool)
    if native := native_for(query):
        return _native(native, query, support, weight, height, width, pool)
    return naive.correlation4d(query, support, weight, height, width, pool)


def _native(
    native: Native,
    query: Tensor,
    support: Tensor,
    weight: Tensor,
    height: int,
    width: int,
    pool: int,
) -> Tensor:
    volume = _empty_volume(query, support, height, width, pool)
    inputs = [tensor.contiguous() for tensor in (query, support, weight)]
    native.correlation4d(
        native_type(query),
        [tensor.data_ptr() for tensor in (*inputs, volume)],
        [tensor.shape for tensor in inputs],
        (height, width, pool),
        torch.get_num_threads(),
    )
    return volume


def _check(
    query: Tensor, support: Tensor, weight: Tensor, height: int, width: int, pool: int
) -> None:
    batch, layers, _, channels = query.shape
    shots, tokens = support.shape[1], support.shape[3]
    for name, tensor, expected in (
        ("support", support, (shots, layers, tokens, channels)),
        ("weight", weight, (shots, tokens)),
    ):
        if tensor.shape[0] not in (1, batch) or tuple(tensor.shape[1:]) != expected:
            got = tuple(tensor.shape)
            raise ValueError(f"{name} has shape {got}, expected (1 or {batch}, {expected})")
        if tensor.device != query.device:
            raise ValueError(f"{name} is on {tensor.device}, query is on {query.device}")
        if tensor.dtype != query.dtype:
            raise ValueError(f"{name} is {tensor.dtype}, query is {query.dtype}")
    if min(height, width, pool) < 1 or height * width != tokens:
        raise ValueError(f"grid {height}x{width} with pool {pool} does not fit {tokens} tokens")


@correlation4d.register_fake
def _(query: Tensor, support: Tensor, weight: Tensor, height: int, width: int, pool: int) -> Tensor:
    return _empty_volume(query, support, height, width, pool)


def _empty_volume(query: Tensor, support: Tensor, height: int, width: int, pool: int) -> Tensor:
    batch, layers, tokens, _ = query.shape
    pooled = -(-height // pool) * -(-width // pool)
    return query.new_empty(batch, support.shape[1], layers, tokens, pooled)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.grid = inputs[3:]


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate the operator; the volume is recomputed rather than kept."""
    if runs_on_triton(gradient):
        from uino_deploy.kernels.correlation import triton_kernel_backward

        with torch.cuda.device(gradient.device):
            operands = [*ctx.saved_tensors, *ctx.grid, gradient]
            gradients = triton_kernel_backward.correlation4d_backward(*operands)
        return (*gradients, None, None, None)
    with torch.enable_grad():
        inputs = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        output = naive.correlation4d(*inputs, *ctx.grid)
    return (*torch.autograd.grad(output, inputs, gradient), None, None, None)


correlation4d.register_autograd(_backward, setup_context=_setup_context)
