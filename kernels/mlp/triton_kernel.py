"""NormMlp in one Triton launch: LayerNorm, two products around a GELU, the residual."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from uino_deploy.kernels import triton_cells
from uino_deploy.kernels.triton_cells import dot, layer_norm, matrix, rows, store_rows, vector

_LOG2E = tl.constexpr(1.4426950408889634)


def constants(channels: int, hidden: int, element_bytes: int, capability: int) -> dict[str, Any]:
    """Return the kernel's compile-time arguments."""
    shared = triton_cells.constants(channels, element_bytes, capability)
    if element_bytes == 4 and shared["BLOCK_D"] > 32:  # wide rows of float32 would spill
        shared["CELLS"] = 32
    return {**shared, "F": hidden}


@triton.jit
def _gelu(value):
    """Return value * Phi(value) without a branch, as max(value, 0) - |value| / 2 * erfc(...).

    erfc is Abramowitz and Stegun's 7.1.26, within 1.5e-7: the device library's erf branches, and
    the barriers of a product behind it want all threads of a warp.
    """
    size = tl.abs(value) * 0.7071067811865476
    t = 1.0 / (1.0 + 0.3275911 * size)
    fit = 1.061405429 * t - 1.453152027
    fit = fit * t + 1.421413741
    fit = fit * t - 0.284496736
    fit = (fit * t + 0.254829592) * t
    tail = fit * tl.exp2(-size * size * _LOG2E)
    return tl.maximum(value, 0.0) - 0.7071067811865476 * size * tail


@triton.jit
def norm_mlp_kernel(
    volume_ptr,  # [cells, D]
    norm_weight_ptr,  # [D]
    norm_bias_ptr,  # [D]
    weight1_ptr,  # [F, D]
    bias1_ptr,  # [F]
    weight2_ptr,  # [D, F]
    bias2_ptr,  # [D]
    cells,
    out_ptr,  # [cells, D]
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CELLS: tl.constexpr,
    EPSILON: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    F: tl.constexpr,
):
    """Compute CELLS cells."""
    cell = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
    ok = cell < cells
    tile = rows(volume_ptr, cell, ok, 0, D, BLOCK_D)
    scale = vector(norm_weight_ptr, 0, D, BLOCK_D)
    shift = vector(norm_bias_ptr, 0, D, BLOCK_D)
    normed = layer_norm(tile, scale, shift, D, EPSILON).to(tile.dtype)
    out = tile.to(tl.float32) + vector(bias2_ptr, 0, D, BLOCK_D)[None, :]
    for f in tl.range(0, F, BLOCK_N):
        weight = matrix(weight1_ptr, f, 0, F, D, BLOCK_N, BLOCK_D)
        zero = tl.zeros((CELLS, BLOCK_N), tl.float32)
        hidden = dot(normed, weight.T, zero, PRECISION, WIDEN)
        hidden += vector(bias1_ptr, f, F, BLOCK_N)[None, :]
        hidden = _gelu(hidden)
        weight = matrix(weight2_ptr, 0, f, D, F, BLOCK_D, BLOCK_N)
        out = dot(hidden.to(tile.dtype), weight.T, out, PRECISION, WIDEN)
    store_rows(out_ptr, cell, ok, 0, out, D)


def norm_mlp(
    volume: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
) -> Tensor:
    """Launch the kernel; shapes and mathematics are those of `naive.norm_mlp`.

    Args:
        volume: [S, hq, wq, hs, ws, D], float32, float16 or bfloat16, as are the others;
            non-contiguous inputs are copied.
        norm_weight: [D].
        norm_bias: [D].
        weight1: [F, D].
        bias1: [F].
        weight2: [D, F].
        bias2: [D].

    Returns:
        [S, hq, wq, hs, ws, D] of the volume's type.
    """
    channels = volume.shape[-1]
    out = volume.new_empty(volume.shape)
    if not out.numel():
        return out
    capability = triton_cells.capability_of(volume)
    chosen = constants(channels, weight1.shape[0], volume.element_size(), capability)
    chosen["WIDEN"] = not volume.is_cuda and volume.dtype == torch.bfloat16
    operands = (volume, norm_weight, norm_bias, weight1, bias1, weight2, bias2)
    cells = out.numel() // channels
    norm_mlp_kernel[(triton_cells.blocks(cells, chosen),)](
        *(t.contiguous() for t in operands),
        cells,
        out,
        **chosen,
        num_warps=triton_cells.WARPS,
        num_stages=1,
        enable_fp_fusion=True,
    )
    return out
