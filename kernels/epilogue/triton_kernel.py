"""ScanEpilogue in one Triton launch: both LayerNorms, the gate, the projection, the residual."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from uino_deploy.kernels import triton_cells
from uino_deploy.kernels.triton_cells import (
    dot,
    layer_norm,
    matrix,
    moments,
    normalised,
    place_in_planes,
    rows,
    silu,
    store_rows,
    vector,
)


def constants(plane: int, channels: int, element_bytes: int, capability: int) -> dict[str, Any]:
    """Return the kernel's compile-time arguments."""
    return {**triton_cells.constants(channels, element_bytes, capability), "PLANE": plane}


@triton.jit
def scan_epilogue_kernel(
    y_ptr,  # [S', H, W, D]
    volume_ptr,  # [S, hq, wq, hs, ws, D]
    norm_weight_ptr,  # [D]
    norm_bias_ptr,  # [D]
    gate_weight_ptr,  # [D, D]
    out_norm_weight_ptr,  # [D]
    out_norm_bias_ptr,  # [D]
    projection_ptr,  # [D, D]
    shots,
    query_height,
    query_width,
    support_height,
    support_width,
    out_ptr,  # [S, hq, wq, hs, ws, D]
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CELLS: tl.constexpr,
    EPSILON: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    PLANE: tl.constexpr,
):
    """End the scan of CELLS cells in the volume's order."""
    cell = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
    ok = cell < shots * query_height * query_width * support_height * support_width
    place = place_in_planes(cell, query_height, query_width, support_height, support_width, PLANE)
    tile = rows(volume_ptr, cell, ok, 0, D, BLOCK_D)
    scanned = rows(y_ptr, place, ok, 0, D, BLOCK_D)
    scale = vector(norm_weight_ptr, 0, D, BLOCK_D)
    shift = vector(norm_bias_ptr, 0, D, BLOCK_D)
    normed = layer_norm(tile, scale, shift, D, EPSILON).to(tile.dtype)
    mean, inverse = moments(scanned, D, EPSILON)
    out = tile.to(tl.float32)
    for n in tl.range(0, BLOCK_D, BLOCK_N):
        weight = matrix(gate_weight_ptr, n, 0, D, D, BLOCK_N, BLOCK_D)
        zero = tl.zeros((CELLS, BLOCK_N), tl.float32)
        gate = silu(dot(normed, weight.T, zero, PRECISION, WIDEN))
        some = scanned
        if BLOCK_N < BLOCK_D:
            some = rows(y_ptr, place, ok, n, D, BLOCK_N)
        out_scale = vector(out_norm_weight_ptr, n, D, BLOCK_N)
        out_shift = vector(out_norm_bias_ptr, n, D, BLOCK_N)
        gated = (normalised(some, mean, inverse, out_scale, out_shift) * gate).to(tile.dtype)
        weight = matrix(projection_ptr, 0, n, D, D, BLOCK_D, BLOCK_N)
        out = dot(gated, weight.T, out, PRECISION, WIDEN)
    store_rows(out_ptr, cell, ok, 0, out, D)


def scan_epilogue(
    y: Tensor,
    volume: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    gate_weight: Tensor,
    out_norm_weight: Tensor,
    out_norm_bias: Tensor,
    projection: Tensor,
    plane: int,
) -> Tensor:
    """Launch the kernel; shapes and mathematics are those of `naive.scan_epilogue`.

    Args:
        y: [S', H, W, D], float32, float16 or bfloat16, as are the others; non-contiguous inputs
            are copied.
        volume: [S, hq, wq, hs, ws, D].
        norm_weight: [D].
        norm_bias: [D].
        gate_weight: [D, D].
        out_norm_weight: [D].
        out_norm_bias: [D].
        projection: [D, D].
        plane: 0 or 1.

    Returns:
        [S, hq, wq, hs, ws, D] of the volume's type.
    """
    channels = volume.shape[-1]
    out = volume.new_empty(volume.shape)
    if not out.numel():
        return out
    capability = triton_cells.capability_of(volume)
    chosen = constants(plane, channels, volume.element_size(), capability)
    chosen["WIDEN"] = not volume.is_cuda and volume.dtype == torch.bfloat16
    before = (y, volume, norm_weight, norm_bias, gate_weight)
    scan_epilogue_kernel[(triton_cells.blocks(out.numel() // channels, chosen),)](
        *(t.contiguous() for t in (*before, out_norm_weight, out_norm_bias, projection)),
        *volume.shape[:5],
        out,
        **chosen,
        num_warps=triton_cells.WARPS,
        num_stages=1,
        enable_fp_fusion=True,
    )
    return out
