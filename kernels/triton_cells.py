"""What the Triton kernels over a volume's cells share: rows of channels, norms, SiLU, products."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from uino_deploy.kernels.identity import NORM_EPS

WARPS = 4
_LOG2E = tl.constexpr(1.4426950408889634)


def constants(channels: int, element_bytes: int, capability: int) -> dict[str, Any]:
    """Return the compile-time arguments that all these kernels take.

    Args:
        channels: D.
        element_bytes: 2 or 4.
        capability: of the GPU, 87 for sm_87.
    """
    half = element_bytes == 2
    # Without a tensor core that takes three TF32 numbers for a float32, or any at all on sm_75,
    # products are multiply-adds.
    fifth = capability in (100, 103, 110)
    plain = capability < 80 or (not half and fifth)
    block = max(16, triton.next_power_of_2(channels))  # the least a product takes
    widest = 32 if plain else 64 if half else 0  # of the rows that a product takes whole
    return {
        "D": channels,
        "BLOCK_D": block,
        # Columns of a product at a time: a warp holds a whole operand, a float32 as two numbers.
        "BLOCK_N": block if block <= widest else 16,
        # Fewer than 64 rows keep to the older tensor-core instruction on sm_100: the newer one, for
        # which these products are small, is one that the PTX executor does not know.
        "CELLS": 32 if plain or fifth or block > 64 else 64,
        "EPSILON": NORM_EPS,
        "PRECISION": "ieee" if half or plain else "tf32x3",
        "WIDEN": False,
    }


def blocks(cells: int, constants: Mapping[str, Any]) -> int:
    """Return the blocks of a launch over so many cells."""
    return triton.cdiv(cells, int(constants["CELLS"]))


def capability_of(tensor: Tensor) -> int:
    """Return a CUDA tensor's compute capability; sm_80's kernels serve Triton's interpreter."""
    if not tensor.is_cuda:
        return 80
    import torch

    major, minor = torch.cuda.get_device_capability(tensor.device)
    return major * 10 + minor


@triton.jit
def dot(left, right, total, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """Add left @ right to total; WIDEN because the interpreter would multiply bfloat16's bits."""
    if WIDEN:
        left = left.to(tl.float32)
        right = right.to(tl.float32)
    return tl.dot(left, right, total, input_precision=PRECISION)


@triton.jit
def rows(ptr, row, ok, first, D: tl.constexpr, BLOCK: tl.constexpr):
    """Load columns first to first + BLOCK of rows of D elements, zeros where there are none."""
    d = first + tl.arange(0, BLOCK)[None, :]
    ptrs = ptr + row.to(tl.int64)[:, None] * D + d
    return tl.load(ptrs, mask=ok[:, None] & (d < D), other=0.0)


@triton.jit
def store_rows(ptr, row, ok, first, tile, D: tl.constexpr):
    """Store what `rows` would load."""
    d = first + tl.arange(0, tile.shape[1])[None, :]
    ptrs = ptr + row.to(tl.int64)[:, None] * D + d
    tl.store(ptrs, tile.to(ptr.dtype.element_ty), mask=ok[:, None] & (d < D))


@triton.jit
def matrix(
    ptr, first_row, first, ROWS: tl.constexpr, D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Load a block of a matrix [ROWS, D], zeros outside it."""
    row = first_row + tl.arange(0, BLOCK_ROWS)
    return rows(ptr, row, row < ROWS, first, D, BLOCK)


@triton.jit
def vector(ptr, first, D: tl.constexpr, BLOCK: tl.constexpr):
    """Load numbers first to first + BLOCK of D as float32, zeros after the last."""
    d = first + tl.arange(0, BLOCK)
    return tl.load(ptr + d, mask=d < D, other=0.0).to(tl.float32)


@triton.jit
def moments(tile, D: tl.constexpr, EPSILON: tl.constexpr):
    """Return the mean and the inverse deviation of each row's D elements; zeros follow them."""
    tile = tile.to(tl.float32)
    mean = tl.sum(tile, 1) / D
    centred = tile - mean[:, None]
    if tile.shape[1] > D:
        centred = tl.where((tl.arange(0, tile.shape[1]) < D)[None, :], centred, 0.0)
    return mean, tl.rsqrt(tl.sum(centred * centred, 1) / D + EPSILON)


@triton.jit
def normalised(tile, mean, inverse, scale, shift):
    """Return a LayerNorm of some columns of rows, float32."""
    centred = (tile.to(tl.float32) - mean[:, None]) * inverse[:, None]
    return centred * scale[None, :] + shift[None, :]


@triton.jit
def layer_norm(tile, scale, shift, D: tl.constexpr, EPSILON: tl.constexpr):
    """Return the LayerNorm of whole rows, zeros after D columns if scale and shift have them."""
    mean, inverse = moments(tile, D, EPSILON)
    return normalised(tile, mean, inverse, scale, shift)


@triton.jit
def silu(value):
    """Return value * sigmoid(value)."""
    return value / (1.0 + tl.exp2(-value * _LOG2E))


@triton.jit
def place_in_planes(
    cell, query_height, query_width, support_height, support_width, PLANE: tl.constexpr
):
    """Return where the plane layout has a volume's cells."""
    if PLANE == 1:
        return cell
    query = query_height * query_width
    support = support_height * support_width
    shot = cell // (query * support)
    return (shot * support + cell % support) * query + cell // support % query
