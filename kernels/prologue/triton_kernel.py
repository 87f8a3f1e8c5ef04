"""ScanPrologue in one Triton launch: norm, projection, convolution, SiLU, packed projection."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from uino_deploy.kernels import triton_cells
from uino_deploy.kernels.planes import planes_shape
from uino_deploy.kernels.triton_cells import dot, layer_norm, matrix, rows, silu, store_rows, vector


def constants(
    plane: int, channels: int, width: int, element_bytes: int, capability: int
) -> dict[str, Any]:
    """Return the kernel's compile-time arguments."""
    shared = triton_cells.constants(channels, element_bytes, capability)
    # Nine unrolled taps would spill: with wide rows, and with products of multiply-adds.
    if shared["BLOCK_N"] > 32:
        shared["CELLS"] = 32
    elif capability < 80:
        shared["BLOCK_N"] = 16
    return {**shared, "P": width, "BLOCK_P": triton.next_power_of_2(4 * width), "PLANE": plane}


@triton.jit
def scan_prologue_kernel(
    volume_ptr,  # [S, hq, wq, hs, ws, D]
    norm_weight_ptr,  # [D]
    norm_bias_ptr,  # [D]
    in_weight_ptr,  # [D, D]
    conv_weight_ptr,  # [D, 3, 3]
    conv_bias_ptr,  # [D]
    projection_ptr,  # [4, P, D]
    shots,
    query_height,
    query_width,
    support_height,
    support_width,
    x_ptr,  # [S', H, W, D]
    packed_ptr,  # [S', H, W, 4, P]
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CELLS: tl.constexpr,
    EPSILON: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    P: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PLANE: tl.constexpr,
):
    """Prepare CELLS cells in the order of the planes.

    Each of the nine taps normalises and projects its shifted cells anew: they come from a cache,
    and a small product costs less than a tile with a rim that all threads exchange.
    """
    query = query_height * query_width
    support = support_height * support_width
    height = query_height if PLANE == 0 else support_height
    width = query_width if PLANE == 0 else support_width
    cell = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
    ok = cell < shots * query * support
    place = cell % (height * width)
    i = place // width
    j = place % width
    if PLANE == 0:
        plane = cell // query
        origin = plane // support * query * support + plane % support
        step = support
    else:
        origin = cell - place
        step = 1

    scale = vector(norm_weight_ptr, 0, D, BLOCK_D)
    shift = vector(norm_bias_ptr, 0, D, BLOCK_D)
    packed = tl.zeros((CELLS, BLOCK_P), tl.float32)
    for n in tl.range(0, BLOCK_D, BLOCK_N):
        into = matrix(in_weight_ptr, n, 0, D, D, BLOCK_N, BLOCK_D)
        d = n + tl.arange(0, BLOCK_N)
        x = tl.zeros((CELLS, BLOCK_N), tl.float32)
        for tap in tl.range(0, 9, loop_unroll_factor=1 if BLOCK_N < BLOCK_D else 9):
            u = i + (tap // 3 - 1)
            v = j + (tap % 3 - 1)
            inside = ok & (u >= 0) & (u < height) & (v >= 0) & (v < width)
            tile = rows(volume_ptr, origin + (u * width + v) * step, inside, 0, D, BLOCK_D)
            normed = layer_norm(tile, scale, shift, D, EPSILON).to(tile.dtype)
            zero = tl.zeros((CELLS, BLOCK_N), tl.float32)
            projected = dot(normed, into.T, zero, PRECISION, WIDEN)
            kernel = tl.load(conv_weight_ptr + d * 9 + tap, mask=d < D, other=0.0)
            x += tl.where(inside[:, None], projected, 0.0) * kernel.to(tl.float32)[None, :]
        x += vector(conv_bias_ptr, n, D, BLOCK_N)[None, :]
        x = silu(x).to(x_ptr.dtype.element_ty)
        store_rows(x_ptr, cell, ok, n, x, D)
        small = matrix(projection_ptr, 0, n, 4 * P, D, BLOCK_P, BLOCK_N)
        packed = dot(x, small.T, packed, PRECISION, WIDEN)
    store_rows(packed_ptr, cell, ok, 0, packed, 4 * P)


def scan_prologue(
    volume: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    in_weight: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    projection: Tensor,
    plane: int,
) -> tuple[Tensor, Tensor]:
    """Launch the kernel; shapes and mathematics are those of `naive.scan_prologue`.

    Args:
        volume: [S, hq, wq, hs, ws, D], float32, float16 or bfloat16, as are the others;
            non-contiguous inputs are copied.
        norm_weight: [D].
        norm_bias: [D].
        in_weight: [D, D].
        conv_weight: [D, 3, 3].
        conv_bias: [D].
        projection: [4, P, D].
        plane: 0 or 1.

    Returns:
        x [S', H, W, D] and packed [S', H, W, 4, P] of the volume's type.
    """
    channels, width = volume.shape[-1], projection.shape[1]
    planes = planes_shape(volume.shape, plane)
    x = volume.new_empty(*planes, channels)
    packed = volume.new_empty(*planes, 4, width)
    if not x.numel():
        return x, packed
    capability = triton_cells.capability_of(volume)
    chosen = constants(plane, channels, width, volume.element_size(), capability)
    chosen["WIDEN"] = not volume.is_cuda and volume.dtype == torch.bfloat16
    operands = (volume, norm_weight, norm_bias, in_weight, conv_weight, conv_bias, projection)
    scan_prologue_kernel[(triton_cells.blocks(x.numel() // channels, chosen),)](
        *(t.contiguous() for t in operands),
        *volume.shape[:5],
        x,
        packed,
        **chosen,
        num_warps=triton_cells.WARPS,
        num_stages=1,
        enable_fp_fusion=True,
    )
    return x, packed
